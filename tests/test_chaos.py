"""The short version of the long test: tests/chaos.py counts what kills at random instants do."""

import random
import signal
import time

import chaos
import pytest
import torch
from fairseq import checkpoint_utils


@pytest.mark.slow
def test_ten_kills(tmp_path):
    told = []
    tally = chaos.storm(tmp_path, 10, ["train", "extract"], seed=4, told=told.append, updates_in_all=12)
    assert tally.problems == []
    assert tally.total == 10 and tally.runs["train"] >= 1 and tally.runs["extract"] >= 1
    assert told[-1].startswith(f"10 of 10 kills, {len(told)} runs, 0 problems")


def test_the_storm_sees_half_written_checkpoints(tmp_path, monkeypatch):
    """As without our hook: files that are written in place."""

    def write_in_place(obj, filename, async_write=False):
        torch.save(obj, tmp_path / "complete")
        content = (tmp_path / "complete").read_bytes()
        with open(filename, "wb") as file:
            for begin in range(0, len(content), len(content) // 8):
                file.write(content[begin : begin + len(content) // 8])
                time.sleep(0.1)

    monkeypatch.setattr(checkpoint_utils, "torch_persistent_save", write_in_place)
    monkeypatch.setattr(chaos, "SIGNALS", (signal.SIGKILL,))
    trainings, tally, rng = chaos.Trainings(tmp_path, 12), chaos.Tally(), random.Random(1)
    for number in range(8):
        if not tally.corrupt:
            trainings.life(number, 6, rng, tally)
    assert tally.corrupt > 0 and "checkpoint" in tally.problems[0]
