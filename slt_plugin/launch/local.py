"""Several ranks on this machine: on CPUs, or with one process a GPU, as srun starts them on a cluster."""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from slt_plugin.launch.ranks import local_environments

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
TOGETHER_SECONDS = 5.0  # ranks that stop together end within moments of each other
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL, as in SLURM
FORWARDED = (signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C reaches the processes by itself


def run_ranks(command: Sequence[str], count: int) -> int:
    """Runs ``command`` as ``count`` ranks; the exit status: 0, else that of the first rank that failed.

    Where one ends with another status than 0, the others, which would wait for it for ever, are ended too. Signals go
    on to all.
    """
    processes = [subprocess.Popen(command, env=environ) for environ in local_environments(count)]
    try:
        with forwarding(FORWARDED, lambda: [process.pid for process in processes if process.poll() is None]):
            return _wait(processes)
    finally:
        _end(processes)


@contextlib.contextmanager
def forwarding(numbers: Sequence[int], children: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Signals to this process go on to others: ``children`` gives their process ids when one comes."""

    def forward(number: int, _: object) -> None:
        for child in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: list[subprocess.Popen]) -> int:
    while True:
        states = [process.poll() for process in processes]
        failed = [(rank, status) for rank, status in enumerate(states) if status]
        if failed:
            rank, status = failed[0]
            if not _all_end(processes, TOGETHER_SECONDS) or len({process.returncode for process in processes}) > 1:
                logger.error("rank %d of %d %s: the others are ended", rank, len(processes), describe(status))
                _end(processes)
            return 128 - status if status < 0 else status
        if all(status == 0 for status in states):
            return 0
        time.sleep(POLL_SECONDS)


def describe(status: int) -> str:
    """'died of SIGKILL' or 'ended with exit status 1'."""
    return f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def _send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _all_end(processes: list[subprocess.Popen], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _end(processes: list[subprocess.Popen]) -> None:
    for number, grace in ((signal.SIGTERM, 0.0), (signal.SIGKILL, GRACE_SECONDS)):
        if _all_end(processes, grace):
            return
        _send(processes, number)
    for process in processes:
        process.wait()
