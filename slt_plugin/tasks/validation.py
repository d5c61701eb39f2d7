"""Validation by generation: BLEU and chrF summed over batches and ranks, and a few fixed samples in the log."""

import logging
from collections.abc import Iterable, Sequence

from fairseq.logging import metrics

from slt_plugin.scoring.sacre import bleu_from_statistics, bleu_statistics, chrf_from_statistics, chrf_statistics

logger = logging.getLogger(__name__)

SCORES = {"bleu": (bleu_statistics, bleu_from_statistics), "chrf": (chrf_statistics, chrf_from_statistics)}


def _key(score: str, i: int) -> str:
    # fairseq hides names with a leading underscore from the log
    return f"_{score}_{i}"


def score_counts(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The summed statistics of a batch as one Python float per count.

    Arrays would end up in the checkpoint's meters, and weights_only loading then refuses the checkpoint.
    """
    counts: dict[str, float] = {}
    for score, (statistics, _) in SCORES.items():
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            for i, value in enumerate(statistics(hypothesis, reference)):
                counts[_key(score, i)] = counts.get(_key(score, i), 0.0) + float(value)
    return counts


def log_scores(logging_outputs: Iterable[dict]) -> None:
    """Logs ``bleu`` and ``chrf`` of all sentences whose counts are in the logging outputs."""
    outputs = list(logging_outputs)
    for score, (statistics, from_sums) in SCORES.items():
        keys = [_key(score, i) for i in range(len(statistics("", "")))]
        for key in keys:
            metrics.log_scalar(key, float(sum(output.get(key, 0.0) for output in outputs)))
        metrics.log_derived(
            score, lambda meters, keys=keys, from_sums=from_sums: round(from_sums([meters[k].sum for k in keys]), 2)
        )


def log_sample(row_id: str, hypothesis: str, reference: str) -> None:
    """Logs one hypothesis beside its reference."""
    logger.info("sample %s\n  reference:  %s\n  hypothesis: %s", row_id, reference, hypothesis)
