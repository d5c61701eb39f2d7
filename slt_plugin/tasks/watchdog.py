"""Ends a training that hangs: a loader that waits for a dead file system, ranks that wait for each other.

fairseq's own ``distributed_training.heartbeat_timeout`` works only where the model is wrapped for several ranks, and
its interrupt does not reach a process that waits in C code.
"""

import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time

logger = logging.getLogger(__name__)

STALLED = 70  # exit status (EX_SOFTWARE)
LEAD = 0.95  # of the time-out: before fairseq's own, whose KeyboardInterrupt says nothing


class Watchdog:
    """A thread that ends the process when `beat` was not called for too long."""

    def __init__(self):
        self._last = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float, trainer) -> None:
        """Begins to watch; ``seconds``: 0 or less for not at all."""
        self.stop()
        self.beat()
        if seconds <= 0:
            return
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(seconds, trainer, self._stopped), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def beat(self) -> None:
        """Something goes on: a batch of training or validation begins."""
        self._last = time.monotonic()

    def _watch(self, seconds: float, trainer, stopped: threading.Event) -> None:
        limit = LEAD * seconds
        while not stopped.wait(max(0.05, self._last + limit - time.monotonic())):
            if time.monotonic() - self._last < limit:
                continue
            faulthandler.dump_traceback(file=sys.stderr)
            logger.error(
                "STALLED: no batch for %.0f s (distributed_training.heartbeat_timeout=%g), rank %d after update %d; "
                "above is where each thread waits: in a loader for its files, or in a collective operation for "
                "another rank. The last checkpoint is whole; the same command goes on from it",
                *(time.monotonic() - self._last, seconds, trainer.data_parallel_rank, trainer.get_num_updates()),
            )
            for handler in logging.getLogger().handlers:
                handler.flush()
            for worker in multiprocessing.active_children():
                worker.kill()  # it would outlive this process if it hangs
            os._exit(STALLED)  # the main thread hangs: it cannot end the process
