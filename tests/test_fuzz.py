"""scripts/fuzz.py: 100 cases without a finding, and a harness that does find what is planted."""

import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz
import fuzz_inputs
from fuzz import Finding, check_source, outcome

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row

ROW = Row("row-7", "clip.npy", "text")
GOOD = "row 'row-7': clip.npy: broken; remove the row"


@pytest.mark.parametrize(("target", "cases"), [("manifest", 34), ("pose", 33), ("features", 33)])
def test_a_hundred_cases(tmp_path, target, cases):
    result = fuzz.fuzz(target, cases, seed=2, out=tmp_path)
    assert not result.kinds, "\n\n".join(f"{kind.count} x {kind.text}\ninput: {kind.folder}" for kind in result.kinds)
    assert result.accepted + result.refused >= cases
    assert result.accepted > 0  # neither all refused at once
    assert result.refused > 0  # nor left as they were
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("clip.pose", fuzz_inputs.pose_bytes(0.2)),
        ("clip.pose", fuzz_inputs.pose_bytes(0.1)),
        ("clip.pose", fuzz_inputs.pose_bytes(0.0)),
        ("clip.json", json.dumps(fuzz_inputs.mmpose_frames()).encode()),
        ("clip/a_000000000000_keypoints.json", json.dumps(fuzz_inputs.openpose_frame(0)).encode()),
        ("clip.npy", fuzz_inputs.npy_bytes(np.ones((3, 51, 3)) * np.arange(51)[:, None] / 51)),
    ],
)
def test_unmutated_material_is_accepted(tmp_path, name, data):
    """Otherwise the fuzzer would only ever try what is refused at the first byte."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    source = fuzz.PoseSource(tmp_path, fuzz.PoseOptions())
    assert check_source(source, Row("a", name.split("/")[0]), tmp_path, inspect_may_refuse=False) is not None


def test_unmutated_manifest_is_accepted(tmp_path):
    (tmp_path / "m.tsv").write_bytes(fuzz_inputs.manifest_bytes())
    assert len(fuzz.read_manifest(tmp_path / "m.tsv", require_text=True)) == 3


def test_same_seed_same_cases(tmp_path):
    first, second = (fuzz.fuzz("manifest", 20, seed=5, out=tmp_path) for _ in range(2))
    assert (first.accepted, first.refused) == (second.accepted, second.refused)


def test_findings_are_counted_kept_and_reported(tmp_path, monkeypatch, capsys):
    def broken(path, *, require_text):
        raise KeyError("column")

    monkeypatch.setattr(fuzz, "read_manifest", broken)
    status = fuzz.main(["--cases", "5", "--seed", "3", "--target", "manifest", "--out", str(tmp_path)])
    assert status == 1
    printed = capsys.readouterr().out
    assert "5 finding(s) of 1 kind(s)" in printed
    assert "KeyError" in printed
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["finding.txt", "m.tsv"]
    assert str(folder) in printed


def test_a_clean_run_exits_with_0(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "TARGETS", {"manifest": lambda draw, rng, folder: True})
    assert fuzz.main(["--cases", "2", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("plain"), "ValueError in outside slt_plugin"),
        (MemoryError(), "MemoryError"),
        (RecursionError(), "RecursionError"),
        (DataError("row 'row-7': clip.npy: it is broken"), "no remedy"),
        (DataError("row 'row-7': remove the row"), r"does not name \['clip.npy'\]"),
        (DataError("clip.npy: remove it"), r"does not name \['row-7'\]"),
        (DataError(GOOD + "!" * 10_000), "a message of 10"),
    ],
)
def test_unusable_errors_are_findings(error, message):
    def call():
        raise error

    with pytest.raises(Finding, match=message):
        outcome(call, ["row-7", "clip.npy"])


@pytest.mark.parametrize(
    "message",
    [
        "it does not work again",
        "'x' is not a number",
        "no pose was given",
        "in the address book",
        "expected (4, 51), got (4, 50)",
        "the writer, but removed",
        "it was set up and used",
    ],
)
def test_no_remedy(message):
    assert not fuzz.REMEDY.search(message)


@pytest.mark.parametrize(
    "message",
    [
        "broken; remove the row",
        "broken: Give 4 numbers",
        "it lacks a column (add it)",
        "correct start, or remove the row",
        "unknown column; did you mean 'text'?",
        "is the third value z? save x, y, confidence",
    ],
)
def test_remedy(message):
    assert fuzz.REMEDY.search(message)


def test_usable_errors_and_results_are_not(monkeypatch):
    def call():
        raise DataError(GOOD)

    assert outcome(call, ["row-7", "clip.npy"]) is None
    assert outcome(lambda: 5, []) == 5
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    with pytest.raises(Finding, match="TooSlow"):
        outcome(lambda: time.sleep(5), [])


class FakeSource:
    channels = 2

    def __init__(self, tensor, steps=3, trained=None):
        self.tensor, self.steps, self.trained = tensor, steps, trained

    def num_steps(self, row):
        return self.steps

    def load(self, row, *, epoch=1, rng=None):
        tensor = self.tensor if rng is None or self.trained is None else self.trained
        if isinstance(tensor, Exception):
            raise tensor
        return tensor


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FakeSource(torch.ones(3, 2, dtype=torch.float64)), "expected float32"),
        (FakeSource(torch.ones(3, 4)), r"expected float32 \(T > 0, 2\)"),
        (FakeSource(torch.ones(0, 2)), "expected float32"),
        (FakeSource(torch.full((3, 2), torch.nan)), "NaN or infinite"),
        (FakeSource(torch.ones(3, 2), trained=torch.full((3, 2), torch.inf)), "NaN or infinite"),
        (FakeSource(torch.ones(3, 2), steps=4), "num_steps gives 4, load 3"),
        (FakeSource(torch.ones(3, 2), trained=DataError(GOOD)), "load for training refuses"),
    ],
)
def test_wrong_results_are_findings(tmp_path, monkeypatch, source, message):
    monkeypatch.setattr(fuzz, "inspect_media", lambda row, root: "info")
    with pytest.raises(Finding, match=message):
        check_source(source, ROW, tmp_path, inspect_may_refuse=False)


def test_a_refusal_by_inspection_alone_is_a_finding(tmp_path, monkeypatch):
    def inspect(row, root):
        raise DataError(GOOD)

    monkeypatch.setattr(fuzz, "inspect_media", inspect)
    source = FakeSource(torch.ones(3, 2))
    with pytest.raises(Finding, match="inspect_media refuses"):
        check_source(source, ROW, tmp_path, inspect_may_refuse=False)
    assert check_source(source, ROW, tmp_path, inspect_may_refuse=True) is source.tensor


def test_run_pickles_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "inspect_media", lambda row, root: "info")
    source = FakeSource(torch.ones(3, 2))
    source.num_steps = lambda row: pickle.loads(pickle.dumps(fuzz_inputs.Hostile())) or 3  # noqa: S301
    with pytest.raises(Finding, match="was unpickled"):
        check_source(source, ROW, tmp_path, inspect_may_refuse=False)
    assert not fuzz_inputs.hostile_ran()  # asked once, forgotten


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row("", "p"), "an empty required cell"),
        (Row("a", "p"), "an empty required cell"),
        (Row("a", "p", "t\t"), "a blank cell"),
        (Row("a", "p", "t", 2.0, 1.0), "impossible times"),
        (Row("a", "p", "t", float("nan")), "impossible times"),
        (Row("a", "p", "t", fps=0.0), "an impossible frame rate"),
        (Row("a", "p", "t", box=(0.5, 0, 0.5, 1)), "an impossible box"),
    ],
)
def test_impossible_rows(row, problem):
    assert fuzz.bad_row(row, require_text=True).startswith(problem)
    assert fuzz.bad_row(Row("a", "p", "t", 0.0, 1.0, 25, 25.0, (0, 0, 1, 1)), require_text=True) is None
