"""RWTH-BOSTON-104, a real corpus of signed sentences: hand and nose tracks to glosses, through the real commands."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

from slt_plugin.data.landmarks import part_names
from slt_plugin.data.manifest import read_manifest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import boston104  # noqa: E402

REAL = ROOT.parent / "shared/realdata/pose/boston104"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here: it never travels with the project")

# the builder, on tables of the same form


@pytest.fixture
def tables(tmp_path) -> Path:
    """Six sentences of two frames; lines are not in the order of frames and signs."""
    folder = tmp_path / "tables"
    folder.mkdir()
    videos = range(1, 7)
    frames = [f"{v},{f},{100 + v},200,{160 + f},140,160,{60 + 20 * f}" for v in videos for f in (1, 0)]
    words = [f"{v},woman-1,{word},{start},{start + 1}" for v in videos for word, start in (("BOOK", 9), ("JOHN", 1))]
    contents = {
        "hands_condensed.csv": ["video,frame,left-x,left-y,right-x,right-y,nose-x,nose-y", *frames],
        "speaker.csv": ["video,speaker", *(f"{v},woman-{v % 2}" for v in videos)],
        "train_words.csv": ["video,speaker,word,startframe,endframe", *words[:10]],
        "test_words.csv": ["video,speaker,word,startframe,endframe", *words[10:]],
    }
    for name, lines in contents.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_sentences_and_poses_are_put_together(tables, tmp_path, capsys):
    out = tmp_path / "out"
    assert boston104.main([str(tables), "--out", str(out)]) == 0
    assert f"{out}/train.tsv: 5 rows\n{out}/test.tsv: 1 rows" in capsys.readouterr().out
    row = read_manifest(out / "train.tsv", require_text=True)[1]
    assert (row.id, row.text, row.signer, row.num_frames, row.fps) == ("2", "JOHN BOOK", "woman-0", 2, 30.0)
    pose = np.load(out / row.path)
    names = part_names(("body", "left_hand", "right_hand"))
    present = {name for i, name in enumerate(names) if pose[:, i, 2].any()}
    assert present == {"body.nose", "body.left_wrist", "body.right_wrist"}
    # the nose moves from y 60 to 80; its mean is the origin, 60 pixels the unit
    at = {name: pose[:, names.index(name), :2] for name in present}
    np.testing.assert_allclose(at["body.nose"], [[0, -10 / 60], [0, 10 / 60]], rtol=1e-6)
    np.testing.assert_allclose(at["body.left_wrist"], [[-58 / 60, 130 / 60]] * 2, rtol=1e-6)
    np.testing.assert_allclose(at["body.right_wrist"], [[0, 70 / 60], [1 / 60, 70 / 60]], rtol=1e-6)


def test_sentences_for_validation_leave_the_training_set(tables, tmp_path):
    assert boston104.main([str(tables), "--out", str(tmp_path / "out"), "--valid", "2"]) == 0
    ids = {split: [row.id for row in read_manifest(tmp_path / f"out/{split}.tsv")] for split in ("train", "valid")}
    assert ids == {"train": ["1", "3", "5"], "valid": ["2", "4"]}


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("hands_condensed.csv", "nose-y", "nose", "the header lacks nose-y"),
        ("hands_condensed.csv", "1,1,101", "1,one,101", "a frame or coordinate is no number"),
        ("train_words.csv", "1,woman-1,BOOK,9,10", "9,woman-1,BOOK,9,10", "has no frames of video 9"),
        ("train_words.csv", "1,woman-1,BOOK,9,10", "1,BOOK,9,10", "line 2 has other cells than the header"),
    ],
)
def test_tables_that_do_not_fit(tables, tmp_path, capsys, name, old, new, message):
    change(tables / name, old, new)
    assert boston104.main([str(tables), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/train.tsv").exists()


def test_missing_tables_and_too_much_validation(tables, tmp_path, capsys):
    assert boston104.main([str(tables), "--out", str(tmp_path / "out"), "--valid", "3"]) == 1
    assert "--valid 3 is more than half of the 5 sentences" in capsys.readouterr().err
    (tables / "speaker.csv").unlink()
    assert boston104.main([str(tables), "--out", str(tmp_path / "out")]) == 1
    assert "speaker.csv: cannot be read" in capsys.readouterr().err


# the real tables


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("boston104")
    assert boston104.main([str(REAL), "--out", str(folder)]) == 0
    shutil.copy(folder / "train.tsv", folder / "valid.tsv")  # the corpus has none; too few updates to matter
    script = "scripts/train_sentencepiece.py"
    words = ("--out", folder / "gloss", "--model-type", "word", "--vocab-size", 116)
    assert "0 of 710 unknown" in run_command("python", script, folder / "train.tsv", *words).stdout
    return folder


def train(corpus: Path, run: Path, *overrides: str, check: bool = True):
    options = (f"task.data={corpus}", f"task.codec_path={corpus}/gloss.model", f"checkpoint.save_dir={run}",
               "lr_scheduler.warmup_updates=1", "+model.encoder_layers=1", "+model.decoder_layers=1",
               "optimization.max_update=6", "dataset.disable_validation=true")  # fmt: skip
    return run_command("slt-finetune", "--config-name", "boston104_pose", *options, *overrides, check=check)


@real
def test_the_splits_of_the_corpus(corpus):
    rows = {split: read_manifest(corpus / f"{split}.tsv") for split in ("train", "test")}
    assert {split: len(group) for split, group in rows.items()} == {"train": 161, "test": 40}
    assert {row.signer for row in rows["test"]} == {"man-1", "woman-1", "woman-2"}
    known = {row.text for row in rows["train"]}
    assert sum(row.text in known for row in rows["test"]) == 26  # the README says so beside the scores


@real
def test_sentences_train_and_every_row_is_scored(corpus, tmp_path):
    run = tmp_path / "run"
    train(corpus, run)
    run_command("slt-evaluate", f"checkpoint={run}/checkpoint_last.pt", f"data={corpus}", "evidence=0",
                f"results={tmp_path}/results", "generation.max_len_b=16", "dataset.num_workers=0")  # fmt: skip
    assert json.loads((tmp_path / "results/test/metrics.json").read_text())["sentences"] == 40


@real
def test_clips_without_shoulders_are_refused_where_shoulders_normalise(corpus, tmp_path):
    result = train(corpus, tmp_path / "run", "task.pose_normalise=shoulders", check=False)
    assert result.returncode == 1
    assert "no frame shows both shoulders" in result.stderr.splitlines()[-1]
