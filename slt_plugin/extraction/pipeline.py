"""Stage, decode, encode: each ahead of the next, the model never waiting while there is something to compute."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from slt_plugin.extraction.decoding import Decoders
from slt_plugin.extraction.encoding import Assembler, Encoder, Pending, WindowQueue
from slt_plugin.extraction.plan import Job
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.staging import Stager

_LOOKAHEAD = 4  # batches of windows from which those of similar length are chosen
_LISTENS = 0.5  # seconds after which a waiting run looks whether it is to stop


class Sink(Protocol):
    """What becomes of the jobs."""

    def features(self, job: Job, features: Tensor) -> bool:
        """Take (T, C) float32; False where they are not usable."""
        ...

    def failed(self, job: Job, cause: str) -> None:
        """The job's video could not be decoded."""
        ...

    def boxless(self, job: Job, warning: str) -> None:
        """The job's frames are large and no box says where the signer is."""
        ...


class Pipeline:
    """Runs all jobs of ``stager`` through ``decoders`` and ``encoder`` into ``sink``.

    Args:
        batch: windows of a model batch. Fewer are taken where nothing else is ready.
    """

    def __init__(
        self, stager: Stager, decoders: Decoders, encoder: Encoder, sink: Sink, progress: Progress, *, batch: int
    ):
        self.stager, self.decoders, self.encoder, self.sink = stager, decoders, encoder, sink
        self.progress, self.batch = progress, batch
        self._queue, self._assembler = WindowQueue(), Assembler()
        self._unencoded: dict[tuple[str, int], int] = {}  # windows of each decoded job
        self._pending: Pending | None = None

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Until all jobs are done, or ``stop`` says so; what is finished then has gone to the sink.

        Raises:
            SltError: the run cannot go on.
        """
        while not stop():
            self._feed()
            if len(self._queue) < _LOOKAHEAD * self.batch and self._take():
                continue
            if len(self._queue):
                self._encode()
                continue
            self._collect()  # the model has time: what it computed last is fetched before anything is waited for
            if self.decoders.running:
                with self.progress.waiting():
                    self.decoders.wait(_LISTENS)
            elif self.stager.busy:
                with self.progress.waiting():
                    self.stager.wait(_LISTENS)
            elif not self.decoders.busy:
                return
        self._collect()

    def _feed(self) -> None:
        while self.decoders.wants and (item := self.stager.take()) is not None:
            self.decoders.add(*item)

    def _take(self) -> bool:
        """One decoded job, if any is ready."""
        with self.progress.waiting():  # no time at all, unless the decoding is done in this process
            item = self.decoders.take()
        if item is None:
            return False
        job, decoded = item
        self.progress.decoded()
        self.stager.finished(job)
        if decoded.boxless is not None:
            self.sink.boxless(job, decoded.boxless)
        if decoded.frames is None:
            self.sink.failed(job, decoded.problem)
            self.progress.finished(failed=True)
            return True
        self._queue.add(job, decoded.frames, decoded.lengths)
        self._assembler.expect(job, len(decoded.lengths))
        self._unencoded[job.name] = len(decoded.lengths)
        return True

    def _encode(self) -> None:
        started = self.encoder.start(self._queue.next_batch(self.batch))
        for window in started.windows:
            self._unencoded[window.job.name] -= 1
            if self._unencoded[window.job.name] == 0:
                del self._unencoded[window.job.name]
                self.decoders.release(window.job)
        self._collect()  # the one before: the GPU has the next already
        self._pending = started

    def _collect(self) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        features = pending.collect()
        self.progress.encoded(len(features))
        for window, part in zip(pending.windows, features, strict=True):
            whole = self._assembler.add(window, part)
            if whole is not None:
                usable = self.sink.features(window.job, whole)
                self.progress.finished(failed=not usable)
