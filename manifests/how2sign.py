"""Build How2Sign manifests (American Sign Language to English) from its annotation files and what was downloaded.

    python manifests/how2sign.py --out data/how2sign --media-folder How2Sign/video_level \\
        --train how2sign_realigned_train.csv --valid how2sign_realigned_val.csv --test how2sign_realigned_test.csv

writes train.tsv, valid.tsv, test.tsv and beside each a list of what was dropped, clipped or repaired, and why
(train.dropped.txt: tab-separated; not .tsv, so that `slt-manifest check data/how2sign/*.tsv` takes manifests only).

Rows are segments of the full-length videos ("Green Screen RGB videos (frontal view)", <VIDEO_NAME>.mp4) by the
manually re-aligned times; no video is cut. The released sentence clips (--media clips) and OpenPose keypoints
(--media keypoints) are cut on the older, misaligned times and give much worse models; --features takes a store or a
folder of .npy or .pt files, one a sentence.

id is SENTENCE_NAME, which names clips, keypoints and features too. signer is the number in VIDEO_NAME ("-5-rgb_front"):
How2Sign numbers its signers 1 to 11, and one VIDEO_ID stands there with several numbers, recorded at other times, but
no document was found that says the number is the signer.
"""

import argparse
import logging
import math
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from how2sign_annotations import How2SignError, Report, Sentence, read_annotations

from slt_plugin.cli.progress import progress
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.features import open_features
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.pose_files import open_pose
from slt_plugin.data.pose_json import OpenPoseFolder
from slt_plugin.data.segments import segment_frames
from slt_plugin.data.store import open_store, split_path
from slt_plugin.data.video import VIDEO_SUFFIXES, probe

SPLITS = ("train", "valid", "test")
MEDIA = ("videos", "clips", "keypoints")
SUFFIXES = {
    "videos": VIDEO_SUFFIXES,
    "clips": VIDEO_SUFFIXES,
    "features": frozenset({".npy", ".pt"}),
    "poses": frozenset({".pose"}),
}
WHAT = {
    "videos": "video",
    "clips": "clip",
    "keypoints": "keypoint folder",
    "features": "feature file",
    "poses": "pose file",
}
MISALIGNED = (
    "the released %s are cut on the older, misaligned times: many do not show what the re-aligned text says, and "
    "models get much worse. Use the full-length videos (--media videos) for results to compare with published ones"
)
_SIGNER = re.compile(r"-(\d{1,2})-rgb_front$", re.ASCII)


class Media(NamedTuple):
    """One file or folder: its place and what it holds, or why it cannot be used."""

    path: Path
    fps: float | None = None
    num_frames: int = 0
    problem: str | None = None


# media


def find_media(folders: Sequence[Path], wanted: set[str], kind: str) -> dict[str, Path]:
    """Name -> path of the wanted files (folders of keypoints), anywhere below the folders.

    Raises:
        How2SignError: a folder is missing, or one name is there twice.
    """
    found: dict[str, Path] = {}
    twice: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        if not folder.is_dir():
            raise How2SignError(f"--media-folder {folder} is not a folder")
        for place, subfolders, files in os.walk(folder, onerror=_raise, followlinks=True):
            stat = os.stat(place)
            if (stat.st_dev, stat.st_ino) in seen:  # a link back, or one folder given twice
                subfolders.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            if kind == "keypoints":
                named = [(name, name) for name in subfolders if name in wanted]
                # one file a frame lies in there: millions, which need no listing here
                subfolders[:] = [name for name in subfolders if name not in wanted]
            else:
                split = [(*os.path.splitext(name), name) for name in files]
                named = [(stem, name) for stem, end, name in split if stem in wanted and end.lower() in SUFFIXES[kind]]
            subfolders.sort()
            for stem, name in sorted(named):
                path = Path(place, name)
                if found.setdefault(stem, path) != path:
                    twice.append(f"{found[stem]} and {path}")
    if twice:
        remedy = "move one away, or give --media-folder of one of them"
        raise How2SignError(f"{len(twice)} names are there more than once ({remedy}): {listing(twice, shown=3)}")
    return found


def _raise(error: OSError) -> None:
    raise error


