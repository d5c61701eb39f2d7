"""Inside a SLURM job: what it was given, held against what a training needs."""

from __future__ import annotations

from collections.abc import Mapping

from slt_plugin.cli.checks.machine import usable_cores
from slt_plugin.cli.checks.result import OK, WARN, Check
from slt_plugin.common.slurm import SlurmError, job_id, show


def check_job(environ: Mapping[str, str], workers: int) -> list[Check]:
    """The job that this process runs in.

    Args:
        workers: loader workers of a training (``dataset.num_workers``).
    """
    job = job_id(environ) or ""
    checks = [check_cores(task_cores(environ, usable_cores()), workers)]
    try:
        return [*describe_job(job, show(job)), *checks]
    except SlurmError as error:
        remedy = "the job cannot requeue itself (launcher.chain=N does without), or the controller is down: sinfo"
        return [Check(WARN, f"job {job}", str(error), remedy), *checks]


def task_cores(environ: Mapping[str, str], usable: int) -> int:
    """Cores of one task, which is one training process with loader workers of its own.

    Args:
        usable: cores that this process may run on: the node's where SLURM binds no task to its own.
    """
    given, on_node = (environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"))
    if given.isdigit():
        return min(int(given), usable)
    tasks = (environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "1").split("(")[0]
    number = int(tasks) if tasks.isdigit() and tasks != "0" else 1  # "4(x2)"; "4,3" where nodes differ
    return min(int(on_node) // number, usable) if on_node.isdigit() else usable


def check_cores(cores: int, workers: int) -> Check:
    """``cores`` of a task against the process and its ``workers``."""
    found = f"{cores} for a training process with {workers} loader workers"
    if cores >= 1 + workers:
        return Check(OK, "CPUs of the job", found)
    remedy = f"--cpus-per-task={1 + workers} (launcher.cpus_per_task), or dataset.num_workers={max(cores - 1, 0)}"
    return Check(WARN, "CPUs of the job", found, remedy)


def describe_job(job: str, shown: Mapping[str, str]) -> list[Check]:
    """``shown``: what ``scontrol show job`` says."""
    tres = shown.get("AllocTRES") or shown.get("TRES", "")
    node, partition, end = (shown.get(name, "?") for name in ("NodeList", "Partition", "EndTime"))
    found = f"on {node} in {partition}: {tres}, ends {end}"
    restarts = shown.get("Restarts", "0")
    if restarts != "0":
        found += f", restarted {restarts} times"
    if shown.get("Requeue") == "0":
        remedy = "it ends for good when it is preempted or out of time: #SBATCH --requeue, or scontrol update Requeue=1"
        return [Check(WARN, f"job {job}", f"{found}, without requeueing", remedy)]
    return [Check(OK, f"job {job}", found)]
