"""Pre-extracted features (steps, channels): .npy (I3D of Tarrés et al.) and .pt (SSVP-SLT).

SSVP-SLT extracts several copies of a corpus, one an epoch, with other augmentation each: `features/<epoch>/<first 5
characters>/<stem>.pt`. A manifest path with the folder written literally as `{epoch}` stands for all of them.
"""

import pickle
import struct
from pathlib import Path

import numpy as np
import torch

from slt_plugin.data.arrays import first_line, open_array, unreadable
from slt_plugin.data.errors import DataError

KINDS = ".npy or .pt of shape (steps, channels)"
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


def feature_copies(path: Path) -> list[Path]:
    """The extraction copies that a manifest path stands for, in order; the path itself where it has no `{epoch}`.

    Raises FeatureError where no folder with a number as its name stands in the place of `{epoch}`.
    """
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


def choose_copy(path: Path, epoch: int | None) -> Path:
    """The file to read: training epoch e, counted from 1, uses copy (e - 1) mod n; None (evaluation) the first."""
    copies = feature_copies(path)
    return copies[0 if epoch is None else (epoch - 1) % len(copies)]


def open_features(path: Path) -> np.ndarray:
    """The array (T, C) of one file, of any floating type and not yet checked for NaN; .npy is memory-mapped.

    A .pt file of shape (C,), which SSVP-SLT writes for clips of a single window, is one step.
    Raises FeatureError for other kinds of file, unreadable and corrupt ones, and wrong ranks and types.
    """
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


def checked_features(path: Path, array: np.ndarray, first: int, last: int, step: int = 1) -> np.ndarray:
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
