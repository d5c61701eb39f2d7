"""The text filter of reduced BLEU (Tarres et al. 2023, arXiv 2304.06371): BLEU without the most frequent words.

Frequent words like "the" and "you" can be guessed; reduced BLEU asks for the others. The filter deletes punctuation
except the apostrophe, splits at spaces, drops the words of a blacklist and joins the rest. Two variants are in use:
sentences whose reduced reference is empty are dropped, or kept with a reference of one space. They give different
numbers, and so does another blacklist: compare only scores with equal signatures. The authors' list (145 words in two
casings) was picked by hand from their training set's most frequent words; one that is built here holds whatever is
frequent.
"""

import hashlib
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import read_text

SIZE = 145
DELETED = string.punctuation.replace("'", "")
_DELETE = str.maketrans("", "", DELETED)


def words(text: str) -> list[str]:
    """What stands between the spaces of ``text`` without its punctuation; the apostrophe stays."""
    return [word for word in text.translate(_DELETE).split(" ") if word.strip()]


@dataclass(frozen=True)
class Blacklist:
    """Words, exactly as written, that reduced BLEU leaves out."""

    entries: frozenset[str]

    @classmethod
    def from_texts(cls, texts: Iterable[str], size: int = SIZE) -> "Blacklist":
        """The ``size`` most frequent words of training texts, each in lower case and with a capital.

        Words of equal frequency are taken in alphabetical order.

        Raises:
            ScoringError: fewer than two words would be left over, or ``size`` is below 1.
        """
        if size < 1:
            raise ScoringError(f"a blacklist of {size} words: give at least 1")
        counts = Counter(word for text in texts for word in words(text.lower()))
        if len(counts) <= size:
            raise ScoringError(
                f"the training texts have {len(counts)} distinct words: a blacklist of the {size} most frequent ones "
                "would hold them all and leave nothing to score; give a smaller size (slt-score: --blacklist-size), a "
                "file (--blacklist), or other metrics than reduced BLEU"
            )
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[:size]
        return cls(frozenset(frequent) | {word[0].upper() + word[1:] for word in frequent})

    @classmethod
    def from_file(cls, path: str | Path) -> "Blacklist":
        """One word a line, taken as written: "The" does not drop "the". Blank lines are passed over.

        Raises:
            ScoringError: unreadable or empty, or words that no text can have after the filter.
        """
        entries = [line.strip() for line in read_text(path).split("\n") if line.strip()]
        if not entries:
            raise ScoringError(f"{path}: no words in it; write one a line, or give the training manifest instead")
        never = [word for word in entries if words(word) != [word]]
        if never:
            raise ScoringError(
                f"{path}: {len(never)} entries can never be found: {listing(never)}. One word a line is expected, "
                f"without spaces and without the punctuation that is deleted first ({DELETED})"
            )
        return cls(frozenset(entries))

    def reduce(self, text: str) -> str:
        """``text`` without punctuation and without the blacklist's words; may be empty."""
        return " ".join(word for word in words(text) if word not in self.entries)

    @property
    def signature(self) -> str:
        """Number of entries and a checksum, to tell lists apart."""
        checksum = hashlib.sha256("\n".join(sorted(self.entries)).encode()).hexdigest()
        return f"{len(self.entries)}-{checksum[:8]}"


def reduce_pairs(
    hypotheses: list[str], references: list[str], blacklist: Blacklist, *, keep_empty: bool
) -> tuple[list[str], list[str], list[int]]:
    """Reduced hypotheses, reduced references, and the numbers (from 0) of the sentences that they are of.

    Args:
        keep_empty: keep a sentence whose reduced reference is empty, as one space, instead of dropping it.

    Raises:
        ScoringError: no sentence is left.
    """
    reduced = [blacklist.reduce(text) for text in references]
    kept = [i for i, text in enumerate(reduced) if text or keep_empty]
    if not any(reduced):
        raise ScoringError(
            f"reduced BLEU: nothing is left of any of the {len(references)} references without punctuation and the "
            f"{len(blacklist.entries)} entries of the blacklist; give a shorter blacklist, or leave reduced BLEU out"
        )
    return [blacklist.reduce(hypotheses[i]) for i in kept], [reduced[i] or " " for i in kept], kept
