#!/usr/bin/env python3
"""Times and memory of decode_clip against decoding everything to RGB and indexing then.

    python scripts/bench_decode.py                  # a few minutes on 2 CPU cores, half of it makes the videos
    python scripts/bench_decode.py --quick          # half a minute: smaller pictures, does it run at all
    python scripts/bench_decode.py --videos a.mp4   # your own files too

Asked for are 128 evenly spaced frames of H.264 videos of 8, 12 and 16 s at 25 fps, as 224x224 pixels; and an 8 s
segment of a 5-minute file against the same segment as a file of its own. The plain way is PyAV's `decode` and
`to_ndarray`; it does not scale, so that part of our work is not counted on its side. Both share one process and take
turns (A B A B); a ratio is the median over the turns. CPU-seconds are of the whole process, all threads. Memory is the
peak above what the process held before (Linux only). The table goes to stdout, progress to stderr.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from bench_machine import machine

from slt_plugin.data.video import decode_clip, probe

FPS, WANTED, SIZE = 25, 128, 224
LONG_SECONDS, SEGMENT_SECONDS = 300, 8
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    cpu: float
    wall: float
    mib: float | None


@dataclass(frozen=True)
class Case:
    """Two ways to the same frames."""

    name: str
    plain: Callable[[], object]
    ours: Callable[[], object]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def scene(width: int, height: int, count: int) -> list[np.ndarray]:
    """Pictures (height, width, 3) uint8: three textured discs move before a textured wall, with a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    coarse = rng.normal(0, 12, (height // 16 + 2, width // 16 + 2)).repeat(16, 0).repeat(16, 1)[:height, :width]
    wall = 110 + 40 * y + coarse
    cloth = 150 + 50 * np.sin(60 * x + 20 * y)
    noise = [rng.normal(0, 1.5, (height, width)).astype(np.float32) for _ in range(8)]
    frames = []
    for t in range(count):
        picture = wall + noise[t % len(noise)]
        for i, radius in enumerate((0.25, 0.1, 0.1)):
            cx = 0.5 * width / height + 0.25 * np.sin(0.05 * t * (i + 1) + i)
            cy = 0.5 + 0.2 * np.cos(0.07 * t * (i + 1))
            picture = np.where((x - cx) ** 2 + (y - cy) ** 2 < radius**2, cloth + 10 * i, picture)
        gray = picture.clip(0, 255).astype(np.uint8)
        frames.append(np.stack([gray, gray[:, ::-1] // 2 + 60, 255 - gray], axis=2))
    return frames


def encode(path: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "fast", "crf": "23"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def repeat(path: Path, source: Path, times: int) -> Path:
    """The packets of a file several times one after another."""
    with av.open(str(path), "w") as out:
        with av.open(str(source)) as container:
            stream = out.add_stream_from_template(container.streams.video[0])
            seconds = Fraction(container.streams.video[0].frames, FPS)
        for i in range(times):
            with av.open(str(source)) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.size:
                        packet.pts += round(i * seconds / packet.time_base)
                        packet.dts += round(i * seconds / packet.time_base)
                        packet.stream = stream
                        out.mux(packet)
    return path


def decode_everything(path: Path, indices: list[int]) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return frames[indices]


def evenly(path: Path) -> list[int]:
    count = probe(path).num_frames
    return torch.linspace(0.5, count - 0.5, min(WANTED, count)).int().tolist()


def against_everything(name: str, path: Path, size: int) -> Case:
    indices = evenly(path)
    return Case(
        f"{name}, {len(indices)} of {probe(path).num_frames} frames",
        lambda: decode_everything(path, indices),
        lambda: decode_clip(path, indices=indices, size=size),
    )


def peak(call: Callable[[], object]) -> float | None:
    """MiB of resident memory that a call needs on top of what is there."""
    if not os.access(RESET, os.W_OK):
        return None

    def value(name: str) -> float:
        return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith(name))

    before = value("VmRSS:")
    RESET.write_text("5")  # proc(5): sets the peak of the resident size back to its present value
    call()
    return value("VmHWM:") - before


def measure(call: Callable[[], object]) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu, wall, None)


def compare(case: Case, turns: int) -> list[str]:
    """A row of the table."""
    case.plain(), case.ours()  # the first call of each is not counted
    costs = [(measure(case.plain), measure(case.ours)) for _ in range(turns)]
    plain_mib, ours_mib = peak(case.plain), peak(case.ours)
    row = [case.name]
    for pick in (lambda cost: cost.cpu, lambda cost: cost.wall):
        plain = statistics.median(pick(a) for a, _ in costs)
        ours = statistics.median(pick(b) for _, b in costs)
        ratio = statistics.median(pick(a) / pick(b) for a, b in costs)
        row += [f"{plain:.3f}", f"{ours:.3f}", f"{ratio:.2f}"]
    return row + [f"{mib:.0f}" if mib is not None else "" for mib in (plain_mib, ours_mib)]


def cases(folder: Path, quick: bool, videos: list[Path]) -> list[Case]:
    made = []
    for name, (width, height), size in (
        ("224x224", (224, 224), SIZE),
        ("1280x720", (1280, 720), SIZE) if not quick else ("640x360", (640, 360), SIZE),
    ):
        frames = scene(width, height, 16 * FPS)
        for seconds in (8, 12, 16):
            progress(f"encoding {name}, {seconds} s")
            path = encode(folder / f"{name}_{seconds}.mp4", frames[: seconds * FPS])
            made.append(against_everything(f"{name}, {seconds} s", path, size))
        progress(f"segment of {LONG_SECONDS} s, {name}")
        whole = repeat(folder / f"{name}_long.mp4", folder / f"{name}_16.mp4", -(-LONG_SECONDS // 16))
        start = LONG_SECONDS // 2 - LONG_SECONDS // 2 % 16 + 5.0  # between the keyframes at 0 and 10 s of each round
        cut = encode(folder / f"{name}_cut.mp4", frames[5 * FPS : (5 + SEGMENT_SECONDS) * FPS])
        title = f"{name}, {SEGMENT_SECONDS} s: own file (plain), segment of {LONG_SECONDS} s (ours)"
        made.append(segment_case(title, whole, start, cut, size))
    return made + [against_everything(path.name, path, SIZE) for path in videos]


def segment_case(name: str, whole: Path, start: float, cut: Path, size: int) -> Case:
    indices = evenly(cut)
    return Case(
        name,
        lambda: decode_clip(cut, indices=indices, size=size),
        lambda: decode_clip(whole, start, start + SEGMENT_SECONDS, indices=indices, size=size),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller pictures, fewer turns")
    parser.add_argument("--turns", type=int, help="of A and B (default: 5, with --quick 2)")
    parser.add_argument("--videos", type=Path, nargs="+", default=[], help="files to measure as well")
    arguments = parser.parse_args()
    turns = arguments.turns or (2 if arguments.quick else 5)
    header = ["", "plain CPU s", "ours", "ratio", "plain wall s", "ours", "ratio", "plain MiB", "ours"]
    print(f"{machine()}, PyAV {av.__version__}")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(Path(folder), arguments.quick, arguments.videos):
            progress(case.name)
            print("| " + " | ".join(compare(case, turns)) + " |", flush=True)


if __name__ == "__main__":
    main()
