"""Build iSign manifests (Indian Sign Language to English) from its table and its pose files.

    python manifests/isign.py iSign_v1.1.csv --media-folder iSign-poses --out data/isign

writes train.tsv, valid.tsv, test.tsv and beside each a list of what was dropped and why (train.dropped.txt:
tab-separated; not .tsv, so that `slt-manifest check data/isign/*.tsv` takes manifests only).

The table has the columns uid and text; the poses are <uid>.pose (MediaPipe Holistic), in one folder or several, at any
depth. A uid is the name of a video, a hyphen and the number of the sentence in it.

The table tells no splits, so they are made here, by video: sentences of one video share signer, studio and story, and a
sentence-wise split would let a model recognise them. A video's split depends on its name, --seed and the two shares
alone: tables with more or fewer sentences, or a part of the poses, leave every other video where it was. It is not the
split of any publication; results on it compare with each other only. Texts that stand in several videos ("Page 53") may
be in several splits; the command says how many of valid and test are in train too.
"""

import argparse
import csv
import hashlib
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from how2sign import Media, find_media, inspect_media, manifest_path
from how2sign_annotations import Report

from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, decode_lines, read_bytes, write_manifest

SPLITS = ("train", "valid", "test")
COLUMNS = ["uid", "text"]


class ISignError(DataError):
    """A table or folders that no manifest can be built from."""


class Sentence(NamedTuple):
    line: int  # of the table, from 1; where its record ends
    uid: str
    text: str


def read_table(path: Path) -> list[Sentence]:
    """The records of the table, unchanged but for white space.

    Raises:
        ManifestError: the file cannot be opened.
        ISignError: it is not UTF-8, lacks a column, or its quotes do not match.
    """
    lines, problems = decode_lines(read_bytes(path))
    if problems:
        raise ISignError(f"{path}: line {problems[0].line}: {problems[0].reason}")
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    sentences, before = [], 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in header]:
            raise ISignError(
                f"{path}: the header lacks {', '.join(missing)} (it has: {listing(header) or 'nothing'}); give "
                "iSign_v1.1.csv"
            )
        uid, text = (header.index(name) for name in COLUMNS)
        for cells in reader:
            before = reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise ISignError(
                    f"{path}: line {before}: {len(cells)} cells, the header has {len(header)}; a text with commas "
                    "needs quotes around it"
                )
            sentences.append(Sentence(before, cells[uid].strip(), " ".join(cells[text].split())))
    except csv.Error as error:
        raise ISignError(f"{path}: after line {before}: quotes do not match ({error}); correct them") from error
    return sentences


def video_of(uid: str) -> str:
    """'1782bea75c7d-10' -> '1782bea75c7d'; a uid without a hyphen is a video of its own."""
    return uid.rpartition("-")[0] or uid


def split_of(video: str, valid: float, test: float, seed: int) -> str:
    """The split of a video, from a hash of its name: the same on every machine, whatever other videos there are."""
    digest = hashlib.sha256(f"{seed}:{video}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < test else "valid" if place < test + valid else "train"


def build_rows(
    sentences: Sequence[Sentence], poses: dict[str, Media], root: Path | None, out: Path, report: Report
) -> list[Row]:
    """The rows of one split; what is dropped goes to the report."""
    rows: list[Row] = []
    texts: dict[str, Sentence] = {}
    for sentence in sentences:
        drop = partial(report.add, sentence.line, sentence.uid, "dropped")
        if not sentence.uid:
            drop("no uid")
        elif not sentence.text:
            drop("no text")
        elif (first := texts.setdefault(sentence.uid, sentence)) is not sentence:
            drop(
                "repeated row" if first.text == sentence.text else "repeated uid with another text",
                f"line {first.line} is kept",
            )
        elif (pose := poses.get(sentence.uid)) is None:
            drop("pose file missing", f"{sentence.uid}.pose")
        elif pose.problem is not None:
            drop("pose file cannot be used", pose.problem)
        else:
            rows.append(
                Row(
                    id=sentence.uid,
                    path=manifest_path(pose.path, root, out),
                    text=sentence.text,
                    num_frames=pose.num_frames,
                    fps=pose.fps,
                    sign_lang="ins",
                    text_lang="en",
                    corpus="isign",
                )
            )
    return rows


# command


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = _parser()
    options = parser.parse_args(argv)
    if options.valid + options.test >= 1:
        parser.error(f"--valid {options.valid} and --test {options.test} leave nothing for train")
    try:
        return _run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    there = [str(path) for split in SPLITS if (path := options.out / f"{split}.tsv").exists()]
    if there and not options.overwrite:
        raise ISignError(f"{', '.join(there)} exists: add --overwrite to replace it, or choose another --out")
    sentences = read_table(options.table)
    wanted = {sentence.uid for sentence in sentences if sentence.uid}
    found = find_media(options.media_folder, wanted, "poses")
    if not found:
        example = f", for example {min(wanted)}.pose" if wanted else ""
        raise ISignError(f"none of the {len(wanted)} pose files is below {listing(options.media_folder)}{example}")
    poses = inspect_media(found, "poses", options.workers)
    splits: dict[str, list[Sentence]] = {split: [] for split in SPLITS}
    for sentence in sentences:
        splits[split_of(video_of(sentence.uid), options.valid, options.test, options.seed)].append(sentence)
    options.out.mkdir(parents=True, exist_ok=True)
    failed, train_texts = False, set()
    for split, part in splits.items():
        report = Report()
        rows = build_rows(part, poses, options.media_root, options.out, report)
        report.write(options.out / f"{split}.dropped.txt")
        target = options.out / f"{split}.tsv"
        failed |= not rows
        if not rows:
            print(f"{target}: 0 rows, not written; another --seed, or larger shares, give it videos")
        else:
            write_manifest(target, rows)
            videos = len({video_of(row.id) for row in rows})
            hours = sum(row.num_frames / row.fps for row in rows) / 3600
            print(f"{target}: {len(rows)} rows of {videos} videos, {hours:.2f} h")
        if split == "train":
            train_texts = {row.text for row in rows}
        elif known := sum(row.text in train_texts for row in rows):
            print(f"  {known} of their texts are in train too")
        for line in report.summary():
            print(f"  {line}")
        if report.notes:
            print(f"  listed in {options.out / f'{split}.dropped.txt'}")
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", type=Path, metavar="CSV", help="iSign_v1.1.csv, or another table with uid and text")
    help_folder = "folders that hold <uid>.pose, at any depth"
    parser.add_argument("--media-folder", type=Path, nargs="+", required=True, metavar="DIR", help=help_folder)
    parser.add_argument("--out", type=Path, required=True, help="folder of the manifests")
    for split in SPLITS[1:]:
        help_share = f"share of the videos for {split}.tsv (default: %(default)s)"
        parser.add_argument(f"--{split}", type=_share, default=0.05, metavar="SHARE", help=help_share)
    parser.add_argument("--seed", type=int, default=1, help="of the split (default: %(default)s)")
    help_root = "write paths relative to it, for task.media_root (default: relative below --out, else absolute)"
    parser.add_argument("--media-root", type=Path, metavar="DIR", help=help_root)
    parser.add_argument("--workers", type=_count, default=2, help="processes that open poses; 0 = this one only")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that are there")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return share


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
