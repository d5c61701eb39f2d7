"""Text <-> ids of a fairseq Dictionary, for SentencePiece, GPT-2 BPE, Hugging Face and SONAR vocabularies.

The codec is task state: ``state_dict`` holds the bytes of the vocabulary's files, so a checkpoint decodes by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from fairseq.data import Dictionary

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.text import gpt2_tokenizer, hf_tokenizer, sonar_tokenizer, spm_tokenizer
from slt_plugin.text.errors import CodecError
from slt_plugin.text.hub import resolve
from slt_plugin.text.languages import LIKELY_CODES
from slt_plugin.text.vocabulary import Tokenizer, fill_dictionary

__all__ = ["CODEC_KINDS", "CodecError", "TextCodec", "build_codec", "empty_codec"]

_TOKENIZERS = {
    "sentencepiece": spm_tokenizer.SentencePieceTokenizer,
    "gpt2_bpe": gpt2_tokenizer.GPT2Tokenizer,
    "hf": hf_tokenizer.HFTokenizer,
    "sonar": sonar_tokenizer.SonarTokenizer,
}
CODEC_KINDS = tuple(_TOKENIZERS)
MANY_LANGUAGES = 60  # more are not listed beside a hint
# One sentence is one line in manifests, in fairseq's output and in hypotheses.jsonl; byte-level models can break it.
_LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


class TextCodec:
    """A vocabulary and its tokeniser. Make it with ``build_codec`` (from files) or ``empty_codec`` (checkpoint later).

    ``dictionary`` is the same object for the codec's whole life; ``load_state_dict`` fills it in place, because
    fairseq-generate takes the reference before it reads the checkpoint.
    """

    def __init__(self) -> None:
        self.dictionary = Dictionary()
        self.kind = ""
        self.lowercase = False
        self._files: dict[str, bytes] = {}
        self._languages: list[str] = []
        self._tokenizer: Tokenizer | None = None

    @property
    def prepend_bos(self) -> bool:
        """BART was trained on targets ``<s> ... </s>``; everything else on ``... </s>``."""
        return self._filled().prepend_bos

    @property
    def language_is_prefix(self) -> bool:
        """Whether the language token is the first that is written, or stands in for the start (mBART-cc25)."""
        return self._filled().vocabulary.language_is_prefix

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that have tokens of their own (mBART, NLLB, M2M-100); mostly none."""
        return tuple(self._filled().vocabulary.languages)

    def encode(self, text: str) -> torch.LongTensor:
        """Text -> ids (n,), int64, EOS last, BOS first iff ``prepend_bos``.

        Raises:
            CodecError: the codec is empty, or the text spells a special token of a Hugging Face vocabulary.
        """
        tokenizer = self._filled()
        ids = tokenizer.encode(text.lower() if self.lowercase else text)
        start = [self.dictionary.bos()] if tokenizer.prepend_bos else []
        return torch.tensor([*start, *ids, self.dictionary.eos()], dtype=torch.long)

    def decode(self, ids: torch.Tensor | Iterable[int]) -> str:
        """Ids in any order -> text in one line, without surrounding white space.

        Special, padding, mask and language ids are dropped wherever they stand. The unknown symbol, ids without a
        token and ids beyond the vocabulary show as U+2047.
        """
        tokenizer = self._filled()
        vocabulary = tokenizer.vocabulary
        size, unk = len(vocabulary.symbols), vocabulary.unk
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else [int(index) for index in ids]
        ids = [index if 0 <= index < size and index not in vocabulary.holes else unk for index in ids]
        ids = [index for index in ids if index not in vocabulary.silent]
        if not ids:
            return ""
        text = _LINE_BREAKS.sub(" ", tokenizer.decode(ids))
        return " ".join(text.split()) if unk in ids else text.strip()

    def decode_symbols(self, symbols: str) -> str:
        """The output of ``dictionary.string`` (symbols joined by spaces) -> text, equal to ``decode`` of its ids.

        Raises:
            CodecError: a symbol is not in the dictionary, so something joined the symbols before.
        """
        self._filled()
        # fairseq writes the unknown symbol of references as <<unk>> (escape_unk)
        unknown = {self.dictionary.unk_string(), self.dictionary.unk_string(escape=True)}
        ids = []
        for symbol in symbols.split():
            index = self.dictionary.indices.get(symbol, len(self.dictionary) if symbol in unknown else None)
            if index is None:
                raise CodecError(
                    f"{symbol!r} is not a symbol of the vocabulary ({self.kind}): give the symbols as "
                    "Dictionary.string joins them. Leave out --post-process / --remove-bpe: the task decodes itself."
                )
            ids.append(index)
        return self.decode(ids)

    def language_id(self, lang: str) -> int | None:
        """``en_XX`` (also ``[en_XX]``, ``__en__``) -> id of the language token; None if the vocabulary has none.

        Raises:
            CodecError: the vocabulary has languages, but not this one.
        """
        languages = self._filled().vocabulary.languages
        if not languages:
            return None
        code = lang.strip("[]_")
        if code not in languages:
            raise CodecError(f"language {lang!r} is not in the vocabulary{_hint(code, list(languages))}")
        return languages[code]

    def state_dict(self) -> dict:
        """Plain str, bool, list and bytes: ``torch.load(weights_only=True)`` reads it back."""
        self._filled()
        return {
            "kind": self.kind,
            "lowercase": self.lowercase,
            "files": dict(self._files),
            "languages": list(self._languages),
        }

    def load_state_dict(self, state: dict) -> None:
        """Become the codec that ``state_dict`` was taken from.

        Raises:
            CodecError: ``state`` is no codec state, or this codec was built from another vocabulary already (a model
                may exist with its size and order).
        """
        missing = [key for key in ("kind", "lowercase", "files", "languages") if key not in state]
        if missing:
            raise CodecError(f"no codec state in the checkpoint (missing: {', '.join(missing)})")
        if self._tokenizer is not None and state == self.state_dict():
            return
        tokenizer = _make_tokenizer(state["kind"], state["files"], state["languages"])
        if self._tokenizer is not None and list(tokenizer.vocabulary.symbols) != self.dictionary.symbols:
            raise CodecError(
                f"the checkpoint's vocabulary ({state['kind']}, {len(tokenizer.vocabulary.symbols)} symbols) is not "
                f"the one of this run ({self.kind}, {len(self.dictionary)} symbols): give the vocabulary it was "
                "trained with, or none when only decoding"
            )
        if self._tokenizer is not None and state["lowercase"] != self.lowercase:
            raise CodecError(
                f"the checkpoint was trained with lowercase={state['lowercase']}, this run has "
                f"lowercase={self.lowercase}: give the checkpoint's setting"
            )
        self._install(tokenizer, state)
        fill_dictionary(self.dictionary, tokenizer.vocabulary)

    def _install(self, tokenizer: Tokenizer, state: dict) -> None:
        self.kind, self.lowercase = state["kind"], state["lowercase"]
        self._files, self._languages = dict(state["files"]), list(state["languages"])
        self._tokenizer = tokenizer

    def _filled(self) -> Tokenizer:
        if self._tokenizer is None:
            raise CodecError("the codec has no vocabulary yet: build it from files, or load a checkpoint first")
        return self._tokenizer

    def __getstate__(self) -> dict:
        """Loader workers started by spawn get the files, not the tokenizer objects (not all of them pickle)."""
        return {"dictionary": self.dictionary, "state": self.state_dict() if self._tokenizer is not None else None}

    def __setstate__(self, pickled: dict) -> None:
        self.__init__()
        self.dictionary = pickled["dictionary"]
        state = pickled["state"]
        if state is not None:
            self._install(_make_tokenizer(state["kind"], state["files"], state["languages"]), state)


