"""Signals during a training: all ranks save together at the end of an update, and go on as if nothing had happened."""

import hashlib
import inspect
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import run_command
from fairseq import checkpoint_utils, trainer
from fairseq_cli import train as fairseq_train
from forked_training import Forked, finish, load, start, train_words, training_difference, updates

from slt_plugin.cli import finetune
from slt_plugin.tasks import preemption
from slt_plugin.tasks.sign_to_text import SignToTextTask

DIED_OF_USR2, DIED_OF_TERM = 128 + signal.SIGUSR2, 128 + signal.SIGTERM


def at_call(owner, name: str, count: int, number: int = signal.SIGUSR2, *, after: bool = False):
    """A function for ``before``: the ``count``-th call of ``owner.name`` sends a signal to its process."""

    def arrange() -> None:
        original, calls = getattr(owner, name), []

        def called(*args, **options):
            calls.append(1)
            if len(calls) == count and not after:
                os.kill(os.getpid(), number)
            result = original(*args, **options)
            if len(calls) == count and after:
                os.kill(os.getpid(), number)
            return result

        setattr(owner, name, called)

    return arrange


@pytest.fixture(scope="module")
def uninterrupted(pose_corpus, spm_model, tmp_path_factory):
    """(ranks, workers, further options) -> the folder of a training without interruption."""
    found = {}

    def folder(ranks: int, workers: int) -> Path:
        if (ranks, workers) not in found:
            run = tmp_path_factory.mktemp("once") / "run"
            words = train_words(pose_corpus, spm_model, run, f"dataset.num_workers={workers}")
            processes = start(words, run.with_name("log"), ranks=ranks)
            assert finish(processes) == [0] * ranks, processes[0].text()[-3000:]
            found[ranks, workers] = run
        return found[ranks, workers]

    return folder


INSTANTS = {
    "in the second batch of an update": at_call(SignToTextTask, "train_step", 14),
    "in a validation": at_call(SignToTextTask, "valid_step", 2),
    "while a checkpoint is written": at_call(torch, "save", 2),
    "between two epochs": at_call(trainer.Trainer, "get_train_iterator", 2),
    "before the first update": at_call(checkpoint_utils, "load_checkpoint", 1),
}


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
@pytest.mark.parametrize("instant", INSTANTS)
def test_an_interrupted_training_equals_one_without(
    pose_corpus, spm_model, tmp_path, uninterrupted, ranks, workers, instant
):
    words = train_words(pose_corpus, spm_model, tmp_path / "run", f"dataset.num_workers={workers}")
    processes = start(words, tmp_path / "log", ranks=ranks, before=INSTANTS[instant])
    assert finish(processes) == [DIED_OF_USR2] * ranks, processes[0].text()[-3000:]
    stopped = updates(load(tmp_path / "run/checkpoint_last.pt"))
    assert 0 < stopped < 12
    text = processes[0].text()
    assert f"stopped at update {stopped}. ended by SIGUSR2; the same command goes on from here" in text
    processes = start(words, tmp_path / "log", ranks=ranks)
    assert finish(processes) == [0] * ranks, processes[0].text()[-3000:]
    assert training_difference(uninterrupted(ranks, workers), tmp_path / "run") is None


