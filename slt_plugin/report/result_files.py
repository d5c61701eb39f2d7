"""The files of a results folder by name, and what everything that reads them shares."""

import json
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.report.errors import ReportError

METRICS_FILE, HYPOTHESES_FILE, EVIDENCE_FILE = "metrics.json", "hypotheses.jsonl", "evidence.json"


def read_object(path: Path, remedy: str, called: str | None = None) -> dict:
    """The JSON object in a file.

    Args:
        remedy: what to do about a damaged file, the end of every message.
        called: what messages call the file; default: its path.

    Raises:
        ReportError: it cannot be read, or holds something else.
    """
    called = called or str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{called} cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError as error:
        raise ReportError(f"{called} is no JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{called} holds a JSON {type(content).__name__}, not an object; {remedy}")
    return content


def results_below(folder: Path) -> str:
    """'; there is a, b: choose one' of the results folders in a folder; '' where there are none."""
    below = sorted(str(path.parent) for path in folder.glob(f"*/{METRICS_FILE}")) if folder.is_dir() else []
    return f"; there is {listing(below)}: choose one" if below else ""


def check_sentences(folder: Path, scored: object) -> None:
    """Refuses scores beside the sentences of another run: one that was stopped after it wrote one of the two.

    Args:
        scored: "sentences" of metrics.json.

    Raises:
        ReportError: hypotheses.jsonl has another number of lines, or cannot be read.
    """
    path = folder / HYPOTHESES_FILE
    try:
        with path.open("rb") as file:
            lines = sum(1 for line in file if line.strip())
    except OSError as error:
        raise ReportError(f"{path} cannot be read ({error.strerror or error}): run slt-evaluate again") from error
    if lines != scored:
        raise ReportError(
            f"{folder}: {METRICS_FILE} is of {scored} sentences, and {HYPOTHESES_FILE} has {lines}: they are of two "
            "runs; run slt-evaluate again"
        )
