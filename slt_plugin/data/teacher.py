"""Sentence embeddings of a text encoder, by which a student learns: their keys in a store, and those of a split.

A key is made of text and language alone, so that rows and manifests with the same sentence share one embedding.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import FeatureStore, Fingerprint, open_store

ENCODER = "sonar_text_encoder"  # what the fingerprint of such a store says
_DIGEST_LENGTH = 20  # hexadecimal digits: 2**40 sentences before two are likely to share one


def teacher_key(text: str, language: str) -> str:
    """The name of a sentence's embedding in a store: ``eng_Latn-0123456789abcdef0123``."""
    described = json.dumps([language, text])
    return f"{language}-{hashlib.sha256(described.encode()).hexdigest()[:_DIGEST_LENGTH]}"


def languages_of(rows: Sequence[Row], fixed: str | None, where: Path | str, option: str) -> list[str]:
    """The language of each row's text.

    Args:
        fixed: of all rows; None: their text_lang.
        where: the manifest, for the message.
        option: what sets ``fixed``, for the message.

    Raises:
        DataError: rows that have none.
    """
    languages = [fixed or row.text_lang for row in rows]
    lacking = [row.id for row, language in zip(rows, languages, strict=True) if language is None]
    if lacking:
        raise DataError(
            f"{where}: {len(lacking)} of {len(rows)} rows have no text_lang: {listing(lacking)}. Fill the column, or "
            f"set {option} (for example {option}=eng_Latn)"
        )
    return languages


class TeacherEmbeddings:
    """The embeddings of a split's rows, read from the store (memory-mapped) when they are asked for.

    Args:
        folder: the store that ``slt-extract what=sonar_teacher`` wrote.
        name: the manifest; for messages, and to tell splits apart.
        rows: with their texts.
        languages: of each row's text.

    Raises:
        DataError: the store holds something else, or lacks rows.
    """

    def __init__(self, folder: Path, name: Path | str, rows: Sequence[Row], languages: Sequence[str]):
        self.folder, self.name = Path(folder), str(name)
        if not self.folder.is_dir():
            raise DataError(
                f"task.teacher={self.folder} does not exist: slt-extract what=sonar_teacher makes it, once for the "
                "manifests of training and validation"
            )
        store = open_store(self.folder)
        _check_kind(store)
        self.fingerprint: Fingerprint = store.fingerprint
        self.channels: int = store.channels
        keys = [teacher_key(row.text, language) for row, language in zip(rows, languages, strict=True)]
        missing = [row.id for row, key in zip(rows, keys, strict=True) if key not in store]
        if missing:
            raise DataError(
                f"{name}: {len(missing)} of {len(rows)} rows have no teacher embedding in {self.folder}: "
                f"{listing(missing)}. What is missing is made by: slt-extract what=sonar_teacher "
                f"checkpoint=sonar_text_encoder.pt spm=sentencepiece.source.256000.model manifest={name} "
                f"out={self.folder}{_language_option(rows, languages)}"
            )
        self.keys: list[str] = list(dict.fromkeys(keys))  # each sentence once
        place = {key: number for number, key in enumerate(self.keys)}
        self.index = np.array([place[key] for key in keys], dtype=np.int64)  # row -> its sentence

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) float32 of the rows with these numbers, and the numbers (B,) of their sentences."""
        index = self.index[list(rows)]
        return self._read(index.tolist()), torch.from_numpy(index)

    def all(self) -> Tensor:
        """Those of all distinct sentences, (K, D) float32, in the order of `keys`."""
        return self._read(range(len(self.keys)))

    def _read(self, sentences: Sequence[int]) -> Tensor:
        store = open_store(self.folder)
        return torch.from_numpy(np.stack([store.read(self.keys[i])[0] for i in sentences]).astype(np.float32))


def _check_kind(store: FeatureStore) -> None:
    made_by = store.fingerprint.values.get("encoder")
    if made_by != ENCODER:
        raise DataError(
            f"{store.folder} holds no teacher embeddings (its fingerprint says encoder={made_by}, expected {ENCODER}): "
            "give a store of slt-extract what=sonar_teacher"
        )


def _language_option(rows: Sequence[Row], languages: Sequence[str]) -> str:
    """Where the rows' own languages are not those that are asked for, the command needs the option."""
    if all(row.text_lang == language for row, language in zip(rows, languages, strict=True)):
        return ""
    return f" lang={languages[0]}"
