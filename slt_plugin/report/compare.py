"""Own scores beside published ones in one table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.report.errors import ReportError
from slt_plugin.report.published import METRICS, NOTES, published_rows

LABELS = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "bleurt": "BLEURT",
    "chrf": "chrF",
    "chrf2": "chrF++",
}
UNKNOWN_WAY = (
    "Published numbers: ~ marks a derived or less certain one. How a paper computed its scores (casing, tokenisation, "
    "which references) is not recorded here"
)


@dataclass(frozen=True)
class System:
    """One of our own: a file that ``slt-score --json`` or ``slt-evaluate`` wrote."""

    name: str
    path: Path
    scores: dict[str, float]
    signatures: dict[str, str]
    sentences: int
    references: str
    lowercase: bool


def read_system(name: str, path: Path) -> System:
    """Raises ReportError where the file cannot be read or holds no scores."""
    wanted = "give a file of slt-score --json, or the metrics.json of slt-evaluate"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{name}={path} cannot be read ({error.strerror or error}); {wanted}") from error
    except ValueError as error:
        raise ReportError(f"{name}={path} is no JSON ({error}); {wanted}") from error
    try:
        scores = {str(metric): float(value) for metric, value in content["metrics"].items()}
        signatures = {metric: str(content["signatures"][metric]) for metric in scores}
        system = System(
            name,
            path,
            scores,
            signatures,
            int(content["sentences"]),
            str(content["references"]),
            bool(content["lowercase"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{name}={path} holds no scores (metrics, signatures, ...: {error!r}); {wanted}") from error
    if not scores:
        raise ReportError(f"{name}={path} holds no scores; {wanted}")
    return system


def comparison(systems: Sequence[System], corpus: str | None) -> str:
    """The table, what to know of it, and how our scores were computed.

    Args:
        corpus: whose published scores stand below; None: none.

    Raises:
        ReportError: nothing is recorded of ``corpus``, or no metric is shared with it.
    """
    published = () if corpus is None else published_rows(corpus)
    ours = {metric for system in systems for metric in system.scores}
    theirs = {metric for row in published for metric in row.scores}
    if published and not ours & theirs:
        raise ReportError(
            f"none of {listing(sorted(ours))} was published for {corpus}: score with {', '.join(sorted(theirs))} too"
        )
    columns = [metric for metric in METRICS if metric in ours | theirs]
    columns += [metric for system in systems for metric in system.scores if metric not in columns]
    columns = list(dict.fromkeys(columns))
    lines = [["system", "training data", *(LABELS.get(metric, metric) for metric in columns), "source"]]
    for system in systems:
        cells = [f"{system.scores[metric]:.2f}" if metric in system.scores else "" for metric in columns]
        lines.append([system.name, "", *cells, f"{system.path} ({system.sentences} sentences)"])
    for row in published:
        found = [row.scores.get(metric) for metric in columns]
        cells = ["" if score is None else f"{'~' * score.approximate}{score.value}" for score in found]
        lines.append([row.system, row.training, *cells, row.source])
    notes = _cautions(systems)
    if corpus is not None:
        notes += [f"{corpus}: {NOTES[corpus]}.", f"{UNKNOWN_WAY}."]
    return "\n".join([aligned(lines, numbers=range(2, 2 + len(columns))), *notes, *_signatures(systems)])


def _cautions(systems: Sequence[System]) -> list[str]:
    """Why our own rows may not be comparable with each other or with anything."""
    notes = []
    lower = [system.name for system in systems if system.lowercase]
    if lower:
        notes.append(f"Scored with both sides lower-cased, which raises scores: {listing(lower)}.")
    round_trip = [system.name for system in systems if "ROUND TRIP" in system.references]
    if round_trip:
        notes.append(f"Scored against references out of the vocabulary, not the raw texts: {listing(round_trip)}.")
    if len({system.sentences for system in systems}) > 1:
        counts = ", ".join(f"{system.name} {system.sentences}" for system in systems)
        notes.append(f"Our rows are of different sets of sentences: {counts}.")
    return notes


def _signatures(systems: Sequence[System]) -> list[str]:
    """How each of our metrics was computed; where systems differ, each."""
    lines = []
    for metric in dict.fromkeys(metric for system in systems for metric in system.scores):
        of = {system.name: system.signatures[metric] for system in systems if metric in system.scores}
        if len(set(of.values())) == 1:
            lines.append(f"{LABELS.get(metric, metric)}: {next(iter(of.values()))}")
        else:
            lines += [f"{LABELS.get(metric, metric)} of {name}: {text}" for name, text in of.items()]
            lines.append(f"{LABELS.get(metric, metric)} was computed in different ways: do not compare it.")
    return lines


def aligned(lines: Sequence[Sequence[str]], numbers: range) -> str:
    """Columns of equal width; those of ``numbers`` are set to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        rows.append("  ".join(c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return "\n".join(rows)
