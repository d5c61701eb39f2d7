"""A disk that is really full while a training runs."""

import subprocess

import pytest
from forked_training import load, start, train_words, updates

from slt_plugin.checkpoints import safe


@pytest.fixture
def small_disk(tmp_path):
    """A folder of 1.5 MB: the training's checkpoint is one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_training_and_keeps_the_last_checkpoint(pose_corpus, spm_model, small_disk, tmp_path):
    run = small_disk / "run"
    process = start(train_words(pose_corpus, spm_model, run), tmp_path / "log")[0]
    assert process.wait() == 1
    last = process.text().strip().splitlines()[-1]
    assert "checkpoint_" in last and "cannot be written: No space left on device" in last
    assert "The checkpoints before it are whole; make room" in last
    assert safe.find_problem(run / "checkpoint_last.pt") is None
    assert updates(load(run / "checkpoint_last.pt")) == 4
    assert not list(run.glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    process = start(train_words(pose_corpus, spm_model, run), tmp_path / "log")[0]
    assert process.wait() == 0
    assert updates(load(run / "checkpoint_last.pt")) == 12
