"""Which rank a process is: in a SLURM step, under torchrun, on this machine; and what becomes of the others."""

import logging
import os
import re
import signal
import sys
import time

import pytest

from slt_plugin.common import slurm
from slt_plugin.common.slurm import Ranks, SlurmError, job_id, show, step_port, step_ranks
from slt_plugin.common.stopping import Stopping, give_back
from slt_plugin.launch import local
from slt_plugin.launch.local import run_ranks
from slt_plugin.launch.ranks import local_environments, rank_words

STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_STEP_NODELIST": "gpu07",
}  # fmt: skip
WORLD = "distributed_training.distributed_world_size"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """name, script -> a command of that name, first in PATH, that is this shell script."""

    def make(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def test_ranks_of_a_step():
    port = 10_000 + 1234 * 16 % 20_000
    assert step_ranks(STEP) == Ranks(3, 4, 3, "127.0.0.1", port)
    two_nodes = STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu07,gpu09", "SLURM_LOCALID": "1"}
    assert step_ranks(two_nodes) == Ranks(3, 4, 1, "gpu07", port)
    assert step_ranks(STEP | {"MASTER_ADDR": "login", "MASTER_PORT": "77"}) == Ranks(3, 4, 3, "login", 77)
    assert step_ranks(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert step_ranks({}) is None
    assert step_ranks({name: value for name, value in STEP.items() if name != "SLURM_PROCID"}) is None  # in salloc


def test_the_first_of_a_list_of_nodes(tool):
    step = STEP | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    tool("scontrol", 'test "$*" = "show hostnames gpu[07-08]" && printf "gpu07\\ngpu08\\n"')
    assert step_ranks(step).host == "gpu07"
    tool("scontrol", "echo broken >&2; exit 1")
    with pytest.raises(SlurmError, match=r"first node of gpu\[07-08\] is not known .*broken.*export MASTER_ADDR"):
        step_ranks(step)


def test_ports_of_jobs_and_steps_differ():
    """The elements of an array share nodes; so may two steps of one job."""
    jobs = [step_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}) for job in range(50) for step in range(3)]
    assert len(set(jobs)) == 150
    assert all(10_000 <= step_port({"SLURM_JOB_ID": str(10**6 + job)}) < 30_000 for job in range(5000))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SLURM_JOB_ID": "8"}, "8"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "0"}, "8_0"),
        ({}, None),
    ],
)
def test_the_name_of_a_job(environ, expected):
    assert job_id(environ) == expected


def test_words_for_fairseq():
    words = rank_words(["common.cpu=true"], STEP)
    assert f"{WORLD}=4" in words and "distributed_training.distributed_rank=3" in words
    assert "distributed_training.distributed_init_method='tcp://127.0.0.1:29744'" in words
    assert "distributed_training.distributed_no_spawn=true" in words
    assert rank_words([f"{WORLD}=4"], STEP) == words[1:]
    assert rank_words(["distributed_training.distributed_init_method=env://"], STEP) == []
    assert rank_words(["distributed_training.distributed_port=9999"], STEP) == []
    assert rank_words([], {}) == []
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "b", "MASTER_PORT": "5"}
    assert "distributed_training.distributed_init_method='tcp://b:5'" in rank_words([], torchrun)


def test_words_where_gpus_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    words = rank_words([], STEP)
    assert "distributed_training.device_id=3" in words and not any("backend" in word for word in words)
    assert "distributed_training.distributed_backend=gloo" in rank_words(["common.cpu=true"], STEP)
    assert "distributed_training.distributed_backend=nccl" in rank_words(["common.cpu=false"], STEP)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # SLURM shows each task its own one
    assert "distributed_training.device_id=0" in rank_words([], STEP)


def test_what_scontrol_says(tool):
    line = "JobId=7 JobName=a b=c UserId=root(0) JobState=RUNNING Reason=None Restarts=1 ExitCode=0:0 Comment=(null)"
    tool("scontrol", f'echo "{line}"')
    shown = show("7")
    assert shown["JobState"] == "RUNNING" and shown["Restarts"] == "1" and shown["ExitCode"] == "0:0"


def test_a_job_that_the_controller_forgot(tool):
    tool("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    tool("sacct", "echo '7|CANCELLED by 0|0:15'")
    assert show("7") == {"JobState": "CANCELLED", "ExitCode": "0:15"}
    tool("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    with pytest.raises(SlurmError, match="no longer knows job 7, and there is no accounting"):
        show("7")
    tool("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="Unable to contact"):
        show("7")


def test_slurm_that_is_missing_or_silent(tmp_path, monkeypatch, tool):
    tool("scontrol", "sleep 5")
    monkeypatch.setattr(slurm, "COMMAND_SECONDS", 0.2)
    with pytest.raises(SlurmError, match=r"scontrol requeue 5: no answer from SLURM in 0\.2 s"):
        slurm.requeue("5")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="scontrol is not installed here"):
        slurm.requeue("5")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"JobState": "CANCELLED"}, True),
        ({"JobState": "COMPLETING", "RunTime": "00:00:08", "TimeLimit": "1-00:10:00"}, True),
        ({"JobState": "COMPLETING", "RunTime": "00:00:08", "TimeLimit": "UNLIMITED"}, True),
        ({"JobState": "COMPLETING", "RunTime": "1-00:10:02", "TimeLimit": "1-00:10:00"}, False),  # its time is over
        ({"JobState": "RUNNING", "RunTime": "00:00:08", "TimeLimit": "00:10:00"}, False),
    ],
)
def test_who_ends_a_job(state, expected):
    assert slurm.is_cancelled(state) == expected


