"""What is to be extracted: the distinct segments of a manifest, their keys in the store, and one element's share."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.features import choose_copy
from slt_plugin.data.manifest import Row
from slt_plugin.data.segments import known_frames
from slt_plugin.data.store import open_store, split_path
from slt_plugin.data.video import VIDEO_SUFFIXES

_STAT_THREADS = 16  # a network file system answers slowly, but many questions at once
_NAME_LENGTH = 60
_DIGEST_LENGTH = 16  # hexadecimal digits: 2**32 segments before two are likely to share one

Size = tuple[str | int, ...]  # what tells one content of a path from another, see `_size`

_store_lock = threading.Lock()  # the open stores of a process are for one thread


@dataclass(frozen=True)
class Segment:
    """A stretch of a video that one or more rows show (a corpus with several text languages has a row for each).

    key: its name in the store.
    row: the first of the rows.
    ids: of all of them.
    """

    key: str
    row: Row
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One copy of one segment: 0 without augmentation, later ones with."""

    segment: Segment
    copy: int

    @property
    def name(self) -> tuple[str, int]:
        """As the store names it."""
        return self.segment.key, self.copy

    def rng(self, seed: int) -> np.random.Generator | None:
        """The augmentation's generator: from seed, copy and segment only. None for copy 0."""
        if self.copy == 0:
            return None
        digest = int(hashlib.sha256(self.segment.key.encode()).hexdigest()[:16], 16)
        return np.random.default_rng([seed, self.copy, digest])


def find_segments(rows: Sequence[Row], root: Path) -> list[Segment]:
    """The distinct segments, those of a file together and in order of time, files in the order of the manifest.

    The key is made of the segment itself (path as written, size of the file, times, box), not of the row's id: rows
    that share a segment share its features whatever manifest or language they stand in, a row whose times were
    corrected or whose video was replaced is extracted again, and elements agree on the keys without talking.

    Raises:
        DataError: none of the files exists.
    """
    paths = list(dict.fromkeys(row.path for row in rows))
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        sizes = dict(zip(paths, pool.map(lambda path: _size(root / path), paths), strict=True))
    if rows and not any(sizes.values()):
        raise DataError(
            f"none of the {len(paths)} media files is there: {listing([str(root / path) for path in paths], shown=3)}. "
            "Set media_root to the directory that the manifest's paths start from"
        )
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(segment_key(row, sizes[row.path]), []).append(row)
    segments = [Segment(key, group[0], tuple(row.id for row in group)) for key, group in found.items()]
    place = {path: number for number, path in enumerate(paths)}
    return sorted(segments, key=lambda segment: (place[segment.row.path], segment.row.start or 0.0))


def segment_key(row: Row, size: Size | None) -> str:
    """A readable and unique name: the file's stem and a digest.

    Args:
        size: ("bytes", length of the file), ("files", entries of the folder, length of the first), ("array", length of
            the file, its time) for other media than videos, ("stored", steps, digest of the store's fingerprint), or
            None where there is nothing.
    """
    described = [os.path.normpath(row.path), size, row.start or 0.0, row.end, row.box and list(row.box)]
    if size is not None and size[0] != "bytes":
        described.append(row.fps)  # these have no rate of their own: the row's decides which frames are meant
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:_DIGEST_LENGTH]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(row.path).stem).strip("._-")[:_NAME_LENGTH]
    return f"{stem or 'video'}-{digest}"


def owners(segments: Sequence[Segment], num_shards: int) -> list[int]:
    """Which element extracts each segment: stretches of the list, so that few elements open the same long video.

    All have about the same number of frames where every row tells its own, else of segments.
    """
    frames = [_frames(segment.row) for segment in segments]
    weights = np.array([1.0 if None in frames else count for count in frames])
    middles = np.cumsum(weights) - weights / 2
    return np.floor(middles * num_shards / max(weights.sum(), 1.0)).astype(int).tolist()


def _frames(row: Row) -> int | None:
    try:
        return known_frames(row)
    except DataError:  # a segment without frames: reading it will say so
        return 1


def _size(path: Path) -> Size | None:
    try:
        if split_path(path) is not None:
            with _store_lock:
                folder, key = split_path(path)
                store = open_store(folder)
                return "stored", store.num_steps(key), store.fingerprint.digest
        path = choose_copy(path, None)  # of several extraction copies the first
        if path.is_dir():
            names = sorted(os.listdir(path))
            return "files", len(names), (path / names[0]).stat().st_size if names else 0
        stat = path.stat()
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return "bytes", stat.st_size
        return "array", stat.st_size, stat.st_mtime_ns  # made anew, an array is often as long as before
    except (OSError, DataError):
        return None
