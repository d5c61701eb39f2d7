#!/usr/bin/env python3
"""Speed of slt-extract's engine: clips/s, and the share of time the model waits for data, by decoding processes.

    python scripts/bench_extract.py --quick                     # a few minutes: small videos, short, both variants
    python scripts/bench_extract.py                             # tiny and base on 2 cores: about half an hour
    python scripts/bench_extract.py --variants base_128x224 --device cuda --dtype bf16 --workers 4 8 15 --videos 200
    python scripts/bench_extract.py --manifest data/dev.tsv     # your own videos

Weights are random: they make no difference to the time. All settings run in one process, in turn (A B C A B C ...),
after one run that is not counted; a table shows the median of the rounds, and every setting against the first.
"""

import argparse
import json
import logging
import math
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from bench_machine import machine

from slt_plugin.common.errors import SltError
from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.extraction.decoding import Decoders
from slt_plugin.extraction.encoding import Encoder
from slt_plugin.extraction.options import GPU_BATCH_CLIPS, model_threads
from slt_plugin.extraction.pipeline import Pipeline
from slt_plugin.extraction.plan import Job, find_segments
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.staging import Stager
from slt_plugin.extraction.store_options import DTYPES
from slt_plugin.modules.hiera import VARIANTS

BUDGET = 2 << 30  # bytes of decoded frames, slt-extract's default
FPS = 25
THREADS = torch.get_num_threads()  # at most so many for the model; fewer beside decoding processes


@dataclass(frozen=True)
class Measured:
    """One run."""

    clips: int
    videos: int
    seconds: float
    waited: float

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.clips / self.seconds


class Drop:
    """A sink that keeps nothing but what went wrong."""

    def features(self, job: Job, features: torch.Tensor) -> bool:
        return bool(torch.isfinite(features).all())

    def failed(self, job: Job, cause: str) -> None:
        raise SltError(cause)

    def boxless(self, job: Job, warning: str) -> None:
        pass


def make_videos(folder: Path, count: int, mean_seconds: float, size: int) -> list[Row]:
    """Square H.264 videos whose lengths are lognormal, as those of How2Sign's clips, of a moving noisy texture."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(math.log(mean_seconds) - 0.5**2 / 2, 0.5, count), 1, 4 * mean_seconds)
    texture = rng.integers(0, 256, (size // 8 + 64, size // 8 + 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    rows = []
    for number, seconds in enumerate(lengths):
        path = folder / f"{number:04d}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for frame in range(round(seconds * FPS)):
                y, x = (int(128 + 100 * math.sin(frame / 9 + number + turn)) for turn in (0, 1.5))
                image = np.ascontiguousarray(texture[y : y + size, x : x + size])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        rows.append(Row(path.stem, path.name))
    return rows


def measure(source: VideoSource, jobs: list[Job], encoder: Encoder, workers: int, batch: int) -> Measured:
    """All jobs once. Time runs from the first decoded video on, as in slt-extract's own summary."""
    if encoder.device.type == "cpu":
        torch.set_num_threads(model_threads(workers, THREADS))
    progress = Progress(0, math.inf)
    with (
        Stager(jobs, source.root, None, 0) as stager,
        Decoders(source, workers=workers, budget=BUDGET, seed=1) as decoders,
    ):
        Pipeline(stager, decoders, encoder, Drop(), progress, batch=batch).run()
        return Measured(progress.clips, progress.jobs, progress.seconds, progress.waited)


def bench(variant: str, rows: list[Row], root: Path, args: argparse.Namespace) -> list[dict]:
    """The lines of one variant's table."""
    device = torch.device(args.device)
    model = VARIANTS[variant]()
    frames, size, _ = model.input_size
    source = VideoSource(root, ClipOptions(num_frames=frames, stride=frames // 2, size=size))
    jobs = [Job(segment, 0) for segment in find_segments(rows, root)]
    encoder = Encoder(model, device, DTYPES[args.dtype], compile=args.compile)
    batch = args.batch_clips or (GPU_BATCH_CLIPS if device.type == "cuda" else 1)
    measure(source, jobs[:2], encoder, 0, batch)  # kernels, codecs and caches
    runs: dict[int, list[Measured]] = {workers: [] for workers in args.workers}
    for number in range(args.rounds):
        for workers, found in runs.items():
            begin = time.perf_counter()
            found.append(measure(source, jobs, encoder, workers, batch))
            logging.info("%s, %d workers, round %d of %d: %.1f s", variant, workers, number + 1, args.rounds,
                         time.perf_counter() - begin)  # fmt: skip
    lines = []
    for workers, found in runs.items():
        first = runs[args.workers[0]]
        ratios = [one.rate / other.rate for one, other in zip(found, first, strict=True)]
        lines.append(
            {
                "variant": variant,
                "workers": workers,
                "batch": batch,
                "videos": found[0].videos,
                "clips": found[0].clips,
                "clips_per_second": statistics.median(one.rate for one in found),
                "ratio": statistics.median(ratios),
                "waiting": statistics.median(one.waited / one.seconds for one in found),
            }
        )
    return lines


def table(lines: list[dict], first: int) -> str:
    """For a README."""
    head = f"| variant | workers | videos | clips | clips/s | against {first} workers | model waits for data |"
    body = [
        f"| {line['variant']} | {line['workers']} | {line['videos']} | {line['clips']} | "
        f"{line['clips_per_second']:.2f} | {line['ratio']:.2f}x | {line['waiting']:.0%} |"
        for line in lines
    ]
    return "\n".join([head, "|" + "---|" * 7, *body])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter videos, one round")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["tiny_32x64", "base_128x224"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, help="runs of each setting; default 3, with --quick 1")
    parser.add_argument("--manifest", type=Path, help="videos to read instead of made ones")
    parser.add_argument("--media-root", type=Path, help="where its paths start; default: its folder")
    parser.add_argument("--videos", type=int, help="how many to make for the tiny variant; base: an eighth on a CPU")
    parser.add_argument("--seconds", type=float, help="their mean length; default 8, with --quick 4")
    parser.add_argument("--size", type=int, default=224, help="side of the made videos in pixels (default %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--batch-clips", type=int, help=f"windows a batch; default {GPU_BATCH_CLIPS} on a GPU, else 1")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(message)s")
    args.rounds = args.rounds or (1 if args.quick else 3)
    count, seconds = args.videos or (16 if args.quick else 64), args.seconds or (4.0 if args.quick else 8.0)
    folder = Path(tempfile.mkdtemp(prefix="bench-extract-"))
    lines = []
    try:
        if args.manifest is not None:
            rows, root = read_manifest(args.manifest), args.media_root or args.manifest.parent
        else:
            rows, root = make_videos(folder, count, seconds, args.size), folder
        for variant in args.variants:
            heavy = args.device == "cpu" and not variant.startswith("tiny") and args.manifest is None
            lines += bench(variant, rows[: max(2, len(rows) // 8)] if heavy else rows, root, args)
    except SltError as error:
        print(f"bench_extract.py: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    made = str(args.manifest or f"made videos, {args.size}x{args.size} H.264, {seconds:g} s on average")
    print(f"{machine(args.device)}; {made}; {args.dtype}\n\n{table(lines, args.workers[0])}")
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(args.device), "source": made, "lines": lines}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
