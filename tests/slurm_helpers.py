"""What the tests marked ``slurm`` do with the cluster: submit, ask, wait. State is polled, never slept for."""

import functools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from conftest import ROOT

CLUSTER = "slt-dev"  # slurm/dev_cluster.sh: the tests submit to no other one
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
POLL_SECONDS = 0.1
submitted: list[str] = []  # by this session: what is left of them at its end is cancelled


def call(*words, check: bool = True, **options) -> str:
    """What a SLURM command prints (``call("squeue", "-h")``)."""
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, check=False, **options)
    if check and result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, words))} exited {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


@functools.cache
def missing() -> str | None:
    """Why there is no cluster to test with; None where there is one."""
    start = "start one as root: bash slurm/dev_cluster.sh start"
    try:
        config = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return "SLURM is not installed (Debian: apt-get install slurm-wlm munge)"
    except subprocess.TimeoutExpired:
        return f"SLURM's controller does not answer; {start}"
    if config.returncode != 0:
        return f"no SLURM controller answers; {start}"
    name = re.search(r"^ClusterName *= *(\S+)", config.stdout, re.MULTILINE)
    if not name or name[1] != CLUSTER:
        return f"this is the cluster {name and name[1]}: the tests submit only to {CLUSTER} (slurm/dev_cluster.sh)"
    return None


def nodes() -> int:
    return len(call("sinfo", "--noheader", "--Node").splitlines())


def environment(**more: str) -> dict[str, str]:
    """What jobs inherit: this environment's commands, one thread."""
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "VENV": sys.prefix, "OMP_NUM_THREADS": "1", "PATH": path, **more}


def submit(*words, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """The id of a job: ``submit("--array=0-3", "slurm/sweep.sbatch", grid, ...)``, the words after ``sbatch``."""
    job = call("sbatch", "--parsable", *words, cwd=cwd, env=env or environment()).strip().split(";")[0]
    submitted.append(job)
    return job


def records(job: str) -> list[dict[str, str]]:
    """What ``scontrol show job`` says: one dict, of an array (without element number) one for each that was started
    and one for those that were not."""
    found = []
    for line in call("scontrol", "show", "job", "--oneliner", job).strip().splitlines():
        record: dict[str, str] = {}
        for name, value in re.findall(r"(\S+?)=(.*?)(?=\s\S+?=|\s*$)", line):
            record.setdefault(name, value)
        found.append(record)
    return found


def record(job: str) -> dict[str, str]:
    """That of a single job or of one element ("12_3")."""
    found = records(job)
    assert len(found) == 1, f"job {job} has {len(found)} elements: name one ({job}_0)"
    return found[0]


def state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED, ... of a single job or of one element."""
    return record(job)["JobState"]


def states(job: str) -> dict[str, str]:
    """Of an array: element ("0", of those not started "2-3%2") -> state."""
    return {each["ArrayTaskId"]: each["JobState"] for each in records(job)}


def exit_code(job: str) -> int:
    """Exit status as a shell gives it: 128 + number after a signal."""
    code, number = map(int, record(job)["ExitCode"].split(":"))
    return 128 + number if number else code


def log_path(job: str) -> Path:
    return Path(record(job)["StdOut"])


def log(job: str) -> str:
    """What the job has printed so far ("" before it was started)."""
    path = log_path(job)
    return path.read_text(errors="replace") if path.is_file() else ""


def explain(job: str) -> str:
    """State, reason and the end of the log of each element, for the message of a failed test."""
    parts = []
    for each in records(job):
        path = Path(each.get("StdOut", ""))
        text = path.read_text(errors="replace")[-4000:] if path.is_file() else "no log"
        name = f"{job}_{each['ArrayTaskId']}" if "ArrayTaskId" in each else job
        parts.append(f"{name} {each['JobState']} {each['Reason']} exit {each['ExitCode']}: {path}\n{text}")
    return "\n".join(parts)


def wait_for(job: str, wanted: str | Collection[str] = ENDED, timeout: float = 300.0) -> str:
    """Waits until the job (all elements of an array) is in one of the ``wanted`` states; the state, of an array the
    last one's. Fails with the log where the job ends otherwise or the time (seconds) is over."""
    wanted = {wanted} if isinstance(wanted, str) else set(wanted)
    end = time.monotonic() + timeout
    while True:
        now = [each["JobState"] for each in records(job)]
        if set(now) <= wanted:
            return now[-1]
        if set(now) & (ENDED - wanted) and set(now) <= ENDED | wanted:
            pytest.fail(f"job {job} is {now}, not {sorted(wanted)}\n{explain(job)}")
        if time.monotonic() > end:
            pytest.fail(f"job {job} is {now} after {timeout} s, not {sorted(wanted)}\n{explain(job)}")
        time.sleep(POLL_SECONDS)


def wait_until(true: Callable[[], object], timeout: float = 120.0, job: str | None = None) -> None:
    """Polls a condition; with ``job`` it fails with the log once the job has ended without it."""
    end = time.monotonic() + timeout
    while not true():
        over = job is not None and {each["JobState"] for each in records(job)} <= ENDED
        if (over or time.monotonic() > end) and not true():
            pytest.fail(f"not reached {'before the job ended' if over else f'in {timeout} s'}\n{job and explain(job)}")
        time.sleep(POLL_SECONDS)


def start_now(job: str) -> None:
    """A requeued job waits some time (BeginTime): cuts that short. Not to nothing: in the second of its requeueing the
    node refuses it ("Job credential revoked"), and it ends as FAILED with exit status 1."""
    call("scontrol", "update", f"JobId={job}", "StartTime=now+2")


def cancel(job: str) -> None:
    """Also where it has ended."""
    call("scancel", "--quiet", job, check=False)


def processes(job: str, word: str) -> dict[int, int]:
    """Rank -> process id of the job's tasks on this machine whose command line has ``word``; loader workers do not
    count. ``job``: a single job or one element ("12_3"). For tests that kill a rank."""
    job, _, element = job.partition("_")
    wanted = {("SLURM_ARRAY_JOB_ID" if element else "SLURM_JOB_ID").encode(): job.encode()}
    if element:
        wanted[b"SLURM_ARRAY_TASK_ID"] = element.encode()
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = dict(part.partition(b"=")[::2] for part in (folder / "environ").read_bytes().split(b"\0"))
        except OSError:  # it has ended
            continue
        mine = all(variables.get(name) == value for name, value in wanted.items()) and b"SLURM_PROCID" in variables
        in_step = mine and b"SLURM_STEP_ID" in variables
        if in_step and any(word.encode() in each for each in words) and words[0] != b"srun":
            rank, pid = int(variables[b"SLURM_PROCID"]), int(folder.name)
            found[rank] = min(pid, found.get(rank, pid))
    return found
