"""SLURM: client tools, controller, partitions and the settings that preemption and requeueing depend on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from slt_plugin.cli.checks.child import run
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check
from slt_plugin.cli.checks.slurm_job import check_job
from slt_plugin.common.slurm import job_id

TIMEOUT = 60.0  # seconds; a controller under load answers late
TOOLS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
SINFO_FORMAT = "%P|%a|%l|%D|%T|%G|%c|%m"  # partition, up or not, time limit, nodes, state, gres, CPUs, memory in MB
USABLE_STATES = ("idle", "mixed", "allocated", "completing", "planned", "reserved")
WAKING = "~#!%-+"  # signs behind a state that do not keep jobs away: power saving, planned; "*" is: not responding
SHORT_KILL_WAIT = 15  # seconds, in which a checkpoint of some GB is not written
ADMIN = "ask the cluster's administrators"


@dataclass
class Partition:
    """A partition as ``sinfo`` shows it; ``time``: its limit for a job, ``gpus``: of one of its nodes each."""

    name: str
    default: bool
    up: bool
    time: str
    nodes: dict[str, int] = field(default_factory=dict)  # state -> how many
    gpus: list[str] = field(default_factory=list)


def check_tools(found: Mapping[str, str | None], inside_job: bool) -> list[Check]:
    """Client tools; ``found``: name -> where it is. One plain line on a machine without SLURM."""
    missing = [tool for tool in TOOLS if not found.get(tool)]
    if len(missing) == len(TOOLS) and not inside_job:
        return [Check(OK, "SLURM", "no SLURM here: launcher=local")]
    if missing and inside_job:
        why = "a job without them cannot requeue itself: SLT_REQUEUE=0, and requeue in the job's script, outside"
        remedy = f"{why} of the container (slurm/apptainer.def shows how)"
        return [Check(WARN, "SLURM tools", f"inside a job, but not found: {', '.join(missing)}", remedy)]
    if missing:
        remedy = "install SLURM's client package (Debian: slurm-client), or put its bin folder into PATH"
        return [Check(FAIL, "SLURM tools", f"not found: {', '.join(missing)}", remedy)]
    return [Check(OK, "SLURM tools", os.path.dirname(found["sbatch"] or ""))]


def check_controller(output: str, problem: str | None, version: str) -> Check:
    """From ``scontrol ping``: at least one controller must be up."""
    controllers = re.findall(r"Slurmctld\((\S+)\) at (\S+) is (UP|DOWN)", output)
    up = [f"{host} ({role})" for role, host, state in controllers if state == "UP"]
    if up:
        down = [host for _, host, state in controllers if state == "DOWN"]
        found = f"{', '.join(up)} answers, {version}" + (f"; {', '.join(down)} is down" if down else "")
        return Check(OK, "controller", found)
    lines = output.strip().splitlines()
    found = problem or (lines[0] if lines else "scontrol ping said nothing")
    if controllers:
        found = f"{', '.join(host for _, host, _ in controllers)} does not answer"
    return Check(FAIL, "controller", found, f"nothing can be submitted from here: use a login node, or {ADMIN}")


def read_partitions(sinfo: str) -> list[Partition]:
    """Partitions in the lines of ``sinfo -h -o SINFO_FORMAT``, in its order."""
    partitions: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 8:
            continue
        label, available, time, nodes, state, gres, _, _ = cells
        name = label.removesuffix("*")
        partition = partitions.setdefault(name, Partition(name, label.endswith("*"), available == "up", time))
        partition.nodes[state] = partition.nodes.get(state, 0) + int(nodes)
        for entry in gres_entries(gres):
            if entry not in partition.gpus:
                partition.gpus.append(entry)
    return list(partitions.values())


def gres_entries(gres: str) -> list[str]:
    """["a100:4"] of "gpu:a100:4(S:0-1),shard:8": type and number of a node's GPUs."""
    entries = re.sub(r"\([^)]*\)", "", gres).split(",")
    return [entry.removeprefix("gpu:") for entry in entries if entry.startswith("gpu:")]


def check_partitions(partitions: Iterable[Partition]) -> list[Check]:
    """One line each; a partition without a usable node is warned about, and a cluster without GPUs."""
    partitions = list(partitions)
    if not partitions:
        return [Check(FAIL, "partitions", "sinfo shows none", f"no partition is open to you: {ADMIN}")]
    checks = []
    for partition in partitions:
        number = sum(partition.nodes.values())
        usable = sum(count for state, count in partition.nodes.items() if state.rstrip(WAKING) in USABLE_STATES)
        states = ", ".join(f"{count} {state}" for state, count in partition.nodes.items())
        gpus = f"GPUs a node: {' or '.join(partition.gpus)}" if partition.gpus else "no GPUs"
        found = f"{number} nodes ({states}), {gpus}, time limit {partition.time}"
        name = f"partition {partition.name}" + "*" * partition.default
        if partition.up and usable:
            checks.append(Check(OK, name, found))
            continue
        remedy = "jobs would wait: choose another (launcher.partition=NAME); sinfo -R says why nodes are down"
        checks.append(Check(WARN, name, found if partition.up else f"is not up, {found}", remedy))
    if not any(partition.gpus for partition in partitions):
        remedy = f"launcher.gpus_per_node=0 and CPUs only; if there are GPUs, {ADMIN} for GresTypes=gpu"
        checks.append(Check(WARN, "GPUs of the cluster", "no partition has any", remedy))
    return checks


