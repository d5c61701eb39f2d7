"""scripts/signer_boxes.py on small videos: the column, the lists beside it, shares, going on after a stop."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from signer_helpers import REALDATA, grey_video

from slt_plugin.data.manifest import Row, read_manifest, write_manifest

SCRIPT = Path(__file__).parents[1] / "scripts/signer_boxes.py"
sys.path.insert(0, str(SCRIPT.parent))
import signer_boxes  # noqa: E402

CLIPS = sorted((REALDATA / "video_how2sign/clips").glob("*.mp4"))
# the centre squares of 64x16 and of 16x64, 8 wide; narrow frames cost the detector little
WIDE, HIGH = (28 / 64, 0.25, 36 / 64, 0.75), (0.25, 28 / 64, 0.75, 36 / 64)
OWN = (0.1, 0.2, 0.3, 0.4)


@pytest.fixture
def corpus(tmp_path):
    """Four clips without a face, one of them with a box, another in two languages."""
    rows = []
    for number in range(4):
        grey_video(tmp_path / f"{number}.mp4", size=(64, 16) if number % 2 == 0 else (16, 64))
        rows.append(Row(f"r{number}", f"{number}.mp4", text="Hello.", fps=25.0))
    rows[3] = replace(rows[3], box=OWN)
    rows.append(replace(rows[0], id="r0-es", text="Hola."))
    write_manifest(tmp_path / "in.tsv", rows)
    return tmp_path


def run(folder: Path, *options: str, out: str = "out.tsv") -> int:
    options = options if "--workers" in options else ("--workers", "0", *options)
    return signer_boxes.main([str(folder / "in.tsv"), str(folder / out), *options])


def boxes(path: Path) -> dict[str, tuple | None]:
    return {row.id: row.box for row in read_manifest(path)}


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def journal(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_boxes_are_added_and_the_rest_is_kept(corpus, capsys):
    assert run(corpus) == 0
    assert boxes(corpus / "out.tsv") == {"r0": WIDE, "r1": HIGH, "r2": WIDE, "r3": OWN, "r0-es": WIDE}
    assert [replace(row, box=None) for row in read_manifest(corpus / "out.tsv")] == [
        replace(row, box=None) for row in read_manifest(corpus / "in.tsv")
    ]
    out = capsys.readouterr().out
    assert "5 rows: 0 with one face, 0 with several, 4 with none, 1 kept the box they had, 0 could not be read" in out
    assert "out.no_face.txt" in out
    # 20 frames: the samples are 0 and 16
    assert table(corpus / "out.no_face.txt") == [
        ["id", "path", "samples"],
        *([name, f"{name[1]}.mp4", "2"] for name in ("r0", "r1", "r2", "r0-es")),
    ]
    assert not (corpus / "out.failed.txt").exists()
    # the two languages of a clip are looked at once
    assert [line["path"] for line in journal(corpus / "out.boxes-0of1.jsonl")[1:]] == ["0.mp4", "1.mp4", "2.mp4"]


def test_overwrite(corpus):
    assert run(corpus, "--overwrite") == 0
    assert boxes(corpus / "out.tsv")["r3"] == HIGH


def test_segments_and_media_root(corpus):
    rows = [Row("a", "0.mp4", start=0.0, end=0.4, fps=25.0), Row("b", "0.mp4", start=0.0, end=0.8, fps=25.0)]
    (corpus / "m").mkdir()
    write_manifest(corpus / "m" / "in.tsv", rows)
    assert run(corpus / "m", "--media-root", str(corpus)) == 0
    assert table(corpus / "m" / "out.no_face.txt")[1:] == [["a", "0.mp4", "1"], ["b", "0.mp4", "2"]]


def test_relative_paths_of_another_folder(corpus, capsys):
    (corpus / "m").mkdir()
    assert run(corpus, out="m/out.tsv") == 0
    assert f"its relative paths start from {corpus}: give that as media_root" in capsys.readouterr().out


def test_unreadable_rows_are_listed_and_tried_again(corpus, capsys):
    whole = (corpus / "1.mp4").read_bytes()
    (corpus / "1.mp4").write_bytes(b"")
    assert run(corpus) == 1
    assert boxes(corpus / "out.tsv") == {"r0": WIDE, "r1": None, "r2": WIDE, "r3": OWN, "r0-es": WIDE}
    header, (row_id, path, cause) = table(corpus / "out.failed.txt")
    assert header == ["id", "path", "cause"]
    assert (row_id, path) == ("r1", "1.mp4")
    assert "1.mp4" in cause and "empty" in cause
    assert "out.failed.txt" in capsys.readouterr().err
    (corpus / "1.mp4").write_bytes(whole)
    (corpus / "0.mp4").unlink()  # done: it is not read again
    assert run(corpus) == 0
    assert boxes(corpus / "out.tsv")["r1"] == HIGH
    assert not (corpus / "out.failed.txt").exists()


def test_in_place(corpus):
    for _ in range(2):  # the second time everything has a box: the list stays true
        assert run(corpus, out="in.tsv") == 0
        assert boxes(corpus / "in.tsv") == {"r0": WIDE, "r1": HIGH, "r2": WIDE, "r3": OWN, "r0-es": WIDE}
        assert [line[0] for line in table(corpus / "in.no_face.txt")] == ["id", "r0", "r1", "r2", "r0-es"]


def test_shards_and_merge_are_the_same_as_one(corpus, capsys):
    assert run(corpus, "--overwrite", out="one.tsv") == 0
    shards = ("--overwrite", "--num-shards", "3")
    assert run(corpus, *shards, "--shard", "0") == 0
    assert not (corpus / "out.tsv").exists()
    assert [line["path"] for line in journal(corpus / "out.boxes-0of3.jsonl")[1:]] == ["0.mp4", "3.mp4"]
    capsys.readouterr()
    assert run(corpus, *shards, "--merge") == 1
    assert "not everything is done; run again --shard 1 (1 clips), --shard 2 (1 clips)" in capsys.readouterr().err
    assert not (corpus / "out.tsv").exists()
    for shard in "12":
        assert run(corpus, *shards, "--shard", shard) == 0
    assert run(corpus, *shards, "--merge") == 0
    assert (corpus / "out.tsv").read_bytes() == (corpus / "one.tsv").read_bytes()
    assert (corpus / "out.no_face.txt").read_bytes() == (corpus / "one.no_face.txt").read_bytes()


def test_a_shard_with_an_unreadable_row(corpus, capsys):
    (corpus / "1.mp4").unlink()
    assert run(corpus, "--num-shards", "2", "--shard", "0") == 0
    assert run(corpus, "--num-shards", "2", "--shard", "1") == 1
    assert "1 clips, 1 could not be read" in capsys.readouterr().out
    assert run(corpus, "--num-shards", "2", "--merge") == 1
    assert boxes(corpus / "out.tsv")["r1"] is None
    assert boxes(corpus / "out.tsv")["r2"] == WIDE


def test_an_unfinished_line_is_done_again(corpus):
    assert run(corpus) == 0
    notes, result = corpus / "out.boxes-0of1.jsonl", (corpus / "out.tsv").read_bytes()
    content = notes.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for size in (last + 1, len(content) - 1, last, 5, 0):
        notes.write_bytes(content[:size])
        (corpus / "out.tsv").unlink()
        assert run(corpus) == 0
        assert (corpus / "out.tsv").read_bytes() == result
        assert notes.read_bytes() == content


def test_a_box_beyond_the_frame_and_one_that_was_cut(corpus, capsys):
    assert run(corpus) == 0
    header, first, second, third = journal(corpus / "out.boxes-0of1.jsonl")
    first |= {"box": [-0.1, 0.1, 0.5, 1.5], "source": "one face"}
    second |= {"box": [-1.0, 0.0, 2.0, 2.0], "source": "tube", "limited": True}
    lines = (json.dumps(line) + "\n" for line in (header, first, second, third))
    (corpus / "out.boxes-0of1.jsonl").write_text("".join(lines))
    capsys.readouterr()
    assert run(corpus) == 0
    assert boxes(corpus / "out.tsv")["r0"] == (-0.1, 0.1, 0.5, 1.5)
    out = capsys.readouterr().out
    assert "2 with one face, 1 with several, 1 with none" in out
    assert "1 boxes reach more than a frame's size beyond it and were cut there: r1" in out


def test_notes_of_other_options_are_refused(corpus, capsys):
    assert run(corpus) == 0
    assert run(corpus, "--every", "8") == 1
    error = capsys.readouterr().err
    assert "out.boxes-0of1.jsonl was made with" in error
    assert "every=16" in error and "every=8" in error


def test_damaged_notes_are_refused(corpus, capsys):
    (corpus / "out.boxes-0of1.jsonl").write_text("{\n{}\n")
    assert run(corpus) == 1
    assert "out.boxes-0of1.jsonl, line 1: not JSON" in capsys.readouterr().err


def test_killed_in_the_middle_and_gone_on_with_in_two_processes(corpus, capsys):
    rows = [Row(f"r{i}", "0.mp4", start=i / 25, end=0.8, fps=25.0) for i in range(18)]
    write_manifest(corpus / "in.tsv", rows)
    notes, lines = corpus / "out.boxes-0of1.jsonl", 0
    command = [sys.executable, str(SCRIPT), str(corpus / "in.tsv"), str(corpus / "out.tsv"), "--workers", "0"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while lines < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        lines = notes.read_bytes().count(b"\n") if notes.exists() else 0
    process.kill()
    process.wait()
    before = notes.read_bytes()
    whole = before.count(b"\n")
    assert 4 <= whole < 19
    assert not (corpus / "out.tsv").exists()
    assert run(corpus, "--workers", "2") == 0
    assert f"{whole - 1} of 18 clips were done before" in capsys.readouterr().err
    assert notes.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert boxes(corpus / "out.tsv") == {f"r{i}": WIDE for i in range(18)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-shards", "2"), "give --shard, from 0 to 1, or --merge"),
        (("--num-shards", "2", "--shard", "2"), "--shard 2: with --num-shards 2 it is from 0 to 1"),
        (("--shard", "1"), "it is from 0 to 0"),
        (("--merge",), "--merge goes with"),
        (("--merge", "--num-shards", "2", "--shard", "0"), "--merge goes with"),
        (("--every", "0"), "start at 1"),
        (("--detector", "dpm"), "invalid choice: 'dpm'"),
    ],
)
def test_wrong_usage(corpus, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        run(corpus, *options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_work_is_said_first(corpus, capsys):
    assert run(corpus, out="nowhere/out.tsv") == 1
    assert "make the folder" in capsys.readouterr().err
    assert run(corpus, "--media-root", str(corpus / "nowhere")) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert signer_boxes.main([str(corpus / "none.tsv"), str(corpus / "out.tsv")]) == 1
    assert "none.tsv: cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(not CLIPS, reason="needs ../shared/realdata/video_how2sign/clips")
def test_real_clips(tmp_path, capsys):
    rows = [Row(path.stem, str(path)) for path in (CLIPS[0], CLIPS[15], CLIPS[-1])]  # the last reaches beyond the frame
    write_manifest(tmp_path / "in.tsv", rows)
    assert run(tmp_path) == 0
    assert "3 with one face" in capsys.readouterr().out
    for x0, y0, x1, y1 in boxes(tmp_path / "out.tsv").values():
        assert (x1 - x0) * 1280 == pytest.approx((y1 - y0) * 720)
