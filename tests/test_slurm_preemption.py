"""Preemption, time limits and dead ranks on a real SLURM: jobs of slurm/finetune.sbatch and of submitit."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from conftest import run_command
from forked_training import finish, load, start, train_words, training_difference, updates
from slurm_helpers import (
    call,
    cancel,
    environment,
    exit_code,
    log,
    processes,
    record,
    start_now,
    state,
    submit,
    submitted,
    wait_for,
    wait_until,
)  # fmt: skip

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
CPUS = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
ENDLESS = ("optimization.max_update=100000", "checkpoint.patience=-1")


def own(words: list[str]) -> list[str]:
    """fairseq's words, without those that slt-finetune knows itself."""
    return [word for word in words[2:] if not word.startswith("common.user_dir=")]


def finetune(folder: Path, words: list[str], *sbatch: str, ranks: int = 1, **environ: str) -> str:
    """A job of slurm/finetune.sbatch."""
    return submit(
        *CPUS, f"--ntasks-per-node={ranks}", f"--output={folder}/job-%j.out", *sbatch, "slurm/finetune.sbatch",
        *own(words),
        env=environment(**environ),
    )  # fmt: skip


def saved(run: Path) -> int:
    path = run / "checkpoint_last.pt"
    return updates(load(path)) if path.exists() else 0


def runs_again(job: str, restarts: int) -> None:
    """Waits until SLURM has queued the job again, cuts the wait short, and waits until it runs."""
    wait_until(lambda: record(job)["Restarts"] == str(restarts) and state(job) in ("PENDING", "RUNNING"), job=job)
    if state(job) == "PENDING":
        start_now(job)
    wait_for(job, "RUNNING", timeout=60)


def by_sbatch(folder: Path, words: list[str], ranks: int) -> str:
    return finetune(folder, words, ranks=ranks)


def by_submitit(folder: Path, words: list[str], ranks: int) -> str:
    """slt-finetune launcher=slurm: submitit's own handler requeues, called by ours after the checkpoint."""
    result = run_command(
        "slt-finetune", *own(words), "launcher=slurm_cpu", "launcher.cpus_per_task=1", "launcher.mem=2G",
        "launcher.time=10", f"launcher.local_ranks={ranks}", f"launcher.folder={folder}",
    )  # fmt: skip
    submitted.append(re.search(r"submitted job (\d+)", result.stdout)[1])
    return submitted[-1]


@pytest.mark.parametrize(("start_job", "ranks"), [(by_sbatch, 1), (by_submitit, 2)])
def test_usr2_saves_requeues_and_continues_bit_for_bit(pose_corpus, spm_model, tmp_path, start_job, ranks):
    length = ("optimization.max_update=120", "checkpoint.save_interval_updates=20", "checkpoint.patience=50",
              "dataset.validate_interval_updates=10", "dataset.num_workers=2")  # fmt: skip
    job = start_job(tmp_path, train_words(pose_corpus, spm_model, tmp_path / "run", *length), ranks)
    stops = []
    for restarts, instant in enumerate(("begin validation on", "Preparing to save checkpoint"), start=1):
        before = log(job).count(instant)
        wait_until(lambda instant=instant, before=before: log(job).count(instant) > before + 1, job=job)
        call("scancel", "--signal=USR2", job)
        runs_again(job, restarts)
        stops.append(saved(tmp_path / "run"))
        assert log(job).count(f"stopped at update {stops[-1]}. job {job}: ended by SIGUSR2 and queued again") == 1
    assert 0 < stops[0] < stops[1] < 120
    assert wait_for(job) == "COMPLETED"
    whole = start(train_words(pose_corpus, spm_model, tmp_path / "whole", *length), tmp_path / "log", ranks=ranks)
    assert finish(whole) == [0] * ranks
    assert training_difference(tmp_path / "whole", tmp_path / "run") is None


def test_a_time_limit_requeues(pose_corpus, spm_model, tmp_path):
    """SLURM itself sends USR2 before the limit (some time in the 60 s before that moment) and then TERM and KILL."""
    words = train_words(pose_corpus, spm_model, tmp_path / "run", *ENDLESS, "checkpoint.save_interval_updates=100000",
                        "dataset.validate_interval_updates=100000")  # fmt: skip
    job = finetune(tmp_path, words, "--time=1", "--signal=USR2@15", SLT_SIGNAL_DELAY="15")
    wait_until(lambda: record(job)["Restarts"] == "1", timeout=110, job=job)
    first = saved(tmp_path / "run")
    assert first > 0 and f"stopped at update {first}. job {job}: ended by SIGUSR2 and queued again" in log(job)
    call("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    runs_again(job, 1)
    wait_until(lambda: max(map(int, re.findall(r"num_updates (\d+)", log(job)))) > first + 5, job=job)
    # and a cancelled job is saved, but stays cancelled
    cancel(job)
    wait_until(lambda: "was cancelled" in log(job))
    wait_for(job, "CANCELLED")
    assert saved(tmp_path / "run") > first and record(job)["Restarts"] == "1"


def test_sigterm_of_a_preemption_requeues(pose_corpus, spm_model, tmp_path):
    """To the tasks alone, while the job is not cancelled: as with a partition's GraceTime."""
    words = train_words(pose_corpus, spm_model, tmp_path / "run", *ENDLESS)
    job = finetune(tmp_path, words)
    wait_until(lambda: saved(tmp_path / "run") >= 4, job=job)
    call("scancel", "--signal=TERM", job)
    wait_until(lambda: record(job)["Restarts"] == "1", job=job)
    assert f"job {job}: ended by SIGTERM and queued again" in log(job)
    cancel(job)


def test_a_job_that_may_not_be_requeued_ends_with_a_message(pose_corpus, spm_model, tmp_path):
    words = train_words(pose_corpus, spm_model, tmp_path / "run", *ENDLESS)
    job = finetune(tmp_path, words, "--no-requeue")
    wait_until(lambda: saved(tmp_path / "run") >= 4, job=job)
    call("scancel", "--signal=USR2", job)
    assert wait_for(job) == "FAILED"
    assert exit_code(job) == 75
    assert re.search(rf"job {job} could not be queued again \(.*\)\. Submit the same command again", log(job))


def test_a_dead_rank_ends_the_job(pose_corpus, spm_model, tmp_path):
    job = finetune(tmp_path, train_words(pose_corpus, spm_model, tmp_path / "run", *ENDLESS), ranks=2)
    wait_until(lambda: saved(tmp_path / "run") >= 4 and len(processes(job, "slt-finetune")) == 2, job=job)
    os.kill(processes(job, "slt-finetune")[1], signal.SIGKILL)
    begin = time.monotonic()
    assert wait_for(job, timeout=90) == "FAILED"
    assert exit_code(job) != 0 and time.monotonic() - begin < 80
    assert "Killed" in log(job)
    assert saved(tmp_path / "run") >= 4
