"""slt-doctor: SLURM's answers as recorded from clusters, a machine without it, and the real one-node SLURM."""

import json
import os
import subprocess
import sys

import pytest

from slt_plugin.cli.checks import slurm, slurm_job
from slt_plugin.cli.checks.result import FAIL, OK, WARN
from slt_plugin.common.slurm import SlurmError

ALL_TOOLS = {tool: f"/usr/bin/{tool}" for tool in slurm.TOOLS}
SINFO = """\
gpu*|up|1-00:00:00|3|idle|gpu:a100:4(S:0-1)|64|512000
gpu*|up|1-00:00:00|1|drained~|gpu:h100:8|128|1031000
cpu|up|infinite|12|allocated|(null)|128|257000
old|up|2:00:00|4|down*|gpu:v100:2,shard:8|40|192000
closed|inact|2:00:00|2|idle|gpu:1|40|192000
"""
CONFIG = """\
Configuration data as of 2026-11-22T10:00:00
AccountingStorageType   = accounting_storage/slurmdbd
JobAcctGatherType       = jobacct_gather/cgroup
JobRequeue              = 1
KillWait                = 30 sec
MaxArraySize            = 1001
MinJobAge               = 300 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 23.11.4
"""


def test_a_machine_without_slurm_gets_one_plain_line(monkeypatch):
    (check,) = slurm.check_tools({}, inside_job=False)
    assert check.status == OK and "no SLURM here" in check.found
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert [(c.status, c.found) for c in slurm.check_slurm(2)] == [(OK, "no SLURM here: launcher=local")]


def test_missing_tools():
    (check,) = slurm.check_tools({**ALL_TOOLS, "srun": None}, inside_job=False)
    assert check.status == FAIL and check.found == "not found: srun" and "slurm-client" in check.remedy
    (check,) = slurm.check_tools({}, inside_job=True)
    assert check.status == WARN and "SLT_REQUEUE=0" in check.remedy
    (check,) = slurm.check_tools(ALL_TOOLS, inside_job=True)
    assert (check.status, check.found) == (OK, "/usr/bin")


@pytest.mark.parametrize(
    ("output", "problem", "status", "text"),
    [
        ("Slurmctld(primary) at head1 is UP\n", None, OK, "head1 (primary) answers, slurm 23.11.4"),
        ("Slurmctld(primary) at head1 is DOWN\nSlurmctld(backup) at head2 is UP\n", None, OK, "head1 is down"),
        ("Slurmctld(primary) at head1 is DOWN\n", "exit code 1", FAIL, "head1 does not answer"),
        ("", "no answer within 60 s", FAIL, "no answer within 60 s"),
        ("", "scontrol: fatal: Could not establish a configuration source", FAIL, "configuration source"),
        ("", None, FAIL, "said nothing"),
    ],
)
def test_controller(output, problem, status, text):
    check = slurm.check_controller(output, problem, "slurm 23.11.4")
    assert check.status == status and text in check.found


def test_partitions():
    checks = slurm.check_partitions(slurm.read_partitions(SINFO))
    assert [(check.name, check.status) for check in checks] == [
        ("partition gpu*", OK), ("partition cpu", OK), ("partition old", WARN), ("partition closed", WARN),
    ]  # fmt: skip
    assert checks[0].found == "4 nodes (3 idle, 1 drained~), GPUs a node: a100:4 or h100:8, time limit 1-00:00:00"
    assert "no GPUs" in checks[1].found and "sinfo -R" in checks[2].remedy and "is not up" in checks[3].found
    assert "v100:2," in checks[2].found


def test_a_cluster_without_gpus_or_partitions():
    checks = slurm.check_partitions(slurm.read_partitions(SINFO.splitlines()[2]))
    assert [check.status for check in checks] == [OK, WARN] and "gpus_per_node=0" in checks[1].remedy
    (check,) = slurm.check_partitions([])
    assert check.status == FAIL


@pytest.mark.parametrize(
    ("state", "usable"),
    [("idle", True), ("mixed*", False), ("mixed", True), ("idle~", True), ("drained", False), ("down*", False),
     ("draining", False), ("maint", False)],
)  # fmt: skip
def test_states_of_nodes(state, usable):
    (check,) = slurm.check_partitions(slurm.read_partitions(f"gpu|up|infinite|1|{state}|gpu:1|8|1000"))
    assert (check.status == OK) == usable


@pytest.mark.parametrize(
    ("name", "value", "changed", "status", "text"),
    [
        ("JobRequeue", "1", "JobRequeue", OK, "may be requeued"),
        ("JobRequeue", "0", "JobRequeue", WARN, "#SBATCH --requeue"),
        ("PreemptMode", "REQUEUE", "preemption", OK, "REQUEUE (preempt/partition_prio)"),
        ("PreemptMode", "GANG,SUSPEND", "preemption", OK, "GANG"),
        ("PreemptMode", "CANCEL", "preemption", WARN, "launcher.chain=N"),
        ("KillWait", "30 sec", "KillWait", OK, "30 sec between"),
        ("KillWait", "5 sec", "KillWait", WARN, "--signal=USR2@120"),
        ("MaxArraySize", "1001", "MaxArraySize", OK, "elements 0 to 1000"),
        ("MaxArraySize", "64", "MaxArraySize", WARN, "up to 64"),
    ],
)
def test_settings(name, value, changed, status, text):
    config = slurm.read_config(CONFIG)
    assert {check.status for check in slurm.check_config(config)} == {OK}
    checks = {check.name: check for check in slurm.check_config({**config, name: value})}
    assert checks[changed].status == status and text in f"{checks[changed].found} {checks[changed].remedy}"
    assert all(check.status == OK for key, check in checks.items() if key != changed)