def test_a_cancelled_job_is_not_queued_again(tool, tmp_path):
    running = "JobId=5 JobState=COMPLETING RunTime=00:00:08 TimeLimit=00:10:00"
    tool("scontrol", f'echo "$@" >> {tmp_path / "calls"}; echo "{running}"')
    for number in (signal.SIGTERM, signal.SIGUSR2):  # the user may cancel a job that is to stop already
        message, status = give_back(number, signal.SIG_DFL, {"SLURM_JOB_ID": "5"})
        assert "job 5 was cancelled: it is not queued again" in message and status == 128 + number
    assert (tmp_path / "calls").read_text() == 2 * "show job --oneliner 5\n"
    tool("scontrol", f'echo "$@" >> {tmp_path / "calls"}; echo "JobId=5 JobState=RUNNING"')
    message, status = give_back(signal.SIGTERM, signal.SIG_DFL, {"SLURM_JOB_ID": "5"})
    assert "queued again" in message and status == 75
    assert (tmp_path / "calls").read_text().endswith("requeue 5\n")


class Handler:
    """As submitit's, by the name of its module."""

    __module__ = "submitit.core.job_environment"

    def __init__(self, error: BaseException):
        self.error, self.calls = error, []

    def checkpoint_and_try_requeue(self, number, frame):
        self.calls.append(number)
        raise self.error


Handler.checkpoint_and_try_requeue.__module__ = Handler.__module__


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SystemExit(-1), "job 5: ended by SIGUSR2 and queued again"),
        (RuntimeError("timed-out too many times"), r"could not be queued again \(submitit: timed-out too many times\)"),
    ],
)
def test_submitit_requeues_what_it_started(error, expected):
    handler = Handler(error)
    message, status = give_back(signal.SIGUSR2, handler.checkpoint_and_try_requeue, {"SLURM_JOB_ID": "5"})
    assert handler.calls == [signal.SIGUSR2] and status == 75
    assert re.search(expected, message)


def test_a_second_signal_has_its_usual_effect():
    came = []
    before = signal.signal(signal.SIGUSR2, lambda *_: came.append(1))
    try:
        stopping = Stopping([signal.SIGUSR2], "ends", second=True)
        stopping.listen()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stopping.received == signal.SIGUSR2 and came == []
        os.kill(os.getpid(), signal.SIGUSR2)
        assert came == [1]
        stopping.restore()
        stopping.listen()
        assert stopping.received is None
        if (child := os.fork()) == 0:  # a loader worker: the handler does nothing there
            os.kill(os.getpid(), signal.SIGUSR2)
            os._exit(int(stopping.received is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stopping.restore()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert came == [1, 1]
    finally:
        signal.signal(signal.SIGUSR2, before)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{code}"]


def test_local_ranks(tmp_path, monkeypatch):
    code = f"open(r'{tmp_path}/' + str(rank), 'w').write(os.environ['MASTER_PORT'] + ' ' + os.environ['WORLD_SIZE'])"
    assert run_ranks(python(code), 3) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert len({port for port, _ in found}) == 1 and {size for _, size in found} == {"3"}
    assert local_environments(2)[1]["LOCAL_RANK"] == "1"


def test_a_dead_rank_ends_the_others(caplog, monkeypatch):
    monkeypatch.setattr(local, "TOGETHER_SECONDS", 0.3)
    begin = time.monotonic()
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)"
    assert run_ranks(python(code), 3) == 137
    assert time.monotonic() - begin < 20
    assert "rank 1 of 3 died of SIGKILL: the others are ended" in caplog.text


def test_ranks_that_stop_together_keep_their_status(caplog):
    with caplog.at_level(logging.ERROR):
        assert run_ranks(python("time.sleep(0.5 * rank); sys.exit(75)"), 2) == 75
    assert caplog.text == ""


def test_signals_go_on_to_all_ranks(tmp_path):
    code = (
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        f"open(r'{tmp_path}/' + str(rank), 'w').close()\ntime.sleep(60)"
    )
    if (child := os.fork()) == 0:
        os._exit(run_ranks(python(code), 2))
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    os.kill(child, signal.SIGUSR2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
