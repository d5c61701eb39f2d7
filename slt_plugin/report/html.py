"""``report.html``: one file that shows an evaluation, made from its folder alone and read without any network."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template

from slt_plugin.common.files import atomic_open
from slt_plugin.report import plots, sections
from slt_plugin.report.curves import read_curves
from slt_plugin.report.errors import ReportError
from slt_plugin.report.markup import Html, join, tag
from slt_plugin.report.page_data import Sentences, page_json, sentences
from slt_plugin.report.results_folder import Results, read_results

REPORT_FILE = "report.html"
# in the order in which they use each other
SCRIPTS = ("report.js", "sentence.js", "timeline.js", "sentences.js")


def write_report(folder: Path) -> Path:
    """Makes ``report.html`` from what else lies in the folder; nothing is computed again that needs the model.

    Read are metrics.json, hypotheses.jsonl, evidence.json (where there is one), the manifest and the training's logs
    beside the checkpoint (where they still are).

    Returns:
        The file's path.

    Raises:
        ReportError: the folder is none of results, or a file in it cannot be read, or the report not written.
    """
    results = read_results(Path(folder))
    path = Path(folder) / REPORT_FILE
    page = render(results)
    try:
        with atomic_open(path) as file:
            file.write(page.encode("utf-8"))
    except OSError as error:
        raise ReportError(f"{path} cannot be written ({error.strerror or error}); check folder and space") from error
    return path


def render(results: Results) -> str:
    """The whole page."""
    known = sentences(results)
    css, script = _asset("report.css"), "\n".join(map(_asset, SCRIPTS))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_hash(css)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    title = f"{results.name}: evaluation"
    return Template(_asset("report.html")).substitute(
        policy=policy,
        title=join([title]),
        css=css,
        body=_body(results, known, title),
        data=page_json(known.records, results.evidence),
        script=script,
    )


def _body(results: Results, known: Sentences, title: str) -> Html:
    parts = (
        ("scores", "Scores", sections.scores(results)),
        ("sentences", "Sentences", _sentences(known)),
        ("evidence", "What it rests on", _evidence(results)),
        ("training", "Training", _curves(results)),
        ("errors", "Lengths and errors", _plots(known)),
        ("groups", "Breakdown", sections.breakdowns(results)),
        ("cost", "Model and speed", sections.speed_and_model(results)),
        ("data", "Data", sections.dataset(results)),
        ("making", "How it was made", sections.making(results)),
    )
    there = [(key, name, content) for key, name, content in parts if content]
    links = [tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in there]
    head = tag(
        "header",
        tag(
            "div",
            tag("h1", results.name),
            tag("button", "Theme", type="button", id="theme", hidden=True),
            class_="top-line",
        ),
        sections.lead(results),
        class_="top",
    )
    body = [
        tag("section", tag("h2", name, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title")
        for key, name, content in there
    ]
    return join([head, tag("nav", tag("ul", links), aria_label="Parts of this report"), tag("main", body)])


def _sentences(known: Sentences) -> Html:
    without = tag("noscript", tag("p", "The table of sentences needs JavaScript; they are in hypotheses.jsonl too."))
    return tag("div", without, tag("div", id="sentence-table"), class_="panel")


def _evidence(results: Results) -> Html | None:
    found = [
        part
        for part in (sections.faithfulness(results), sections.masked_parts(results), sections.saliency(results))
        if part
    ]
    return tag("div", found, class_="grid") if found else None


def _curves(results: Results) -> Html | None:
    """Of every training behind the checkpoints whose logs are still beside them."""
    folders = dict.fromkeys(Path(str(path)).parent for path in results.metrics.get("checkpoints") or [])
    panels, without = [], []
    for number, folder in enumerate(folders):
        curves = read_curves(folder)
        if not curves:
            without.append(str(folder))
            continue
        drawn = [plots.loss_plot(curves, f"loss{number}"), plots.score_plot(curves, f"scores{number}")]
        shown = [tag("div", Html(plot), class_="panel") for plot in drawn if plot]
        logs = ", ".join(str(path) for path in curves.logs)
        panels.append(join([tag("div", shown, class_="grid wide"), tag("p", f"From {logs}", class_="muted small")]))
    if without:
        panels.append(tag("p", f"No log of a training lies in {', '.join(without)}.", class_="muted small"))
    return join(panels) if panels else None


def _plots(known: Sentences) -> Html:
    chrf = [record["chrf"] for record in known.records]
    drawn = (
        plots.length_plot(known.reference_words, known.hypothesis_words, "lengths"),
        plots.score_by_length_plot(known.reference_words, chrf, "by-length"),
        plots.score_histogram(chrf, "spread"),
        plots.error_plot(known.errors, "word-errors"),
    )
    shown = [tag("div", Html(plot), class_="panel") for plot in drawn if plot]
    return tag("div", shown, sections.confusions(known), class_="grid wide")


@cache
def _asset(name: str) -> str:
    return files("slt_plugin.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a CSP names the one inline element that is allowed."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