def test_the_learning_rate_goes_on_over_the_end_of_an_epoch(pose_corpus, spm_model, tmp_path):
    """fairseq saves before it shows the epoch's validation to the scheduler, and does not do it after a restart."""
    plateau = (
        "lr_scheduler._name=reduce_lr_on_plateau", "~lr_scheduler.warmup_updates", "+lr_scheduler.lr_shrink=0.5",
        "+lr_scheduler.lr_threshold=1000", "+lr_scheduler.lr_patience=0",
        "dataset.validate_interval=1", "dataset.validate_interval_updates=0", "checkpoint.save_interval_updates=0",
    )  # fmt: skip
    for name, before in (("once", None), ("parts", at_call(SignToTextTask, "valid_step", 1))):
        words = train_words(pose_corpus, spm_model, tmp_path / name, *plateau)
        words = [word for word in words if not word.startswith("lr_scheduler.warmup")]
        status = start(words, tmp_path / f"{name}.log", before=before)[0].wait()
        assert status == (0 if before is None else DIED_OF_USR2), (tmp_path / f"{name}.log").read_text()[-2000:]
    state = load(tmp_path / "parts/checkpoint_last.pt")["extra_state"]["train_iterator"]
    assert state["epoch"] == 2 and state["iterations_in_epoch"] == 0  # between two epochs
    assert start(words, tmp_path / "parts.log")[0].wait() == 0
    rates = load(tmp_path / "once/checkpoint_last.pt")["last_optimizer_state"]["param_groups"][0]["lr"]
    assert rates < 0.002
    assert training_difference(tmp_path / "once", tmp_path / "parts") is None


def test_one_rank_hears_the_signal_and_both_stop(pose_corpus, spm_model, tmp_path):
    def only_on_rank_1():
        if os.environ["RANK"] == "1":
            at_call(SignToTextTask, "train_step", 3, signal.SIGTERM)()

    words = train_words(pose_corpus, spm_model, tmp_path / "run")
    assert finish(start(words, tmp_path / "log", ranks=2, before=only_on_rank_1)) == [DIED_OF_TERM] * 2
    assert updates(load(tmp_path / "run/checkpoint_last.pt")) == 2


def test_workers_outlive_a_sigterm_to_the_whole_group(pose_corpus, spm_model, tmp_path, uninterrupted):
    """As SLURM sends it to every process of a job where no cgroups tell tasks from their children."""

    def to_the_group():
        os.killpg(os.getpgid(0), signal.SIGTERM)

    def arrange():
        original, calls = SignToTextTask.train_step, []

        def called(*args, **options):
            calls.append(1)
            if len(calls) == 5:
                to_the_group()
            return original(*args, **options)

        SignToTextTask.train_step = called

    words = train_words(pose_corpus, spm_model, tmp_path / "run", "dataset.num_workers=2")
    processes = start(words, tmp_path / "log", before=arrange)
    assert finish(processes) == [DIED_OF_TERM], processes[0].text()[-3000:]
    assert updates(load(tmp_path / "run/checkpoint_last.pt")) == 3
    assert finish(start(words, tmp_path / "log")) == [0]
    assert training_difference(uninterrupted(1, 2), tmp_path / "run") is None


