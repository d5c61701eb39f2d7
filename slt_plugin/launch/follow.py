"""Waiting for jobs: a line of progress, and in the end their exit status."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common import slurm
from slt_plugin.common.messages import listing
from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.submit import Submission

POLL_SECONDS = (1.0, 15.0)  # at the beginning, and when nothing has happened for a while
SECONDS_A_JOB = 0.02  # of an array: it is asked less often, so that the controller has time for others
SILENCE_SECONDS = 600  # for which SLURM may not answer
FORGOTTEN = "UNKNOWN"  # state of a job that SLURM has forgotten before its end was seen
TAIL_BYTES = 8192
WIDTH = 120  # characters of the log's last line


@dataclass(frozen=True)
class End:
    """How a job has ended."""

    state: str
    status: int

    @property
    def text(self) -> str:
        if self.state == FORGOTTEN:
            return "its end is not known: SLURM has forgotten it, and there is no accounting to ask"
        return self.state if self.status == 0 else f"{self.state}, exit status {self.status}"


def exit_status(state: str, code: str) -> int:
    """The exit status of a job.

    Args:
        state: SLURM's JobState of a job that has ended.
        code: its ExitCode, "status:signal".
    """
    if state == "COMPLETED":
        return 0
    status, _, number = code.partition(":")
    if status.isdigit() and int(status):
        return int(status)
    return 128 + int(number) if number.isdigit() and int(number) else 1


class Follower:
    """Asks SLURM for the state of jobs until all have ended.

    A job that is queued again has not ended; a state other than COMPLETED counts when it is seen twice in a row,
    because a job passes through one on its way back into the queue.

    Args:
        show_all: states of a job's elements, see `common.slurm.show_all`.
    """

    def __init__(
        self, submissions: Sequence[Submission], show_all: Callable[[str], dict[str, dict[str, str]]] = slurm.show_all
    ):
        self.submissions, self._show_all = list(submissions), show_all
        self.states = {job: "PENDING" for submission in submissions for job in submission.ids}
        self.ends: dict[str, End] = {}
        self._suspected: dict[str, End] = {}

    def poll(self) -> None:
        """One look at every submission that has not ended.

        Raises:
            SlurmError: SLURM does not answer for any of them.
        """
        answers, errors = 0, []
        for submission in self.submissions:
            left = [job for job in submission.ids if job not in self.ends]
            try:
                found = self._show_all(submission.job) if left else {}
                # an array's elements are forgotten one by one, and accounting may still know them
                found |= {job: self._show_all(job).get(job, {}) for job in left if found and job not in found}
            except slurm.SlurmError as error:
                errors.append(error)
                continue
            answers += bool(left)
            for job in left:
                self._note(job, found.get(job, {}))
        if errors and not answers:
            raise errors[-1]

    def _note(self, job: str, found: Mapping[str, str]) -> None:
        if not found:  # what it was last seen with, if it was not on its way back into the queue
            self.ends[job] = self._suspected.get(job, End(FORGOTTEN, 1))
            self.states[job] = self.ends[job].state
            return
        state = self.states[job] = found.get("JobState", FORGOTTEN).split()[0]
        if not slurm.ended(state):
            self._suspected.pop(job, None)
            return
        end = End(state, exit_status(state, found.get("ExitCode", "")))
        if end.status == 0 or self._suspected.get(job) == end:
            self.ends[job] = end
        self._suspected[job] = end

    @property
    def done(self) -> bool:
        return len(self.ends) == len(self.states)

    def line(self) -> str:
        """'job 12: RUNNING 2, PENDING 5, 1 of 8 done | last line of a log'."""
        names = listing([submission.job for submission in self.submissions], shown=3)
        if len(self.states) == 1:
            text = f"job {names}: {next(iter(self.states.values()))}"
        else:
            counts = Counter(state for job, state in self.states.items() if job not in self.ends)
            running = "".join(f"{state} {count}, " for state, count in sorted(counts.items(), reverse=True))
            text = f"job {names}: {running}{len(self.ends)} of {len(self.states)} done"
        last = self._last_line()
        return f"{text} | {last[:WIDTH]}" if last else text

    def _last_line(self) -> str:
        logs = [s.log(job) for s in self.submissions for job in s.ids if self.states[job] == "RUNNING"]
        logs = [path for path in logs if path.is_file()]
        return last_line(max(logs, key=lambda path: path.stat().st_mtime)) if logs else ""

    def failures(self) -> list[str]:
        """'job 12_3: FAILED, exit status 1: last line of its log' for each that failed."""
        lines = []
        for submission in self.submissions:
            for job in submission.ids:
                end = self.ends.get(job)
                if end is None or end.status == 0:
                    continue
                last = last_line(submission.log(job))
                lines.append(f"job {job}: {end.text}{f': {last}' if last else ''}")
        return lines

    def status(self, *, chain: bool = False) -> int:
        """The worst exit status; of a chain that of the last job that ran: those after one that completes do not."""
        ends = [self.ends[job] for job in self.states]
        if not chain:
            return max(end.status for end in ends)
        ran = [end for end in ends if end.state != "CANCELLED"] or ends
        return ran[-1].status


def follow(
    follower: Follower,
    progress: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Waits until all jobs have ended.

    Args:
        progress: gets a line at every look.

    Raises:
        LaunchError: SLURM has not answered for `SILENCE_SECONDS`.
    """
    interval, longest = POLL_SECONDS
    heard, states = clock(), None
    while True:
        try:
            follower.poll()
            heard = clock()
        except slurm.SlurmError as error:
            if clock() - heard > SILENCE_SECONDS:
                raise LaunchError(f"the jobs cannot be followed any more: {error}") from error
        progress(follower.line())
        if follower.done:
            return
        now = tuple(follower.states.values())
        interval = POLL_SECONDS[0] if now != states else min(longest, interval * 1.3)
        states = now
        sleep(max(interval, SECONDS_A_JOB * (len(now) - len(follower.ends))))


def last_line(path: Path) -> str:
    """The last line of a log that says something; "" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    # what srun and submitit say of a step says less than what the command said before
    said = [line for line in lines if line and not line.startswith(("srun: ", "slurmstepd: ", "submitit INFO"))]
    return (said or [line for line in lines if line] or [""])[-1]
