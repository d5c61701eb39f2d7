"""Bring extracted feature files of other projects (.npy, .pt, `{epoch}` copies) into a store of ours."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from slt_plugin.data.errors import DataError, naming_file
from slt_plugin.data.features import FeatureError, StoredCopy, checked_features, feature_copies, open_features
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.segments import check_num_frames, segment_frames
from slt_plugin.data.store import EntryError, FeatureStore, StoreWriter, as_key, split_path

_AHEAD = 4  # files that each thread may have read before they are stored
Unit = tuple[str, int, Path]  # key, copy, its file


@dataclass(frozen=True)
class Adoption:
    """`rows`: those that can be used, with new path and num_frames. `failed`: row id -> cause, in the rows' order."""

    rows: list[Row]
    failed: dict[str, str]
    stored: int  # copies written now; others were there already


def key_of(file: str, root: str) -> str:
    """The key of a feature file: its path under root, else its whole path, without `{epoch}` and the suffix.

    From the path and not from the row, because rows may share a file.
    """
    relative = os.path.relpath(file, root)
    name = Path(os.path.abspath(file).lstrip("/") if relative.startswith("..") else relative).with_suffix("")
    return as_key("/".join(part for part in name.parts if part != "{epoch}"))


def adopt(
    rows: Sequence[Row],
    root: Path,
    writer: StoreWriter,
    manifest_folder: Path,
    *,
    workers: int,
    progress: Callable[[Iterable, int], Iterable],
) -> Adoption:
    """Store every copy of the rows' feature files that the store does not hold yet; closes the writer.

    Args:
        root: where relative paths of the rows start.
        manifest_folder: where those of the new rows start; a store outside of it is named by its whole path.
        workers: threads that read files: on a network's file system they mostly wait.
        progress: takes the copies to read and their number; yields them unchanged.

    Raises:
        StoreError: the store cannot be written. What is wrong with single files is in `Adoption.failed`.
    """
    files = [os.path.normpath(resolve_path(row, root)) for row in rows]
    keys = [key_of(file, os.path.normpath(root)) for file in files]
    file_of = dict(zip(reversed(keys), reversed(files), strict=True))  # of several, the first
    causes: dict[str, list[str]] = {key: [] for key in file_of}
    copies: dict[str, list[Path]] = {}
    stored = 0
    with writer, ThreadPoolExecutor(workers) as pool:
        for key, listed in zip(file_of, pool.map(_copies, file_of.values()), strict=True):
            if isinstance(listed, DataError):
                causes[key].append(str(listed))
            else:
                copies[key] = listed
        units = [(key, number, file) for key, listed in copies.items() for number, file in enumerate(listed)]
        units = [unit for unit in units if unit[:2] not in writer.done]
        for (key, number, file), features in progress(_read_ahead(pool, units, _AHEAD * workers), len(units)):
            try:
                if isinstance(features, DataError):
                    raise features
                with naming_file(file):
                    writer.add(key, number, torch.from_numpy(features))
                stored += 1
            except (FeatureError, EntryError) as err:  # any other StoreError is not the file's fault
                causes[key].append(str(err))
    store = FeatureStore(writer.folder) if writer.done else None
    new_path = _path_from(manifest_folder, writer.folder)
    good, failed = [], {}
    for row, file, key in zip(rows, files, keys, strict=True):
        try:
            if file != file_of[key]:
                raise FeatureError(f"{file}: would share the key {key!r} with {file_of[key]}; give it another store")
            if causes[key]:
                more = f" (and {len(causes[key]) - 1} more of its copies)" if len(causes[key]) > 1 else ""
                raise FeatureError(causes[key][0] + more)
            good.append(replace(row, path=f"{new_path}/{key}", num_frames=_length(row, store, key, len(copies[key]))))
        except DataError as err:
            failed[row.id] = str(err)
    return Adoption(good, failed, stored)


def _copies(file: str) -> list[Path] | DataError:
    try:
        if split_path(file) is not None:
            return FeatureError(f"{file}: is in a store already; leave the row out")
        return feature_copies(Path(file))
    except DataError as err:
        return err


def _read_ahead(pool: ThreadPoolExecutor, units: Iterable[Unit], ahead: int) -> Iterator[tuple[Unit, object]]:
    """(unit, features or what is wrong with them), in order; at most `ahead` more are in memory."""
    window = deque()
    for unit in units:
        window.append((unit, pool.submit(_read, unit[2])))
        if len(window) > ahead:
            unit, future = window.popleft()
            yield unit, future.result()
    for unit, future in window:
        yield unit, future.result()


def _read(file: Path) -> np.ndarray | DataError:
    """(T, C) float32."""
    try:
        array = open_features(file)
        if 0 in array.shape:
            return FeatureError(f"{file}: array of shape {array.shape}; extract the features again, or remove the row")
        return checked_features(file, array, 0, len(array))
    except DataError as err:
        return err


def _length(row: Row, store: FeatureStore, key: str, num_copies: int) -> int | None:
    """The row's num_frames, taken from the store where it is not given and all copies agree.

    Raises DataError where a copy does not fit the row's num_frames or times, on which training would stop.
    """
    lengths = set()
    for number in range(num_copies):
        with naming_file(StoredCopy(str(store.folder), key, number)):
            first, last = segment_frames(row.start, row.end, row.fps, store.num_steps(key, number))
            check_num_frames(row, last - first, row.fps)
        lengths.add(last - first)
    if row.num_frames is None and len(lengths) == 1:
        return lengths.pop()
    return row.num_frames


def _path_from(folder: Path, store: Path) -> str:
    """The store's path as a manifest in folder writes it."""
    folder, store = folder.resolve(), store.resolve()
    return str(store.relative_to(folder) if store.is_relative_to(folder) else store)
