"""slt-manifest check, stats, convert, and the foreign formats behind convert."""

import re
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slt_plugin.cli.manifest import main
from slt_plugin.data.manifest import ManifestError, Row, read_manifest, write_manifest
from slt_plugin.data.manifest_formats import read_ssvp, read_tarres
from slt_plugin.data.manifest_stats import describe, row_frames, row_seconds

TARRES_HEADER = (
    "id\tsigns_file\tsigns_offset\tsigns_length\tsigns_type\tsigns_lang\ttranslation\ttranslation_lang\tglosses\t"
    "topic\tsigner_id\n"
)


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def table(tmp_path: Path, content: str | bytes) -> Path:
    file = tmp_path / "in.tsv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


# --- check ---


@pytest.fixture
def corpus(tmp_path):
    """Feature files f0 .. f19 (5 + i steps of 4 channels) and rows that describe them rightly."""
    (tmp_path / "features").mkdir()
    rows = []
    for i in range(20):
        np.save(tmp_path / "features" / f"f{i}.npy", np.ones((5 + i, 4), dtype=np.float32))
        rows.append(Row(id=f"r{i}", path=f"features/f{i}.npy", text="hello", num_frames=5 + i))
    return tmp_path, rows


def test_check_finds_nothing_wrong_and_rows_may_share_a_file(corpus, capsys):
    folder, rows = corpus
    write_manifest(folder / "m.tsv", [*rows, Row(id="again", path="features/f0.npy", text="bonjour")])
    status, out, _ = run(capsys, "check", folder / "m.tsv", "--workers", 0)
    assert out == f"{folder / 'm.tsv'}: 21 rows, none with bad media\n"
    assert status == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_check_lists_every_bad_media_file_with_row_and_cause(corpus, capsys, workers):
    folder, rows = corpus
    (folder / "features/f1.npy").unlink()
    (folder / "features/f3.npy").write_bytes(b"not an array")
    (folder / "features/f7.npy").write_bytes(b"")
    np.save(folder / "features/f18.npy", np.ones((3, 4), dtype=np.float32))
    write_manifest(folder / "m.tsv", [*rows, Row(id="same", path="features/f1.npy")])
    status, out, _ = run(capsys, "check", folder / "m.tsv", "--workers", workers)
    lines = out.splitlines()
    assert status == 1
    assert [line.split("row ")[1].split(":")[0] for line in lines[:-1]] == ["'r1'", "'r3'", "'r7'", "'r18'", "'same'"]
    assert all(line.startswith(f"{folder / 'm.tsv'}: row ") for line in lines[:-1])
    assert "features/f1.npy: no such file" in lines[0]
    assert "num_frames is 23, but 3 frames" in lines[3]
    assert lines[-1] == f"{folder / 'm.tsv'}: 21 rows, 5 with bad media"


def test_check_compares_segments_and_frame_rates(tmp_path, capsys):
    np.save(tmp_path / "p.npy", np.random.default_rng(0).random((50, 51, 3), dtype=np.float32))
    good = Row(id="good", path="p.npy", start=0.4, end=1.2, num_frames=20, fps=25.0)
    rows = [
        good,
        replace(good, id="length", num_frames=60),
        replace(good, id="beyond", end=9.0, num_frames=None),
        replace(good, id="rate", num_frames=None, fps=None),
    ]
    write_manifest(tmp_path / "m.tsv", rows)
    status, out, _ = run(capsys, "check", tmp_path / "m.tsv")
    assert status == 1
    assert [line.split("row ")[1].split(":")[0] for line in out.splitlines()[:-1]] == ["'length'", "'beyond'", "'rate'"]


def test_check_survives_a_killed_worker(corpus, capsys, monkeypatch):
    class BrokenPool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def map(self, function, jobs, chunksize):
            yield None
            raise BrokenProcessPool

    folder, rows = corpus
    monkeypatch.setattr("slt_plugin.data.manifest_check.ProcessPoolExecutor", BrokenPool)
    write_manifest(folder / "m.tsv", rows)
    status, _, err = run(capsys, "check", folder / "m.tsv", "--workers", 2)
    assert status == 1
    assert "a worker process was killed" in err
    assert "not before row 'r1'" in err


