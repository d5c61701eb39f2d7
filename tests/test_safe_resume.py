"""fairseq's own training loop under the checkpoint hooks: resume, early stopping, several ranks."""

import copy
import functools
import logging
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train

from slt_plugin.checkpoints import safe
from slt_plugin.checkpoints.keymaps import CheckpointError


@pytest.fixture(autouse=True)
def _hooks():
    safe.install()
    safe.reset_early_stopping()
    yield
    safe.reset_early_stopping()


@functools.cache
def dummy_config():
    """fairseq's built-in dummy task with a tiny model on the CPU: 4 updates an epoch."""
    settings = (
        "--task dummy_lm --dict-size 12 --dataset-size 8 --tokens-per-sample 4 --batch-size 2 --arch transformer_lm "
        "--decoder-layers 1 --decoder-embed-dim 8 --decoder-ffn-embed-dim 8 --decoder-attention-heads 1 --cpu "
        "--optimizer adam --lr 0.01 --criterion cross_entropy --no-progress-bar --required-batch-size-multiple 1 "
        "--num-workers 0"
    )
    args = options.parse_args_and_arch(options.get_training_parser(), settings.split())
    return convert_namespace_to_omegaconf(args)


def training_config(save_dir: Path, *, max_epoch=0, constant=False, **checkpoint):
    """``constant``: the validation loss never improves, and training stops after 4 validations without progress."""
    cfg = copy.deepcopy(dummy_config())
    cfg.optimization.max_epoch = max_epoch
    if constant:
        cfg.optimization.lr = [0.0]
        cfg.checkpoint.update(patience=4, no_epoch_checkpoints=True)
    cfg.checkpoint.update(save_dir=str(save_dir), **checkpoint)
    return cfg


def run_training(save_dir: Path, **settings) -> None:
    """fairseq's own training loop."""
    train.main(training_config(save_dir, **settings))


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def updates(path: Path) -> int:
    return load(path)["optimizer_history"][-1]["num_updates"]


