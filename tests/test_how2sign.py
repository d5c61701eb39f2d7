"""manifests/how2sign*.py: annotations, what is dropped and why, and the manifests."""

import csv
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import how2sign  # noqa: E402
from how2sign_annotations import How2SignError, Report, read_annotations, repair  # noqa: E402

from slt_plugin.data.manifest import read_manifest  # noqa: E402
from slt_plugin.data.store import Fingerprint, StoreWriter  # noqa: E402
from slt_plugin.data.video import probe  # noqa: E402

REAL = ROOT.parent / "shared" / "realdata"
COLUMNS = ("VIDEO_ID", "VIDEO_NAME", "SENTENCE_ID", "SENTENCE_NAME", "START_REALIGNED", "END_REALIGNED", "SENTENCE")
A, B = "-abcdefghij-5-rgb_front", "_abcdefghij-11-rgb_front"  # names may begin with a dash
needs_val = pytest.mark.skipif(
    not (REAL / "manifests/how2sign_realigned_val.tab.csv").is_file(), reason="shared/realdata/manifests is not here"
)
needs_clips = pytest.mark.skipif(not (REAL / "video_how2sign").is_dir(), reason="shared/realdata/video_how2sign")


def write_video(path: Path, frames: int, fps: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def row(number: int, start: object, end: object, text: str, video: str = A) -> tuple:
    name, suffix = video[:11], video[11:]
    return name, video, f"{name}_{number}", f"{name}_{number}{suffix}", start, end, text


def write_annotations(path: Path, rows: list[tuple], delimiter: str = "\t", columns=COLUMNS) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])
    return path


