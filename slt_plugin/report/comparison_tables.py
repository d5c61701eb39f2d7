"""A comparison as tables for people and as records for programs."""

from collections.abc import Callable, Sequence

from slt_plugin.report.compare import FACTS, LABELS, Comparison, Measured, System, fact_of, score_of
from slt_plugin.report.published import Published
from slt_plugin.report.tables import Table
from slt_plugin.scoring.report import LOWER_IS_BETTER

SCORES_TITLE, COSTS_TITLE = "Scores (percent)", "Size, speed and cost"
UNKNOWN = "-"


def _plain(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{digits}f}"


def _millions(value: float) -> str:
    return f"{value / 1e6:,.2f} M"


# the columns of the second table: title and how a number is written
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", _millions),
    "trainable": ("trainable", _millions),
    "checkpoint_mb": ("checkpoint MB", _plain(1)),
    "weights_mb": ("weights MB", _plain(1)),
    "gflops_per_second_of_signing": ("GFLOPs per s of signing", lambda value: f"{value:,.4g}"),
    "sentences_per_second": ("sentences/s", _plain(1)),
    "signing_seconds_per_second": ("s of signing/s", _plain(1)),
    "peak_memory_mb": ("peak memory MB", _plain(0)),
    "updates": ("updates", _plain(0)),
    "gpu_hours": ("GPU hours", _plain(2)),
    "cpu_hours": ("CPU hours", _plain(2)),
}


def tables(comparison: Comparison) -> list[Table]:
    """Scores; and size, speed and cost where anything of them is known."""
    found = [_scores(comparison)]
    if any(fact_of(system, fact) for system in comparison.systems for fact in COSTS):
        found.append(_costs(comparison))
    return found


def records(comparison: Comparison) -> list[dict[str, object]]:
    """One flat dict a row, all of the same keys; None where nothing is known."""
    facts = [fact for fact in COSTS if fact in FACTS]
    found = []
    for system in comparison.systems:
        row: dict[str, object] = {
            "system": system.name,
            "kind": "own",
            "training_data": None,
            "runs": len(system.results),
            "sentences": _sentences(system),
        }
        for metric in comparison.metrics:
            signatures = dict.fromkeys(r.signatures[metric] for r in system.results if metric in r.scores)
            row |= _numbers(metric, score_of(system, metric))
            row |= {
                f"{metric}_p": comparison.p_values.get(system.name, {}).get(metric),
                f"{metric}_approximate": None,
                f"{metric}_signature": " / ".join(signatures) or None,
            }
        for fact in facts:
            row |= _numbers(fact, fact_of(system, fact))
        found.append(
            row | {"device": _device(system), "source": ",".join(str(r.path) for r in system.results), "second_hand": 0}
        )
    for published in comparison.published:
        row = dict.fromkeys(found[0])
        row |= {"system": published.system, "kind": "published", "training_data": published.training}
        for metric in comparison.metrics:
            if score := published.scores.get(metric):
                row |= {metric: score.value, f"{metric}_approximate": int(score.approximate)}
        found.append(row | {"source": published.source, "second_hand": int(published.second_hand)})
    return found


def _numbers(key: str, value: Measured | None) -> dict[str, float | None]:
    if value is None:
        return {key: None, f"{key}_std": None}
    mean = int(value.mean) if value.mean.is_integer() and not value.std else value.mean
    return {key: mean, f"{key}_std": value.std}


def _scores(comparison: Comparison) -> Table:
    metrics, published = comparison.metrics, comparison.published
    data = ("training data",) if published else ()
    ours = []
    for system in comparison.systems:
        marks = {metric: _mark(p) for metric, p in comparison.p_values.get(system.name, {}).items()}
        cells = [_show(score_of(system, m), _plain(2)) + marks.get(m, "") for m in metrics]
        ours.append((system.name, *("" for _ in data), *cells, _source(system)))
    theirs = [
        (row.system, row.training, *(_published_score(row, m) for m in metrics), "†" * row.second_hand + row.source)
        for row in published
    ]
    header = ("system", *data, *map(_label, metrics), "source")
    first = 1 + len(data)
    return Table(SCORES_TITLE, header, (tuple(ours), tuple(theirs)), range(first, first + len(metrics)))


def _costs(comparison: Comparison) -> Table:
    shown = [fact for fact in COSTS if any(fact_of(system, fact) for system in comparison.systems)]
    rows = [
        (system.name, *(_show(fact_of(system, fact), COSTS[fact][1]) or UNKNOWN for fact in shown), _device(system))
        for system in comparison.systems
    ]
    header = ("system", *(COSTS[fact][0] for fact in shown), "decoded on")
    return Table(COSTS_TITLE, header, (tuple(rows),), range(1, 1 + len(shown)))


def _label(metric: str) -> str:
    return LABELS.get(metric, metric) + " ↓" * (metric in LOWER_IS_BETTER)


def _show(value: Measured | None, write: Callable[[float], str]) -> str:
    """Mean ± deviation; the mean alone of one run, or where all runs agree."""
    if value is None:
        return ""
    return write(value.mean) + (f" ± {write(value.std)}" if value.std else "")


def _mark(p_value: float) -> str:
    """The limits of two-sided tests at 1 and 5 %, for sacrebleu's one-sided p (see `scoring.intervals`)."""
    return "**" if p_value < 0.005 else "*" if p_value < 0.025 else ""


def _published_score(row: Published, metric: str) -> str:
    score = row.scores.get(metric)
    return "" if score is None else f"{'~' * score.approximate}{score.value}"


def _source(system: System) -> str:
    paths = ", ".join(str(result.path) for result in system.results)
    return f"{paths} ({_sentences(system)} sentences)"


def _sentences(system: System) -> str:
    return " and ".join(map(str, sorted({result.sentences for result in system.results})))


def _device(system: System) -> str:
    """What decoding was timed on, of all runs."""
    names: Sequence[str] = dict.fromkeys(str(r.speed["device"]) for r in system.results if r.speed.get("device"))
    return " and ".join(names)
