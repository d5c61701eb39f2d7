"""The metrics by name, and the statistics of each sentence that all scores are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.base import Metric

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.scoring import sacre
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.reduced_bleu import reduce_pairs
from slt_plugin.scoring.settings import Settings
from slt_plugin.scoring.wer import ErrorRate

METRICS: dict[str, str] = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "chrf": "chrF",
    "chrf2": "chrF++",
    "rouge_l": "ROUGE-L (rouge_score)",
    "wer": "word error rate",
    "cer": "character error rate",
    "word_accuracy": "100 - word error rate",
    "reduced_bleu": "reduced BLEU-4, empty references dropped",
    "reduced_bleu_kept": "reduced BLEU-4, empty references kept",
    "bleurt": "BLEURT",
}
REDUCED = ("reduced_bleu", "reduced_bleu_kept")
DEFAULT_METRICS = tuple(name for name in METRICS if name not in (*REDUCED, "bleurt"))  # those that need nothing else
LOWER_IS_BETTER = frozenset({"wer", "cer"})


@dataclass(frozen=True)
class Statistics:
    """What one metric needs of each sentence.

    Args:
        metric: sacrebleu's, or one of the same kind.
        rows: numbers of a sentence, as ``metric`` makes them; sums of rows give the score.
        sentences: the sentence (from 0) that each row is of; reduced BLEU leaves some out.
    """

    metric: Metric
    rows: list[list[float]]
    sentences: list[int]

    def score(self) -> float:
        """Corpus score in percent."""
        return self.score_of(range(len(self.rows)))

    def score_of(self, chosen: Sequence[int]) -> float:
        """Of the rows numbered ``chosen``, of which there must be one."""
        return float(self.metric._aggregate_and_compute([self.rows[i] for i in chosen]).score)


def build(name: str, settings: Settings) -> Metric:
    """The metric ``name``. Raises ScoringError where BLEURT cannot be loaded."""
    lowercase = settings.lowercase
    if name in ("wer", "word_accuracy"):
        return ErrorRate("word", accuracy=name == "word_accuracy", lowercase=lowercase)
    if name == "cer":
        return ErrorRate("char", lowercase=lowercase)
    if name == "rouge_l":
        from slt_plugin.scoring.rouge import RougeL  # more than a second: rouge_score imports all of nltk

        return RougeL()
    if name == "bleurt":
        from slt_plugin.scoring.bleurt import Bleurt

        return Bleurt(settings.bleurt, lowercase=lowercase)
    return sacre.build("bleu4" if name in REDUCED else name, lowercase=lowercase)


def statistics(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str], settings: Settings
) -> dict[str, Statistics]:
    """Of every metric, in the order of ``metrics``. Raises ScoringError on what cannot be scored."""
    check_metrics(metrics)
    settings.check(metrics)
    check_pairs(hypotheses, references)
    hypotheses, references = settings.prepare(hypotheses, references)
    found = {}
    for name in metrics:
        used, against, sentences = hypotheses, references, list(range(len(references)))
        if name in REDUCED:
            keep = name == "reduced_bleu_kept"
            used, against, sentences = reduce_pairs(hypotheses, references, settings.blacklist, keep_empty=keep)
        metric = build(name, settings)
        found[name] = Statistics(metric, metric._extract_corpus_statistics(used, [against]), sentences)
    return found


def signature(name: str, settings: Settings) -> str:
    """sacrebleu's signature of the metric, or one in its style, and what else is in force."""
    text = sacre.signature(build(name, settings))
    if name in REDUCED:
        text += f"|reduced:{'kept' if name == 'reduced_bleu_kept' else 'dropped'}"
        text += f"|blacklist:{settings.blacklist.signature}"
    if settings.truecaser is not None:
        text += f"|truecased:{settings.truecaser.signature}"
    return text


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises ScoringError on an empty list and on unknown names; the message lists the valid ones."""
    valid = ", ".join(f"{name} ({label})" for name, label in METRICS.items())
    if not metrics:
        raise ScoringError(f"no metric given; valid metrics: {valid}")
    for name in metrics:
        if name not in METRICS:
            hint = did_you_mean(name.lower(), METRICS)
            raise ScoringError(f"unknown metric {name!r}{hint or '.'} Choose from {valid}")


def check_pairs(hypotheses: Sequence[str], references: Sequence[str], ids: Sequence[str] | None = None) -> None:
    """Raises ScoringError where the two cannot be compared; ``ids`` name the sentences (else numbers from 1)."""
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ScoringError(f"{name} must be a list of strings, one a sentence")
    if len(hypotheses) != len(references):
        raise ScoringError(
            f"{len(hypotheses)} hypotheses but {len(references)} references; exactly one reference a hypothesis, "
            "in the same order, is needed"
        )
    if not references:
        raise ScoringError("0 hypotheses and 0 references: there is nothing to score")
    names = ids or [str(number) for number in range(1, len(references) + 1)]
    empty = [name for name, text in zip(names, references, strict=True) if not text.strip()]
    if empty:
        raise ScoringError(
            f"{len(empty)} of {len(references)} references are empty (sentence {listing(empty)}): a translation cannot "
            "be compared with nothing; fill in the text or remove these rows from the manifest"
        )
