"""Signals that end a long run in order: noted when they come, acted upon where the work can stop."""

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

from slt_plugin.common import slurm

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL): what was done is saved, the same command goes on from there


class Stopping:
    """Notes the first of some signals instead of dying of it.

    Forked processes (loader workers) inherit the handler: there it does nothing.

    Args:
        numbers: of the signals.
        advice: what is written to stderr when one comes.
        second: a second signal has its usual effect.

    Attributes:
        received: the number of the first signal, None so far.
    """

    def __init__(self, numbers: Sequence[int], advice: str, *, second: bool):
        self.numbers, self.advice, self.second = tuple(numbers), advice, second
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._process = 0

    def listen(self) -> None:
        """Puts the handlers in place, where they are not yet. Outside of the main thread Python allows none."""
        if self._before and self._process == os.getpid():
            return
        self.received, self._process = None, os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.numbers:
            handler = signal.getsignal(number)
            if handler != self._note:
                self._before[number] = handler
                signal.signal(number, self._note)

    def restore(self) -> None:
        """Puts the handlers of before back in place."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._before.clear()

    def replaced(self, number: int) -> object:
        """The handler that was there before."""
        return self._before.get(number, signal.SIG_DFL)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.received is None:
            self.received = number
            # no logging here: the signal may have come in the middle of a log record
            os.write(2, f"{signal.Signals(number).name}: {self.advice}\n".encode())
        if self.second:
            signal.signal(number, self._before[number])


# Of the training of this process: a command listens from its start on, fairseq's own when the trainer is built.
TRAINING = Stopping(
    (signal.SIGUSR2, signal.SIGTERM), "the training is saved after this update, then it ends", second=False
)


def give_back(number: int, submitit: object, environ: Mapping[str, str]) -> tuple[str, int]:
    """Has SLURM queue this job again, once its work is saved; (what happened, in words; the exit status to end with).

    To be called by one process of the job. Outside of a job, after Ctrl-C, and in a job that the user has cancelled,
    nothing is queued.

    Args:
        number: the signal that ended the work.
        submitit: the handler that submitit had set for SIGUSR2, where it started this job: it counts the time-outs
            (max_num_timeout) and keeps its own files in order. Other handlers are not called.
        environ: SLT_REQUEUE=0: others see to it (launcher.chain, a script around the command).
    """
    name, job = signal.Signals(number).name, slurm.job_id(environ)
    if job is None or number == signal.SIGINT:
        return f"ended by {name}; the same command goes on from here", 128 + number
    if environ.get("SLT_REQUEUE") == "0":
        return (
            f"job {job}: ended by {name}, not queued again (SLT_REQUEUE=0): the next job goes on from here",
            TRY_AGAIN,
        )
    try:
        if _cancelled(job):
            return f"job {job} was cancelled: it is not queued again; the same command goes on from here", 128 + number
        if getattr(submitit, "__module__", "").startswith("submitit."):
            _requeue_through(submitit, number)
        else:
            slurm.requeue(job)
    except slurm.SlurmError as error:
        return (
            f"job {job} could not be queued again ({error}). Submit the same command again, it goes on from here; "
            "where SLURM does not allow requeueing, launcher.chain=N queues N jobs one after the other",
            TRY_AGAIN,
        )
    return f"job {job}: ended by {name} and queued again", TRY_AGAIN


def _cancelled(job: str) -> bool:
    try:
        return slurm.is_cancelled(slurm.show(job))
    except slurm.SlurmError:  # whether it may be queued again, the attempt will tell
        return False


def _requeue_through(handler, number: int) -> None:
    try:
        handler(number, None)
    except SystemExit:  # its way of saying that it has requeued
        return
    except Exception as error:  # its own kinds and those of subprocess: not requeued
        raise slurm.SlurmError(f"submitit: {error}") from error
