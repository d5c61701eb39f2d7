"""Pre-extracted features (steps, channels): stores of our own, .npy (I3D of Tarrés et al.) and .pt (SSVP-SLT).

A corpus may be extracted in several copies, one an epoch, with other augmentation each. A store holds them all under
one path, `<name>.store/<key>`. SSVP-SLT writes `features/<epoch>/<first 5 characters>/<stem>.pt`: a manifest path with
the folder written literally as `{epoch}` stands for all of them.
"""

import os
import pickle
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slt_plugin.data.arrays import first_line, open_array, unreadable
from slt_plugin.data.errors import DataError, naming_row
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint, open_store, split_path

KINDS = ".npy or .pt of shape (steps, channels), or a store: <name>.store/<key>"
_EPOCH = "{epoch}"
# what torch.load raises on truncated or garbled files (found by mutating valid files)
_TORCH_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    OverflowError,
    MemoryError,
)


class FeatureError(DataError):
    """A feature file that cannot be used: the message names it and says what to do."""


@dataclass(frozen=True)
class StoredCopy:
    """One copy of a key's features in a store; written in messages as a manifest writes its path."""

    folder: str
    key: str
    copy: int

    def __str__(self) -> str:
        return f"{self.folder}/{self.key}" + (f" (copy {self.copy})" if self.copy else "")


def is_features(path: Path) -> bool:
    """Whether a path can only be of features: a store's, a .pt file's, or one with `{epoch}`."""
    return split_path(path) is not None or path.suffix.lower() == ".pt" or _EPOCH in str(path)


def feature_copies(path: Path) -> list[Path] | list[StoredCopy]:
    """The extraction copies that a manifest path stands for, in order; the path itself where it is a single file.

    Raises FeatureError where no folder with a number as its name stands in the place of `{epoch}`, and where a store
    lacks a copy before its last one; StoreError where the store cannot be opened or lacks the key.
    """
    if (stored := split_path(path)) is not None:
        folder, key = stored
        numbers = open_store(folder).copies(key)
        if numbers != tuple(range(len(numbers))):
            missing = next(number for number in range(numbers[-1]) if number not in numbers)
            raise FeatureError(f"{path}: copy {missing} of {numbers[-1] + 1} is missing; run its extraction again")
        return [StoredCopy(folder, key, number) for number in numbers]
    if _EPOCH not in str(path):
        return [path]
    parts = path.parts
    if parts.count(_EPOCH) != 1 or str(path).count(_EPOCH) != 1:
        raise FeatureError(f"{path}: write {_EPOCH} once, as a whole folder name: features/{_EPOCH}/abcde/abcdef.pt")
    at = parts.index(_EPOCH)
    folder = Path(*parts[:at])
    try:
        numbers = [entry.name for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    except OSError as err:
        raise FeatureError(unreadable(folder, err)) from err
    if not numbers:
        raise FeatureError(f"{path}: no folder 0, 1, ... in {folder}; extract the features, or correct the path")
    return [Path(folder, number, *parts[at + 1 :]) for number in sorted(numbers, key=int)]


def choose_copy(path: Path, epoch: int | None) -> Path | StoredCopy:
    """What to read: training epoch e, counted from 1, uses copy (e - 1) mod n; None (evaluation) the first."""
    copies = feature_copies(path)
    return copies[0 if epoch is None else (epoch - 1) % len(copies)]


def check_all_copies(copies: Sequence[Path | StoredCopy]) -> None:
    """Raise FeatureError where a key of a store has fewer copies than others: part of its extraction failed."""
    if isinstance(copies[0], StoredCopy):
        usual = open_store(copies[0].folder).num_copies
        if len(copies) < usual:
            raise FeatureError(f"{copies[0]}: {len(copies)} copies, others of the store have {usual}; extract the rest")


def common_fingerprint(rows: Iterable[Row], root: Path) -> Fingerprint | None:
    """See `sources.FeatureSource.fingerprint`."""
    first: dict[str | None, Row] = {}  # store folder, None for plain files -> the first row of it
    for row in rows:
        stored = split_path(os.path.join(root, row.path))
        first.setdefault(stored[0] if stored else None, row)
    if first.keys() <= {None}:
        return None
    if None in first:
        folder, row = next((folder, row) for folder, row in first.items() if folder is not None)
        raise FeatureError(
            f"row {first[None].id!r} is the plain file {first[None].path}, row {row.id!r} of the store {folder}: what "
            "made the file is not known; put it into a store with slt-manifest adopt-features"
        )
    (folder, row), *others = first.items()
    with naming_row(row.id):
        fingerprint = open_store(folder).fingerprint
    for other, other_row in others:
        with naming_row(other_row.id):
            theirs = open_store(other).fingerprint
            if theirs != fingerprint:
                difference = fingerprint.difference(theirs, f"in {folder} (row {row.id!r})", f"in {other}")
                raise FeatureError(f"{other}: features made otherwise: {difference}; extract all of them alike")
    return fingerprint


def feature_steps(copy: Path | StoredCopy) -> int:
    """The number of steps of one copy; a store knows it from its index."""
    if isinstance(copy, StoredCopy):
        return open_store(copy.folder).num_steps(copy.key, copy.copy)
    return len(open_features(copy))


def open_features(path: Path | StoredCopy) -> np.ndarray:
    """The array (T, C) of one copy, of any floating type and not yet checked for NaN; .npy and stores are mapped.

    A .pt file of shape (C,), which SSVP-SLT writes for clips of a single window, is one step.
    Raises FeatureError for other kinds of file, unreadable and corrupt ones, and wrong ranks and types; StoreError.
    """
    if isinstance(path, StoredCopy):
        return open_store(path.folder).read(path.key, path.copy)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = open_array(path, FeatureError)
    elif suffix == ".pt":
        array = _load_pt(path)
    else:
        raise FeatureError(f"{path}: {suffix or 'no suffix'} is not a supported kind of features; give {KINDS}")
    if array.ndim != 2:
        raise FeatureError(f"{path}: array of shape {array.shape}; save features of shape (steps, channels)")
    return array


def checked_features(path: Path | StoredCopy, array: np.ndarray, first: int, last: int, step: int = 1) -> np.ndarray:
    """A float32 copy of every step-th of the steps [first, last); FeatureError where a value is NaN or infinite."""
    with np.errstate(over="ignore"):  # float64 values beyond float32 become inf and are refused below
        features = array[first:last:step].astype(np.float32)
    if not np.isfinite(features).all():
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise FeatureError(
            f"{path}: NaN or infinite values in {len(bad)} steps, first in step {first + step * int(bad[0])}; extract "
            "the features again, or remove the row"
        )
    return features


def _load_pt(path: Path) -> np.ndarray:
    remedy = "write it again with torch.save(tensor, path), or remove the row"
    try:
        size = path.stat().st_size
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as err:
        raise FeatureError(unreadable(path, err)) from err
    except _TORCH_ERRORS as err:
        raise FeatureError(f"{path}: not a complete .pt file of a tensor ({first_line(err)}); {remedy}") from err
    if not isinstance(tensor, torch.Tensor):
        raise FeatureError(f"{path}: holds a {type(tensor).__name__}; expected one tensor (steps, channels); {remedy}")
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
    # a tensor may claim any size over a small storage (stride 0): nothing larger than its file is copied
    if not dense or tensor.numel() * tensor.element_size() > size:
        raise FeatureError(f"{path}: tensor {tuple(tensor.shape)} {tensor.dtype} is not dense floating point; {remedy}")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # unknown to numpy
        tensor = tensor.float()
    return (tensor[None] if tensor.ndim == 1 else tensor).numpy()
