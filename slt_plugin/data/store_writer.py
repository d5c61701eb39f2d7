"""Writing feature stores: many processes at once, resumable, nothing half-written is ever visible."""

import json
import logging
import os
import re
import socket
import time
from pathlib import Path

import numpy as np
import torch

from slt_plugin.common.files import atomic_open, process_runs
from slt_plugin.data.store_fingerprint import EntryError, Fingerprint, StoreError
from slt_plugin.data.store_index import read_index
from slt_plugin.data.store_shards import DTYPES, STORE_SUFFIX, check_part, key_problem, next_number, write_shard

logger = logging.getLogger(__name__)

CLAIM_NAME = "fingerprint.json"  # for writers and people; readers take the fingerprint from the shards
SHARD_BYTES = 64 << 20  # also about what a killed writer loses
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.slt-(?P<host>.+)-(?P<pid>\d+)\.tmp")  # common.files.temporary_path
_ABANDONED = 3600.0  # seconds; writing a shard takes a few


class StoreWriter:
    """Adds features to a store; `done` are the (key, copy) pairs that are safe on disk, those of other runs included.

    Args:
        folder: `<name>.store`; made where it does not exist.
        fingerprint: what made the features; a store holds those of one fingerprint.
        part: this writer among many that write at once, `3of64`; no two running ones have the same.
        dtype: "float32" or "float16" (half the size; a relative error up to 0.0005, values up to 65504).
        shard_bytes: `add` flushes when so much is waiting.
        origin: what the keys refer to (a manifest, a folder of media). A store takes keys of one origin only, where
            two corpora could both have a clip "0001" and the second be taken for done.

    Raises:
        StoreError: the store has another fingerprint, dtype or origin; the message says what differs.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: Fingerprint,
        *,
        part: str = "0of1",
        dtype: str = "float32",
        shard_bytes: int = SHARD_BYTES,
        origin: str | None = None,
    ):
        self.folder, self.fingerprint, self.part, self.origin = Path(folder), fingerprint, check_part(part), origin
        if not self.folder.name.lower().endswith(STORE_SUFFIX) or self.folder.name == STORE_SUFFIX:
            raise StoreError(f"{self.folder}: a store's folder is named <name>{STORE_SUFFIX}; correct the name")
        if dtype not in DTYPES:
            raise StoreError(f"dtype {dtype!r}: give {' or '.join(DTYPES)}")
        if shard_bytes < 1:
            raise StoreError(f"shard_bytes={shard_bytes}: give a number of bytes above 0")
        self.dtype, self.shard_bytes = dtype, shard_bytes
        self.done: set[tuple[str, int]] = set()
        self._channels: int | None = None
        self._waiting: dict[tuple[str, int], torch.Tensor] = {}
        self._waiting_bytes = 0
        self._closed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.folder, part)
        except OSError as err:
            raise StoreError(
                f"{self.folder}: cannot be written ({err.strerror or err}); check path and rights"
            ) from err
        self._resume()

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()  # after an error too: what was added is complete

    def add(self, key: str, copy: int, features: torch.Tensor) -> None:
        """Take features (T, C), floating point, of any device; they are safe after the next flush.

        Raises EntryError where the pair is there already (see `done`), the key cannot stand in a path (see `as_key`),
        and for wrong shapes and values that are NaN, infinite or beyond the store's type.
        """
        where = f"{self.folder}: copy {copy} of {key!r}"
        if self._closed:
            raise StoreError(f"{where}: the writer is closed; open another")
        if problem := key_problem(key):
            raise EntryError(f"{where}: {problem}; use store.as_key(name)")
        if isinstance(copy, bool) or not isinstance(copy, int) or copy < 0:
            raise EntryError(f"{where}: copies are numbered from 0")
        if (key, copy) in self.done or (key, copy) in self._waiting:
            raise EntryError(f"{where}: stored already; leave out what is in `done`")
        if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
            raise EntryError(
                f"{where}: {tuple(features.shape)} {features.dtype}; give floating point (steps, channels)"
            )
        if self._channels not in (None, features.shape[1]):
            raise EntryError(f"{where}: {features.shape[1]} channels, but the store's features have {self._channels}")
        # a copy of its own: the caller may use the memory again
        stored = features.detach().to("cpu", DTYPES[self.dtype], copy=True, memory_format=torch.contiguous_format)
        if not np.isfinite(stored.numpy()).all():  # numpy: torch's threads cost more than so small an array gives
            beyond = f", or values beyond {self.dtype}" if self.dtype == "float16" else ""
            raise EntryError(f"{where}: NaN or infinite values{beyond}; nothing was stored")
        self._channels = features.shape[1]
        self._waiting[key, copy] = stored
        self._waiting_bytes += stored.numel() * stored.element_size()
        if self._waiting_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one shard; safe from a power cut when this returns."""
        if not self._waiting:
            return
        number = next_number(self.folder, self.part)
        try:
            self._check_claim()
            write_shard(self.folder, self.part, number, self._waiting, self.fingerprint, self.origin)
        except OSError as err:
            raise StoreError(
                f"{self.folder}: cannot be written ({err.strerror or err}); free space, run again"
            ) from err
        self.done.update(self._waiting)
        self._waiting, self._waiting_bytes = {}, 0

    def close(self) -> None:
        """Flush and bring the index up to date."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        read_index(self.folder)

    def _resume(self) -> None:
        """Compare with what is in the folder, and take up what is done."""
        index = read_index(self.folder)
        try:
            if index is None:
                self._check_claim()
                return
            self._compare(index.fingerprint, index.origin, index.dtype)
            self._write_claim()  # the shards are the truth
        except OSError as err:
            raise _unwritable(self.folder, err) from err
        self._channels = index.channels
        self.done = {pair for pair, _ in index.entries()}

    def _check_claim(self) -> None:
        """Compare with what the first writer announced, which may not have flushed yet; announce it where none did.

        Thus one array job of many that was given another option stops before hours of work, not when all are done.
        """
        try:
            claim = json.loads((self.folder / CLAIM_NAME).read_text(encoding="utf-8"))
            fingerprint, origin, dtype = Fingerprint(claim["fingerprint"]), claim["origin"], claim["dtype"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            self._write_claim()
            return
        self._compare(fingerprint, origin, dtype)

    def _write_claim(self) -> None:
        claim = {"fingerprint": self.fingerprint.values, "origin": self.origin, "dtype": self.dtype}
        with atomic_open(self.folder / CLAIM_NAME) as file:
            file.write((json.dumps(claim, ensure_ascii=False, indent=2) + "\n").encode())

    def _compare(self, fingerprint: Fingerprint, origin: str | None, dtype: str) -> None:
        remedy = "give another folder, or delete this one to make it anew"
        if fingerprint != self.fingerprint:
            raise StoreError(
                f"{self.folder}: another fingerprint: {fingerprint.difference(self.fingerprint)}; {remedy}"
            )
        for what, there, asked in (("origin", origin, self.origin), ("dtype", dtype, self.dtype)):
            if there != asked:
                raise StoreError(f"{self.folder}: another {what}: {there} in the store, {asked} asked; {remedy}")


def _remove_abandoned(folder: Path, part: str) -> None:
    """Delete what killed writers left half-written: this part's, and on this machine that of ended processes.

    Readers never see such files. Those of other parts must also be old: process numbers differ between containers.
    """
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (match["host"] == socket.gethostname() and process_runs(int(match["pid"]))):
            continue
        try:
            own = match["name"].startswith(f"{part}-")
            old = match["host"] == socket.gethostname() and time.time() - path.stat().st_mtime > _ABANDONED
            if own or old:
                path.unlink()
                logger.info("%s: removed, left half-written by a killed process", path)
        except FileNotFoundError:  # its writer finished, or another one removed it
            continue


def _unwritable(folder: Path, err: OSError) -> StoreError:
    return StoreError(f"{folder}: cannot be written ({err.strerror or err}); check space, path and rights, run again")
