"""SentencePiece models in fairseq's layout, mBART's included."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import sentencepiece

from slt_plugin.text.errors import CodecError
from slt_plugin.text.vocabulary import (
    BOS,
    EOS,
    FAIRSEQ_SPECIALS,
    MASK,
    PAD,
    UNK,
    UNKNOWN_MARK,
    Vocabulary,
    filler_ids,
    language_code,
    printable_symbols,
    read_dictionary_file,
)

logger = logging.getLogger(__name__)

MODEL_FILE = "sentencepiece.model"
DICTIONARY_FILE = "dict.txt"


class SentencePieceTokenizer:
    """``<s> <pad> </s> <unk>``, then the model's pieces in order without its own control and unknown pieces.

    With a fairseq ``dict.txt`` (``DICTIONARY_FILE`` in ``files``) the order is the file's: vocabularies of Tarrés et
    al. and of mBART. ``languages`` adds ``[en_XX]`` ... and ``<mask>`` behind the pieces, as fairseq's
    ``translation_from_pretrained_bart`` does. Targets never begin with ``<s>``: it is the CTC blank.
    """

    prepend_bos = False

    def __init__(self, files: dict[str, bytes], languages: Sequence[str] = ()):
        self._processor = load_processor(files[MODEL_FILE])
        pieces = [
            self._processor.id_to_piece(index)
            for index in range(len(self._processor))
            if not (self._processor.is_control(index) or self._processor.is_unknown(index))
        ]
        if DICTIONARY_FILE in files:
            symbols = read_dictionary_file(files[DICTIONARY_FILE], DICTIONARY_FILE)
            tokens = list(symbols)
            _check_dictionary(symbols, pieces)
        else:
            tokens = [*FAIRSEQ_SPECIALS, *pieces]
            symbols = printable_symbols(tokens)
        if languages:
            tail = _language_tail(symbols, languages)
            tokens += tail
            symbols = symbols + tail
        known = set(pieces)
        codes = {
            code: index
            for index, symbol in enumerate(symbols)
            if symbol not in known and (code := language_code(symbol)) is not None
        }
        mask = {index for index, token in enumerate(tokens) if token == MASK and MASK not in known}
        self.vocabulary = Vocabulary(
            symbols=symbols,
            bos=BOS,
            pad=PAD,
            eos=EOS,
            unk=UNK,
            nspecial=len(FAIRSEQ_SPECIALS),
            silent=frozenset({BOS, PAD, EOS, *codes.values(), *mask}),
            holes=filler_ids(symbols) if DICTIONARY_FILE in files else frozenset(),
            languages=codes,
        )
        self._tokens = tokens
        self._tokens[UNK] = self._processor.id_to_piece(self._processor.unk_id())
        no_text = self.vocabulary.silent | self.vocabulary.holes
        self._index = {token: index for index, token in enumerate(tokens) if index not in no_text}

    def encode(self, text: str) -> list[int]:
        # By piece string, as fairseq does it: a dictionary made by fairseq-preprocess holds characters that the
        # model itself does not know, and the string is how they are found.
        return [self._index.get(piece, UNK) for piece in self._processor.encode(text, out_type=str)]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([self._tokens[index] for index in ids])


def load_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Bytes of a ``.model`` file -> processor.

    Raises:
        CodecError: the bytes are no SentencePiece model.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model) if model else None
    except RuntimeError as error:
        raise CodecError(f"not a SentencePiece model ({len(model)} bytes): {error}; copy or train it again") from error
    if processor is None or len(processor) == 0:
        raise CodecError("not a SentencePiece model: no pieces in it; copy or train it again")
    return processor


def _check_dictionary(symbols: Sequence[str], pieces: Sequence[str]) -> None:
    """A dictionary of another model would turn the text into unknown symbols without a word."""
    entries = set(symbols[len(FAIRSEQ_SPECIALS) :])
    missing = [piece for piece in pieces if piece not in entries]
    shared = len(pieces) - len(missing)
    if shared * 2 < min(len(pieces), len(entries)):
        raise CodecError(
            f"the fairseq dictionary and the SentencePiece model do not belong together: only {shared} of "
            f"{len(pieces)} pieces are in the dictionary (missing: {', '.join(map(repr, missing[:5]))} ...). "
            "Give the dict.txt that was used with this model."
        )
    if missing:
        logger.warning(
            "%d of %d pieces of the SentencePiece model are not in the fairseq dictionary and become %s (%s ...)",
            len(missing),
            len(pieces),
            UNKNOWN_MARK,
            ", ".join(map(repr, missing[:5])),
        )


def _language_tail(symbols: Sequence[str], languages: Sequence[str]) -> list[str]:
    """The tokens to add behind ``symbols``: all, or none where the dictionary ends in exactly these already."""
    codes = [language_code(language) for language in languages]
    wrong = [language for language, code in zip(languages, codes, strict=True) if code is None]
    if wrong or len(set(codes)) < len(codes):
        raise CodecError(
            f"wrong languages ({wrong or 'repeated'}): give different codes like en_XX, in the order of pretraining"
        )
    tail = [*(f"[{code}]" for code in codes), MASK]
    expected = set(tail)
    present = [symbol for symbol in symbols if symbol in expected]
    if not present:
        return tail
    if list(symbols[-len(tail) :]) == tail:
        return []
    raise CodecError(
        f"the fairseq dictionary already holds {present[:3]} ..., but does not end in {tail[0]} ... {tail[-2]} {MASK}: "
        "give the languages in the dictionary's order, or none"
    )
