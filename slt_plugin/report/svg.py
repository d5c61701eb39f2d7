"""matplotlib figures as SVG for a page: colours of the page's theme, nothing that a strict CSP forbids.

matplotlib writes ``<style>`` elements and ``style`` attributes, which a policy without 'unsafe-inline' blocks, fixed
colours, which a dark page cannot change, and ids that are the same in every figure. All three are rewritten here.
"""

import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What to draw with, and what the page makes of it. No other colours may be used in a figure.
THEME = {
    "#010101": "currentColor",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#0a0000": "var(--c1)",
    "#0b0000": "var(--c2)",
    "#0c0000": "var(--c3)",
    "#0d0000": "var(--c4)",
}
INK, MUTED, LINE, *SERIES = THEME

_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be read, searched, and has the page's font
    "svg.hashsalt": "report",  # the same figure gives the same file
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
}


def style():
    """A context in which figures are made and drawn."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches (72 points each), outside of pyplot's state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def printable(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def to_svg(figure: Figure, name: str, label: str) -> str:
    """An ``<svg>`` element to put into a page.

    Args:
        name: unique on the page; begins the element's ids.
        label: what the picture shows, for those who do not see it.
    """
    with io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        root = ElementTree.fromstring(file.getvalue())
    width, height = (float(root.get(side, "0").removesuffix("pt")) for side in ("width", "height"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _rewrite(element, name)
    root.attrib.update({"role": "img", "aria-label": printable(label), "class": "plot"})
    root.attrib.pop("version", None)
    root.set("width", f"{width:g}")
    root.set("height", f"{height:g}")
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _rewrite(element: ElementTree.Element, name: str) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        what, colon, value = declaration.partition(":")
        if not colon:
            continue
        what, value = what.strip(), value.strip()
        if what.startswith("font"):
            # "font: 9.5px 'DejaVu Sans'": the size alone, the family is the page's
            if size := re.search(r"[\d.]+(?=px)", value):
                element.set("font-size", size[0])
            if "bold" in value or re.search(r"\b[67]00\b", value):
                element.set("font-weight", "600")
        else:
            element.set(what, value)
    for what, value in element.attrib.items():
        if what == "id":
            element.set(what, f"{name}-{value}")
        elif what.endswith("href") and value.startswith("#"):
            element.set(what, f"#{name}-{value[1:]}")
        elif value.startswith("url(#"):
            element.set(what, f"url(#{name}-{value[5:]}")
        elif what in ("fill", "stroke"):
            element.set(what, THEME.get(value.lower(), value))
    if element.tag == f"{{{SVG}}}text" and "fill" not in element.attrib:
        element.set("fill", "currentColor")
