"""The shards of a feature store: safetensors files that are written once, whole, and never changed.

A shard holds tensors (steps, channels) of one type and width. A tensor's name is `<copy>/<key>`; the header's metadata
hold the fingerprint and the origin. The shards alone are the truth: everything else in the folder is made from them.
"""

import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import save

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.data.arrays import first_line
from slt_plugin.data.store_fingerprint import Fingerprint, StoreError

STORE_SUFFIX = ".store"
INDEX_NAME = "index.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
_HEADER_DTYPES = {"F32": ("float32", 4), "F16": ("float16", 2)}
_METADATA = "slt_plugin.store"  # one entry only: safetensors gives several no fixed order
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_SHARD = re.compile(r"(?P<part>\d+of\d+)-(?P<number>\d{5,})-(?P<digest>[0-9a-f]{8})\.safetensors")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one copy of one key lies in its shard: byte offset from the file's beginning, number of steps."""

    key: str
    copy: int
    offset: int
    steps: int


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself; `size` in bytes is that of the whole file."""

    name: str
    size: int
    fingerprint: Fingerprint
    origin: str | None
    dtype: str
    channels: int
    entries: list[Entry]


def as_key(name: str) -> str:
    """The key for a row id or a path: the name itself where that can stand in a manifest's path, else %-quoted.

    Two names never give the same key.
    """
    if "%" not in name and key_problem(name) is None:
        return name
    return urllib.parse.quote(name, safe="").replace(".", "%2E")


def key_problem(key: str) -> str | None:
    """Why `<store>/<key>` would not come back whole from a manifest's path; None where it does."""
    if not isinstance(key, str) or not key or not key.isprintable():
        return "it is empty, or has a character that cannot be printed"
    if key != key.strip() or str(PurePosixPath(key)) != key or key.startswith("/"):
        return "it has spaces or '/' at its ends, '//' or './' inside"
    if any(part == ".." or part.lower().endswith(STORE_SUFFIX) for part in key.split("/")):
        return f"a part of it is '..' or ends in {STORE_SUFFIX}"
    return None


def check_part(part: str) -> str:
    """The name of a writer among many, `3of64`, counted from 0. Raises StoreError."""
    match = re.fullmatch(r"(\d+)of(\d+)", part)
    if not match or int(match[1]) >= int(match[2]):
        raise StoreError(f"part {part!r}: give the writer's number, from 0, and how many there are, such as 0of64")
    return part


def shard_names(folder: Path) -> list[str]:
    """The names of a store's shards in order. Raises StoreError where there is no store, or a file not its own."""
    try:
        names = os.listdir(folder)
    except OSError as err:
        what = "no such store" if isinstance(err, FileNotFoundError) else f"cannot be read ({err.strerror or err})"
        raise StoreError(f"{folder}: {what}; extract the features, or correct the path") from err
    shards, foreign = [], []
    for name in names:
        if name.endswith(".safetensors") and not name.startswith(".") and name != INDEX_NAME:
            (shards if _SHARD.fullmatch(name) else foreign).append(name)
    if foreign:
        raise StoreError(
            f"{folder}: {listing(sorted(foreign))}: not a shard's name (such as 0of1-00000-1a2b3c4d.safetensors); give "
            "a renamed shard its name again, or move the file elsewhere"
        )
    return sorted(shards)


def next_number(folder: Path, part: str) -> int:
    """The number of the part's next shard."""
    matches = [_SHARD.fullmatch(name) for name in shard_names(folder)]
    return max((int(match["number"]) + 1 for match in matches if match["part"] == part), default=0)


def write_shard(
    folder: Path,
    part: str,
    number: int,
    tensors: Mapping[tuple[str, int], torch.Tensor],
    fingerprint: Fingerprint,
    origin: str | None,
) -> str:
    """Write one shard of (key, copy) -> tensor (T, C); its name. It appears complete or not at all.

    The name ends in a digest of the header, so that the same name always means the same entries: an index knows from
    names alone whether it is up to date, and two writers of one part cannot overwrite each other.
    """
    metadata = {"version": 1, "fingerprint": fingerprint.values, "origin": origin}
    named = {f"{copy}/{key}": tensor for (key, copy), tensor in tensors.items()}
    data = save(named, metadata={_METADATA: json.dumps(metadata, ensure_ascii=False, sort_keys=True)})
    end = 8 + int.from_bytes(data[:8], "little")
    name = f"{part}-{number:05d}-{_digest(data[8:end])}.safetensors"
    with atomic_open(folder / name) as file:
        file.write(data)
    return name


def read_header(path: Path) -> ShardHeader:
    """Raises StoreError where the file is not a whole shard, as after damage on the disk or a broken copy."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length) if length <= min(size, _MAX_HEADER) else b""
    except OSError as err:
        raise StoreError(f"{path}: cannot be read ({err.strerror or err}); check the path and its permissions") from err
    match = _SHARD.fullmatch(path.name)
    if match is None or len(raw) != length or _digest(raw) != match["digest"]:
        raise StoreError(f"{path}: its header is damaged; {_REMEDY}")
    try:
        return _parse(path.name, size, 8 + length, json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise StoreError(f"{path}: not a whole shard ({first_line(err)}); {_REMEDY}") from err


_REMEDY = "delete it, and run what wrote the store again: it makes only what is missing"


def _parse(name: str, size: int, begin: int, header: dict) -> ShardHeader:
    metadata = json.loads(header.pop("__metadata__")[_METADATA])
    if metadata["version"] != 1:
        raise ValueError(f"format version {metadata['version']!r}; this program reads 1")
    entries, kinds, end = [], set(), begin
    for tensor, place in header.items():
        copy, _, key = tensor.partition("/")
        steps, channels = place["shape"]
        first, last = place["data_offsets"]
        dtype, width = _HEADER_DTYPES[place["dtype"]]
        if last - first != steps * channels * width or steps < 1 or not (key and key.isprintable()):
            raise ValueError(f"tensor {tensor!r} has {last - first} bytes")
        kinds.add((dtype, channels))
        end = max(end, begin + last)
        entries.append(Entry(key, int(copy), begin + first, steps))
    if end != size:
        raise ValueError(f"{size} bytes, {end} expected")
    if len(kinds) != 1:
        raise ValueError("several types or widths")
    dtype, channels = kinds.pop()
    return ShardHeader(name, size, Fingerprint(metadata["fingerprint"]), metadata["origin"], dtype, channels, entries)


def _digest(header: bytes) -> str:
    return hashlib.sha256(header).hexdigest()[:8]
