"""Named metrics over lists of strings, their signatures, and how results are shown and stored."""

import json
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.scoring import sacre, wer
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import write_text_atomically

METRICS: dict[str, str] = {
    "bleu1": "BLEU-1",
    "bleu2": "BLEU-2",
    "bleu3": "BLEU-3",
    "bleu4": "BLEU-4",
    "chrf": "chrF",
    "chrf2": "chrF++",
    "wer": "word error rate",
    "cer": "character error rate",
    "word_accuracy": "100 - word error rate",
}


def score(
    hypotheses: Sequence[str], references: Sequence[str], metrics: Sequence[str], *, lowercase: bool = False
) -> dict[str, float]:
    """Corpus scores in percent, one reference a hypothesis, in the order of ``metrics`` (keys of METRICS).

    ``word_accuracy`` is 100 - ``wer`` and therefore negative where a system makes more errors than there are words.
    ``lowercase`` lower-cases both sides and shows in the signatures.
    Raises ScoringError on different lengths, nothing to score, empty references (with counts), unknown metrics.
    """
    check_metrics(metrics)
    check_pairs(hypotheses, references)
    if lowercase:
        hypotheses = [text.lower() for text in hypotheses]
        references = [text.lower() for text in references]
    scores: dict[str, float] = {}
    for name in metrics:
        if name == "wer":
            scores[name] = wer.word_error_rate(hypotheses, references)
        elif name == "word_accuracy":
            scores[name] = 100.0 - wer.word_error_rate(hypotheses, references)
        elif name == "cer":
            scores[name] = wer.character_error_rate(hypotheses, references)
        else:
            scores[name] = sacre.corpus_score(name, hypotheses, references, lowercase=lowercase)
    return scores


def signatures(metrics: Sequence[str], *, lowercase: bool = False) -> dict[str, str]:
    """How each metric is computed: sacrebleu's signatures, and the same style for jiwer's rates."""
    check_metrics(metrics)
    units = {"wer": "word", "word_accuracy": "word", "cer": "char"}
    return {
        name: wer.signature(units[name], lowercase=lowercase)
        if name in units
        else sacre.signature(name, lowercase=lowercase)
        for name in metrics
    }


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


def format_table(scores: dict[str, float], signatures: dict[str, str]) -> str:
    """Lines of: metric, name, score with 2 decimals, signature. No trailing line end."""
    rows = [("metric", "", "score", "signature")]
    rows += [(name, METRICS[name], f"{value:.2f}", signatures[name]) for name, value in scores.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {label:<{widths[1]}}  {value:>{widths[2]}}  {text}" for name, label, value, text in rows
    )


def write_metrics(
    path: str | Path,
    scores: dict[str, float],
    signatures: dict[str, str],
    *,
    sentences: int,
    references: str,
    lowercase: bool = False,
) -> None:
    """``metrics.json``: scores in percent, signatures, number of sentences; ``references`` says where they are from."""
    document = {
        "metrics": scores,
        "signatures": signatures,
        "sentences": sentences,
        "lowercase": lowercase,
        "references": references,
    }
    write_text_atomically(path, json.dumps(document, indent=2) + "\n")
