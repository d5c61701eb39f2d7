"""Copies of videos on a node's own disk, made ahead of decoding and deleted after it."""

import errno
import logging
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from slt_plugin.common.files import process_runs
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.extraction.plan import Job

logger = logging.getLogger(__name__)

_THREADS = 2  # copying is bound by the network, not by the CPU
_FILES_AHEAD = 8


@dataclass
class _File:
    """One media file with its jobs; ``copy`` ends with the path to read, None for the original."""

    jobs: deque[Job]
    unfinished: int
    bytes: int
    copy: Future


class Stager:
    """Gives jobs with the row to read, whose path is a local copy where ``folder`` is given.

    A file is copied once for all its jobs, which must stand together, and deleted after the last. At most ``limit``
    bytes are there at once; a file that is larger, or that does not fit on the disk, is read where it is.

    Args:
        jobs: in the order in which they are to be done.
        root: where relative paths start.
        folder: on the local disk; None: nothing is copied.
        limit: bytes.
    """

    def __init__(self, jobs: Sequence[Job], root: Path, folder: Path | None, limit: int):
        self.root, self.limit = root, limit
        self._groups = deque(deque(group) for _, group in groupby(jobs, lambda job: job.segment.row.path))
        self._files: deque[_File] = deque()  # copying or copied, jobs left to give
        self._of: dict[str, _File] = {}  # path -> its file, until its last job is done
        self._copies = 0
        self._folder: Path | None = None
        self._threads: ThreadPoolExecutor | None = None
        if folder is not None:
            _remove_abandoned(folder)
            self._folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=folder))
            self._threads = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> "Stager":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether jobs are left to give."""
        return bool(self._groups or self._files)

    def take(self) -> tuple[Job, Row] | None:
        """The next job; None where its file is still being copied, or none is left."""
        self._copy_ahead()
        if not self._files or not self._files[0].copy.done():
            return None
        file = self._files[0]
        job, path = file.jobs.popleft(), file.copy.result()
        if not file.jobs:
            self._files.popleft()
        row = job.segment.row
        return job, row if path is None else replace(row, path=str(path))

    def finished(self, job: Job) -> None:
        """The job's file is no longer read for it."""
        file = self._of[job.segment.row.path]
        file.unfinished -= 1
        if file.unfinished == 0:
            del self._of[job.segment.row.path]
            path = file.copy.result()
            if path is not None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def wait(self, timeout: float) -> None:
        """Until `take` has something, or ``timeout`` seconds."""
        if self._files:
            try:
                self._files[0].copy.result(timeout)
            except TimeoutError:
                return

    def _copy_ahead(self) -> None:
        while self._groups and len(self._files) < _FILES_AHEAD:
            row = self._groups[0][0].segment.row
            source = resolve_path(row, self.root)
            size = _bytes(source) if self._folder is not None else 0
            copied = self._folder is not None and 0 < size <= self.limit
            if copied and sum(file.bytes for file in self._of.values()) + size > self.limit:
                return  # until others are finished
            jobs = self._groups.popleft()
            if copied:
                self._copies += 1
                future = self._threads.submit(self._copy, source, self._folder / f"{self._copies:06d}")
            else:
                future = Future()
                future.set_result(None)
            self._of[row.path] = file = _File(jobs, len(jobs), size if copied else 0, future)
            self._files.append(file)

    def _copy(self, source: Path, target: Path) -> Path | None:
        target = target.with_suffix(source.suffix)
        try:
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        except (OSError, shutil.Error) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                logger.warning("staging: %s does not fit on the disk of %s and is read where it is", source, target)
            shutil.rmtree(target, ignore_errors=True)
            target.unlink(missing_ok=True)
            return None  # decoding the original says what is wrong with it
        return target


def _bytes(path: Path) -> int:
    """Size of a file or of a folder's files; 0 where it cannot be read."""
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                return sum(entry.stat().st_size for entry in entries)
        return path.stat().st_size
    except OSError:
        return 0


def _prefix() -> str:
    return f"slt-extract-{socket.gethostname()}-"


def _remove_abandoned(folder: Path) -> None:
    """What a killed process of this machine left there."""
    for path in folder.glob(f"{_prefix()}*"):
        pid = path.name.removeprefix(_prefix()).split("-")[0]
        if pid.isdecimal() and not process_runs(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
