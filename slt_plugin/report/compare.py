"""Systems side by side: scores over seeds, whether they differ from the first one's, size, speed and cost."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.report.errors import ReportError
from slt_plugin.report.published import METRICS, NOTES, PUBLISHED, Published, corpus_name
from slt_plugin.report.results import Result
from slt_plugin.report.significance import Significance, common_results, significance
from slt_plugin.scoring.intervals import SAMPLES, SEED, bootstrap_signature

LABELS = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "bleurt": "BLEURT",
    "chrf": "chrF",
    "chrf2": "chrF++",
    "reduced_bleu": "reduced BLEU (empty dropped)",
    "reduced_bleu_kept": "reduced BLEU (empty kept)",
    "wer": "WER",
    "cer": "CER",
    "word_accuracy": "word accuracy",
}
UNKNOWN_WAY = (
    "Published numbers: † marks what is second-hand (its source says how, where that was noted), ~ a derived or less "
    "certain one. How a paper computed its scores (casing, tokenisation, which references) is not recorded here"
)


class Measured(NamedTuple):
    """A number over the ``runs`` that have it; ``std``: of a sample (n - 1), None for one run."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class System:
    """What the user gave one name: one run, or several seeds of the same thing."""

    name: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Comparison:
    """All that the tables show.

    Attributes:
        metrics: of the columns, in order.
        p_values: of systems after the first: metric -> probability of so large a difference by chance.
        published: rows of other people; () where none were asked for.
    """

    systems: tuple[System, ...]
    metrics: tuple[str, ...]
    p_values: Mapping[str, Mapping[str, float]]
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = field(default=())


FACTS: dict[str, Callable[[Result], object]] = {
    "parameters": lambda result: result.model.get("parameters"),
    "trainable": lambda result: result.model.get("trainable"),
    "checkpoint_mb": lambda result: result.model.get("checkpoint_mb"),
    "weights_mb": lambda result: result.model.get("weights_mb"),
    "gflops_per_second_of_signing": lambda result: result.model.get("gflops_per_second_of_signing"),
    "sentences_per_second": lambda result: result.speed.get("sentences_per_second"),
    "signing_seconds_per_second": lambda result: result.speed.get("signing_seconds_per_second"),
    "peak_memory_mb": lambda result: result.speed.get("peak_memory_mb"),
    "updates": lambda result: result.training.get("updates"),
    "gpu_hours": lambda result: result.training.get("gpu_hours"),
    "cpu_hours": lambda result: result.training.get("cpu_hours"),
}


