"""Ends a training that hangs: a loader that waits for a dead file system, ranks that wait for each other.

It takes ``distributed_training.heartbeat_timeout`` over from fairseq, whose own watch works only where the model is
wrapped for several ranks, sends an interrupt that does not reach a process that waits in C code, and at the end of a
training waits for its time-out to pass.
"""

import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time
import weakref

logger = logging.getLogger(__name__)

STALLED = 70  # exit status (EX_SOFTWARE)


class Watchdog:
    """A thread that ends the process when `beat` was not called for too long."""

    def __init__(self):
        self._seconds = self._last = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def take_over(self, cfg) -> None:
        """Reads the time-out (seconds; 0 or less: none) from fairseq's options, and leaves none there."""
        self._seconds = float(cfg.heartbeat_timeout)
        cfg.heartbeat_timeout = -1

    def start(self, trainer) -> None:
        """Begins to watch."""
        self.stop()
        self.beat()
        if self._seconds <= 0:
            return
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(weakref.ref(trainer), self._stopped), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def beat(self) -> None:
        """Something goes on: a batch of training or validation begins."""
        self._last = time.monotonic()

    def _watch(self, reference: weakref.ref, stopped: threading.Event) -> None:
        limit = self._seconds
        while not stopped.wait(max(0.05, self._last + limit - time.monotonic())):
            if time.monotonic() - self._last < limit:
                continue
            trainer = reference()
            if trainer is None:  # the training has ended with an error
                return
            faulthandler.dump_traceback(file=sys.stderr)
            logger.error(
                "STALLED: no batch for %.0f s (distributed_training.heartbeat_timeout=%g), rank %d after update %d; "
                "above is where each thread waits: in a loader for its files, or in a collective operation for "
                "another rank. The last checkpoint is whole; the same command goes on from it",
                *(time.monotonic() - self._last, limit, trainer.data_parallel_rank, trainer.get_num_updates()),
            )
            for handler in logging.getLogger().handlers:
                handler.flush()
            for worker in multiprocessing.active_children():
                worker.kill()  # it would outlive this process if it hangs
            os._exit(STALLED)  # the main thread hangs: it cannot end the process
