"""The checkpoint hooks: atomic files, the choice of what to resume from, weights_only loading."""

import argparse
import hashlib
import inspect
import logging
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import omegaconf
import pytest
import torch
from fairseq import checkpoint_utils, trainer
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.file_io import PathManager
from fairseq_cli import train

from slt_plugin.checkpoints import safe
from slt_plugin.checkpoints.keymaps import CheckpointError


@pytest.fixture(autouse=True)
def _hooks():
    safe.install()
    safe.reset_early_stopping()
    yield
    safe.reset_early_stopping()


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def updates(path: Path) -> int:
    return load(path)["optimizer_history"][-1]["num_updates"]


def write_checkpoint(path: Path, num_updates: int, age: float = 0) -> Path:
    state = {"model": {"w": torch.randn(1000)}, "optimizer_history": [{"num_updates": num_updates}]}
    torch.save(state, path)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def truncate(path: Path) -> None:
    """Cuts a file in half, through a new inode: links to it stay whole."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    modified = path.stat().st_mtime
    path.unlink()
    path.write_bytes(half)
    os.utime(path, (modified, modified))


# The hooked functions are those that were read


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (checkpoint_utils.torch_persistent_save, "5f397c23bc8811f6"),
        (checkpoint_utils.load_checkpoint, "08e4fa03a2ab86a9"),
        (checkpoint_utils.load_checkpoint_to_cpu, "96f7d33cde8e1582"),
        (checkpoint_utils.save_checkpoint, "61513534b9b33e6a"),
        (PathManager.copy, "1d3c09d3f1965527"),
        (trainer.Trainer.save_checkpoint, "46b39d54a4f75cc8"),
        (train.should_stop_early, "deb15b6c0cc23cfd"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fairseq_is_the_version_that_was_hooked(function, digest):
    source = inspect.getsource(inspect.unwrap(function))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, (
        f"{function.__name__} of the installed fairseq differs from 0.12.3: read it, then adapt safe.py or mapped.py"
    )


def test_install_twice_changes_nothing():
    def hooked():
        return (checkpoint_utils.torch_persistent_save, checkpoint_utils.load_checkpoint, PathManager.copy)

    before = hooked()
    safe.install()
    assert hooked() == before == (safe.save_atomically, safe.load_checkpoint, safe.copy_atomically)
    assert trainer.Trainer.save_checkpoint is safe.save_with_early_stopping


# Writing


class LoopTrainer:
    """As much of a Trainer as fairseq's save_checkpoint asks for."""

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    checkpoint_suffix = ""
    task = None

    def __init__(self):
        self.num_updates = 0
        self.weights = torch.randn(1_500_000)

    def consolidate_optimizer(self):
        pass

    def get_num_updates(self):
        return self.num_updates

    def save_checkpoint(self, filename, extra_state):
        state = {"model": {"w": self.weights}, "num_updates": self.num_updates, "extra_state": extra_state}
        checkpoint_utils.torch_persistent_save(state, filename)
        return filename


def save_forever(save_dir: str) -> None:
    cfg = CheckpointConfig(save_dir=save_dir, save_interval_updates=1, keep_interval_updates=2)
    iterator = SimpleNamespace(epoch=1, end_of_epoch=lambda: False, state_dict=dict)
    loop = LoopTrainer()
    while True:
        loop.num_updates += 1
        checkpoint_utils.save_checkpoint(cfg, loop, iterator, 1.0 / loop.num_updates)