def truncate(path: Path) -> None:
    """Cuts a file in half, through a new inode: links to it stay whole."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    modified = path.stat().st_mtime
    path.unlink()
    path.write_bytes(half)
    os.utime(path, (modified, modified))


def test_training_resumes_from_an_older_checkpoint(tmp_path, caplog):
    run_training(tmp_path, max_epoch=2)
    assert (tmp_path / "checkpoint_last.pt").samefile(tmp_path / "checkpoint2.pt")
    truncate(tmp_path / "checkpoint_last.pt")
    truncate(tmp_path / "checkpoint2.pt")
    (tmp_path / "checkpoint_best.pt").unlink()
    per_epoch = updates(tmp_path / "checkpoint1.pt")
    with caplog.at_level(logging.WARNING, logger="slt_plugin"):
        run_training(tmp_path, max_epoch=3)
    assert "RESUMING FROM AN OLDER CHECKPOINT" in caplog.text
    assert updates(tmp_path / "checkpoint_last.pt") == 3 * per_epoch
    assert updates(tmp_path / "checkpoint2.pt") == 2 * per_epoch  # written anew
    for path in tmp_path.glob("checkpoint*.pt"):
        truncate(path)
    with pytest.raises(CheckpointError, match="does not restart from scratch"):
        run_training(tmp_path, max_epoch=4)


def test_a_missing_restore_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"restore_file: /nowhere\.pt cannot be loaded \(no such file\)"):
        run_training(tmp_path, max_epoch=1, restore_file="/nowhere.pt")


def test_asynchronous_writing_is_refused(tmp_path):
    cfg = CheckpointConfig(save_dir=str(tmp_path), write_checkpoints_asynchronously=True)
    with pytest.raises(CheckpointError, match="write_checkpoints_asynchronously"):
        checkpoint_utils.load_checkpoint(cfg, None)


def test_early_stopping_counts_over_a_restart(tmp_path):
    run_training(tmp_path / "whole", constant=True)
    whole = load(tmp_path / "whole/checkpoint_last.pt")
    for epochs in (2, 3, 99):
        run_training(tmp_path / "parts", constant=True, max_epoch=epochs)
    parts = load(tmp_path / "parts/checkpoint_last.pt")
    assert whole["extra_state"]["early_stopping"]["num_runs"] == 4
    for key in ("early_stopping", "best", "train_iterator"):
        assert parts["extra_state"][key] == whole["extra_state"][key]
    assert updates(tmp_path / "parts/checkpoint_last.pt") == updates(tmp_path / "whole/checkpoint_last.pt")


def test_a_second_training_in_one_process_starts_afresh(tmp_path):
    run_training(tmp_path / "one", constant=True)
    checkpoint_utils.save_checkpoint.best = -5.0  # better than anything the second job can reach
    run_training(tmp_path / "two", constant=True)
    one, two = (load(tmp_path / name / "checkpoint_last.pt")["extra_state"] for name in ("one", "two"))
    assert two["early_stopping"]["num_runs"] == one["early_stopping"]["num_runs"] == 4
    assert two["best"] == pytest.approx(one["best"])
    assert two["train_iterator"] == one["train_iterator"]


def test_fine_tuning_does_not_inherit_early_stopping(tmp_path):
    run_training(tmp_path / "one", constant=True)
    pretrained = tmp_path / "one/checkpoint_last.pt"
    run_training(tmp_path / "two", constant=True, max_epoch=1, finetune_from_model=str(pretrained))
    assert load(tmp_path / "two/checkpoint_last.pt")["extra_state"]["early_stopping"]["num_runs"] == 0


def test_checkpoints_of_plain_fairseq_resume(tmp_path):
    run_training(tmp_path, constant=True, max_epoch=2)
    path = tmp_path / "checkpoint_last.pt"
    state = load(path)
    del state["extra_state"]["early_stopping"]
    torch.save(state, path)
    run_training(tmp_path, constant=True, max_epoch=3)
    assert load(path)["extra_state"]["early_stopping"]["num_runs"] == 0


def train_on_two_ranks(rank: int, port: int, save_dir: Path) -> None:
    """Two epochs, a damaged checkpoint_last.pt, a third epoch."""
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    safe.logger.addHandler(logging.FileHandler(save_dir / f"rank{rank}.log"))

    def config(max_epoch):
        cfg = training_config(save_dir, max_epoch=max_epoch)
        cfg.distributed_training.update(
            distributed_world_size=2,
            distributed_rank=rank,
            distributed_no_spawn=True,
            distributed_init_method="env://",
            distributed_backend="gloo",
            ddp_backend="legacy_ddp",
        )
        cfg.task.dataset_size = 16
        return cfg

    def must_not_look(cfg, suffix):
        raise AssertionError("rank 1 looks for itself")

    if rank == 1:
        safe.choose_restore_file = must_not_look
    distributed_utils.call_main(config(2), train.main)
    if rank == 0:
        truncate(save_dir / "checkpoint_last.pt")
    torch.distributed.barrier()
    try:
        train.main(config(3))
    except CheckpointError:
        sys.exit(3)


@pytest.mark.parametrize("damaged", ["last", "all"])
def test_two_ranks_resume_from_the_same_file(tmp_path, monkeypatch, damaged):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if damaged == "all":
        monkeypatch.setattr(safe, "_checkpoints", lambda folder, suffix: [])
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=train_on_two_ranks, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=180)
    if damaged == "all":  # both ranks end: none waits for the other
        assert [process.exitcode for process in ranks] == [3, 3]
        return
    assert [process.exitcode for process in ranks] == [0, 0]
    assert "RESUMING FROM AN OLDER CHECKPOINT" in (tmp_path / "rank0.log").read_text()
    assert updates(tmp_path / "checkpoint_last.pt") == 3 * updates(tmp_path / "checkpoint1.pt")
