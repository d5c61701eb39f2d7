"""Pretraining by the real commands: two ranks through torchrun train as one process does; slt-pretrain starts one."""

import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import run_command
from pretraining_helpers import CLIP_WORDS, first_moments, last_checkpoint, pretrain, write_uneven_corpus
from test_two_ranks import DISTRIBUTED, TRAIN

# stock training, but the second batch that rank 1 trains on gives NaN
NAN_ON_ONE_RANK = """
import os
import slt_plugin.tasks
from slt_plugin.models.sign_mae import SignMAE
from fairseq_cli.hydra_train import cli_main

forward, batches = SignMAE.forward, 0

def broken(self, *args, **options):
    global batches
    output = forward(self, *args, **options)
    batches += self.training
    if self.training and batches == 2 and os.environ["RANK"] == "1":
        output["losses"]["mae"] = output["losses"]["mae"] * float("nan")
    return output

SignMAE.forward = broken
cli_main()
"""


@pytest.fixture(scope="module")
def uneven_corpus(tmp_path_factory):
    return write_uneven_corpus(tmp_path_factory.mktemp("uneven") / "corpus", {"train": 12, "valid": 5})


def train_on_two_ranks(
    corpus: Path, save_dir: Path, *options: str, script: Path = TRAIN, **how
) -> subprocess.CompletedProcess:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return run_command(
        "torchrun", "--nproc-per-node", "2", "--master-port", port, script,
        "--config-dir", "slt_plugin/config/pretrain", "--config-name", "mae_tiny_cpu", "common.user_dir=slt_plugin",
        f"task.data={corpus}", f"checkpoint.save_dir={save_dir}", *DISTRIBUTED, *CLIP_WORDS,
        "dataset.num_workers=0", "lr_scheduler.warmup_updates=1", *options, **how,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "update"),
    [
        (("task.clips_per_update=8",), "8 clips an update: 2 ranks x 1 batches x 2 rows x 2 clips"),
        # 9 rows and 3: at the second update each rank has one batch only
        (("task.clips_per_update=18", "optimization.update_freq=[2]"), "2 ranks x 2 batches x 2 to 3 rows x 2 clips"),
    ],
)
def test_two_ranks_equal_one_process(uneven_corpus, tmp_path, words, update):
    """Losses and weights after updates on the same clips and masks, by the stock command."""
    # Adam would make steps of a whole learning rate of the rounding of gradients near zero
    options = (
        "dataset.batch_size=11", "optimization.max_update=2", "optimizer.adam_eps=0.01", "task.min_duration=0", *words
    )  # fmt: skip
    one = pretrain(uneven_corpus, tmp_path / "one", *options, "optimization.update_freq=[1]")
    result = train_on_two_ranks(uneven_corpus, tmp_path / "two", *options)
    assert update in result.stdout + result.stderr
    two = last_checkpoint(tmp_path / "two")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    largest = max(float(moments.abs().max()) for moments in first_moments(one))
    for a, b in zip(first_moments(one), first_moments(two), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * largest, rtol=1e-3)
    assert one["extra_state"]["val_loss"] == pytest.approx(two["extra_state"]["val_loss"], abs=2e-5)
    losses = [meter["sum"] / meter["count"] for meter in (losses_of(one), losses_of(two))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def losses_of(state: dict) -> dict:
    """The meter of the training's loss."""
    meters = {name: meter for _, name, kind, meter in state["extra_state"]["metrics"]["train"]}
    return meters["loss"]


def test_resume_before_an_epochs_last_rows(video_corpus, tmp_path):
    """12 rows, 11 an update: of a last row alone, one rank would have to train on a stand-in that it has not got."""
    for updates in (1, 2):
        train_on_two_ranks(
            video_corpus, tmp_path, "dataset.batch_size=11", "task.clips_per_update=22", "optimization.update_freq=[1]",
            f"optimization.max_update={updates}", "checkpoint.save_interval_updates=1",
        )  # fmt: skip
    assert last_checkpoint(tmp_path)["optimizer_history"][-1]["num_updates"] == 2


def test_nan_on_one_rank_ends_all(video_corpus, tmp_path):
    """The other rank waits for its gradients: both have to end, and the last checkpoint stays."""
    script, folder = tmp_path / "train.py", tmp_path / "run"
    script.write_text(NAN_ON_ONE_RANK)
    options = ("task.clips_per_update=8", "dataset.batch_size=4", "checkpoint.save_interval_updates=1")
    result = train_on_two_ranks(
        video_corpus, folder, *options, "optimization.max_update=4",
        script=script, check=False, timeout=90,
    )  # fmt: skip
    assert result.returncode != 0
    assert re.search(r"update 2: the loss is nan, for rows train-\d+, train-\d+", result.stdout + result.stderr)
    names = ["checkpoint_1_1.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    assert sorted(path.name for path in folder.glob("*.pt")) == names
    state = last_checkpoint(folder)
    assert state["optimizer_history"][-1]["num_updates"] == 1
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_slt_pretrain(video_corpus, tmp_path):
    words = (f"task.data={video_corpus}", f"checkpoint.save_dir={tmp_path / 'run'}", *CLIP_WORDS)
    result = run_command(
        "slt-pretrain", "--config-name", "mae_tiny_cpu", *words, "optimization.max_update=1", "task.clips_per_update=8",
        "dataset.num_workers=0", cwd=tmp_path,
    )  # fmt: skip
    assert "done training" in result.stdout + result.stderr
    assert (tmp_path / "run" / "checkpoint_last.pt").is_file()
    refused = run_command("slt-pretrain", "--config-name", "mae_tiny_gpu", *words, cwd=tmp_path, check=False)
    assert refused.returncode == 1
    assert "slt-pretrain: --config-name mae_tiny_gpu: no such experiment" in refused.stderr
    assert "did you mean 'mae_tiny_cpu'?" in refused.stderr and "mae_base_128x224" in refused.stderr
