"""Whether systems differ by more than chance, and scores on the sentences that all of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slt_plugin.common.messages import listing
from slt_plugin.report.errors import ReportError
from slt_plugin.report.results import Result
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses
from slt_plugin.scoring.intervals import paired
from slt_plugin.scoring.report import METRICS, score, signatures
from slt_plugin.scoring.settings import Settings


@dataclass(frozen=True)
class Significance:
    """Of the systems after the first.

    Attributes:
        p_values: name -> metric -> p.
        sentences: name -> how many were compared.
        missing: name -> why there are none (or fewer).
    """

    p_values: dict[str, dict[str, float]] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def significance(
    runs: Sequence[tuple[str, Result]], metrics: Sequence[str], samples: int, seed: int, least: int = 2
) -> Significance:
    """Compares every run with the first by a paired bootstrap, on the sentences that both have.

    Args:
        runs: names and results.
        samples: of the bootstrap; 0: nothing is compared.
        least: sentences that are too few below.

    Raises:
        ScoringError: hypotheses that cannot be read.
    """
    found = Significance()
    if samples == 0 or len(runs) < 2:
        return found
    (first_name, first), *others = runs
    for name, result in others:
        lacking = [n for n, r in ((first_name, first), (name, result)) if r.hypotheses is None]
        if lacking:
            found.missing[name] = f"no sentences (hypotheses.jsonl) beside the scores of {listing(lacking)}"
            continue
        ours, theirs = _by_id(first), _by_id(result)
        both = [key for key in ours if key in theirs]
        if len(both) < least:
            found.missing[name] = f"{len(both)} sentences in common with {first_name}"
            continue
        if problem := _other_references(ours, theirs, both):
            found.missing[name] = problem
            continue
        alike = [m for m in metrics if m in first.scores and first.signatures[m] == result.signatures.get(m)]
        usable = [m for m in alike if _reproducible(m, first)]
        if left := [m for m in alike if m not in usable]:
            found.missing[name] = f"{listing(left)} (computed with a list or model that is not at hand)"
        elif not usable:
            found.missing[name] = "the two have no metric that was computed in one way"
        if not usable:
            continue
        compared = paired(
            [ours[key].hyp for key in both],
            {name: [theirs[key].hyp for key in both]},
            [ours[key].ref for key in both],
            usable,
            settings=Settings(lowercase=first.lowercase),
            samples=samples,
            seed=seed,
        )[name]
        found.p_values[name] = {metric: compared[metric].p_value for metric in usable}
        found.sentences[name] = len(both)
    return found


@dataclass(frozen=True)
class Common:
    """Results scored again on the sentences that all of them have.

    Attributes:
        systems: as they were given, with the scores of these sentences.
        sentences: how many these are.
        left_out: metric -> why it could not be computed again for one of them or more.
    """

    systems: list[tuple[Result, ...]]
    sentences: int
    left_out: dict[str, str]


def common_results(systems: Sequence[Sequence[Result]]) -> Common:
    """See `Common`.

    Raises:
        ReportError: a result without sentences, none in common, other references, or no metric that can be repeated.
        ScoringError: hypotheses that cannot be read.
    """
    results = [result for system in systems for result in system]
    lacking = [str(result.path) for result in results if result.hypotheses is None]
    if lacking:
        raise ReportError(
            f"--common needs the sentences, and there is no hypotheses.jsonl beside the scores of {listing(lacking)}: "
            "give results folders of slt-evaluate"
        )
    read = {id(result): _by_id(result) for result in results}
    first = read[id(results[0])]
    both = [key for key in first if all(key in sentences for sentences in read.values())]
    if not both:
        counts = ", ".join(f"{result.path} {len(read[id(result)])}" for result in results)
        raise ReportError(f"--common: no sentence is in all of them ({counts}): they are of different test sets")
    for result in results[1:]:
        if problem := _other_references(first, read[id(result)], both):
            raise ReportError(f"--common: {results[0].path} and {result.path}: {problem}")
    again = [tuple(_scored_again(result, read[id(result)], both) for result in system) for system in systems]
    return Common(again, len(both), _left_out(results))


def _left_out(results: Sequence[Result]) -> dict[str, str]:
    """See `Common.left_out`; the results that it is true of are named where it is not true of all."""
    found: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for metric in result.scores:
            if reason := _unrepeatable(metric, result):
                found.setdefault(metric, {}).setdefault(reason, []).append(str(result.path))
    return {
        metric: "; ".join(
            reason if len(paths) == len(results) else f"{listing(paths)}: {reason}" for reason, paths in reasons.items()
        )
        for metric, reasons in found.items()
    }


def _scored_again(result: Result, sentences: Mapping[str, Hypothesis], keys: Sequence[str]) -> Result:
    reasons = {metric: _unrepeatable(metric, result) for metric in result.scores}
    metrics = [metric for metric, reason in reasons.items() if not reason]
    if not metrics:
        shown = ", ".join(f"{metric} ({reason})" for metric, reason in reasons.items())
        raise ReportError(
            f"--common: {result.path} has no metric that can be computed again without further files; there is {shown}"
        )
    settings = Settings(lowercase=result.lowercase)
    hypotheses, references = [sentences[key].hyp for key in keys], [sentences[key].ref for key in keys]
    scores = score(hypotheses, references, metrics, settings)
    kept = {metric: result.signatures[metric] for metric in metrics}
    return replace(result, scores=scores, signatures=kept, sentences=len(keys))


def _reproducible(metric: str, result: Result) -> bool:
    """Whether a result's score can be computed again from its sentences alone."""
    return metric in result.scores and not _unrepeatable(metric, result)


def _unrepeatable(metric: str, result: Result) -> str:
    """Why a score cannot be computed again: its signature tells more than the casing; '' where it can."""
    text = result.signatures[metric]
    try:
        if signatures([metric], Settings(lowercase=result.lowercase))[metric] == text:
            return ""
    except ScoringError:  # needs a list or a model, or is no metric of ours
        return "needs a list or model that is not at hand" if metric in METRICS else "is no metric of slt-score"
    return "truecased with texts that are not at hand" if "|truecased:" in text else f"computed in another way: {text}"


def _by_id(result: Result) -> dict[str, Hypothesis]:
    return {sentence.id: sentence for sentence in read_hypotheses(result.hypotheses)}


def _other_references(ours: Mapping[str, Hypothesis], theirs: Mapping[str, Hypothesis], keys: Sequence[str]) -> str:
    """'' where the references agree."""
    differ = [key for key in keys if ours[key].ref != theirs[key].ref]
    return f"the references of {len(differ)} of {len(keys)} sentences differ: {listing(differ)}" if differ else ""
