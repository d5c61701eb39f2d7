"""Ending a long run in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slt_plugin.common.stopping import Stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C, the end of a job, and SLURM's before it


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Signals end the run in order (a second one at once): gives the signal that came, None so far."""
    stopping = Stopping(SIGNALS, "what is extracted is written, then the run ends", second=True)
    stopping.listen()
    try:
        yield lambda: stopping.received
    finally:
        stopping.restore()