def _hint(code: str, languages: Sequence[str]) -> str:
    """What was probably meant, and the choices."""
    begin = re.split(r"[_-]", code)[0].lower()
    usual = LIKELY_CODES.get(begin) or LIKELY_CODES.get(begin[:3])
    same = [known for known in languages if known.split("_")[0] in (begin, begin[:3])]  # fra, fra_XX, english
    if usual in languages:
        near = did_you_mean(usual, [usual])
    else:
        near = did_you_mean(code, same or languages) or (did_you_mean(same[0], same) if same else "")
    shown = MANY_LANGUAGES if near else len(languages)
    return f"{near or '.'} Choose from {listing(languages, shown)}"


def build_codec(
    kind: str,
    path: str | Path,
    *,
    lowercase: bool = False,
    dictionary_path: str | Path | None = None,
    languages: Sequence[str] = (),
) -> TextCodec:
    """Read a vocabulary.

    Args:
        kind: ``sentencepiece`` or ``sonar`` (path of a ``.model``), ``gpt2_bpe`` (directory with encoder.json,
            vocab.bpe, dict.txt) or ``hf`` (tokenizer directory, or a model's id on the hub).
        lowercase: lower-case the text before encoding.
        dictionary_path: sentencepiece only: fairseq ``dict.txt`` whose order the model's embeddings have.
        languages: sentencepiece only: mBART's codes in the order of pretraining (``slt_plugin.text.languages``).

    Raises:
        CodecError: unknown kind, missing or damaged files, files that do not belong together.
    """
    _check_kind(kind)
    path = Path(path)
    if kind != "sentencepiece" and (dictionary_path is not None or languages):
        raise CodecError(
            f"a dictionary path and languages belong to kind sentencepiece, {kind} brings its own: leave them out"
        )
    if kind in ("sentencepiece", "sonar"):
        if path.is_dir():
            raise CodecError(f"{path} is a directory: give the .model file itself to kind {kind}")
        files = {spm_tokenizer.MODEL_FILE: _read(path)}
        if dictionary_path is not None:
            files[spm_tokenizer.DICTIONARY_FILE] = _read(Path(dictionary_path))
    elif kind == "hf":
        files = _read_hf(resolve(path))
    else:
        if not path.is_dir():
            found = "is a file" if path.exists() else "does not exist"
            raise CodecError(f"{path} {found}: give the directory of the {kind} vocabulary")
        files = _read_gpt2(path)
    codec = TextCodec()
    try:
        codec.load_state_dict(
            {"kind": kind, "lowercase": bool(lowercase), "files": files, "languages": list(languages)}
        )
    except CodecError as error:
        raise CodecError(f"{path}: {error}") from error
    return codec