def test_the_determinism_switch(pose_corpus, spm_model, tmp_path):
    words = train_words(pose_corpus, spm_model, tmp_path / "run", "task.deterministic=true")

    def tell_after_an_update():
        original = fairseq_train.validate_and_save

        def told(*args, **options):
            print("deterministic:", torch.are_deterministic_algorithms_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"])
            return original(*args, **options)

        fairseq_train.validate_and_save = told

    process = start([*words, "optimization.max_update=1"], tmp_path / "log", before=tell_after_an_update)[0]
    assert process.wait() == 0
    assert "deterministic: True :4096:8" in process.text()


HELD_ITERATOR = """
from torch.utils.data import DataLoader
from slt_plugin.data.manifest_dataset import ManifestDataset, shield_worker

class Numbers(ManifestDataset):
    def __init__(self):
        super().__init__(training=True, decodes_video=False)

    def __len__(self):
        return 100

    def __getitem__(self, index):
        shield_worker()
        return index

held = iter(DataLoader(Numbers(), num_workers=2))
next(held)
print("ends now")
"""


def test_a_process_ends_although_its_workers_outlive_a_sigterm():
    """They still wait for work, as after a training that ends in the middle of an epoch: multiprocessing sends them
    SIGTERM at exit, and waits."""
    result = run_command("python", "-c", HELD_ITERATOR, timeout=60)
    assert result.stdout == "ends now\n" and "Traceback" not in result.stderr


def test_a_finished_training_is_not_trained_further(pose_corpus, spm_model, tmp_path, uninterrupted):
    run = uninterrupted(1, 0)
    before = (run / "checkpoint_last.pt").read_bytes()
    process = start(train_words(pose_corpus, spm_model, run), tmp_path / "log")[0]
    assert process.wait() == 0
    assert "the training is complete with its 12 updates" in process.text()
    assert (run / "checkpoint_last.pt").read_bytes() == before


def test_nothing_to_go_on_from_is_not_queued_again(pose_corpus, spm_model, tmp_path):
    words = train_words(pose_corpus, spm_model, tmp_path / "run", "checkpoint.no_save=true")
    process = start(words, tmp_path / "log", before=INSTANTS["in a validation"], SLURM_JOB_ID="77")[0]
    assert process.wait() == DIED_OF_USR2
    assert "ended by SIGUSR2 at update 4 without a checkpoint to go on from: checkpoint.no_save" in process.text()


def run_ours(words, before):
    """slt-finetune with fairseq's words."""
    torch.set_num_threads(1)
    before()
    return finetune.main([word for word in words[2:] if not word.startswith("common.user_dir=")])


def test_a_signal_while_the_command_starts(pose_corpus, spm_model, tmp_path):
    """Before there is anything to save: it ends before it loads its data, and can be queued again."""
    words = train_words(pose_corpus, spm_model, tmp_path / "run")
    process = Forked(lambda: run_ours(words, at_call(SignToTextTask, "build_model", 1)), tmp_path / "log")
    assert process.wait() == DIED_OF_USR2, process.text()[-3000:]
    assert "stopped at update 0. ended by SIGUSR2; the same command goes on from here" in process.text()
    assert "loading train data" not in process.text()


def test_processes_that_fairseq_spawns_hear_the_signal(pose_corpus, spm_model, tmp_path):
    """On a machine with several GPUs fairseq starts one process for each; here it is told of two, on the CPU."""

    def two_gpus():
        torch.cuda.device_count = lambda: 2

    words = train_words(pose_corpus, spm_model, tmp_path / "run", "distributed_training.distributed_world_size=2",
                        "optimization.max_update=100000", "checkpoint.patience=-1")  # fmt: skip
    process = Forked(lambda: run_ours(words, two_gpus), tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint_last.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.text()[-3000:]
        time.sleep(0.05)
    process.send(signal.SIGUSR2)
    assert process.wait() == DIED_OF_USR2, process.text()[-3000:]
    assert "ended by SIGUSR2; the same command goes on from here" in process.text()
    assert updates(load(tmp_path / "run/checkpoint_last.pt")) >= 4


def test_a_chain_does_not_requeue(pose_corpus, spm_model, tmp_path):
    words = train_words(pose_corpus, spm_model, tmp_path / "run")
    process = start(words, tmp_path / "log", before=INSTANTS["in a validation"], SLURM_JOB_ID="77", SLT_REQUEUE="0")[0]
    assert process.wait() == 75
    assert (
        "job 77: ended by SIGUSR2, not queued again (SLT_REQUEUE=0): the next job goes on from here" in process.text()
    )


def test_a_failed_requeue_says_what_to_do(pose_corpus, spm_model, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    (tools / "scontrol").chmod(0o755)
    words = train_words(pose_corpus, spm_model, tmp_path / "run")
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    process = start(words, tmp_path / "log", before=INSTANTS["in a validation"], SLURM_JOB_ID="77", PATH=path)[0]
    assert process.wait() == 75
    last = process.text().strip().splitlines()[-1]
    assert "job 77 could not be queued again (scontrol requeue 77: Requested operation is presently disabled)" in last
    assert "Submit the same command again" in last and "launcher.chain=N" in last
    assert updates(load(tmp_path / "run/checkpoint_last.pt")) == 4


def test_a_stalled_loader_ends_the_training(pose_corpus, spm_model, tmp_path):
    def stall():
        original, calls = SignToTextTask.train_step, []

        def called(*args, **options):
            calls.append(1)
            if len(calls) == 5:
                threading.Event().wait()
            return original(*args, **options)

        SignToTextTask.train_step = called

    words = train_words(pose_corpus, spm_model, tmp_path / "run", "distributed_training.heartbeat_timeout=3")
    process = start(words, tmp_path / "log", before=stall)[0]
    begin = time.monotonic()
    assert process.wait(60) == 70
    assert time.monotonic() - begin < 40
    lines = process.text().strip().splitlines()
    assert "STALLED: no batch for 3 s" in lines[-1] and "rank 0 after update 2" in lines[-1]
    assert any("threading.py" in line and "wait" in line for line in lines)  # where it hangs


def test_a_signal_that_leaves_too_little_time_is_told(caplog):
    clock = preemption.BoundaryClock(60.0)
    with caplog.at_level(logging.WARNING):
        for gap in (500.0, 400.0, 10.0, 20.0):  # the first two are not counted: they compile and fill caches
            clock.last = time.monotonic() - gap
            clock.tick(5.0)
        assert caplog.text == ""
        clock.last = time.monotonic() - 52
        clock.tick(5.0)
    assert "leaves 60 s" in caplog.text and "up to 52 s and a checkpoint 5 s" in caplog.text
    assert "--signal=USR2@124" in caplog.text
    caplog.clear()
    clock.last = time.monotonic() - 53
    clock.tick(5.0)
    assert caplog.text == ""  # told once


def test_importing_the_plugin_logs_nothing_to_stdout():
    """fairseq's training script does that: commands that do not train print their results there."""
    code = (
        "import logging, sys, slt_plugin.tasks; logging.warning('x'); "
        "print(any(handler.stream is sys.stdout for handler in logging.root.handlers), "
        "'fairseq_cli.train' in sys.modules)"
    )
    assert run_command("python", "-W", "ignore", "-c", code).stdout == "False False\n"


@pytest.mark.parametrize(("updates", "message"), [(None, "without building a trainer"), (0, "no update was made")])
def test_nothing_trained_is_an_error(monkeypatch, updates, message):
    monkeypatch.setattr(preemption, "_updates", updates)
    with pytest.raises(preemption.TrainingError, match=f"nothing was trained: .*{message}"):
        preemption.check_trained()


def test_a_command_that_trains_nothing_fails(pose_corpus, spm_model, tmp_path):
    """The learning rate is below stop_min_lr from the start: fairseq leaves its loop at once, with exit status 0."""
    words = (f"task.data={pose_corpus}", f"task.codec_path={spm_model}", f"checkpoint.save_dir={tmp_path / 'run'}",
             "optimization.stop_min_lr=1", "dataset.num_workers=0")  # fmt: skip
    result = run_command("slt-finetune", "--config-name", "fingerspelling_pose", *words, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("slt-finetune: nothing was trained: no update was made")


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (fairseq_train.main, "2a1b822cd8f53582"),
        (fairseq_train.train, "db4e58992bbcd65a"),
        (fairseq_train.validate_and_save, "55091327efc06093"),
        (trainer.Trainer.__init__, "73b085b08f6e2e9b"),
        (trainer.Trainer.train_step, "8cbf0406b1fe5093"),
        (trainer.Trainer.valid_step, "e53165a7b4786aad"),
        (trainer.Trainer.set_num_updates, "f0dc8568b86467a9"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fairseq_is_the_version_that_was_hooked(function, digest):
    source = inspect.getsource(inspect.unwrap(function))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, (
        f"{function.__name__} of the installed fairseq differs from 0.12.3: read it, then adapt preemption.py"
    )