def inspect_media(found: dict[str, Path], kind: str, workers: int) -> dict[str, Media]:
    """Open each file once, in worker processes; a file that cannot be used has `problem` set."""
    names = sorted(found)
    jobs = [found[name] for name in names]
    inspect = partial(_inspect, kind)
    if workers == 0 or len(jobs) < 2:
        return dict(zip(names, progress(map(inspect, jobs), len(jobs), WHAT[kind]), strict=True))
    chunk = max(1, min(16, len(jobs) // (4 * workers)))
    # spawned, not forked: fork is unsafe beside the threads of torch
    context = multiprocessing.get_context("spawn")
    done: list[Media] = []
    try:
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            done.extend(progress(pool.map(inspect, jobs, chunksize=chunk), len(jobs), WHAT[kind]))
    except BrokenProcessPool as error:
        raise How2SignError(
            f"a worker process was killed (out of memory, or a crash in a decoder) at {jobs[len(done)]} or soon after "
            "it; run it with --workers 0, which opens the files one by one in one process"
        ) from error
    return dict(zip(names, done, strict=True))


def _inspect(kind: str, path: Path) -> Media:
    try:
        if kind == "keypoints":
            return Media(path, None, OpenPoseFolder(path).num_frames)
        if kind == "features":
            return Media(path, None, len(open_features(path)))
        info = open_pose(path) if kind == "poses" else probe(path)
    except (DataError, OSError) as error:
        return Media(path, problem=str(error))
    if info.num_frames < 1 or not info.fps:
        return Media(path, problem=f"{path}: no frames, or no frame rate")
    return Media(path, info.fps, info.num_frames)


def stored_features(folder: Path, wanted: set[str]) -> dict[str, Media]:
    """Name -> features of a store; a key may have folders before the name, as those of adopted files have.

    Raises:
        StoreError: the folder is no store, or holds nothing.
        How2SignError: two keys end in one name.
    """
    store = open_store(folder)
    media: dict[str, Media] = {}
    for key in store.keys():  # noqa: SIM118  a store is no dict
        name = key.rsplit("/", 1)[-1]
        if name not in wanted:
            continue
        if name in media:
            raise How2SignError(
                f"{media[name].path} and {folder / key} are features of one sentence; use another store"
            )
        media[name] = Media(folder / key, None, store.num_steps(key))
    return media


# rows


def build_rows(
    sentences: Sequence[Sentence], media: dict[str, Media], kind: str, root: Path | None, out: Path, report: Report
) -> list[Row]:
    """The manifest's rows; sentences without usable media go to the report."""
    rows = []
    for sentence in sentences:
        wanted = media_name(sentence, kind)
        drop = partial(report.add, sentence.line, sentence.name, "dropped")
        found = media.get(wanted)
        if found is None:
            drop(f"{WHAT[kind]} missing", wanted)
            continue
        if found.problem is not None:
            drop(f"{WHAT[kind]} cannot be used", found.problem)
            continue
        signer = _SIGNER.search(sentence.video)
        row = Row(
            id=sentence.name,
            path=manifest_path(found.path, root, out),
            text=sentence.text,
            num_frames=found.num_frames,
            fps=found.fps,
            sign_lang="ase",
            text_lang="en",
            signer=signer[1] if signer else None,
            corpus="how2sign",
        )
        if sentence.start is not None:
            row = _segment(row, sentence, found, report)
        if row is not None:
            rows.append(row)
    return rows


def _segment(row: Row, sentence: Sentence, video: Media, report: Report) -> Row | None:
    """The row with its times and frames; its end is cut at the video's, since some annotated ends lie past it."""
    start, end, length = sentence.start, sentence.end, video.num_frames / video.fps
    drop = partial(report.add, sentence.line, sentence.name, "dropped")
    if math.floor(start * video.fps + 0.5) >= video.num_frames:
        return drop("start is past the video's end", f"{start:g} s, the video has {length:.2f} s")
    if math.floor(end * video.fps + 0.5) > video.num_frames:
        report.add(
            sentence.line, sentence.name, "clipped", "end is past the video's end", f"{end:g} s, now {length:.2f} s"
        )
        end = length
    try:
        first, last = segment_frames(start, end, video.fps, video.num_frames)
    except DataError:  # what is left of its causes
        return drop("shorter than a frame", f"{start:g} s to {end:g} s at {video.fps:g} fps")
    return replace(row, start=start, end=end, num_frames=last - first)


def media_name(sentence: Sentence, kind: str) -> str:
    return sentence.video if kind == "videos" else sentence.name


def manifest_path(path: Path, root: Path | None, out: Path) -> str:
    """Relative to the media root (else to the manifest's folder, where the file lies below it), else absolute."""
    absolute = Path(os.path.abspath(path))  # symbolic links stay: data folders are often made of them
    base = Path(os.path.abspath(root or out))
    if absolute.is_relative_to(base):
        return absolute.relative_to(base).as_posix()
    if root is not None:
        raise How2SignError(f"{absolute} does not lie below --media-root {base}; give a folder above all media")
    return str(absolute)


# command


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = _parser()
    options = parser.parse_args(argv)
    if (options.features is None) == (options.media_folder is None):
        parser.error("give --media-folder, or --features instead of it")
    if options.features is not None and options.media is not None:
        parser.error("--media is for --media-folder: features are cut already")
    try:
        return _run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    files = {split: getattr(options, split) for split in SPLITS if getattr(options, split) is not None}
    if not files:
        raise How2SignError("no annotation file: give at least one of --train, --valid, --test")
    there = [str(options.out / f"{split}.tsv") for split in files if (options.out / f"{split}.tsv").exists()]
    if there and not options.overwrite:
        raise How2SignError(f"{', '.join(there)} exists: add --overwrite to replace it, or choose another --out")
    kind = "features" if options.features is not None else options.media or "videos"
    if kind in ("clips", "keypoints"):
        logging.getLogger(__name__).warning(MISALIGNED, kind)
    reports = {split: Report() for split in files}
    sentences = {split: read_annotations(files[split], reports[split], timed=kind == "videos") for split in files}
    media = _media(options, kind, {media_name(s, kind) for split in files for s in sentences[split]})
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for split, report in reports.items():
        rows = build_rows(sentences[split], media, kind, options.media_root, options.out, report)
        listed = options.out / f"{split}.dropped.txt"
        report.write(listed)
        failed |= not rows
        if rows:
            write_manifest(options.out / f"{split}.tsv", rows)
        print(f"{options.out / split}.tsv: {len(rows)} rows{_hours(rows)}" + ("" if rows else ", not written"))
        for line in report.summary():
            print(f"  {line}")
        if report.notes:
            print(f"  listed in {listed}")
    return int(failed)


def _media(options: argparse.Namespace, kind: str, wanted: set[str]) -> dict[str, Media]:
    if options.features is not None and split_path(options.features / "key"):
        return stored_features(options.features, wanted)
    folders = options.media_folder or [options.features]
    found = find_media(folders, wanted, kind)
    if wanted and not found:
        example = f"{min(wanted)}{'' if kind == 'keypoints' else min(SUFFIXES[kind] & {'.mp4', '.npy'})}"
        raise How2SignError(
            f"none of the {len(wanted)} {WHAT[kind]}s is below {listing(folders)}, for example {example}; correct the "
            "folder, or --media"
        )
    return inspect_media(found, kind, options.workers)


def _hours(rows: Sequence[Row]) -> str:
    return f", {sum(row.num_frames / row.fps for row in rows) / 3600:.2f} h" if rows and rows[0].fps else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the manifests")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"annotation file of {split}.tsv")
    parser.add_argument("--media", choices=MEDIA, help="what --media-folder holds (default: videos, full-length)")
    help_folder = "folders that hold the media, at any depth"
    parser.add_argument("--media-folder", type=Path, nargs="+", metavar="DIR", help=help_folder)
    help_features = "a store (*.store), or a folder of <SENTENCE_NAME>.npy or .pt, instead of media"
    parser.add_argument("--features", type=Path, metavar="DIR", help=help_features)
    help_root = "write paths relative to it, for task.media_root (default: relative below --out, else absolute)"
    parser.add_argument("--media-root", type=Path, metavar="DIR", help=help_root)
    parser.add_argument("--workers", type=_count, default=2, help="processes that open media; 0 = this one only")
    parser.add_argument("--overwrite", action="store_true", help="replace manifests that are there")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
