"""What a process of a SLURM job knows of its job, and what it asks of SLURM: state, requeueing."""

import math
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from slt_plugin.common.errors import SltError

COMMAND_SECONDS = 60  # a controller under load answers late
FIRST_PORT, PORTS = 10_000, 20_000  # below the range from which Linux takes ports for outgoing connections
STEPS = 16  # ports a job: one for each of its srun steps
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip


class SlurmError(SltError):
    """SLURM did not do what it was asked: the message holds its words and what to do."""


@dataclass(frozen=True)
class Ranks:
    """Place of this process among those that train together, and where the first one listens."""

    rank: int
    world_size: int
    local_rank: int
    host: str
    port: int


def job_id(environ: Mapping[str, str]) -> str | None:
    """ "123", of an array's element "123_4", as scontrol and scancel take it; None outside of a job."""
    array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else environ.get("SLURM_JOB_ID")


def step_ranks(environ: Mapping[str, str]) -> Ranks | None:
    """The ranks of an ``srun`` step with several tasks; None for a single task and outside of a step.

    The port follows from the job's number, because the elements of an array share nodes.

    Raises:
        SlurmError: the first node is not known.
    """
    world_size = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if world_size < 2 or "SLURM_PROCID" not in environ:
        return None
    return Ranks(
        rank=int(environ["SLURM_PROCID"]),
        world_size=world_size,
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        host=environ.get("MASTER_ADDR") or _first_node(environ),
        port=int(environ.get("MASTER_PORT") or step_port(environ)),
    )


def step_port(environ: Mapping[str, str]) -> int:
    """A port that no other step on these nodes is likely to use."""
    step = environ.get("SLURM_STEP_ID", "0")
    number = int(step) % STEPS if step.isdigit() else 0
    return FIRST_PORT + (int(environ["SLURM_JOB_ID"]) * STEPS + number) % PORTS


def _first_node(environ: Mapping[str, str]) -> str:
    if environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    if nodes and "[" not in nodes:
        return nodes.split(",")[0]
    try:
        return _run("scontrol", "show", "hostnames", nodes).split()[0]
    except (SlurmError, IndexError) as error:
        raise SlurmError(
            f"the first node of {nodes or 'this step'} is not known ({error}): export MASTER_ADDR in the job"
        ) from error


def show(job: str) -> dict[str, str]:
    """``scontrol show job`` as a dict (JobState, ExitCode, Reason, Restarts, ...); of older jobs what sacct knows.

    Args:
        job: of an array one element, "123_4".

    Raises:
        SlurmError: neither knows the job, or SLURM does not answer.
    """
    found = show_all(job)
    if not found:
        raise SlurmError(f"SLURM no longer knows job {job}, and there is no accounting that does")
    return found.get(job) or next(iter(found.values()))


def show_all(job: str) -> dict[str, dict[str, str]]:
    """What `show` tells, of a whole array with one question: "123_4" -> its fields; of a plain job "123" -> its fields.

    Pending elements share a record. What SLURM has forgotten is not in the answer; {} where that is all of it.

    Raises:
        SlurmError: SLURM does not answer.
    """
    try:
        # the variable: else a long list of elements is cut off
        text = _run("scontrol", "show", "job", "--oneliner", job, SLURM_BITSTR_LEN="0")
    except SlurmError as error:
        # the second of an element, where SLURM still knows others of its array
        if not re.search(r"[Ii]nvalid job id|Job \S+ not found", str(error)):
            raise
        try:
            text = _run("sacct", "-X", "-n", "-P", "-j", job, "--format=JobID,State,ExitCode")
        except SlurmError:  # no accounting
            return {}
        rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
        listed = [(*name.partition("_")[::2], {"JobState": s.split()[0], "ExitCode": code}) for name, s, code in rows]
    else:
        # reversed: the first of a name counts, a comment may hold others
        records = [dict(reversed(re.findall(r"(\S+?)=(\S*)", line))) for line in text.splitlines() if line.strip()]
        listed = [(r.get("ArrayJobId", r.get("JobId", job)), r.get("ArrayTaskId", ""), r) for r in records]
    found: dict[str, dict[str, str]] = {}
    for array, elements, record in listed:
        for part in elements.strip("[]").partition("%")[0].split(","):  # of "2,5-7,10-20:5%2"
            match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
            if match is None:
                found[array] = record
                continue
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            found |= {f"{array}_{number}": record for number in range(first, last + 1, step)}
    return found


def ended(state: str) -> bool:
    """Whether a job in this state does not run again by itself."""
    return state in ENDED


def is_cancelled(shown: Mapping[str, str]) -> bool:
    """Whether the user ends the job, from what `show` says of it when it has got SIGTERM.

    SLURM shows a job that it is ending as COMPLETING, whatever the cause: a cancelled one has time left. (One that
    SLURM itself takes back into the queue looks the same, and is in good hands.)
    """
    state = shown.get("JobState")
    in_time = _seconds(shown.get("RunTime", "")) < _seconds(shown.get("TimeLimit", ""))
    return state == "CANCELLED" or (state == "COMPLETING" and in_time)


def _seconds(text: str) -> float:
    """Of SLURM's "D-HH:MM:SS"; infinity for UNLIMITED and what else is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def requeue(job: str) -> None:
    """Asks SLURM to end the job and to queue it again.

    Raises:
        SlurmError: it may not be requeued (JobRequeue=0, --no-requeue, a partition's rule), or SLURM does not answer.
    """
    _run("scontrol", "requeue", job)


def _run(*command: str, **variables: str) -> str:
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env={**os.environ, **variables},
        )
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not installed here: run this on a machine of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{' '.join(command)}: no answer from SLURM in {COMMAND_SECONDS} s") from error
    if run.returncode != 0:
        said = " ".join((run.stderr.strip() or run.stdout.strip() or f"exit status {run.returncode}").split())
        raise SlurmError(f"{' '.join(command)}: {said}")
    return run.stdout