def empty_codec() -> TextCodec:
    """A codec that ``load_state_dict`` will fill."""
    return TextCodec()


def _check_kind(kind: str) -> None:
    if kind not in _TOKENIZERS:
        hint = did_you_mean(kind, CODEC_KINDS) or "."
        raise CodecError(f"unknown kind of vocabulary {kind!r}{hint} Choose from {', '.join(CODEC_KINDS)}")


def _make_tokenizer(kind: str, files: dict[str, bytes], languages: Sequence[str]) -> Tokenizer:
    _check_kind(kind)
    model = (spm_tokenizer.MODEL_FILE,)
    needed = {"sentencepiece": model, "sonar": model, "gpt2_bpe": gpt2_tokenizer.FILES, "hf": ()}[kind]
    missing = [name for name in needed if name not in files]
    if missing:
        raise CodecError(
            f"the codec state of kind {kind} lacks {', '.join(missing)}, so the checkpoint is damaged: use another one"
        )
    return _TOKENIZERS[kind](files, languages)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CodecError(f"cannot read the vocabulary file {path}: {error.strerror}; check the path") from error


def _read_gpt2(folder: Path) -> dict[str, bytes]:
    missing = [name for name in gpt2_tokenizer.FILES if not (folder / name).is_file()]
    if missing:
        raise CodecError(
            f"{folder}: kind gpt2_bpe needs {', '.join(gpt2_tokenizer.FILES)}; missing: {', '.join(missing)}. Add them"
        )
    return {name: _read(folder / name) for name in gpt2_tokenizer.FILES}


def _read_hf(folder: Path) -> dict[str, bytes]:
    names = sorted({file.name for pattern in hf_tokenizer.FILE_PATTERNS for file in folder.glob(pattern)})
    if not names:
        raise CodecError(f"{folder} holds no tokenizer files: give a folder with tokenizer.json, *.model or the like")
    return {name: _read(folder / name) for name in names}
