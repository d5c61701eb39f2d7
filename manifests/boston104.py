"""Build RWTH-BOSTON-104 manifests (American Sign Language to glosses) from hand and nose tracks: 161 + 40 sentences.

    python manifests/boston104.py AIND-Recognizer/data --out data/boston104

reads hands_condensed.csv (centres of the left hand, the right hand and the nose in every frame, in pixels),
speaker.csv, train_words.csv and test_words.csv (the glosses of each sentence) as
https://github.com/udacity/AIND-Recognizer publishes them (MIT licence; the tracks are those of the corpus), and writes
train.tsv, test.tsv and poses/<video>.npy.

The text of a row is its glosses. --valid N takes N sentences, spread evenly, from train.tsv into valid.tsv: for
choosing settings. The corpus has no validation set of its own; without N all 161 sentences are for training.

The poses have three points (body.nose, body.left_wrist for the left hand, body.right_wrist), and no shoulders to be
normalised by: train with task.pose_normalise=none task.pose_parts=body. Coordinates are relative to the mean of the
nose over the sentence, in units of 60 pixels.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.landmarks import part_names
from slt_plugin.data.manifest import Row, decode_lines, read_bytes, write_manifest

FPS = 30.0  # of the corpus
UNIT = 60.0  # pixels
TRACKS = {"body.nose": "nose", "body.left_wrist": "left", "body.right_wrist": "right"}
COLUMNS = {
    "hands_condensed.csv": ("video", "frame", *(f"{track}-{axis}" for track in TRACKS.values() for axis in "xy")),
    "speaker.csv": ("video", "speaker"),
    "train_words.csv": ("video", "word", "startframe"),
    "test_words.csv": ("video", "word", "startframe"),
}


class Boston104Error(DataError):
    """Tables that no manifest can be built from."""


def read_table(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of one of the tables, by column.

    Raises:
        ManifestError: the file cannot be opened.
        Boston104Error: a column is missing, a line is not UTF-8 or has other cells than the header.
    """
    path = folder / name
    lines, problems = decode_lines(read_bytes(path))
    if problems:
        raise Boston104Error(f"{path}: {problems[0].reason}; download the file again")
    header, *rows = csv.reader(line for line in lines if line)
    if missing := [column for column in COLUMNS[name] if column not in header]:
        raise Boston104Error(
            f"{path}: the header lacks {listing(missing)} (it has: {listing(header)}); download it again"
        )
    if odd := [str(line) for line, cells in enumerate(rows, 2) if len(cells) != len(header)]:
        raise Boston104Error(f"{path}: line {listing(odd, shown=3)} has other cells than the header; download it again")
    return [dict(zip(header, cells, strict=True)) for cells in rows]


def grouped(rows: Sequence[dict[str, str]], order: str) -> dict[str, list[dict[str, str]]]:
    """video -> its rows by the number in column `order`, videos as they come."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["video"], []).append(row)
    return {video: sorted(group, key=lambda row: int(row[order])) for video, group in groups.items()}


def pose(frames: Sequence[dict[str, str]]) -> np.ndarray:
    """Frames of one sentence -> (T, 51, 3) float32 of x, y, confidence, all but three landmarks missing."""
    points = part_names(("body", "left_hand", "right_hand"))  # the 51 that an array may have
    nose = np.mean([[float(frame["nose-x"]), float(frame["nose-y"])] for frame in frames], axis=0)
    array = np.zeros((len(frames), len(points), 3), dtype=np.float32)
    for point, track in TRACKS.items():
        xy = np.array([[float(frame[f"{track}-x"]), float(frame[f"{track}-y"])] for frame in frames])
        array[:, points.index(point), :2] = (xy - nose) / UNIT
        array[:, points.index(point), 2] = 1
    return array


def build(folder: Path, out: Path, valid: int) -> dict[str, int]:
    """Writes poses and manifests; returns split -> rows.

    Raises:
        Boston104Error: the tables do not fit together, or `valid` is more than half of the sentences.
    """
    try:
        frames = grouped(read_table(folder, "hands_condensed.csv"), "frame")
        words = {split: grouped(read_table(folder, f"{split}_words.csv"), "startframe") for split in ("train", "test")}
        speakers = {row["video"]: row["speaker"] for row in read_table(folder, "speaker.csv")}
        poses = {video: pose(group) for video, group in frames.items()}
    except ValueError as error:
        raise Boston104Error(
            f"{folder}: a frame or coordinate is no number ({error}); download the files again"
        ) from error
    if untracked := [video for group in words.values() for video in group if video not in poses]:
        raise Boston104Error(
            f"{folder}: hands_condensed.csv has no frames of video {listing(untracked)}; download the files again"
        )
    rows = {
        split: [
            Row(
                id=video,
                path=f"poses/{video}.npy",
                text=" ".join(row["word"] for row in group),
                num_frames=len(poses[video]),
                fps=FPS,
                sign_lang="ase",
                signer=speakers.get(video),
                corpus="boston104",
            )
            for video, group in sentences.items()
        ]
        for split, sentences in words.items()
    }
    if valid:
        if valid * 2 > len(rows["train"]):
            raise Boston104Error(
                f"--valid {valid} is more than half of the {len(rows['train'])} sentences for training"
            )
        taken = {int((i + 0.5) * len(rows["train"]) / valid) for i in range(valid)}
        rows["valid"] = [row for i, row in enumerate(rows["train"]) if i in taken]
        rows["train"] = [row for i, row in enumerate(rows["train"]) if i not in taken]
    (out / "poses").mkdir(parents=True, exist_ok=True)
    for split in rows.values():
        for row in split:
            with atomic_open(out / row.path) as file:
                np.save(file, poses[row.id])
    for split, group in rows.items():
        write_manifest(out / f"{split}.tsv", group)
    return {split: len(group) for split, group in rows.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder with the four tables")
    parser.add_argument("--out", type=Path, required=True, help="folder of the manifests and poses")
    parser.add_argument(
        "--valid", type=_count, default=0, metavar="N", help="sentences of train for valid.tsv (default: 0)"
    )
    options = parser.parse_args(argv)
    try:
        sizes = build(options.folder, options.out, options.valid)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, size in sizes.items():
        print(f"{options.out / split}.tsv: {size} rows")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
