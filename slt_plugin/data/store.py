"""Stores of extracted features: a folder `<name>.store` of packed files instead of one file a clip.

A cluster's file system serves a hundred large files well and a million small ones badly. A store holds for every key
(usually a row's id) one or more copies, extracted with other augmentation each: features (steps, channels) in float32
or float16. A manifest names stored features by the path `<folder>.store/<key>`.

Many processes may write one store at once, each under a `part` of its own. A shard appears complete or not at all, so
that a writer killed at any instant loses what it had not flushed and nothing else.
"""

import os
import re
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np

from slt_plugin.common.messages import listing
from slt_plugin.data.store_fingerprint import EntryError, Fingerprint, StoreError
from slt_plugin.data.store_index import read_index
from slt_plugin.data.store_shards import STORE_SUFFIX, as_key
from slt_plugin.data.store_writer import StoreWriter

__all__ = [
    "EntryError",
    "FeatureStore",
    "Fingerprint",
    "StoreError",
    "StoreWriter",
    "as_key",
    "open_store",
    "split_path",
]


_OPEN_STORES = 8
_OPEN_MAPS = 128  # each holds a file descriptor: a process has 1024 on most systems, 256 on macOS
_STORED = re.compile(rf"(.*{re.escape(STORE_SUFFIX)})/(.+)", re.IGNORECASE | re.DOTALL)


def split_path(path: str | os.PathLike) -> tuple[str, str] | None:
    """(store folder, key) of `<folder>.store/<key>`, None for the path of anything else."""
    match = _STORED.fullmatch(os.fspath(path))
    return (match[1], match[2]) if match else None


class FeatureStore:
    """The features of a store as they were when it was opened; reading is memory-mapped and in any order.

    Pickles as its folder. Raises StoreError where the folder is no store, holds nothing yet, or shards of different
    fingerprints.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._stamp = _stamp(self.folder)  # before the listing: what comes later is seen as a change
        index = read_index(self.folder)
        if index is None:
            raise StoreError(f"{self.folder}: holds no features yet; extract them, or correct the path")
        self._index = index
        self.fingerprint: Fingerprint = index.fingerprint
        self.origin: str | None = index.origin
        self.dtype: str = index.dtype
        self.channels: int = index.channels
        self.num_copies: int = int(np.diff(index.first).max())  # of the key that has most

    def __reduce__(self):
        return FeatureStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._index.keys)

    def __contains__(self, key: str) -> bool:
        return key in self._index.place

    def keys(self) -> list[str]:
        """In alphabetical order."""
        return list(self._index.keys)

    def copies(self, key: str) -> tuple[int, ...]:
        """The numbers of the key's copies in order, usually 0 to n - 1."""
        entries = self._entries(key)
        return tuple(self._index.copy[entries.start : entries.stop].tolist())

    def num_steps(self, key: str, copy: int = 0) -> int:
        """Known from the index: no shard is opened."""
        return int(self._index.steps[self._entry(key, copy)])

    def read(self, key: str, copy: int = 0) -> np.ndarray:
        """(T, C) in the stored type, a read-only view of the file: only what is used is read from the disk."""
        at = self._entry(key, copy)
        index, number = self._index, self._index.shard[at]
        data = _map(str(self.folder / index.shards[number]), index.sizes[number], self._stamp)
        begin, steps, dtype = int(index.offset[at]), int(index.steps[at]), np.dtype(index.dtype).newbyteorder("<")
        end = begin + steps * self.channels * dtype.itemsize
        return data[begin:end].view(dtype).reshape(steps, self.channels)

    def _entries(self, key: str) -> range:
        number = self._index.place.get(key)
        if number is None:
            keys = self._index.keys
            raise StoreError(
                f"{self.folder}: no features {key!r} among its {len(keys)} keys ({listing(keys, 2)}); extract them, or "
                "correct the manifest's path"
            )
        return range(int(self._index.first[number]), int(self._index.first[number + 1]))

    def _entry(self, key: str, copy: int) -> int:
        entries = self._entries(key)
        if 0 <= copy < len(entries) and self._index.copy[entries[copy]] == copy:
            return entries[copy]
        for entry in entries:
            if self._index.copy[entry] == copy:
                return entry
        there = listing(self.copies(key))
        raise StoreError(f"{self.folder}/{key}: no copy {copy} (there are {there}); extract it, or use one of these")


_open: OrderedDict[str, FeatureStore] = OrderedDict()


def open_store(folder: str | os.PathLike) -> FeatureStore:
    """The store, kept open in this process for the next row; opened anew where the folder has changed since."""
    name = os.fspath(folder)
    store = _open.get(name)
    if store is None or store._stamp != _stamp(store.folder):
        store = FeatureStore(name)
        _open[name] = store
        if len(_open) > _OPEN_STORES:
            _open.popitem(last=False)
    _open.move_to_end(name)
    return store


def _stamp(folder: Path) -> tuple[int, int]:
    """Changes when a file comes into the folder or leaves it."""
    try:
        stat = folder.stat()
    except OSError as err:
        what = "no such store" if isinstance(err, FileNotFoundError) else f"cannot be read ({err.strerror or err})"
        raise StoreError(f"{folder}: {what}; extract the features, or correct the path") from err
    return stat.st_ino, stat.st_mtime_ns


@lru_cache(maxsize=_OPEN_MAPS)  # module level: nothing open is pickled; a fork inherits the maps, which are read-only
def _map(path: str, size: int, stamp: tuple[int, int]) -> np.ndarray:
    """All bytes of a shard. `stamp`: a store made anew under the old name is mapped anew."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as err:  # ValueError: an empty file
        raise StoreError(f"{path}: cannot be read ({err}); check the store, or extract its features again") from err
    if len(data) != size:
        raise StoreError(f"{path}: {len(data)} bytes, {size} expected; delete it and extract what it held again")
    return np.asarray(data)
