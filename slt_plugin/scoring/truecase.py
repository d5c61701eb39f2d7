"""Gives the output of lower-cased models its capitals back, by sacremoses' port of the Moses truecaser.

The casing of each word is learnt from the training texts, in memory; where those begin with a capital, so does each
sentence of the output. Everything but the case of letters stays as it was: no space and no punctuation is touched.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import regex

from slt_plugin.scoring.errors import ScoringError

# Words with the punctuation inside them (don't, e.g, 3.5, well-known), and single other signs. Signs stand alone, so
# the markup and factors that Moses knows ("<b>", "word|NN") are never seen by it.
TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+(?:[.,'’:-][\p{L}\p{N}\p{M}]+)*|[\p{P}\p{S}]")


@dataclass(frozen=True)
class Truecaser:
    """How words and the beginnings of sentences are written.

    Args:
        casing: lower-cased word -> its most frequent form.
        starts: whether sentences begin with a capital.
    """

    casing: dict[str, str]
    starts: bool

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "Truecaser":
        """Learns from cased training texts. A sentence's first word says nothing about its case, the others count.

        Raises:
            ScoringError: the texts have no capitals to learn from.
        """
        from sacremoses import MosesTruecaser

        sentences = [TOKEN.findall(text) for text in texts]
        letters = [
            next((char for token in tokens for char in token if char.lower() != char.upper()), "")
            for tokens in sentences
        ]
        if not any(token != token.lower() for tokens in sentences for token in tokens):
            raise ScoringError(
                f"truecasing cannot be learnt: none of the {len(sentences)} training texts has a capital letter; give "
                "a manifest with the texts as they were written, or score with both sides lower-cased instead"
            )
        with_letters = [letter for letter in letters if letter]
        starts = 2 * sum(letter != letter.lower() for letter in with_letters) > len(with_letters)
        return cls(MosesTruecaser(is_asr=True).train(sentences)["best"], starts)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The texts in the casing of the training texts."""
        from sacremoses import MosesDetruecaser, MosesTruecaser

        caser, starter = MosesTruecaser(is_asr=True), MosesDetruecaser()
        caser.model = {"best": self.casing, "known": {}}
        cased = []
        for text in texts:
            matches = list(TOKEN.finditer(text))
            tokens = caser.truecase(" ".join(match[0] for match in matches))
            if self.starts:
                tokens = starter.detruecase(" ".join(tokens))
            pieces, end = [], 0
            for match, token in zip(matches, tokens, strict=True):
                pieces += [text[end : match.start()], token]
                end = match.end()
            cased.append("".join([*pieces, text[end:]]))
        return cased

    @property
    def signature(self) -> str:
        """Package, and a checksum of what was learnt."""
        learnt = "\n".join([str(self.starts), *(f"{word}\t{self.casing[word]}" for word in sorted(self.casing))])
        return f"sacremoses-{version('sacremoses')}-{hashlib.sha256(learnt.encode()).hexdigest()[:8]}"
