"""Pretraining by the real commands: two ranks through torchrun train as one process does; slt-pretrain starts one."""

import socket

import pytest
import torch
from conftest import run_command
from pretraining_helpers import CLIP_WORDS, last_checkpoint, pretrain
from test_two_ranks import DISTRIBUTED, TRAIN


@pytest.mark.parametrize(
    ("words", "update"),
    [
        (("task.clips_per_update=8",), "8 clips an update: 2 ranks x 1 batches x 2 rows x 2 clips"),
        # 11 rows and 1: at the second update one rank has none; 6 batches of 2 rows otherwise
        (("task.clips_per_update=22", "optimization.update_freq=[2]"), "2 ranks x 2 batches x 2 to 3 rows x 2 clips"),
    ],
)
def test_two_ranks_equal_one_process(video_corpus, tmp_path, words, update):
    """Losses and weights after updates on the same clips and masks, by the stock command."""
    options = ("dataset.batch_size=11", "optimization.max_update=2", *words)
    one = pretrain(video_corpus, tmp_path / "one", *options, "optimization.update_freq=[1]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run_command(
        "torchrun", "--nproc-per-node", "2", "--master-port", port, TRAIN,
        "--config-dir", "slt_plugin/config/pretrain", "--config-name", "mae_tiny_cpu", "common.user_dir=slt_plugin",
        f"task.data={video_corpus}", f"checkpoint.save_dir={tmp_path / 'two'}", *DISTRIBUTED, *CLIP_WORDS,
        "dataset.num_workers=0", "lr_scheduler.warmup_updates=1", *options,
    )  # fmt: skip
    assert update in result.stdout + result.stderr
    two = last_checkpoint(tmp_path / "two")
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, atol=1e-5, rtol=1e-4, msg=name)
    # Adam's first moments are the gradients, up to their factors
    for a, b in zip(*(s["last_optimizer_state"]["state"].values() for s in (one, two)), strict=True):
        torch.testing.assert_close(a["exp_avg"], b["exp_avg"], atol=1e-6, rtol=1e-3)
    assert one["extra_state"]["val_loss"] == pytest.approx(two["extra_state"]["val_loss"], abs=2e-5)
    losses = [meter["sum"] / meter["count"] for meter in (losses_of(one), losses_of(two))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def losses_of(state: dict) -> dict:
    """The meter of the training's loss."""
    meters = {name: meter for _, name, kind, meter in state["extra_state"]["metrics"]["train"]}
    return meters["loss"]


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