def notes(path: Path) -> list[tuple[str, ...]]:
    """(line, action, cause) of a report."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            (n["line"], n["action"], n["cause"]) for n in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A: 40 frames at 10 fps, B: 25 at 24 fps, in folders as the archives have them."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "val/rgb_front/raw_videos" / f"{A}.mp4", 40)
    write_video(folder / "train/rgb_front/raw_videos" / f"{B}.mp4", 25, fps=24)
    return folder


def run(out: Path, *arguments: object) -> int:
    return how2sign.main(["--out", str(out), "--workers", "0", *map(str, arguments)])


# ---- annotations ----


@needs_val
def test_the_real_validation_file_is_read_whole():
    report = Report()
    sentences = read_annotations(REAL / "manifests/how2sign_realigned_val.tab.csv", report, timed=True)
    assert len(sentences) == 1741
    texts = {s.name: s.text for s in sentences}
    assert texts["DfnHNkTE7mE_14-5-rgb_front"] == "Let's put him in the suit\", so to speak."
    assert '1/2" they go to 3/4", the 1" 1 1/2" and then the 2".' in texts["cOCnNdL5fwI_3-8-rgb_front"]
    assert [s.text for s in sentences if not s.text.isascii()] == [
        "And what I'm talking about is, no longer do you have any non-verbal’s to work with.",
        "You'll notice that I still have the chain over my horse’s nose.",
    ]
    assert {n.action for n in report.notes} == {"repaired"} and len(report.notes) == 2
    first = sentences[0]
    assert (first.line, first.name, first.video) == (2, "-d5dN54tH2E_0-1-rgb_front", "-d5dN54tH2E-1-rgb_front")
    assert (first.start, first.end) == (12.97, 19.52)


def test_commas_an_index_column_a_byte_order_mark_and_blank_lines(tmp_path):
    rows = [row(1, 0.5, 1.5, 'He said, "so".'), row(2, 1.5, 2, "Tea, please.")]
    plain = read_annotations(write_annotations(tmp_path / "a.csv", rows), Report(), timed=True)
    indexed = [(i, *r) for i, r in enumerate(rows)]
    path = write_annotations(tmp_path / "b.csv", indexed, ",", ("", *COLUMNS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")
    report = Report()
    assert read_annotations(path, report, timed=True) == plain
    assert report.notes == []
    assert [s.text for s in plain] == ['He said, "so".', "Tea, please."]


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        ("horseâ\x80\x99s", "horse’s"),  # read as Latin-1
        ("horseâ€™s", "horse’s"),  # read as Windows-1252
        ("350Â°, cafÃ©", "350°, café"),
        ("Ã¢Â\x80Â\x99", "’"),  # damaged twice
        ("café, naïve, 350°, “so”", "café, naïve, 350°, “so”"),  # not damaged
        ("CAFÉ…", "CAFÉ…"),  # valid UTF-8 as well, of a letter that English lacks
        ("Ã", "Ã"),
        ("日本", "日本"),
    ],
)
def test_repair(damaged, text):
    assert repair(damaged) == text


def test_a_stray_quote_takes_one_row_and_a_quoted_line_break_none(tmp_path):
    path = write_annotations(
        tmp_path / "a.csv", [row(1, 0, 1, "One\nsentence."), row(2, 1, 2, "Two."), row(3, 2, 3, "3")]
    )
    path.write_bytes(path.read_bytes().replace(b"\tTwo.", b'\t"Two.'))
    report = Report()
    sentences = read_annotations(path, report, timed=True)
    assert [s.text for s in sentences] == ["One sentence.", "3"]
    assert [(n.line, n.cause) for n in report.notes] == [(4, "line cannot be read")]


def test_other_files_are_refused(tmp_path):
    older = write_annotations(tmp_path / "a.csv", [row(1, 0, 1, "x")], columns=[c.split("_REAL")[0] for c in COLUMNS])
    with pytest.raises(How2SignError, match=r"older, misaligned times; download 'English Translation .manually re-al"):
        read_annotations(older, Report(), timed=True)
    assert len(read_annotations(older, Report(), timed=False)) == 1
    (tmp_path / "b.csv").write_text("name;text\n")
    with pytest.raises(How2SignError, match=r"lacks VIDEO_NAME, SENTENCE_NAME, SENTENCE .*it has: name;text"):
        read_annotations(tmp_path / "b.csv", Report(), timed=False)


# ---- full-length videos ----


def test_segments_of_full_length_videos(tmp_path, videos, capsys):
    good = [row(1, 0, 1.5, "One."), row(2, 1.5, 4.0, "Two."), row(1, 0.5, 1.04, "B.", B)]
    annotations = write_annotations(tmp_path / "val.csv", good)
    assert run(tmp_path / "out", "--valid", annotations, "--media-folder", videos) == 0
    rows = read_manifest(tmp_path / "out/valid.tsv", require_text=True)
    assert [(r.id, r.start, r.end, r.num_frames, r.fps) for r in rows] == [
        ("-abcdefghij_1-5-rgb_front", 0.0, 1.5, 15, 10.0),
        ("-abcdefghij_2-5-rgb_front", 1.5, 4.0, 25, 10.0),
        ("_abcdefghij_1-11-rgb_front", 0.5, 1.04, 13, 24.0),
    ]
    assert [r.signer for r in rows] == ["5", "5", "11"]
    assert {(r.sign_lang, r.text_lang, r.corpus) for r in rows} == {("ase", "en", "how2sign")}
    for r in rows:
        assert Path(r.path).is_absolute()
        assert probe(r.path, r.start, r.end, fps=r.fps).num_frames == r.num_frames
    assert "3 rows, 0.00 h" in capsys.readouterr().out
    assert notes(tmp_path / "out/valid.dropped.txt") == []


def test_everything_dropped_clipped_or_repaired_is_counted_and_listed(tmp_path, videos, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "_emptyvideo-1-rgb_front.mp4").touch()
    rows = [
        row(1, 0, 1, "Kept."),
        row(2, 0, 1, "  "),
        row(3, 2, 2, "No length."),
        row(4, "", 2, "No start."),
        row(5, "-1", 2, "Before it."),
        row(6, 4.0, 5, "After it."),
        row(7, 3.5, 4.8, "Over its end."),
        row(8, 1.01, 1.03, "Less than a frame."),
        row(1, 0, 1, "Kept."),
        row(1, 0, 2, "Kept."),
        row(9, 0, 1, "No video.", "_nosuchvide-3-rgb_front"),
        row(10, 0, 1, "Empty video.", "_emptyvideo-1-rgb_front"),
        row(11, 1, 2, "Itâ\x80\x99s."),
        row(12, 1, 2, "\x80 and more."),
        (*row(13, 1, 2, "A cell too many."), "x"),
        (*row(14, 1, 2, "")[:3], "", 1, 2, "No name."),
    ]
    annotations = write_annotations(tmp_path / "train.csv", rows)
    data = annotations.read_bytes() + "\t".join(map(str, row(15, 1, 2, "Café."))).encode("latin-1") + b"\r\n"
    annotations.write_bytes(data)
    assert run(tmp_path, "--train", annotations, "--media-folder", videos, tmp_path / "more") == 0
    assert notes(tmp_path / "train.dropped.txt") == [
        ("3", "dropped", "no text"),
        ("4", "dropped", "end is not after start"),
        ("5", "dropped", "start or end is not a number of seconds"),
        ("6", "dropped", "start or end is not a number of seconds"),
        ("7", "dropped", "start is past the video's end"),
        ("8", "clipped", "end is past the video's end"),
        ("9", "dropped", "shorter than a frame"),
        ("10", "dropped", "repeated row"),
        ("11", "dropped", "repeated name with other text or times"),
        ("12", "dropped", "video missing"),
        ("13", "dropped", "video cannot be used"),
        ("14", "repaired", "UTF-8 that was read as Latin-1"),
        ("15", "kept", "text with undecodable characters"),
        ("16", "dropped", "line cannot be read"),
        ("17", "dropped", "no SENTENCE_NAME or VIDEO_NAME"),
        ("18", "dropped", "line is not UTF-8"),
    ]
    kept = read_manifest(tmp_path / "train.tsv")
    assert [r.text for r in kept] == ["Kept.", "Over its end.", "It’s.", "\x80 and more."]
    assert (kept[1].start, kept[1].end, kept[1].num_frames) == (3.5, 4.0, 5)
    printed = capsys.readouterr().out
    assert "train.tsv: 4 rows" in printed
    assert "dropped       2  start or end is not a number of seconds" in printed
    assert "clipped       1  end is past the video's end" in printed
    details = (tmp_path / "train.dropped.txt").read_text(encoding="utf-8")
    assert "4.8 s, now 4.00 s" in details
    assert "_emptyvideo-1-rgb_front.mp4" in details


@needs_val
def test_real_rows_against_videos_that_end_early():
    report = Report()
    sentences = read_annotations(REAL / "manifests/how2sign_realigned_val.tab.csv", report, timed=True)
    media = {s.video: how2sign.Media(Path("/v", s.video), 24.0, 24 * 60) for s in sentences}
    rows = how2sign.build_rows(sentences, media, "videos", None, Path("out"), report)
    assert all(0 <= r.start < r.end <= 60 + 0.5 / 24 and r.num_frames >= 1 for r in rows)
    whole = [r for r in rows if r.end < 60]
    assert max(abs(r.num_frames / 24 - (r.end - r.start)) for r in whole) <= 1 / 24
    summary = [line.split(maxsplit=2) for line in report.summary()]
    assert summary == [
        ["clipped", "114", "end is past the video's end"],
        ["dropped", "656", "start is past the video's end"],
        ["repaired", "2", "UTF-8 that was read as Latin-1"],
    ]
    assert len(rows) == 1741 - 656 and sum(r.end == 60 for r in rows) == 114


def test_worker_processes_give_the_same(tmp_path, videos):
    annotations = write_annotations(tmp_path / "a.csv", [row(1, 0, 1, "One."), row(1, 0, 1, "B.", B)])
    arguments = ["--test", annotations, "--media-folder", videos]
    assert run(tmp_path / "one", *arguments) == 0
    assert run(tmp_path / "two", *arguments, "--workers", 2) == 0
    assert (tmp_path / "one/test.tsv").read_bytes() == (tmp_path / "two/test.tsv").read_bytes()


def test_paths_are_relative_to_the_media_root_or_to_out(tmp_path, videos):
    annotations = write_annotations(tmp_path / "a.csv", [row(1, 0, 1, "One.")])
    arguments = ["--test", annotations, "--media-folder", videos]
    expected = f"val/rgb_front/raw_videos/{A}.mp4"
    assert run(tmp_path, *arguments, "--media-root", videos) == 0
    assert read_manifest(tmp_path / "test.tsv")[0].path == expected
    (tmp_path / "link").symlink_to(videos)  # as data folders often are: the link stays in the path
    assert run(tmp_path, "--test", annotations, "--media-folder", tmp_path / "link", "--overwrite") == 0
    assert read_manifest(tmp_path / "test.tsv")[0].path == f"link/{expected}"
    assert run(tmp_path, *arguments, "--media-root", tmp_path / "out", "--overwrite") == 1


def test_what_cannot_be_built(tmp_path, videos, capsys):
    annotations = write_annotations(tmp_path / "a.csv", [row(1, 0, 1, "One.")])

    def error(*arguments: object) -> str:
        assert run(tmp_path, *arguments) == 1
        return capsys.readouterr().err

    assert "at least one of --train" in error("--media-folder", videos)
    assert "is not a folder" in error("--test", annotations, "--media-folder", tmp_path / "no")
    (tmp_path / "empty").mkdir()
    message = error("--test", annotations, "--media-folder", tmp_path / "empty")
    assert "none of the 1 videos" in message and f"{A}.mp4" in message
    write_video(tmp_path / "twice" / f"{A}.mkv", 3)
    message = error("--test", annotations, "--media-folder", videos, tmp_path / "twice")
    assert "1 names are there more than once" in message and "twice" in message
    late = write_annotations(tmp_path / "b.csv", [row(1, 50, 51, "Late.")])
    assert run(tmp_path, "--test", late, "--media-folder", videos) == 1
    assert "0 rows, not written" in capsys.readouterr().out
    assert notes(tmp_path / "test.dropped.txt") == [("2", "dropped", "start is past the video's end")]
    assert not (tmp_path / "test.tsv").exists()
    assert run(tmp_path, "--test", annotations, "--media-folder", videos, videos) == 0
    assert "add --overwrite" in error("--test", annotations, "--media-folder", videos)
    with pytest.raises(SystemExit):
        run(tmp_path, "--test", annotations)


def test_links_that_lead_back_are_followed_once(tmp_path):
    write_video(tmp_path / "a" / f"{A}.mp4", 3)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert how2sign.find_media([tmp_path], {A}, "videos") == {A: tmp_path / "a" / f"{A}.mp4"}


# ---- clips, keypoints, features ----


@needs_clips
def test_the_real_clips(tmp_path, caplog):
    with open(REAL / "video_how2sign/labels.tsv", encoding="utf-8", newline="") as file:
        labels = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [("x", "x-1-rgb_front", "x", label["name"], 0, 1, label["text"]) for label in labels]
    rows.append(row(1, 0, 1, "No clip."))
    annotations = write_annotations(tmp_path / "a.csv", rows, ",")
    folder = REAL / "video_how2sign"
    assert run(tmp_path, "--train", annotations, "--media", "clips", "--media-folder", folder) == 0
    built = read_manifest(tmp_path / "train.tsv", require_text=True)
    assert [(r.id, r.num_frames) for r in built] == [(label["name"], int(label["frames"])) for label in labels]
    for r, label in zip(built, labels, strict=True):
        numerator, denominator = map(int, label["fps"].split("/"))
        assert r.fps == pytest.approx(numerator / denominator, rel=1e-6)
        assert r.start is r.end is None
    assert "misaligned" in caplog.text
    assert notes(tmp_path / "train.dropped.txt") == [("32", "dropped", "clip missing")]


def test_keypoint_folders(tmp_path, caplog):
    annotations = write_annotations(tmp_path / "a.csv", [row(i, "", "", f"Text {i}.") for i in (1, 2, 3)])
    for number, frames in ((1, (0, 1, 2)), (2, (0, 2))):
        name = row(number, 0, 0, "")[3]
        folder = tmp_path / "val_2D_keypoints/openpose_output/json" / name
        folder.mkdir(parents=True)
        for k in frames:
            (folder / f"{name}_{k:012d}_keypoints.json").write_text(json.dumps({"people": []}))
    assert run(tmp_path, "--valid", annotations, "--media", "keypoints", "--media-folder", tmp_path) == 0
    (built,) = read_manifest(tmp_path / "valid.tsv")
    assert (built.num_frames, built.fps, built.start) == (3, None, None)
    assert built.path == f"val_2D_keypoints/openpose_output/json/{row(1, 0, 0, '')[3]}"
    assert "keypoints are cut on the older, misaligned times" in caplog.text
    assert notes(tmp_path / "valid.dropped.txt") == [
        ("3", "dropped", "keypoint folder cannot be used"),  # a frame is missing
        ("4", "dropped", "keypoint folder missing"),
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_features(tmp_path, stored, caplog):
    annotations = write_annotations(tmp_path / "a.csv", [row(i, 0, 1, f"Text {i}.") for i in (1, 2)])
    name = row(1, 0, 0, "")[3]
    if stored:
        folder = tmp_path / "h2s.store"
        with StoreWriter(folder, Fingerprint({"checkpoint": "x"})) as writer:
            writer.add(f"features/abc/{name}", 0, torch.ones(7, 4))
        path = f"h2s.store/features/abc/{name}"
    else:
        folder = tmp_path / "i3d"
        (folder / "val").mkdir(parents=True)
        np.save(folder / "val" / f"{name}.npy", np.ones((7, 4), np.float32))
        path = f"i3d/val/{name}.npy"
    assert run(tmp_path, "--test", annotations, "--features", folder) == 0
    (built,) = read_manifest(tmp_path / "test.tsv")
    assert (built.path, built.num_frames, built.start, built.fps) == (path, 7, None, None)
    assert notes(tmp_path / "test.dropped.txt") == [("3", "dropped", "feature file missing")]
    assert "misaligned" not in caplog.text
    with pytest.raises(SystemExit):
        run(tmp_path, "--test", annotations, "--features", folder, "--media", "clips")