@pytest.mark.parametrize(
    ("change", "problem", "status", "text"),
    [
        ({}, None, OK, "sacct answers"),
        ({"JobAcctGatherType": "jobacct_gather/none"}, None, OK, "memory and CPU use are not recorded"),
        ({}, "sacct: error: Connection refused", WARN, "Connection refused"),
        (
            {"AccountingStorageType": "accounting_storage/none"},
            "exit code 1",
            WARN,
            "forgets a job 300 sec after its end",
        ),
        ({"AccountingStorageType": "(null)"}, None, WARN, "sacct shows nothing"),
    ],
)
def test_accounting(change, problem, status, text):
    check = slurm.check_accounting({**slurm.read_config(CONFIG), **change}, problem)
    assert check.status == status and text in f"{check.found} {check.remedy}"


# ---- inside a job


@pytest.mark.parametrize(
    ("environ", "usable", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "32", "SLURM_TASKS_PER_NODE": "4"}, 32, 8),
        ({"SLURM_CPUS_PER_TASK": "8"}, 2, 2),  # bound to fewer than were asked for
        ({"SLURM_CPUS_ON_NODE": "32", "SLURM_TASKS_PER_NODE": "4(x2)"}, 32, 8),
        ({"SLURM_CPUS_ON_NODE": "4"}, 64, 4),
        ({}, 16, 16),
    ],
)
def test_cores_of_a_task(environ, usable, cores):
    assert slurm_job.task_cores(environ, usable) == cores


def test_cores_against_loader_workers():
    assert slurm_job.check_cores(3, 2).status == OK
    check = slurm_job.check_cores(2, 2)
    assert check.status == WARN and check.remedy.startswith("--cpus-per-task=3 ") and "num_workers=1" in check.remedy


def test_the_job_itself(monkeypatch):
    shown = {"NodeList": "n1", "Partition": "gpu", "TRES": "cpu=8,gres/gpu=1", "EndTime": "Unknown", "Requeue": "1",
             "Restarts": "2"}  # fmt: skip
    (check,) = slurm_job.describe_job("7", shown)
    assert (check.status, check.name) == (OK, "job 7")
    assert check.found == "on n1 in gpu: cpu=8,gres/gpu=1, ends Unknown, restarted 2 times"
    (check,) = slurm_job.describe_job("7", {**shown, "Requeue": "0"})
    assert check.status == WARN and "--requeue" in check.remedy

    def refuse(job):
        raise SlurmError("scontrol is not installed here")

    monkeypatch.setattr(slurm_job, "show", refuse)
    checks = slurm_job.check_job({"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1"}, 2)
    assert [(c.name, c.status) for c in checks] == [("job 7", WARN), ("CPUs of the job", WARN)]


# ---- the real one


@pytest.mark.slurm
def test_section_against_the_real_slurm(slurm):
    from slt_plugin.cli.checks.slurm import check_slurm

    checks = {check.name: check for check in check_slurm(2)}
    assert [check for check in checks.values() if check.status == FAIL] == []
    assert "answers, slurm" in checks["controller"].found
    assert "GPUs a node: 2" in checks["partition gpu*"].found
    assert checks["JobRequeue"].found.startswith("1")
    assert checks["KillWait"].status == OK and checks["preemption"].found.startswith("OFF")
    assert checks["accounting"].status == WARN and checks["accounting"].found == "none"


@pytest.mark.slurm
def test_inside_a_real_job(slurm, tmp_path):
    """The SLURM section as a job sees it: its own allocation and whether it can be requeued."""
    code = "import json, dataclasses; from slt_plugin.cli.checks.slurm import check_slurm\n"
    code += "print(json.dumps([dataclasses.asdict(check) for check in check_slurm(5)]))"
    command = ["srun", "--quiet", "--gres=gpu:1", "--cpus-per-task=2", "--time=5", sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    checks = {check["name"]: check for check in json.loads(run.stdout)}
    (job,) = [check for name, check in checks.items() if name.startswith("job ")]
    assert "in gpu: cpu=2" in job["found"]
    assert checks["CPUs of the job"]["status"] == WARN
    assert checks["CPUs of the job"]["remedy"].startswith("--cpus-per-task=6 ")


@pytest.mark.slurm
def test_a_controller_that_does_not_answer(slurm, tmp_path, monkeypatch):
    from slt_plugin.cli.checks.slurm import check_slurm

    (tmp_path / "slurm.conf").write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=2\nAuthType=auth/munge\n"
        "NodeName=localhost\nPartitionName=p Nodes=localhost\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    checks = check_slurm(2)
    assert [(c.name, c.status) for c in checks] == [("SLURM tools", OK), ("controller", FAIL)]
    assert "login node" in checks[-1].remedy
