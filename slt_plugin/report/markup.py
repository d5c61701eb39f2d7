"""HTML elements from values: what is not already `Html` is text, and text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

MOST_ON_A_PHONE = 3  # columns


class Html(str):
    """Markup that is put into a page as it is. Made by this module, and of figures that svg.py wrote."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. Children that are None or False are left out, lists are joined; ``class_`` is the class.

    Attributes: None and False leave it out, True writes the bare name, ``_`` in a name is ``-``.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        elif child is not None and child is not False:
            parts.append(escape(str(child)))
    return Html("".join(parts))


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str | None = None, few: Iterable[int] = ()
) -> Html:
    """A table whose first column names the row; numbers stand right. On a phone the rows of a wide one are blocks.

    Args:
        few: numbers of the rows to show muted.
    """
    few, rows = set(few), [list(row) for row in rows]
    numeric = [all(is_number(row[at]) for row in rows) for at in range(len(head))]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            [
                tag("td", cell, data_label=label, class_="number" if number else None)
                for label, cell, number in zip(head[1:], row[1:], numeric[1:], strict=True)
            ],
            class_="few" if at in few else None,
        )
        for at, row in enumerate(rows)
    ]
    heads = [
        tag("th", text, scope="col", class_="number" if n else None) for text, n in zip(head, numeric, strict=True)
    ]
    return tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", heads)),
        tag("tbody", body),
        class_="stack" if len(head) > MOST_ON_A_PHONE else None,
    )


def is_number(cell: object) -> bool:
    """Whether a cell's text is a number, or stands for an unknown one."""
    if isinstance(cell, Html):
        return False
    text = str(cell).replace(",", "")
    if text in ("–", ""):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def facts(pairs: Mapping[str, object] | Iterable[tuple[str, object]]) -> Html:
    """A list of names and values; a mapping or sequence inside is shown as one of its own."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return tag("dl", [[tag("dt", name), tag("dd", value_of(value))] for name, value in items], class_="facts")


def value_of(value: object) -> object:
    if isinstance(value, Html):
        return value
    if isinstance(value, Mapping):
        return facts({label(str(key)): inner for key, inner in value.items()}) if value else "none"
    if isinstance(value, (list, tuple)):
        if not value:
            return "none"
        plain = all(isinstance(inner, (str, int, float)) for inner in value)
        return ", ".join(map(str, value)) if plain else join(tag("div", value_of(inner)) for inner in value)
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value


def label(name: str) -> str:
    """A key of JSON as people read it; paths and the like stay as they are."""
    return name.replace("_", " ") if name.isidentifier() else name


def bar(share: float, *, mark: float | None = None) -> Html:
    """A bar of a share from 0 to 1, with a mark at another; for the eye alone, the number stands beside it."""

    def rect(x: float, width: float, kind: str) -> Html:
        return tag("rect", x=f"{x:.2f}", width=f"{width:.2f}", height=8, class_=kind)

    inside = min(1.0, max(0.0, share))
    parts = [rect(0, 100, "track"), rect(0, 100 * inside, "fill")]
    if mark is not None:
        parts.append(rect(100 * mark - 0.4, 0.8, "mark"))
    return tag("svg", parts, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def whisker(value: float, interval: tuple[float, float] | None) -> Html:
    """A score from 0 to 100 with its interval; for the eye alone."""

    def place(x: float) -> float:
        return min(100.0, max(0.0, x))

    parts = [tag("rect", x=0, y=4, width=100, height=2, class_="track")]
    if interval is not None:
        low, high = map(place, interval)
        parts.append(tag("rect", x=f"{low:.2f}", y=2, width=f"{max(high - low, 0.4):.2f}", height=6, class_="fill"))
    parts.append(tag("rect", x=f"{max(0.0, place(value) - 0.6):.2f}", y=0, width=1.2, height=10, class_="low"))
    return tag("svg", parts, viewBox="0 0 100 10", preserveAspectRatio="none", class_="whisker", aria_hidden="true")
