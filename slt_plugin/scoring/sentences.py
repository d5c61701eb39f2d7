"""Scores of single sentences, and which words differ: for tables that people read, not for comparing systems."""

from functools import cache

import jiwer
from sacrebleu.metrics import BLEU, CHRF

from slt_plugin.scoring.wer import ErrorRate


def sentence_scores(hypothesis: str, reference: str) -> dict[str, float]:
    """``bleu``, ``chrf`` and ``wer`` of one sentence in percent; ``reference`` must not be empty.

    BLEU-4 with effective order: n-gram orders that the hypothesis is too short for do not count.
    """
    bleu, chrf, wer = _metrics()
    return {
        "bleu": float(bleu.sentence_score(hypothesis, [reference]).score),
        "chrf": float(chrf.sentence_score(hypothesis, [reference]).score),
        "wer": float(wer.sentence_score(hypothesis, [reference]).score),
    }


def word_differences(hypothesis: str, reference: str) -> list[tuple[str, list[str], list[str]]]:
    """jiwer's alignment as (operation, words of the reference, words of the hypothesis), in reading order.

    Operations: ``equal``, ``substitute`` (as many words on both sides), ``insert`` (none in the reference) and
    ``delete`` (none in the hypothesis). The words of all parts joined are the texts, but for repeated spaces.
    """
    found = jiwer.process_words([reference], [hypothesis])
    ours, theirs = found.references[0], found.hypotheses[0]
    return [
        (
            chunk.type,
            ours[chunk.ref_start_idx : chunk.ref_end_idx],
            theirs[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        for chunk in found.alignments[0]
    ]


@cache
def _metrics() -> tuple[BLEU, CHRF, ErrorRate]:
    return BLEU(effective_order=True), CHRF(), ErrorRate("word")
