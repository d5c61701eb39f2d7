"""Ending a long run in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[Callable[[], int | None]]:
    """Ctrl-C and SIGTERM end the run in order (a second one at once): gives the signal that came, None so far."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets only the main thread set handlers
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