def test_check_media_root_no_media_and_require_text(corpus, capsys):
    folder, rows = corpus
    (folder / "elsewhere").mkdir()
    write_manifest(folder / "elsewhere/m.tsv", [*rows[:2], Row(id="silent", path="features/f2.npy")])
    assert run(capsys, "check", folder / "elsewhere/m.tsv")[0] == 1
    assert run(capsys, "check", folder / "elsewhere/m.tsv", "--media-root", folder)[0] == 0
    status, out, _ = run(capsys, "check", folder / "elsewhere/m.tsv", "--no-media")
    assert (status, out) == (0, f"{folder / 'elsewhere/m.tsv'}: 3 rows, fine; media not opened\n")
    status, out, _ = run(capsys, "check", folder / "elsewhere/m.tsv", "--no-media", "--require-text")
    assert status == 1
    assert "line 4, column text" in out
    status, _, err = run(capsys, "check", folder / "elsewhere/m.tsv", "--media-root", folder / "none")
    assert status == 1
    assert "none is not a folder" in err


def test_check_reports_every_manifest(corpus, capsys):
    folder, rows = corpus
    (folder / "bad.tsv").write_text("id\tpath\n1\t\n")
    write_manifest(folder / "good.tsv", rows)
    status, out, _ = run(capsys, "check", folder / "bad.tsv", folder / "none.tsv", folder / "good.tsv")
    assert status == 1
    assert "bad.tsv: line 2, column path" in out
    assert "none.tsv: cannot be read" in out
    assert "good.tsv: 20 rows, none with bad media" in out


def test_check_prints_plain_progress_when_not_in_a_terminal(corpus, capsys, monkeypatch):
    folder, rows = corpus
    monkeypatch.setattr("slt_plugin.cli.progress.PLAIN_SECONDS", 0)
    write_manifest(folder / "m.tsv", rows[:3])
    _, _, err = run(capsys, "check", folder / "m.tsv", "--workers", 0)
    assert [line.split(",")[0] for line in err.splitlines()] == [f"{n} of 3 rows" for n in (1, 2, 3)]
    assert re.fullmatch(r"3 of 3 rows, \d+\.\d/s, about 0 s left", err.splitlines()[-1])


def test_check_shows_a_bar_in_a_terminal(corpus, capsys, monkeypatch):
    folder, rows = corpus
    write_manifest(folder / "m.tsv", rows[:3])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = run(capsys, "check", folder / "m.tsv")
    assert "3/3" in err
    assert "row/s" in err


# --- stats ---


def test_stats(tmp_path, capsys):
    train = [
        Row(id="1", path="a", text="The cat sat", start=0.0, end=1800.0, num_frames=9, sign_lang="ase", signer="s1"),
        Row(id="2", path="b", text="the dog", start=0.0, end=1800.0, num_frames=19, sign_lang="ase", signer="s2"),
    ]
    test = [Row(id="1", path="a", text="the Cat ran ran"), Row(id="2", path="b", num_frames=50, fps=25.0)]
    write_manifest(tmp_path / "train.tsv", train)
    write_manifest(tmp_path / "test.tsv", test)
    status, out, _ = run(capsys, "stats", tmp_path / "train.tsv", tmp_path / "test.tsv")
    first, second = out.split("\n\n")
    assert status == 0

    def value(block: str, what: str) -> str:
        return next(line[20:].strip() for line in block.splitlines() if line[2:].startswith(what))

    assert value(first, "rows") == "2"
    assert value(first, "hours") == "1"
    assert value(first, "frames").startswith("min 9, 5% 9.5, 25% 11.5, median 14, 75% 16.5,")
    assert value(first, "frames").endswith("max 19, mean 14")
    assert value(first, "words a text").startswith("min 2,")
    assert value(first, "vocabulary") == "cased 5 types of 5 tokens; lower-cased 4 types of 5 tokens"
    assert value(first, "signers") == "2: s1 (1), s2 (1)"
    assert value(first, "sign languages") == "1: ase (2)"
    assert value(first, "text languages") == "unknown"
    assert value(first, "corpora") == "unknown"
    assert "out of vocabulary" not in first

    assert value(second, "hours") == "0.0005556 (1 rows; unknown for 1)"
    assert value(second, "rows with text") == "1"
    cased, lower = value(second, "out of vocabulary").split("; ")
    assert cased == "cased 75.00% of tokens (3 of 4), 66.67% of types (2 of 3)"
    assert lower == "lower-cased 50.00% of tokens (2 of 4), 33.33% of types (1 of 3)"


def test_stats_shows_unknown_never_zero():
    rows = [Row(id="1", path="a")]
    shown = dict(describe(rows, train_rows=rows))
    unknown = {what for what, value in shown.items() if "unknown" in value}
    assert unknown == set(shown) - {"rows", "media files", "rows with text"}
    assert shown["rows with text"] == "0"  # counted, not unknown
    assert shown["hours"] == shown["seconds"] == shown["signers"] == "unknown"
    assert shown["out of vocabulary"] == "cased unknown; lower-cased unknown"


