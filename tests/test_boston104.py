"""RWTH-BOSTON-104, a real corpus of signed sentences: hand and nose tracks to glosses, through the real commands."""

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

from slt_plugin.data.landmarks import part_names
from slt_plugin.data.manifest import Row, write_manifest

REAL = Path(__file__).parents[2] / "shared/realdata/pose/boston104"
FPS = 30.0  # of the corpus
POINTS = part_names(("body", "left_hand", "right_hand"))
TRACKS = {"body.nose": "nose", "body.left_wrist": "left", "body.right_wrist": "right"}

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here: it never travels with the project")


def read_csv(name: str) -> list[dict[str, str]]:
    with open(REAL / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Sentences of at least two words; pixels divided by 100, because no shoulders are there to scale by."""
    folder = tmp_path_factory.mktemp("boston104")
    frames = defaultdict(list)
    for line in read_csv("hands_condensed.csv"):
        frames[line["video"]].append(line)
    for split, name in {"train": "train_words.csv", "test": "test_words.csv"}.items():
        words = defaultdict(list)
        for line in read_csv(name):
            words[line["video"]].append(line["word"])
        rows = []
        for video, sentence in words.items():
            if len(sentence) < 2 or video not in frames:
                continue
            pose = np.zeros((len(frames[video]), len(POINTS), 3), dtype=np.float32)
            for point, track in TRACKS.items():
                xy = [[float(line[f"{track}-x"]), float(line[f"{track}-y"])] for line in frames[video]]
                pose[:, POINTS.index(point)] = np.concatenate([np.array(xy) / 100, np.ones((len(xy), 1))], axis=1)
            np.save(folder / f"{video}.npy", pose)
            rows.append(Row(video, f"{video}.npy", " ".join(sentence), num_frames=len(pose), fps=FPS))
        write_manifest(folder / f"{split}.tsv", rows)
        if split == "train":
            write_manifest(folder / "valid.tsv", rows[:10])
    script = "scripts/train_sentencepiece.py"
    run_command("python", script, folder / "train.tsv", "--out", folder / "char", "--model-type", "char")
    return folder


def train(corpus: Path, run: Path, *overrides: str, check: bool = True):
    options = (f"task.data={corpus}", f"task.codec_path={corpus}/char.model", f"checkpoint.save_dir={run}",
               "dataset.num_workers=0", 'model.pose_strides="1,1"', "lr_scheduler.warmup_updates=1",
               "+model.encoder_layers=1", "+model.decoder_layers=1")  # fmt: skip
    return run_command("slt-finetune", "--config-name", "fingerspelling_pose", *options, *overrides, check=check)


def test_sentences_train_and_every_row_is_scored(corpus, tmp_path):
    run = tmp_path / "run"
    train(corpus, run, "task.pose_normalise=none", "task.pose_parts=body", "optimization.max_update=6")
    run_command("slt-evaluate", f"checkpoint={run}/checkpoint_best.pt", f"data={corpus}",
                f"results={tmp_path}/results", "generation.max_len_b=20", "dataset.num_workers=0")  # fmt: skip
    rows = len((corpus / "test.tsv").read_text().splitlines()) - 1
    assert rows > 10
    assert json.loads((tmp_path / "results/test/metrics.json").read_text())["sentences"] == rows


def test_clips_without_shoulders_are_refused_where_shoulders_normalise(corpus, tmp_path):
    result = train(corpus, tmp_path / "run", check=False)
    assert result.returncode == 1
    assert "no frame shows both shoulders" in result.stderr.splitlines()[-1]
