"""What every tokeniser tells the codec about its vocabulary, and how that becomes a fairseq Dictionary."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairseq.data import Dictionary

from slt_plugin.text.errors import CodecError

# What fairseq puts in front of every vocabulary of its own; the index is the position.
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(4)
MASK = "<mask>"
# How an unknown symbol shows in decoded text (SentencePiece's own mark): visible, so that nobody scores a gap.
UNKNOWN_MARK = "⁇"
# en_XX (mBART), [en_XX] (mBART in fairseq), eng_Latn (NLLB), __en__ (M2M-100)
_LANGUAGE = re.compile(r"\[?([a-z]{2,3}_[A-Z][A-Za-z]{1,3})\]?|__([a-z]{2,3}(?:_[A-Z][A-Za-z]{1,3})?)__")
_FILLER = re.compile(r"madeupword\d+")


@dataclass(frozen=True)
class Vocabulary:
    """One symbol per id; ``symbols`` hold no white space, because ``Dictionary.string`` joins them with spaces."""

    symbols: Sequence[str]
    bos: int
    pad: int
    eos: int
    unk: int
    nspecial: int = 0
    silent: frozenset[int] = frozenset()  # special, padding, mask and language ids: they decode to nothing
    holes: frozenset[int] = frozenset()  # ids without a token: they decode like the unknown symbol
    languages: dict[str, int] = field(default_factory=dict)
    language_is_prefix: bool = False  # targets are language, text, </s> after the start </s>; else it is the start


class Tokenizer(Protocol):
    """A tokeniser is built from the bytes of its files (by name), so the same bytes restore it from a checkpoint."""

    vocabulary: Vocabulary
    prepend_bos: bool

    def encode(self, text: str) -> list[int]:
        """Dictionary ids without BOS and EOS."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids that hold no silent ones; the unknown symbol shows as UNKNOWN_MARK."""


def language_code(symbol: str) -> str | None:
    """``[en_XX]`` -> ``en_XX``, ``__en__`` -> ``en``, anything that is no language token -> None."""
    match = _LANGUAGE.fullmatch(symbol)
    return (match[1] or match[2]) if match else None


def printable_symbols(tokens: Sequence[str]) -> list[str]:
    """Tokens -> symbols without white space and without repetition, by position (so the way back is the index)."""
    symbols: list[str] = []
    seen: set[str] = set()
    for index, token in enumerate(tokens):
        symbol = re.sub(r"\s", lambda match: f"<U+{ord(match[0]):04X}>", token) or "<empty>"
        while symbol in seen:
            symbol = f"{symbol}#{index}"
        seen.add(symbol)
        symbols.append(symbol)
    return symbols


def read_dictionary_file(content: bytes, name: str) -> list[str]:
    """A fairseq dictionary file (``symbol count`` a line) -> symbols, fairseq's four specials first.

    Raises:
        CodecError: the file is not UTF-8, a line has no count, or a symbol appears twice.
    """
    dictionary = Dictionary()
    try:
        dictionary.add_from_file(io.StringIO(content.decode("utf-8")))
    except (UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise CodecError(
            f"{name} is not a fairseq dictionary: {error}; write lines of 'symbol count' in UTF-8"
        ) from error
    return dictionary.symbols


def filler_ids(symbols: Sequence[str]) -> frozenset[int]:
    """fairseq fills dictionaries up to a round size with ``madeupword0000``: ids that mean nothing."""
    return frozenset(index for index, symbol in enumerate(symbols) if _FILLER.fullmatch(symbol))


def fill_dictionary(dictionary: Dictionary, vocabulary: Vocabulary) -> None:
    """Make ``dictionary`` hold exactly ``vocabulary``, in place: fairseq keeps references to the object."""
    symbols = list(vocabulary.symbols)
    dictionary.symbols = symbols
    dictionary.count = [1] * len(symbols)
    dictionary.indices = {symbol: index for index, symbol in enumerate(symbols)}
    dictionary.nspecial = vocabulary.nspecial
    for name in ("bos", "pad", "eos", "unk"):
        index = getattr(vocabulary, name)
        setattr(dictionary, f"{name}_index", index)
        setattr(dictionary, f"{name}_word", symbols[index])
