"""GPT-2's byte-level BPE with a fairseq dictionary, as BART has it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fairseq.data.encoders.gpt2_bpe_utils import Encoder

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
    read_dictionary_file,
)

FILES = ("encoder.json", "vocab.bpe", "dict.txt")
END_OF_TEXT = "<|endoftext|>"


class GPT2Tokenizer:
    """fairseq's BART vocabulary: the symbols of ``dict.txt`` are GPT-2 ids written as numbers, ordered by frequency.

    ``<mask>`` is added behind them, as fairseq's denoising task does. BART's targets are ``<s> ... </s>``.
    """

    prepend_bos = True

    def __init__(self, files: dict[str, bytes], languages: Sequence[str] = ()):
        del languages  # build_codec refuses them: BART has none
        self._bpe = _load_encoder(files["encoder.json"], files["vocab.bpe"])
        symbols = read_dictionary_file(files["dict.txt"], "dict.txt")
        holes = filler_ids(symbols)
        foreign = [
            symbol
            for index, symbol in enumerate(symbols)
            if index >= len(FAIRSEQ_SPECIALS)
            and index not in holes
            and symbol != MASK
            and not (symbol.isdecimal() and int(symbol) in self._bpe.decoder)
        ]
        if foreign:
            raise CodecError(
                f"dict.txt is not the dictionary of this GPT-2 vocabulary: {len(foreign)} entries are no ids of "
                f"encoder.json ({', '.join(map(repr, foreign[:5]))} ...). Use the dict.txt of the BART release."
            )
        if MASK not in symbols:
            symbols.append(MASK)
        self._gpt2_id = {index: int(symbol) for index, symbol in enumerate(symbols) if symbol.isdecimal()}
        self._index = {gpt2_id: index for index, gpt2_id in self._gpt2_id.items()}
        # tokens that stand for no bytes: <|endoftext|> and what others may have added
        letters = self._bpe.byte_decoder.keys()
        special = {
            index
            for index, gpt2_id in self._gpt2_id.items()
            if self._bpe.decoder[gpt2_id] == END_OF_TEXT or not letters >= set(self._bpe.decoder[gpt2_id])
        }
        self.vocabulary = Vocabulary(
            symbols=symbols,
            bos=BOS,
            pad=PAD,
            eos=EOS,
            unk=UNK,
            nspecial=len(FAIRSEQ_SPECIALS),
            silent=frozenset({BOS, PAD, EOS, symbols.index(MASK), *special}),
            holes=holes,
        )

    def encode(self, text: str) -> list[int]:
        return [self._index.get(gpt2_id, UNK) for gpt2_id in self._bpe.encode(text)]

    def decode(self, ids: list[int]) -> str:
        # fairseq's Encoder works on characters that stand for bytes and fails on any other
        texts, run = [], []
        for index in [*ids, UNK]:
            if index == UNK:
                texts.append(self._bpe.decode(run))
                run = []
            else:
                run.append(self._gpt2_id[index])
        return f" {UNKNOWN_MARK} ".join(texts)


def _load_encoder(encoder_json: bytes, vocab_bpe: bytes) -> Encoder:
    """As ``get_encoder`` of fairseq's gpt2_bpe_utils, which reads from paths only."""
    try:
        encoder = json.loads(encoder_json.decode("utf-8"))
        lines = vocab_bpe.decode("utf-8").splitlines()[1:]  # the first line is the version
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CodecError(f"encoder.json or vocab.bpe cannot be read: {error}; copy them again") from error
    merges = [tuple(line.split()) for line in lines if line]
    if not isinstance(encoder, dict) or not all(type(index) is int for index in encoder.values()):
        raise CodecError("encoder.json is not one JSON object (token -> id): copy it again")
    broken = next((number for number, merge in enumerate(merges, 2) if len(merge) != 2), None)
    if broken is not None:
        raise CodecError(
            f"vocab.bpe line {broken} does not hold two symbols, so it is no file of BPE merges: copy it again"
        )
    model = Encoder(encoder=encoder, bpe_merges=merges)
    missing = [symbol for symbol in model.byte_encoder.values() if symbol not in encoder]
    missing += [first + second for first, second in merges if first + second not in encoder]
    if missing:
        raise CodecError(
            f"encoder.json lacks {len(missing)} of the symbols that vocab.bpe can give "
            f"({', '.join(map(repr, missing[:5]))} ...): the two files do not belong together; use those of one release"
        )
    return model
