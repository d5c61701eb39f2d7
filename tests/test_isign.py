"""manifests/isign.py: the table's records, the split by video, what is dropped, and the manifests."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pose_format import Pose
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

from slt_plugin.data.manifest import read_manifest
from slt_plugin.data.pose import PoseOptions, prepare, read_for_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import isign  # noqa: E402

REAL = ROOT.parent / "shared/realdata"


def write_pose(path: Path, frames: int, fps: float = 25.0) -> None:
    """A .pose file with the nose and both shoulders."""
    points = ["NOSE", "LEFT_SHOULDER", "RIGHT_SHOULDER"]
    component = PoseHeaderComponent("POSE_LANDMARKS", points, [], [], "XYZC")
    header = PoseHeader(0.1, PoseHeaderDimensions(640, 480, 0), [component])
    xyz = np.tile(np.array([[320.0, 100, 0], [380, 200, 0], [260, 200, 0]]), (frames, 1, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        Pose(header, NumPyPoseBody(fps, np.ma.array(xyz), np.ones(xyz.shape[:3]))).write(file)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """40 videos of three sentences each, and rows that cannot be used."""
    lines = ["uid,text"]
    for video in range(40):
        for number in range(3):
            uid = f"v-{video:02d}-{number}"  # a hyphen in the video's name too
            lines.append(f'{uid},"Page 53, again"' if number == 0 else f"{uid},Sentence {number} of {video}.")
            write_pose(tmp_path / f"poses/part{video % 2}/{uid}.pose", 5 + number)
    lines += ["v-00-7,", "v-00-8,Never recorded.", "v-00-9,Damaged.", "v-00-1,Sentence 1 of 0.", "v-00-2,Another one."]
    (tmp_path / "poses/v-00-9.pose").write_bytes(b"no pose")
    (tmp_path / "iSign.csv").write_text("\r\n".join(lines), encoding="utf-8")
    return tmp_path


def build(corpus: Path, *options: str) -> int:
    words = ["--media-folder", str(corpus / "poses"), "--valid", "0.2", "--test", "0.2", "--workers", "0"]
    return isign.main([str(corpus / "iSign.csv"), "--out", str(corpus / "out"), *words, *options])


def videos(path: Path) -> set[str]:
    return {isign.video_of(row.id) for row in read_manifest(path)}


def test_manifests_are_split_by_video_and_every_row_is_used_or_reported(corpus, capsys):
    assert build(corpus) == 0
    parts = {split: videos(corpus / f"out/{split}.tsv") for split in isign.SPLITS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 40
    rows = [row for split in isign.SPLITS for row in read_manifest(corpus / f"out/{split}.tsv")]
    assert len(rows) == 120
    row = next(row for row in rows if row.id == "v-07-2")
    assert (row.text, row.num_frames, row.fps, row.sign_lang, row.text_lang, row.corpus) == (
        "Sentence 2 of 7.", 7, 25.0, "ins", "en", "isign",
    )  # fmt: skip
    dropped = "".join((corpus / f"out/{split}.dropped.txt").read_text() for split in isign.SPLITS)
    for name, cause in (("v-00-7", "no text"), ("v-00-8", "pose file missing"), ("v-00-9", "pose file cannot be used"),
                        ("v-00-1", "repeated row"), ("v-00-2", "repeated uid with another text")):  # fmt: skip
        assert f"\t{name}\tdropped\t{cause}\t" in dropped
    # "Page 53, again" is the first sentence of every video
    assert f"  {len(parts['test'])} of their texts are in train too" in capsys.readouterr().out


def test_the_poses_are_read_by_the_task(corpus):
    build(corpus, "--media-root", str(corpus))
    row = read_manifest(corpus / "out/train.tsv")[0]
    assert row.path.startswith("poses/part")
    options = PoseOptions(parts=("body",))
    sequence = read_for_model(corpus / row.path, options, start=row.start, end=row.end, fps=row.fps)
    assert prepare(sequence, options).shape == (row.num_frames, 27)


def test_other_videos_and_missing_poses_move_no_video(corpus):
    build(corpus)
    before = {split: videos(corpus / f"out/{split}.tsv") for split in isign.SPLITS}
    shutil.rmtree(corpus / "poses/part1")
    assert build(corpus, "--overwrite") == 0
    for split in isign.SPLITS:
        assert videos(corpus / f"out/{split}.tsv") == {v for v in before[split] if int(v[2:]) % 2 == 0}
    assert build(corpus, "--overwrite", "--seed", "2") == 0
    assert videos(corpus / "out/test.tsv") != {v for v in before["test"] if int(v[2:]) % 2 == 0}


@given(st.integers(0, 99), st.floats(0.05, 0.3), st.floats(0.05, 0.3))
def test_shares_are_those_asked_for(seed, valid, test):
    splits = [isign.split_of(f"{i:012x}", valid, test, seed) for i in range(2000)]
    for split, share in {"valid": valid, "test": test}.items():
        assert abs(splits.count(split) / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5


@pytest.mark.parametrize(
    ("uid", "video"), [("1782bea75c7d-10", "1782bea75c7d"), ("a-b-0", "a-b"), ("alone", "alone"), ("-x1", "-x1")]
)
def test_video_of(uid, video):
    assert isign.video_of(uid) == video


def test_real_rows_are_read_with_their_quotes():
    table = REAL / "manifests/typed_from_lookup/isign_v1.1_head.csv"
    if not table.is_file():
        pytest.skip(f"{table} is not here: it never travels with the project")
    sentences = isign.read_table(table)
    assert len(sentences) == 8
    assert sentences[2][1:] == ("1782bea75c7d-3", "One day, Akbar drew a line on the floor and ordered.")
    assert {isign.video_of(s.uid) for s in sentences} == {"1782bea75c7d", "ee235596b76f", "006faf1f7c93"}


def test_texts_over_several_lines_and_other_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbftext,note,uid\n"He said\n""no""",x,a-1\n\nYes,,a-2\n')
    assert isign.read_table(path) == [(3, "a-1", 'He said "no"'), (5, "a-2", "Yes")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,text\na-1,Yes\n", "lacks uid (it has: id, text)"),
        (b"", "it has: nothing"),
        (b'uid,text\na-1,"Yes\na-2,No\n', "after line 1: quotes do not match"),
        (b"uid,text\na-1,Yes, please\n", "line 2: 3 cells, the header has 2; a text with commas needs quotes"),
        (b"uid,text\na-1,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, capsys, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    assert isign.main([str(tmp_path / "t.csv"), "--media-folder", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_places_are_explained(corpus, capsys):
    assert build(corpus, "--media-folder", str(corpus / "nowhere")) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
    (corpus / "empty").mkdir()
    assert build(corpus, "--media-folder", str(corpus / "empty")) == 1
    assert "none of the 123 pose files is below" in capsys.readouterr().err
    assert build(corpus) == 0
    assert build(corpus) == 1
    assert "add --overwrite" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build(corpus, "--valid", "0.9", "--test", "0.1")
    assert "leave nothing for train" in capsys.readouterr().err
