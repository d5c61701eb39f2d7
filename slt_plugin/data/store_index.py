"""The index of a feature store: where each copy of each key lies. Made from the shards' headers, as often as needed."""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from slt_plugin.common.files import atomic_open
from slt_plugin.data.store_fingerprint import Fingerprint, StoreError
from slt_plugin.data.store_shards import INDEX_NAME, ShardHeader, read_header, shard_names

logger = logging.getLogger(__name__)

_FORMAT = "slt_plugin.store_index/1"
_COLUMNS = {"first": np.int64, "copy": np.int32, "shard": np.int32, "offset": np.int64, "steps": np.int64}


@dataclass(frozen=True)
class Index:
    """Entries sorted by key and copy; those of key k are `first[k]` to `first[k + 1]` of the columns."""

    fingerprint: Fingerprint
    origin: str | None
    dtype: str
    channels: int
    shards: list[str]
    sizes: list[int]  # bytes of each shard's file
    keys: list[str]
    first: np.ndarray
    copy: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    steps: np.ndarray

    @cached_property
    def place(self) -> dict[str, int]:
        """key -> its number in `keys`."""
        return {key: number for number, key in enumerate(self.keys)}

    def entries(self) -> Iterable[tuple[tuple[str, int], tuple[int, int, int]]]:
        """((key, copy), (shard, offset, steps)) of all."""
        keys = np.repeat(np.arange(len(self.keys)), np.diff(self.first))
        rows = np.stack([keys, self.copy, self.shard, self.offset, self.steps], axis=1).tolist()
        return (((self.keys[key], copy), (shard, offset, steps)) for key, copy, shard, offset, steps in rows)


def read_index(folder: Path) -> Index | None:
    """The index of the shards that are in the folder now; None where there are none.

    The file is used where it lists exactly these shards; otherwise the new ones are added from their headers, and the
    file is written again where the folder allows it. Two writers that end at the same moment may each leave out the
    other's last shard: the next reader puts it in.

    Raises:
        StoreError: the folder is not a store, a shard is damaged, or shards do not belong together.
    """
    names = shard_names(folder)
    if not names:
        return None
    old = _load(folder / INDEX_NAME)
    if old is not None and not set(old.shards) <= set(names):
        old = None  # a shard was removed
    known = set(old.shards) if old else set()
    if old is not None and len(known) == len(names):
        return old
    index = build(folder, old, [read_header(folder / name) for name in names if name not in known])
    try:
        with atomic_open(folder / INDEX_NAME) as file:
            file.write(_serialise(index))
    except OSError as err:  # a store of other people, or a full disk: it works without
        logger.info("%s: the index could not be written (%s); it is made anew each time", folder, err)
    return index


def build(folder: Path, old: Index | None, headers: list[ShardHeader]) -> Index:
    """`old` with the shards of `headers` added. Raises StoreError where they do not belong together."""
    alike = old or headers[0]
    alike_name = old.shards[0] if old else headers[0].name
    shards, sizes = (list(old.shards), list(old.sizes)) if old else ([], [])
    entries = dict(old.entries()) if old else {}
    twice = 0
    for header in headers:
        _check_alike(folder, alike, alike_name, header)
        number = len(shards)
        shards.append(header.name)
        sizes.append(header.size)
        for entry in header.entries:
            new, present = (number, entry.offset, entry.steps), entries.get((entry.key, entry.copy))
            if present is not None:
                twice += 1
                if present[2] != entry.steps:
                    raise StoreError(
                        f"{folder}: copy {entry.copy} of {entry.key!r} has {present[2]} steps in {shards[present[0]]} "
                        f"and {entry.steps} in {header.name}; delete the shard that is wrong"
                    )
                if shards[present[0]] < header.name:  # by name: the same whoever builds the index
                    continue
            entries[entry.key, entry.copy] = new
    if twice:
        logger.warning("%s: %d copies are stored twice (two writers of one part?); the first is used", folder, twice)
    return _sorted(alike, shards, sizes, entries)


def _check_alike(folder: Path, alike: Index | ShardHeader, name: str, header: ShardHeader) -> None:
    if alike.fingerprint != header.fingerprint:
        difference = alike.fingerprint.difference(header.fingerprint, f"in {name}", f"in {header.name}")
        raise StoreError(f"{folder}: shards of different fingerprints ({difference}); move one kind to another store")
    for what in ("origin", "dtype", "channels"):
        ours, theirs = getattr(alike, what), getattr(header, what)
        if ours != theirs:
            raise StoreError(
                f"{folder}: shards of different {what} ({ours} in {name}, {theirs} in {header.name}); move one kind to "
                "another store"
            )


def _sorted(alike: Index | ShardHeader, shards: list[str], sizes: list[int], entries: dict) -> Index:
    order = sorted(entries)
    keys, first = [], []
    for number, (key, _) in enumerate(order):
        if not keys or keys[-1] != key:
            keys.append(key)
            first.append(number)
    places = np.array([entries[name] for name in order], dtype=np.int64).reshape(-1, 3)
    columns = {
        "first": [*first, len(order)],
        "copy": [copy for _, copy in order],
        "shard": places[:, 0],
        "offset": places[:, 1],
        "steps": places[:, 2],
    }
    arrays = {name: np.ascontiguousarray(column, dtype=_COLUMNS[name]) for name, column in columns.items()}
    return Index(alike.fingerprint, alike.origin, alike.dtype, alike.channels, shards, sizes, keys, **arrays)


def _serialise(index: Index) -> bytes:
    names = ("origin", "dtype", "channels", "shards", "sizes")
    about = {"format": _FORMAT, "fingerprint": index.fingerprint.values} | {n: getattr(index, n) for n in names}
    arrays = {name: getattr(index, name) for name in _COLUMNS}
    # keys hold no line break (store_shards.key_problem)
    arrays["keys"] = np.frombuffer("\n".join(index.keys).encode(), dtype=np.uint8)
    text = json.dumps(about)
    return save(arrays, metadata={"index": f"{_digest(text, arrays)} {text}"})


def _digest(about: str, arrays: dict[str, np.ndarray]) -> str:
    """A damaged offset would give other features, and nobody would notice."""
    whole = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        whole.update(arrays[name].tobytes())
    return whole.hexdigest()


def _load(path: Path) -> Index | None:
    """The index as its file has it; None where there is no file or it is not usable, as it can be made again."""
    try:
        with safe_open(path, framework="numpy") as file:
            digest, _, text = file.metadata()["index"].partition(" ")
            arrays = {name: file.get_tensor(name) for name in (*_COLUMNS, "keys")}
        about = json.loads(text)
        if about.pop("format") != _FORMAT or digest != _digest(text, arrays):
            logger.info("%s: damaged, or of another version; made anew", path)
            return None
        keys = arrays.pop("keys").tobytes().decode().split("\n")
        return Index(Fingerprint(about.pop("fingerprint")), keys=keys, **about, **arrays)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as err:
        logger.info("%s: not usable (%s); made anew", path, err)
        return None
