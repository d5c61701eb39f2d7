"""Word and character error rates by jiwer, in percent."""

from importlib.metadata import version

import jiwer

from slt_plugin.scoring.ratio import Ratio


class ErrorRate(Ratio):
    """100 x (substitutions + deletions + insertions) / reference words, over the corpus; can exceed 100.

    Words are what stands between spaces, case and punctuation count. References must not be empty.

    Args:
        unit: ``word``, or ``char``: characters, among them the spaces inside a sentence.
        accuracy: 100 - the rate, so negative where there are more errors than words.
    """

    def __init__(self, unit: str, *, accuracy: bool = False, lowercase: bool = False):
        case = "lc" if lowercase else "mixed"
        super().__init__(f"{unit} rate", {"case": case, "unit": unit, "version": f"jiwer-{version('jiwer')}"})
        self._process = {"word": jiwer.process_words, "char": jiwer.process_characters}[unit]
        self._accuracy = accuracy

    def statistics(self, hypothesis: str, reference: str) -> tuple[float, float]:
        """Errors (or units less errors), and units of the reference."""
        found = self._process([reference], [hypothesis])
        errors = found.substitutions + found.deletions + found.insertions
        units = found.hits + found.substitutions + found.deletions
        return (units - errors if self._accuracy else errors), units