def compare(
    systems: Sequence[System],
    *,
    corpus: str | None = None,
    metrics: Sequence[str] | None = None,
    common: bool = False,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Puts systems side by side.

    Args:
        corpus: whose published scores stand below; None: none.
        metrics: the columns; None: all that somebody has.
        common: score all of them again, on the sentences that all have.
        samples: of the bootstrap behind the p-values; 0: no p-values.

    Raises:
        ReportError: nothing is recorded of ``corpus``, a metric that nobody has, or none that is shared with
            ``corpus``, or sentences that cannot be compared.
        ScoringError: hypotheses that cannot be read.
    """
    notes, left_out = [], {}
    if common:
        found = common_results([system.results for system in systems])
        systems = [System(system.name, results) for system, results in zip(systems, found.systems, strict=True)]
        left_out = found.left_out
        notes.append(f"All scores are of the {found.sentences} sentences that all have.")
        if shown := {m: reason for m, reason in left_out.items() if not metrics or m in metrics}:
            notes.append(f"Left out under --common: {_left_out(shown)}.")
    corpus = None if corpus is None else corpus_name(corpus)
    published = () if corpus is None else PUBLISHED[corpus]
    columns = _columns(systems, published, corpus, metrics, left_out)
    differences = significance([(system.name, system.results[0]) for system in systems], columns, samples, seed)
    notes += _cautions(systems) + _incomplete(systems, columns)
    notes += _significance_notes(systems, differences, columns, samples, seed)
    if corpus is not None:
        notes += [f"{corpus}: {NOTES[corpus]}.", f"{UNKNOWN_WAY}."]
    notes += _model_notes(systems) + _signatures(systems, columns)
    return Comparison(tuple(systems), tuple(columns), differences.p_values, published, tuple(notes))


def measured(values: Sequence[object]) -> Measured | None:
    """Mean and deviation of the numbers among ``values``; None where there is none."""
    known = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not known:
        return None
    return Measured(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def score_of(system: System, metric: str) -> Measured | None:
    """Over the system's runs."""
    return measured([result.scores.get(metric) for result in system.results])


def fact_of(system: System, fact: str) -> Measured | None:
    """``fact``: a key of FACTS."""
    return measured([FACTS[fact](result) for result in system.results])


def _left_out(reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{LABELS.get(metric, metric)} ({reason})" for metric, reason in reasons.items())


def _columns(
    systems: Sequence[System],
    published: Sequence[Published],
    corpus: str | None,
    metrics: Sequence[str] | None,
    left_out: Mapping[str, str],
) -> list[str]:
    """``left_out``: see `significance.Common`."""
    ours = dict.fromkeys(metric for system in systems for result in system.results for metric in result.scores)
    theirs = {metric for row in published for metric in row.scores}
    if metrics:
        for metric in metrics:
            if metric not in ours and metric not in theirs:
                known = [*ours, *sorted(theirs - set(ours))]
                if metric in left_out:
                    raise ReportError(
                        f"--metrics {metric} was left out under --common ({left_out[metric]}); there are "
                        f"{listing(known, 20)}"
                    )
                raise ReportError(
                    f"--metrics {metric}: no system has it{did_you_mean(metric, known)}; there are {listing(known, 20)}"
                )
        ours = {metric: None for metric in ours if metric in metrics}
    if published and not set(ours) & theirs:
        without = f"; left out under --common: {_left_out(left_out)}" if left_out else ""
        raise ReportError(
            f"none of {listing(sorted(ours))} was published for {corpus}: score with {', '.join(sorted(theirs))} too"
            f"{without}"
        )
    if metrics:
        return list(dict.fromkeys(metrics))
    columns = [metric for metric in METRICS if metric in ours or metric in theirs]
    return columns + [metric for metric in ours if metric not in columns]


def _cautions(systems: Sequence[System]) -> list[str]:
    """Why our own rows may not be comparable with each other or with anything."""
    notes = []
    lower = [s.name for s in systems if any(result.lowercase for result in s.results)]
    if lower:
        notes.append(f"Scored with both sides lower-cased, which raises scores: {listing(lower)}.")
    round_trip = [s.name for s in systems if any("ROUND TRIP" in result.references for result in s.results)]
    if round_trip:
        notes.append(f"Scored against references out of the vocabulary, not the raw texts: {listing(round_trip)}.")
    counts = {s.name: sorted({result.sentences for result in s.results}) for s in systems}
    if len({count for found in counts.values() for count in found}) > 1:
        shown = ", ".join(f"{name} {' and '.join(map(str, found))}" for name, found in counts.items())
        notes.append(f"Our rows are of different sets of sentences: {shown}. With --common those that all have count.")
    if any(len(system.results) > 1 for system in systems):
        runs = ", ".join(f"{system.name} {len(system.results)}" for system in systems)
        notes.append(f"Mean ± standard deviation (n - 1) over runs: {runs}.")
        for system in systems:
            seeds = [result.training.get("seed") for result in system.results]
            twice = sorted({seed for seed in seeds if seed is not None and seeds.count(seed) > 1})
            if twice:
                notes.append(f"{system.name}: seed {listing(twice)} more than once.")
    return notes


def _incomplete(systems: Sequence[System], columns: Sequence[str]) -> list[str]:
    """Numbers that not every run of a system has, so that their means are over fewer."""
    notes = []
    for system in systems:
        numbers = {LABELS.get(metric, metric): score_of(system, metric) for metric in columns}
        numbers |= {fact.replace("_", " "): fact_of(system, fact) for fact in FACTS}
        count = len(system.results)
        short = [f"{name} of {n.runs}" for name, n in numbers.items() if n is not None and n.runs < count]
        if short:
            notes.append(f"{system.name}: not all of its {count} runs have every number: {listing(short, 30)}.")
    return notes


def _significance_notes(
    systems: Sequence[System], found: Significance, columns: Sequence[str], samples: int, seed: int
) -> list[str]:
    notes = [f"No p-values for {name}: {reason}." for name, reason in found.missing.items()]
    if not found.p_values:
        return notes
    runs = ", the first runs" if any(len(system.results) > 1 for system in systems) else ""
    notes.append(
        f"* differs from {systems[0].name} with p < 0.025, ** with p < 0.005 (two-sided 5 % and 1 %: sacrebleu's p is "
        f"one-sided): paired bootstrap over the sentences that both have{runs}, {bootstrap_signature(samples, seed)}."
    )
    for name, values in found.p_values.items():
        each = ", ".join(f"{LABELS.get(m, m)} {values[m]:.3f}" for m in columns if m in values)
        notes.append(f"p of {name} ({found.sentences[name]} sentences): {each}.")
    return notes


def _model_notes(systems: Sequence[System]) -> list[str]:
    """What is said of models, each text once with the names it is true of."""
    said: dict[str, list[str]] = {}
    for system in systems:
        for note in dict.fromkeys(note for result in system.results for note in result.model.get("notes") or ()):
            said.setdefault(str(note), []).append(system.name)
    return [f"{', '.join(names)}: {note}." for note, names in said.items()]


def _signatures(systems: Sequence[System], columns: Sequence[str]) -> list[str]:
    """How each of our metrics was computed; where systems differ, each."""
    lines = []
    for metric in columns:
        of: dict[str, list[str]] = {}
        for system in systems:
            for result in system.results:
                if metric in result.scores:
                    of.setdefault(result.signatures[metric], []).append(system.name)
        label = LABELS.get(metric, metric)
        if len(of) == 1:
            lines.append(f"{label}: {next(iter(of))}")
        elif of:
            lines += [f"{label} of {', '.join(dict.fromkeys(names))}: {text}" for text, names in of.items()]
            lines.append(f"{label} was computed in different ways: do not compare it.")
    return lines
