"""Named metrics over lists of strings, their signatures, and how results are shown and stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from slt_plugin.scoring.breakdown import Group
from slt_plugin.scoring.hypotheses import write_text_atomically
from slt_plugin.scoring.intervals import Comparison, Interval
from slt_plugin.scoring.metrics import (
    DEFAULT_METRICS,
    LOWER_IS_BETTER,
    METRICS,
    check_metrics,
    check_pairs,
    signature,
    statistics,
)
from slt_plugin.scoring.settings import Settings

__all__ = [
    "DEFAULT_METRICS",
    "LOWER_IS_BETTER",
    "METRICS",
    "check_metrics",
    "check_pairs",
    "format_breakdown",
    "format_comparison",
    "format_table",
    "score",
    "signatures",
    "write_metrics",
]
NO_SCORE = "-"


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008  frozen
) -> dict[str, float]:
    """Corpus scores in percent, one reference a hypothesis, in the order of ``metrics`` (keys of METRICS).

    ``word_accuracy`` is 100 - ``wer`` and therefore negative where a system makes more errors than there are words.

    Raises:
        ScoringError: different lengths, nothing to score, empty references (with counts), unknown metrics, settings
            that a metric lacks, a BLEURT checkpoint that cannot be used.
    """
    return {name: found.score() for name, found in statistics(hypotheses, references, metrics, settings).items()}


def signatures(
    metrics: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008  frozen
) -> dict[str, str]:
    """How each metric is computed: sacrebleu's signatures, others in the same style, and every setting in force.

    Raises:
        ScoringError: unknown metrics, settings that a metric lacks, a BLEURT checkpoint that cannot be used.
    """
    check_metrics(metrics)
    settings.check(metrics)
    return {name: signature(name, settings) for name in metrics}


def format_table(
    scores: Mapping[str, float], signatures: Mapping[str, str], intervals: Mapping[str, Interval] | None = None
) -> str:
    """Lines of: metric, name, score with 2 decimals, 95 % interval if given, signature. No trailing line end."""
    rows = [("metric", "", "score", "95 % interval", "signature")]
    for name, value in scores.items():
        interval = f"{intervals[name].low:.2f} to {intervals[name].high:.2f}" if intervals else ""
        rows.append((name, METRICS[name], f"{value:.2f}", interval, signatures[name]))
    return _aligned(rows if intervals else [(*row[:3], row[4]) for row in rows], right={2, 3} if intervals else {2})


def format_comparison(
    scores: Mapping[str, float], baseline: Mapping[str, float], compared: Mapping[str, Comparison]
) -> str:
    """Lines of: metric, the baseline's score, ours, the difference (marked where it is one for the worse), p."""
    rows = [("metric", "baseline", "score", "difference", "", "p")]
    for name, value in scores.items():
        change = value - baseline[name]
        worse = change > 0 if name in LOWER_IS_BETTER else change < 0
        numbers = (f"{baseline[name]:.2f}", f"{value:.2f}", f"{change:+.2f}")
        rows.append((name, *numbers, "worse" if worse else "", f"{compared[name].p_value:.3f}"))
    return _aligned(rows, right={1, 2, 3, 5})


def format_breakdown(groups: Sequence[Group]) -> str:
    """A block for each property: its values, how many sentences have them, their scores."""
    blocks = []
    for by in dict.fromkeys(group.by for group in groups):
        rows = [group for group in groups if group.by == by]
        names = list(rows[0].scores)
        table = [(by, "sentences", *names)]
        for group in rows:
            cells = [NO_SCORE if value is None else f"{value:.2f}" for value in group.scores.values()]
            table.append((group.value, str(group.sentences), *cells))
        blocks.append(_aligned(table, right=set(range(1, len(names) + 2))))
    return "\n\n".join(blocks)


def write_metrics(
    path: str | Path,
    scores: Mapping[str, float],
    signatures: Mapping[str, str],
    *,
    sentences: int,
    references: str,
    lowercase: bool = False,
    intervals: Mapping[str, Interval] | None = None,
    bootstrap: str | None = None,
    groups: Sequence[Group] | None = None,
    against: Mapping[str, object] | None = None,
) -> None:
    """``metrics.json``: scores in percent, signatures, number of sentences; ``references`` says where they are from.

    ``intervals`` are 95 % intervals, ``bootstrap`` says how they and p-values were found, ``groups`` are a breakdown,
    ``against`` is a comparison; without them their keys are not written.
    """
    document: dict[str, object] = {
        "metrics": dict(scores),
        "signatures": dict(signatures),
        "sentences": sentences,
        "lowercase": lowercase,
        "references": references,
    }
    if intervals is not None:
        document["intervals"] = {name: [interval.low, interval.high] for name, interval in intervals.items()}
    if bootstrap is not None:
        document["bootstrap"] = bootstrap
    if groups is not None:
        document["breakdown"] = [asdict(group) for group in groups]
    if against is not None:
        document["against"] = dict(against)
    write_text_atomically(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """Columns two spaces apart, those in ``right`` flush right; the last one is not filled up."""
    last = len(rows[0]) - 1
    widths = [max(len(row[column]) for row in rows) for column in range(last + 1)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(widths[i]) if i in right else cell if i == last else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
