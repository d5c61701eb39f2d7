"""Word and character error rates by jiwer, in percent."""

from collections.abc import Sequence
from importlib.metadata import version

import jiwer


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """100 x (substitutions + deletions + insertions) / reference words, over the corpus; can exceed 100.

    Words are what stands between spaces, case and punctuation count. References must not be empty.
    """
    return 100.0 * jiwer.process_words(list(references), list(hypotheses)).wer


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """As word_error_rate over characters; spaces inside a sentence are characters too."""
    return 100.0 * jiwer.process_characters(list(references), list(hypotheses)).cer


def signature(unit: str, *, lowercase: bool = False) -> str:
    """A signature in sacrebleu's style; jiwer has none of its own. ``unit`` is ``word`` or ``char``."""
    return f"nrefs:1|case:{'lc' if lowercase else 'mixed'}|unit:{unit}|version:jiwer-{version('jiwer')}"