def test_row_lengths():
    assert row_seconds(Row(id="1", path="a", start=1.0, end=3.5)) == 2.5
    assert row_seconds(Row(id="1", path="a", end=3.5)) == 3.5
    assert row_seconds(Row(id="1", path="a", start=1.0)) is None
    assert row_seconds(Row(id="1", path="a", num_frames=50, fps=25.0)) == 2.0
    assert row_frames(Row(id="1", path="a", start=1.0, end=3.0, fps=25.0)) == 50
    assert row_frames(Row(id="1", path="a", start=1.0, end=3.0)) is None


def test_stats_of_a_bad_file(tmp_path, capsys):
    status, out, err = run(capsys, "stats", tmp_path / "none.tsv")
    assert (status, out) == (1, "")
    assert "none.tsv: cannot be read" in err


# --- convert: SSVP-SLT ---


def test_ssvp_videos(tmp_path, capsys):
    source = table(tmp_path, "abcdefg.mp4\t3.25\tHello there.\nxy.mp4\t10\t\nabcdefg.mp4\t3.25\tHi.\nlast.mp4\t2.5\r\n")
    status, out, _ = run(capsys, "convert", "--from", "ssvp", source, tmp_path / "out.tsv")
    assert status == 0
    assert read_manifest(tmp_path / "out.tsv") == [
        Row(id="abcdefg", path="videos/abcde/abcdefg.mp4", text="Hello there.", end=3.25),
        Row(id="xy", path="videos/xy.mp/xy.mp4", end=10.0),
        Row(id="abcdefg-2", path="videos/abcde/abcdefg.mp4", text="Hi.", end=3.25),
        Row(id="last", path="videos/last./last.mp4", end=2.5),
    ]
    assert "out.tsv: 4 rows" in out
    assert "2 rows have an empty text; they were kept" in out
    assert "1 rows repeat an id; they were kept under new ids: abcdefg-2" in out


def test_ssvp_features_keep_the_epoch_folder_open(tmp_path):
    conversion = read_ssvp(table(tmp_path, "abcdefg.mp4\t36\tHello.\nabc.d.mp4\t7.0\tx\n"), suffix=".pt")
    assert conversion.rows == [
        Row(id="abcdefg", path="features/{epoch}/abcde/abcdefg.pt", text="Hello.", num_frames=36),
        Row(id="abc.d", path="features/{epoch}/abc.d/abc.d.pt", text="x", num_frames=7),
    ]
    assert conversion.notes == []


def test_ssvp_new_ids_do_not_collide(tmp_path):
    rows = read_ssvp(table(tmp_path, "a\t1.5\tx\na\t1.5\ty\na-2\t1.5\tz\na\t1.5\tw\n")).rows
    assert [(row.id, row.text) for row in rows] == [("a", "x"), ("a-3", "y"), ("a-2", "z"), ("a-4", "w")]


def test_ssvp_suffix_and_whole_durations(tmp_path):
    conversion = read_ssvp(table(tmp_path, "clip-1.5-2.5\t3\tx\n"), suffix=".webm")
    assert conversion.rows[0].path == "videos/clip-/clip-1.5-2.5.webm"
    assert "--media-suffix .pt" in conversion.notes[0]


def test_ssvp_lists_every_bad_line_and_writes_nothing(tmp_path, capsys):
    source = table(tmp_path, b"a\t-1\tx\nb\nc\tlong\ty\nd\t1.0\tx\ty\ne\t2.0\t\xff\nf\t1.0\tfine\n")
    status, _, err = run(capsys, "convert", "--from", "ssvp", source, tmp_path / "out.tsv")
    assert status == 1
    assert f"{source}: 5 problems" in err
    for expected in ("line 1, column duration", "line 2", "line 3, column duration", "line 4", "line 5: not UTF-8"):
        assert expected in err
    assert not (tmp_path / "out.tsv").exists()
    with pytest.raises(ManifestError, match=r"column length: '3\.5' is not a whole number"):
        read_ssvp(table(tmp_path, "a\t3.5\tx\n"), suffix=".pt")
    with pytest.raises(ManifestError, match="the file is empty"):
        read_ssvp(table(tmp_path, "\n"))


# --- convert: Tarrés et al. ---


