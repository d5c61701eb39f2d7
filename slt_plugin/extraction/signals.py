"""Ending a long run in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slt_plugin.common.stopping import Stopping

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C, the end of a job, and SLURM's before it


# Of the extraction of this process: the command listens from its start on, a call from Python while it works.
EXTRACTION = Stopping(SIGNALS, "what is extracted is written, then the run ends", second=True)


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Signals end the run in order (a second one at once): gives the signal that came, None so far."""
    EXTRACTION.listen()
    try:
        yield lambda: EXTRACTION.received
    finally:
        EXTRACTION.restore()
