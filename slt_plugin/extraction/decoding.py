"""Decoding ahead of the model, in worker processes."""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.data import video
from slt_plugin.data.clips import VideoSource
from slt_plugin.data.errors import DataError, naming_row
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.segments import known_frames
from slt_plugin.data.signer_box import large_frame_without_box
from slt_plugin.extraction.plan import Job

logger = logging.getLogger(__name__)

_AHEAD = 2  # jobs a worker: one that it does and one that waits for it
_DIED = (
    "the process that decoded it died (a crash in the decoder, or out of memory); cut a long video into rows with "
    "start and end, write the file again (ffmpeg -i IN OUT), or remove the row"
)


@dataclass(frozen=True)
class Decoded:
    """The windows of one job, as `data.clips.Clips` has them, or what is wrong.

    frames: (F, 3, size, size) uint8; None where decoding failed.
    lengths: frames of each window.
    problem: one message, for failed.tsv.
    boxless: a warning where the frames are large and no box says where the signer is.
    """

    frames: Tensor | None
    lengths: tuple[int, ...] = ()
    problem: str | None = None
    boxless: str | None = None

    @property
    def bytes(self) -> int:
        """Memory of the frames."""
        return 0 if self.frames is None else self.frames.numel()


def decode(source: VideoSource, row: Row, job: Job, seed: int) -> Decoded:
    """One job; every failure of its video becomes a message.

    Args:
        row: the job's, with the path of a staged copy where there is one.
        seed: of the augmentation.
    """
    try:
        boxless = None
        if row.box is None:
            with naming_row(row.id):
                info = video.probe(resolve_path(row, source.root), row.start, row.end, fps=row.fps)
            boxless = large_frame_without_box(info.width, info.height, None, source.options.size)
        clips = source.load(row, epoch=job.copy + 1, rng=job.rng(seed))
    except DataError as error:
        return Decoded(None, problem=str(error).replace(row.path, job.segment.row.path))
    except Exception as error:  # one odd file among 100,000 must not end the run; it is reported, and the run fails
        logger.exception("row %r", row.id)
        return Decoded(None, problem=f"row {row.id!r}: {job.segment.row.path}: {type(error).__name__}: {error}")
    return Decoded(clips.frames.contiguous(), clips.lengths, boxless=boxless)


class _Running(NamedTuple):
    job: Job
    row: Row
    pool: ProcessPoolExecutor