def test_tarres_i3d(tmp_path, capsys):
    source = table(
        tmp_path,
        TARRES_HEADER
        + 'a-rgb_front\t/home/x/train/a-rgb_front.npy\t310\t276\ti3d\tasl\tSay \\"hi\\".\ten\t\tCooking\t8\n'
        + 'b-rgb_front\t/home/x/train/b-rgb_front.npy\t0.0\t12.0\ti3d\tasl\t"A ""quoted"" one"\ten\t\t\t\n'
        + "c-rgb_front\t/home/x/train/c-rgb_front.npy\t5\t12\ti3d\tasl\t\ten\t\t\t\n",
    )
    status, out, _ = run(capsys, "convert", "--from", "tarres", "--media-folder", "train", source, tmp_path / "out.tsv")
    assert status == 0
    common = {"sign_lang": "asl", "text_lang": "en"}
    assert read_manifest(tmp_path / "out.tsv") == [
        Row(id="a-rgb_front", path="train/a-rgb_front.npy", text='Say "hi".', num_frames=276, signer="8", **common),
        Row(id="b-rgb_front", path="train/b-rgb_front.npy", text='A "quoted" one', num_frames=12, **common),
        Row(id="c-rgb_front", path="train/c-rgb_front.npy", num_frames=12, **common),
    ]
    assert "1 rows have an empty text" in out
    assert "2 rows: signs_offset not used" in out
    assert "left out: topic (1 rows)" in out
    assert "absolute" not in out


def test_tarres_keeps_absolute_paths_and_says_so(tmp_path):
    conversion = read_tarres(table(tmp_path, TARRES_HEADER + "a\t/x/a.npy\t0\t5\ti3d\t\thi\t\t\t\t\n"), suffix=".pt")
    assert conversion.rows == [Row(id="a", path="/x/a.pt", text="hi", num_frames=5)]
    assert "--media-folder" in conversion.notes[0]


def test_tarres_mediapipe_segments_need_fps(tmp_path):
    source = table(tmp_path, TARRES_HEADER + "a\tp/a.pose\t50\t25\tmediapipe\t\thi\t\t\t\t\n")
    with pytest.raises(ManifestError, match=r"line 2: signs_type mediapipe.*--fps"):
        read_tarres(source)
    row = Row(id="a", path="p/a.pose", text="hi", start=2.0, end=3.0, num_frames=25, fps=25.0)
    assert read_tarres(source, fps=25.0).rows == [row]


def test_tarres_lists_every_bad_line(tmp_path):
    bad = [
        "a\tf\t0\t5\ti4d\t\thi\t\t\t\t",
        "b\tf\t-1\t5\ti3d\t\thi\t\t\t\t",
        "c\tf\t0\tmany\ti3d\t\thi\t\t\t\t",
        "\tf\t0\t5\ti3d\t\thi\t\t\t\t",
        'e\tf\t0\t5\ti3d\t\t"open\t\t\t\t',
        "f\tf\t0\t5\ti3d\t\thi",
    ]
    with pytest.raises(ManifestError) as caught:
        read_tarres(table(tmp_path, TARRES_HEADER + "\n".join(bad) + "\n"))
    reasons = [(problem.line, problem.reason) for problem in caught.value.problems]
    assert [line for line, _ in reasons] == [2, 3, 4, 5, 6, 7]
    expected = ("'i4d' is unknown", "'-1' is not", "'many' is not", "id is empty", "quotes do not match", "7 cells")
    for (_, reason), part in zip(reasons, expected, strict=True):
        assert part in reason
    with pytest.raises(ManifestError, match="lacks signs_file"):
        read_tarres(table(tmp_path, "id\tpath\n1\ta\n"))
    with pytest.raises(ManifestError, match="no rows"):
        read_tarres(table(tmp_path, TARRES_HEADER))
    with pytest.raises(ManifestError, match="the file is empty"):
        read_tarres(table(tmp_path, ""))


def test_convert_usage_errors(tmp_path, capsys):
    source = table(tmp_path, "a\t1.5\tx\n")
    out = tmp_path / "out.tsv"
    for arguments, message in [
        (("ssvp", source, source), "OUT is the file IN"),
        (("ssvp", "--media-suffix", "pt", source, out), "must begin with a dot: .pt"),
        (("ssvp", "--fps", "25", source, out), "are for --from tarres"),
        (("tarres", "--fps", "0", source, out), "not above 0"),
        (("youtube", source, out), "'ssvp', 'tarres'"),
    ]:
        with pytest.raises(SystemExit) as caught:
            main(["convert", "--from", *map(str, arguments)])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert source.read_text() == "a\t1.5\tx\n"
    status, _, err = run(capsys, "convert", "--from", "ssvp", source, tmp_path / "none" / "out.tsv")
    assert status == 1
    assert "make the folder" in err