def read_config(text: str) -> dict[str, str]:
    """Name -> value of the lines of ``scontrol show config``."""
    return {name: value.strip() for name, value in re.findall(r"^(\S+)\s*= ?(.*)$", text, flags=re.MULTILINE)}


def seconds(value: str) -> int | None:
    match = re.match(r"(\d+)", value)
    return int(match[1]) if match else None


def check_config(config: Mapping[str, str]) -> list[Check]:
    """Settings that decide what becomes of a job which is preempted or runs out of time."""
    return [
        _requeue(config.get("JobRequeue", "")),
        _preemption(config.get("PreemptMode", ""), config.get("PreemptType", "")),
        _kill_wait(config.get("KillWait", "")),
        _array_size(config.get("MaxArraySize", "")),
    ]


def _requeue(value: str) -> Check:
    if value == "1":
        return Check(OK, "JobRequeue", "1: jobs may be requeued")
    remedy = "write #SBATCH --requeue into your own files (ours and launcher=slurm have it); refused: launcher.chain=N"
    return Check(WARN, "JobRequeue", f"{value or 'unknown'}: jobs are requeued only where they ask for it", remedy)


def _preemption(mode: str, kind: str) -> Check:
    modes = set(mode.upper().split(","))
    found = f"{mode or 'unknown'} ({kind or 'unknown'})"
    if modes & {"CANCEL"}:
        remedy = "a preempted job ends for good: launcher.chain=N goes on after it, or choose another partition"
        return Check(WARN, "preemption", found, remedy)
    return Check(OK, "preemption", found)


def _kill_wait(value: str) -> Check:
    number = seconds(value)
    found = f"{value or 'unknown'} between SIGTERM and SIGKILL"
    if number is None or number >= SHORT_KILL_WAIT:
        return Check(OK, "KillWait", found)
    remedy = "too short to save in: keep the earlier warning (launcher.signal_delay=120, or #SBATCH --signal=USR2@120)"
    return Check(WARN, "KillWait", found, remedy)


def _array_size(value: str) -> Check:
    number = seconds(value)
    if number is None or number > 100:
        largest = "unknown" if number is None else f"elements 0 to {number - 1}"
        return Check(OK, "MaxArraySize", f"{value or 'unknown'}: {largest}")
    remedy = f"num_shards=N and sweeps up to {number}; split larger sweeps"
    return Check(WARN, "MaxArraySize", f"{value}: arrays are small", remedy)


def check_accounting(config: Mapping[str, str], problem: str | None) -> Check:
    """Accounting as configured, and whether it answers.

    Args:
        problem: of a question to sacct; None: it was answered.
    """
    kind = config.get("AccountingStorageType", "")
    if kind in ("", "(null)", "accounting_storage/none"):
        age = config.get("MinJobAge", "")
        remedy = (
            f"SLURM forgets a job {age or 'some minutes'} after its end (state, exit code), sacct shows nothing, "
            "submitit warns; read the logs. Training and requeueing need none of it"
        )
        return Check(WARN, "accounting", "none", remedy)
    if problem is not None:
        remedy = f"ended jobs cannot be looked up: slurmdbd is down or refuses: {ADMIN}; the logs still work"
        return Check(WARN, "accounting", f"{kind}, but sacct fails: {problem}", remedy)
    gathered = config.get("JobAcctGatherType", "")
    without = "" if gathered not in ("", "(null)", "jobacct_gather/none") else "; memory and CPU use are not recorded"
    return Check(OK, "accounting", f"{kind}, sacct answers{without}")


def check_slurm(workers: int) -> list[Check]:
    """The whole section.

    Args:
        workers: loader workers of a training, to hold against the job's CPUs.
    """
    inside = job_id(os.environ) is not None
    tools = check_tools({tool: shutil.which(tool) for tool in TOOLS}, inside)
    if not shutil.which("scontrol"):
        return [*tools, *(check_job(os.environ, workers) if inside else [])]
    ping = run(["scontrol", "ping"], TIMEOUT)
    version = run(["scontrol", "--version"], TIMEOUT).stdout.strip()
    controller = check_controller(ping.stdout, ping.problem, version)
    if controller.status == FAIL:
        return [*tools, controller]
    config = read_config(run(["scontrol", "show", "config"], TIMEOUT).stdout)
    sinfo = run(["sinfo", "-h", "-o", SINFO_FORMAT], TIMEOUT)
    sacct = run(["sacct", "-X", "-n", "--format=JobID"], TIMEOUT)
    return [
        *tools,
        controller,
        *check_partitions(read_partitions(sinfo.stdout)),
        *check_config(config),
        check_accounting(config, sacct.problem),
        *(check_job(os.environ, workers) if inside else []),
    ]