class Decoders:
    """Decodes jobs and hands them over in the order in which they are ready.

    Frames come through shared memory. A job is taken up while what is decoded, being decoded or not yet released fits
    into the budget; one that is larger than the budget is let through alone.

    A worker that dies (a crash in a codec library, the kernel's out-of-memory killer) takes the whole pool with it. The
    jobs that it may have had are decoded again one at a time, so that only the guilty one fails.

    Args:
        source: what decodes; every worker gets a copy.
        workers: processes; 0: this one, when a job is asked for.
        budget: bytes of decoded frames.
        seed: of the augmentation.
    """

    def __init__(self, source: VideoSource, *, workers: int, budget: int, seed: int):
        self.source, self.workers, self.budget, self.seed = source, workers, budget, seed
        self._todo: deque[tuple[Job, Row]] = deque()
        self._suspects: deque[tuple[Job, Row]] = deque()
        self._alone = False  # what runs is a suspect
        self._running: dict[Future, _Running] = {}
        self._held: dict[tuple[str, int], int] = {}  # bytes of each job's frames, an estimate until they are there
        self._seen = self._seen_bytes = 0
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None  # closed, or gone with this process: the workers end

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, job: Job, row: Row) -> None:
        """Puts a job behind the others; ``row`` as for `decode`."""
        self._todo.append((job, row))

    @property
    def wants(self) -> bool:
        """Whether a job should be added so that no worker has to wait for one."""
        return len(self._todo) < _AHEAD * max(1, self.workers)

    @property
    def running(self) -> bool:
        """Whether a worker has something to do."""
        return bool(self._running)

    @property
    def busy(self) -> bool:
        """Whether a job was added and not yet taken."""
        return bool(self._todo or self._suspects or self._running)

    def take(self) -> tuple[Job, Decoded] | None:
        """A job that is ready; None where none is. Its frames count against the budget until `release`."""
        if self.workers == 0:
            if not self._todo or not self._fits(self._todo[0][1]):
                return None
            job, row = self._todo.popleft()
            return self._arrived(job, decode(self.source, row, job, self.seed))
        self._submit()
        ready = next((future for future in self._running if future.done()), None)
        if ready is None:
            return None
        job, row, pool = self._running.pop(ready)
        try:
            decoded = ready.result()
        except BrokenProcessPool:
            return self._suspect(job, row, pool)
        self._alone = False
        self._submit()
        return self._arrived(job, decoded)

    def release(self, job: Job) -> None:
        """The frames of a job are no longer needed."""
        self._held.pop(job.name, None)

    def wait(self, timeout: float) -> None:
        """Until `take` has something, or ``timeout`` seconds."""
        if self._running:
            wait(self._running, timeout, FIRST_COMPLETED)

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        if self._pool is not None:
            self._alive.close()
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._alive = None
        self._running.clear()

    def _submit(self) -> None:
        if self._suspects:  # one, when everything else has come back
            if not self._running:
                self._alone = True
                self._start(*self._suspects.popleft())
            return
        while self._todo and len(self._running) < _AHEAD * self.workers and self._fits(self._todo[0][1]):
            self._start(*self._todo.popleft())

    def _start(self, job: Job, row: Row) -> None:
        self._held[job.name] = self._estimate(row)
        if self._pool is None:
            self._pool, self._alive = _start_pool(self.source, self.workers)
        try:
            future = self._pool.submit(_decode_in_worker, row, job, self.seed)
        except BrokenProcessPool:  # a worker died since: what it had turns up in `take`
            self._drop_pool()
            return self._start(job, row)
        self._running[future] = _Running(job, row, self._pool)

    def _suspect(self, job: Job, row: Row, pool: ProcessPoolExecutor) -> tuple[Job, Decoded] | None:
        """After a worker died: the job is tried again alone; if it was alone already, it is the guilty one."""
        if pool is self._pool:
            self._drop_pool()
        if self._alone:
            self._alone = False
            return self._arrived(job, Decoded(None, problem=f"row {row.id!r}: {job.segment.row.path}: {_DIED}"))
        self._suspects.append((job, row))
        return None

    def _drop_pool(self) -> None:
        self._alive.close()
        self._pool.shutdown(wait=True)
        self._pool = self._alive = None

    def _arrived(self, job: Job, decoded: Decoded) -> tuple[Job, Decoded]:
        self._held[job.name] = decoded.bytes
        if decoded.bytes:
            self._seen, self._seen_bytes = self._seen + 1, self._seen_bytes + decoded.bytes
        else:
            self.release(job)
        return job, decoded

    def _fits(self, row: Row) -> bool:
        return not self._held or sum(self._held.values()) + self._estimate(row) <= self.budget

    def _estimate(self, row: Row) -> int:
        """Bytes of a row's frames: from its own numbers where it has them, else the mean of what was seen."""
        options = self.source.options
        frame = 3 * options.size**2
        try:
            frames = known_frames(row)
            if frames is not None and row.fps is not None:
                return frame * sum(window.kept_frames for window in options.windows(frames, row.fps))
        except DataError:  # reading the row will say what is wrong
            return frame
        return self._seen_bytes // self._seen if self._seen else frame * options.num_frames


# ---- in the workers

_worker_source: VideoSource | None = None


def _start_pool(source: VideoSource, workers: int) -> tuple[ProcessPoolExecutor, Connection]:
    """The pool, and a connection whose end is the end of the workers."""
    # forkserver: a plain fork of a process that has loaded torch (threads) or uses a GPU may hang
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    theirs, ours = context.Pipe(duplex=False)
    return ProcessPoolExecutor(workers, context, _start_worker, (source, theirs)), ours


def _start_worker(source: VideoSource, alive: Connection) -> None:
    global _worker_source
    _worker_source = source
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the run in order
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: Connection) -> None:
    """A parent that was killed cannot stop its workers, and they would wait for work for ever."""
    alive.poll(None)
    os._exit(1)


def _decode_in_worker(row: Row, job: Job, seed: int) -> Decoded:
    decoded = decode(_worker_source, row, job, seed)
    if decoded.frames is not None:
        try:
            decoded.frames.share_memory_()
        except RuntimeError as error:
            cause = (
                f"no shared memory for {decoded.bytes >> 20} MB of decoded frames ({error}); cut a long video into "
                "rows with start and end, lower prefetch_mb, or give a container more (docker run --shm-size=8g)"
            )
            return Decoded(None, problem=f"row {row.id!r}: {job.segment.row.path}: {cause}")
    return decoded