def test_every_checkpoint_loads_after_kill_9(tmp_path):
    moments = random.Random(0)
    for _ in range(8):
        process = multiprocessing.get_context("fork").Process(target=save_forever, args=(str(tmp_path),))
        process.start()
        time.sleep(moments.uniform(0.1, 0.4))
        process.kill()
        process.join()
        problems = {p.name: safe.find_problem(p) for p in tmp_path.glob("*.pt")}
        assert problems, "the process was killed before its first checkpoint"
        assert set(problems.values()) == {None}, problems
    assert (tmp_path / "checkpoint_best.pt").exists()
    assert (tmp_path / "checkpoint_last.pt").exists()
    safe.remove_stale_temporaries(tmp_path)
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "checkpoint_last.pt", 1)
    calls = []

    def disk_full(obj, file):
        calls.append(obj)
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safe, "SAVE_PAUSE_SECONDS", 0)
    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(
        CheckpointError, match=r"cannot be written: No space left on device\. The checkpoints before it"
    ):
        checkpoint_utils.torch_persistent_save({"model": {}}, str(path))
    assert len(calls) == 3
    assert updates(path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_last.pt"]


def test_copy_links_and_replaces(tmp_path):
    source = write_checkpoint(tmp_path / "checkpoint1.pt", 7)
    target = write_checkpoint(tmp_path / "checkpoint_best.pt", 3)
    for _ in range(2):  # the second time both names are one file already
        assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.samefile(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_best.pt"]
    checkpoint_utils.torch_persistent_save({"model": {}, "optimizer_history": [{"num_updates": 9}]}, str(source))
    assert (updates(source), updates(target)) == (9, 7)  # a new save does not write through the link


def test_copy_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    source = write_checkpoint(tmp_path / "checkpoint1.pt", 7)
    target = write_checkpoint(tmp_path / "checkpoint_best.pt", 3)
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert updates(target) == 7
    assert not target.samefile(source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_best.pt"]


def test_copy_that_fails_leaves_the_target_whole(tmp_path, monkeypatch):
    def half(source, file, length):
        file.write(source.read(10))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", lambda source, target: (_ for _ in ()).throw(OSError(95, "no links")))
    monkeypatch.setattr(shutil, "copyfileobj", half)
    source = write_checkpoint(tmp_path / "checkpoint1.pt", 7)
    target = write_checkpoint(tmp_path / "checkpoint_best.pt", 3)
    with pytest.raises(
        CheckpointError, match=r"cannot be written: No space left on device\. The checkpoints before it"
    ):
        PathManager.copy(str(source), str(target), overwrite=True)
    assert updates(target) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_best.pt"]


def test_only_abandoned_temporaries_of_ours_are_removed(tmp_path):
    host = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    old = time.time() - 2 * safe.ABANDONED_SECONDS
    files = {  # name: whether it is removed
        f".checkpoint_last.pt.slt-{host}-{dead.pid}.tmp": True,
        f".checkpoint_last.pt.slt-{host}-{os.getppid()}.tmp": False,  # its writer lives
        f".checkpoint_best.pt.slt-{host}-{os.getpid()}.tmp": True,  # a number that came round again
        ".checkpoint_last.pt.slt-other-node-12.tmp": False,  # may be growing
        ".checkpoint1.pt.slt-other-node-12.tmp": True,
        ".something.tmp": False,
        "checkpoint_last.pt.tmp": False,
        "checkpoint_last.pt": False,
    }
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / ".checkpoint1.pt.slt-other-node-12.tmp", (old, old))
    removed = safe.remove_stale_temporaries(tmp_path)
    assert {p.name for p in removed} == {name for name, gone in files.items() if gone}
    assert {p.name for p in tmp_path.iterdir()} == {name for name, gone in files.items() if not gone}


# Choosing what to resume from


def config(save_dir: Path, **values) -> CheckpointConfig:
    return CheckpointConfig(save_dir=str(save_dir), **values)


def test_nothing_to_resume(tmp_path):
    assert safe.choose_restore_file(config(tmp_path), "") is None
    assert safe.choose_restore_file(config(tmp_path / "new"), "") is None


def test_a_good_last_checkpoint_is_taken(tmp_path):
    write_checkpoint(tmp_path / "checkpoint_last.pt", 1, age=100)
    write_checkpoint(tmp_path / "checkpoint_best.pt", 2)
    assert safe.choose_restore_file(config(tmp_path), "") == "checkpoint_last.pt"


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "missing", "foreign"])
def test_fallback_to_the_newest_loadable(tmp_path, caplog, damage):
    last = write_checkpoint(tmp_path / "checkpoint_last.pt", 30)
    truncate(write_checkpoint(tmp_path / "checkpoint_1_25.pt", 25, age=5))
    newest = write_checkpoint(tmp_path / "checkpoint_1_20.pt", 20, age=10)
    write_checkpoint(tmp_path / "checkpoint_best.pt", 10, age=20)
    write_checkpoint(tmp_path / "checkpoint_export.pt", 99)  # not a name of fairseq's
    if damage == "truncated":
        truncate(last)
    elif damage == "empty":
        last.write_bytes(b"")
    elif damage == "flipped":
        content = bytearray(last.read_bytes())
        content[content.find(last.read_bytes()[2000:2016])] ^= 1  # inside the weights
        last.write_bytes(content)
    elif damage == "missing":
        last.unlink()
    else:
        torch.save([1, 2], last)
    with caplog.at_level(logging.WARNING, logger="slt_plugin"):
        assert safe.choose_restore_file(config(tmp_path), "") == str(newest)
    assert str(last) in caplog.text
    assert str(newest) in caplog.text


def test_sharded_names(tmp_path):
    truncate(write_checkpoint(tmp_path / "checkpoint_last-shard0.pt", 3))
    write_checkpoint(tmp_path / "checkpoint_2_9-shard1.pt", 9)
    write_checkpoint(tmp_path / "checkpoint_1_2-shard0.pt", 2)
    # without the suffix: fairseq adds every rank's own
    assert safe.choose_restore_file(config(tmp_path), "-shard0") == str(tmp_path / "checkpoint_1_2.pt")


def test_no_loadable_checkpoint_is_an_error(tmp_path):
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        truncate(write_checkpoint(tmp_path / name, 1))
    with pytest.raises(
        CheckpointError, match=r"(?s)checkpoint_last\.pt: .*checkpoint_best\.pt: .*another checkpoint.save"
    ):
        safe.choose_restore_file(config(tmp_path), "")


@pytest.mark.parametrize("option", ["restore_file", "finetune_from_model", "continue_once"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_file_that_the_user_names_is_never_replaced(tmp_path, option, damage):
    named = write_checkpoint(tmp_path / "pretrained.pt", 1)
    save_dir = tmp_path / "run"
    save_dir.mkdir()
    if option == "restore_file":
        write_checkpoint(save_dir / "checkpoint_best.pt", 1)
    cfg = config(save_dir, **{option: str(named)})
    assert safe.choose_restore_file(cfg, "") == (str(named) if option == "restore_file" else None)
    damage(named)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.{option}: .*pretrained\.pt cannot be loaded"):
        safe.choose_restore_file(cfg, "")


# What weights_only loading allows


def test_old_configurations_load_and_nothing_else(tmp_path):
    cfg = omegaconf.OmegaConf.create({"model": {"_name": "x", "layers": [1, 2], "p": 0.5, "none": None}})
    old = {"args": argparse.Namespace(arch="transformer", lr=[0.1]), "cfg": cfg, "model": {"w": torch.ones(2)}}
    torch.save(old, tmp_path / "old.pt")
    loaded = load(tmp_path / "old.pt")
    assert loaded["args"] == old["args"]
    assert loaded["cfg"] == cfg
    assert loaded["cfg"].model.layers[1] == 2
    assert safe.find_problem(tmp_path / "old.pt") is None
    torch.save({"model": {}, "path": Path("/")}, tmp_path / "other.pt")
    assert "Weights only load failed" in safe.find_problem(tmp_path / "other.pt")
