"""Render the fingerspelling corpus (fingerspelling.py) to small H.264 videos (see fingerspelling_render.py).

    python manifests/fingerspelling.py --out data/fingerspelling
    python manifests/fingerspelling_video.py data/fingerspelling --out data/fingerspelling_video

writes train.tsv, valid.tsv, test.tsv, test_unseen.tsv with the first sentences of the corpus's own, and
videos/<split>-NNN.mp4 of 20 sentences one after another; rows point to them by start, end and the box in which the hand
spells. The pictures are drawn from landmarks: they exercise everything that reads raw video, and look like no camera's.

The same options give byte-identical files on one machine, whatever the number of workers. Videos appear when they are
complete, and a manifest when all its videos are there: an interrupted run goes on where it stopped.
"""

import argparse
import json
import logging
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fingerspelling import SPLITS, claim_folder, positive, worker_map
from fingerspelling_render import Box, Job, render_file
from fingerspelling_synthesis import FPS, CorpusError
from tqdm import tqdm

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, resolve_path, write_manifest
from slt_plugin.data.segments import segment_frames

FORMAT = 1  # raise it whenever the same options would give other files
SENTENCES = 20  # a video
SIZES = {"train": 5000, "valid": 100, "test": 250, "test_unseen": 250}


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    out, fps = options.out, float(options.fps)
    description = {
        "format": FORMAT,
        "av": version("av"),  # each version brings its own x264
        "pillow": version("pillow"),
        **{split: getattr(options, split) for split in SPLITS},
        "fps": fps,
        "size": options.size,
        **{f"poses.{key}": value for key, value in _read_description(options.poses).items()},
    }
    splits = {split: _first_rows(options.poses, split, getattr(options, split)) for split in SPLITS}
    claim_folder(out, description, options.overwrite, media="videos/{split}-*.mp4")
    splits = {split: rows for split, rows in splits.items() if not _is_complete(out, split, len(rows))}
    if not splits:
        print(f"{out} is complete, nothing to do (--overwrite renders it again)")
        return 0
    for split, rows in build(out, options.poses, splits, fps=fps, size=options.size, workers=options.workers).items():
        frames = sum(row.num_frames for row in rows)
        megabytes = sum((out / path).stat().st_size for path in {row.path for row in rows}) / 1e6
        print(
            f"{out / split}.tsv: {len(rows)} sentences, {frames / fps / 3600:.2f} h, {frames / len(rows):.0f} frames "
            f"each, {megabytes:.0f} MB"
        )
    return 0


def build(
    out: Path, poses: Path, splits: dict[str, list[Row]], *, fps: float, size: int, workers: int
) -> dict[str, list[Row]]:
    """Write the missing videos, and the manifests of `splits`: split -> rows of the corpus in folder `poses`."""
    (out / "videos").mkdir(exist_ok=True)
    jobs = []  # (split, rows, Job)
    for split, rows in splits.items():
        (out / f"{split}.tsv").unlink(missing_ok=True)
        for k, name in enumerate(_video_names(split, len(rows))):
            part = rows[k * SENTENCES : (k + 1) * SENTENCES]
            spans = [(resolve_path(row, poses), *segment_frames(row.start, row.end, row.fps, None)) for row in part]
            jobs.append((split, part, Job(spans, out / name)))
    render = partial(render_file, pose_fps=float(FPS), fps=fps, size=size)
    built: dict[str, list[Row]] = {}
    total = sum(map(len, splits.values()))
    with worker_map(workers) as run, tqdm(total=total, unit=" sentences", disable=None) as progress:
        for (split, part, job), rendered in zip(jobs, run(render, [job[2] for job in jobs]), strict=True):
            rows = built.setdefault(split, [])
            rows += _video_rows(part, f"videos/{job.video.name}", rendered, fps)
            if len(rows) == len(splits[split]):
                write_manifest(out / f"{split}.tsv", rows)
            progress.update(len(part))
    return built


def _video_rows(sentences: list[Row], path: str, rendered: list[tuple[int, Box]], fps: float) -> list[Row]:
    rows, frame = [], 0
    for row, (count, box) in zip(sentences, rendered, strict=True):
        start, end = frame / fps, (frame + count) / fps
        rows.append(replace(row, path=path, start=start, end=end, num_frames=count, fps=fps, box=box))
        frame += count
    return rows


def _first_rows(poses: Path, split: str, count: int) -> list[Row]:
    rows = read_manifest(poses / f"{split}.tsv", require_text=True)
    if len(rows) < count:
        raise CorpusError(
            f"--{split.replace('_', '-')} {count}: {poses / split}.tsv has {len(rows)} sentences only; ask for fewer, "
            "or build a larger corpus with fingerspelling.py"
        )
    return rows[:count]


def _read_description(poses: Path) -> dict:
    """What fingerspelling.py recorded of its corpus: videos of another one are refused."""
    path = poses / "corpus.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorpusError(
            f"{poses} holds no fingerspelling corpus (no corpus.json): build it first with "
            f"python manifests/fingerspelling.py --out {poses}"
        ) from error
    except ValueError as error:
        raise CorpusError(f"{path}: not readable ({error}); build the corpus again with --overwrite") from error


def _video_names(split: str, size: int) -> list[str]:
    return [f"videos/{split}-{k:03d}.mp4" for k in range(-(-size // SENTENCES))]


def _is_complete(out: Path, split: str, size: int) -> bool:
    return all((out / name).is_file() for name in (f"{split}.tsv", *_video_names(split, size)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("poses", type=Path, help="folder that fingerspelling.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the videos and their manifests")
    for split, size in SIZES.items():
        parser.add_argument(f"--{split.replace('_', '-')}", type=positive, default=size, help="sentences, the first")
    parser.add_argument("--fps", type=_rate, default=8.0, help=f"frames a second, at most {FPS}")
    parser.add_argument("--size", type=_side, default=112, help="width and height in pixels, even")
    parser.add_argument("--workers", type=positive, default=2, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace videos made with other options")
    return parser


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= FPS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {FPS}, got {text!r}")
    return value


def _side(text: str) -> int:
    if not text.isdecimal() or int(text) < 32 or int(text) % 2:
        raise argparse.ArgumentTypeError(f"expected an even number of pixels from 32 on, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
