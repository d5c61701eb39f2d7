"""Hugging Face tokenizers: the dictionary index is the tokenizer's id."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.text.errors import CodecError
from slt_plugin.text.languages import MBART_CC25
from slt_plugin.text.vocabulary import UNKNOWN_MARK, Vocabulary, language_code, printable_symbols

# What AutoTokenizer may read; config.json because the class is named there when tokenizer_config.json does not.
FILE_PATTERNS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)


class HFTokenizer:
    """Any tokenizer of transformers with a padding and an end symbol (BART, mBART, T5, ByT5, NLLB, BERT ...).

    Without an ``eos_token`` (BERT) the separator stands in. Without a ``bos_token`` the classifier token stands in,
    else the padding symbol, with which T5's decoder starts. Without an ``unk_token`` the padding symbol stands in: no
    text ever gives it.
    """

    def __init__(self, files: dict[str, bytes], languages: Sequence[str] = ()):
        del languages  # build_codec refuses them: the tokenizer knows its own
        self._tokenizer = _load(files)
        self.vocabulary = _vocabulary(self._tokenizer)
        start = self._tokenizer("")["input_ids"][:1]
        self.prepend_bos = self.vocabulary.bos != self.vocabulary.eos and start == [self.vocabulary.bos]

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        special = sorted({self.vocabulary.symbols[index] for index in ids if index in self.vocabulary.silent})
        if special:
            # The model would read an end or a padding in the middle of the sentence.
            raise CodecError(f"the text {text!r} spells special tokens of the vocabulary: {special}; remove them")
        return ids

    def decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if self.vocabulary.unk in ids:
            text = text.replace(self._tokenizer.unk_token, f" {UNKNOWN_MARK} ")
        return text


def _load(files: dict[str, bytes]):
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CodecError(
            f"a Hugging Face vocabulary needs transformers ({error}): pip install 'slt-plugin[hf]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="slt_tokenizer_") as folder:
        for name, content in files.items():
            if Path(name).name != name:
                raise CodecError(f"the state of the codec names a file outside its folder: {name!r}")
            (Path(folder) / name).write_bytes(content)
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises plain Exception for a damaged tokenizer.json
            cause = " ".join(str(error).split())
            raise CodecError(
                f"transformers cannot load a tokenizer from {', '.join(sorted(files))}: {cause} Give the directory "
                "that save_pretrained wrote; a directory with only a SentencePiece model also needs a "
                'tokenizer_config.json that names the class, e.g. {"tokenizer_class": "T5Tokenizer"}.'
            ) from error


def _vocabulary(tokenizer) -> Vocabulary:
    bos, pad, eos, unk = _special_ids(tokenizer)
    codes = {code: index for code, index in _language_ids(tokenizer).items() if index != unk}
    token_of = {index: token for token, index in tokenizer.get_vocab().items()}
    # M2M-100 counts its languages neither in get_vocab nor in len
    token_of |= {index: code for code, index in codes.items() if index not in token_of}
    size = max(len(tokenizer), max(token_of) + 1)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    silent = (added | set(tokenizer.all_special_ids) | set(codes.values())) - {unk}
    return Vocabulary(
        symbols=printable_symbols([token_of.get(index, f"<hole:{index}>") for index in range(size)]),
        bos=bos,
        pad=pad,
        eos=eos,
        unk=unk,
        silent=frozenset(silent | {bos, pad, eos}),
        holes=frozenset(set(range(size)) - set(token_of)),
        languages=codes,
        # mBART-50, M2M-100 and NLLB begin with </s> and write the language; mBART-cc25 begins with the language
        language_is_prefix=bool(codes) and not codes.keys() <= set(MBART_CC25),
    )


def _special_ids(tokenizer) -> tuple[int, int, int, int]:
    """BOS, padding, EOS and unknown id with the stand-ins of ``HFTokenizer``'s docstring."""

    def first(*names: str) -> int | None:
        found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
        return next((index for index in found if index is not None), None)

    pad, eos = first("pad"), first("eos", "sep")
    for name, index in (("pad_token", pad), ("eos_token", eos)):
        if index is None:
            raise CodecError(
                f"the tokenizer ({type(tokenizer).__name__}) has no {name}, which fairseq needs: "
                f"set {name} in tokenizer_config.json to one of its tokens"
            )
    bos, unk = first("bos", "cls"), first("unk")
    return pad if bos is None else bos, pad, eos, pad if unk is None else unk


def _language_ids(tokenizer) -> dict[str, int]:
    """mBART and M2M-100 keep a table, NLLB only adds tokens that are named like languages."""
    table = getattr(tokenizer, "lang_code_to_id", None)
    if table:
        return {code: index for code, index in table.items() if index is not None}
    added = ((language_code(str(token)), index) for index, token in tokenizer.added_tokens_decoder.items())
    return {code: index for code, index in added if code is not None}
