"""BLEU-1..4, chrF and chrF++ by sacrebleu, whole corpora and as sums over sentences.

BLEU-n is BLEU with ``max_ngram_order=n`` (cumulative, not the n-th precision), tokeniser 13a, exp smoothing,
cased: sacrebleu's defaults. The sums are for validation during training: each batch and each rank adds its sentences'
statistics, and the score of the sums is the corpus score. They come from sacrebleu's own functions, so nothing is
computed twice in two ways.
"""

from collections.abc import Callable, Sequence
from functools import cache

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

BUILDERS: dict[str, Callable[[bool], Metric]] = {
    "bleu1": lambda lowercase: BLEU(max_ngram_order=1, lowercase=lowercase),
    "bleu2": lambda lowercase: BLEU(max_ngram_order=2, lowercase=lowercase),
    "bleu3": lambda lowercase: BLEU(max_ngram_order=3, lowercase=lowercase),
    "bleu4": lambda lowercase: BLEU(max_ngram_order=4, lowercase=lowercase),
    "chrf": lambda lowercase: CHRF(lowercase=lowercase),
    "chrf2": lambda lowercase: CHRF(word_order=2, lowercase=lowercase),
}

BLEU_STATISTICS = 10  # hypothesis length, reference length, 4 n-gram matches, 4 n-gram counts
CHRF_STATISTICS = 18  # hypothesis count, reference count, matches for each of 6 character n-gram orders


@cache
def build(name: str, *, lowercase: bool = False) -> Metric:
    """sacrebleu's metric ``name`` (a key of BUILDERS)."""
    return BUILDERS[name](lowercase)


def signature(metric: Metric) -> str:
    """sacrebleu's signature, for example ``nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0``."""
    # sacrebleu knows the number of references, a part of the signature, only after it has seen some; there is always 1
    metric.num_refs = 1
    return str(metric.get_signature())


def bleu_statistics(hypothesis: str, reference: str) -> list[int]:
    """The BLEU_STATISTICS counts of one sentence; element-wise sums over sentences go to bleu_from_statistics."""
    return _statistics("bleu4", hypothesis, reference)


def bleu_from_statistics(sums: Sequence[float]) -> float:
    """BLEU-4 in percent of the sentences whose statistics were added up; 0.0 where all sums are 0.

    Raises ValueError on a wrong number of sums, or on sums that are not whole numbers (an average was taken).
    """
    return _score_of_sums("bleu4", sums, BLEU_STATISTICS)


def chrf_statistics(hypothesis: str, reference: str) -> list[int]:
    """The CHRF_STATISTICS counts of one sentence; element-wise sums over sentences go to chrf_from_statistics."""
    return _statistics("chrf", hypothesis, reference)


def chrf_from_statistics(sums: Sequence[float]) -> float:
    """chrF in percent of the sentences whose statistics were added up; 0.0 where all sums are 0.

    Raises ValueError on a wrong number of sums, or on sums that are not whole numbers (an average was taken).
    """
    return _score_of_sums("chrf", sums, CHRF_STATISTICS)


# Statistics of sentences are behind private methods of sacrebleu, which has no public ones for this. They are called
# here, in metrics.py and in intervals.py, and overridden in ratio.py, bleurt.py and intervals.py. tests/test_scoring.py
# compares the two functions below with corpus_score, tests/test_scoring_intervals.py the tests with sacrebleu's own, so
# a sacrebleu that changes them is noticed.
def _statistics(name: str, hypothesis: str, reference: str) -> list[int]:
    return build(name)._extract_corpus_statistics([hypothesis], [[reference]])[0]


def _score_of_sums(name: str, sums: Sequence[float], expected: int) -> float:
    if len(sums) != expected:
        raise ValueError(f"{name}: got {len(sums)} sums, expected {expected}: add the statistics up element by element")
    if any(value != round(value) for value in sums):
        raise ValueError(f"{name}: sums must be whole numbers (counts), got {list(sums)}: add them up, no averages")
    return float(build(name)._aggregate_and_compute([[round(value) for value in sums]]).score)
