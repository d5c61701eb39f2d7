"""What scores depend on beside the texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.reduced_bleu import Blacklist
from slt_plugin.scoring.truecase import Truecaser


@dataclass(frozen=True)
class Settings:
    """Everything that is in force shows in the signatures.

    Args:
        lowercase: lower-case both sides before scoring.
        blacklist: the words that reduced BLEU leaves out; needed by ``reduced_bleu`` and ``reduced_bleu_kept``.
        truecaser: applied to the hypotheses (those of models trained on lower-cased text) before any scoring.
        bleurt: folder of a BLEURT checkpoint in PyTorch; needed by ``bleurt``.
    """

    lowercase: bool = False
    blacklist: Blacklist | None = None
    truecaser: Truecaser | None = None
    bleurt: Path | None = None

    def check(self, metrics: Sequence[str]) -> None:
        """Raises ScoringError where a metric lacks what it needs, or settings contradict each other."""
        if self.lowercase and self.truecaser is not None:
            raise ScoringError(
                "lowercase and truecaser exclude each other: the capitals that one restores, the other takes away; "
                "give one of them"
            )
        reduced = [name for name in metrics if name.startswith("reduced_bleu")]
        if reduced and self.blacklist is None:
            raise ScoringError(
                f"{reduced[0]} needs a blacklist of frequent words: give the training manifest that it is built from, "
                "or a file with one word a line (slt-score: --train-manifest TSV or --blacklist FILE)"
            )
        if "bleurt" in metrics and self.bleurt is None:
            raise ScoringError(
                "bleurt needs a local checkpoint: give its folder (slt-score: --bleurt FOLDER), for example a download "
                "of https://huggingface.co/lucadiliello/BLEURT-20"
            )

    def prepare(self, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
        """Hypotheses and references as every metric sees them: truecased, or both lower-cased, or as given."""
        if self.truecaser is not None:
            return self.truecaser(hypotheses), list(references)
        if self.lowercase:
            return [text.lower() for text in hypotheses], [text.lower() for text in references]
        return list(hypotheses), list(references)
