"""ROUGE-L by Google's ``rouge_score``: the mean of the sentences' F-measures, in percent.

The older package ``rouge`` gives 3 points less on the same outputs, so the package is part of the name. The tokeniser
of rouge_score knows a-z and 0-9 only: it makes "caf" of "café" and nothing of Chinese, whose score is then 0 without a
word of warning. `Words` cuts texts of these characters exactly as that does, and other scripts as they are written.
"""

import sys
from importlib.metadata import version

import regex
from absl import logging as absl_logging
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from slt_plugin.scoring.ratio import Ratio

# rouge_score imports absl, which keeps the stderr of that moment and closes it when logging is set up anew (by Hydra,
# for one) and it is no longer sys.stderr: whoever had put it there loses it. It never closes this one.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # written without word spaces
TOKEN = regex.compile(rf"(?V1){UNSPACED}\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--{UNSPACED}]+")


class Words(Tokenizer):
    """Lower-cased runs of letters, marks and digits; a character each in scripts without spaces between words."""

    def tokenize(self, text: str) -> list[str]:
        return TOKEN.findall(text.lower())


class RougeL(Ratio):
    """No stemming, always lower-cased, as rouge_score's defaults are."""

    def __init__(self) -> None:
        package = f"rouge_score-{version('rouge_score')}"
        super().__init__("ROUGE-L", {"case": "lc", "stem": "no", "tok": "unicode", "score": "f1", "version": package})
        self._scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=Words())

    def statistics(self, hypothesis: str, reference: str) -> tuple[float, float]:
        """F-measure in [0, 1], and 1 sentence."""
        return float(self._scorer.score(reference, hypothesis)["rougeL"].fmeasure), 1.0
