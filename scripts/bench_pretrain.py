#!/usr/bin/env python3
"""Times and memory of an MAE pretraining step, against the dense, masked computation of tests/mae_dense.py.

    python scripts/bench_pretrain.py            # base_128x224: ten minutes on 2 CPU cores; needs 10 GiB
    python scripts/bench_pretrain.py --quick    # a small model, seconds: does it run at all

Steps: both computations share weights, clips and masks (ratio 0.9), run in one process and take turns (A B A B); a
ratio is the median over the turns. Time is the process's CPU-seconds on a CPU, wall time between synchronisations on a
GPU. Memory is the peak of one forward and backward pass, on a CPU that of a process of its own, model included (Linux).

Training: the real data path on videos that are made for it (--video-size, 8 to 16 s, H.264): a dataset of task
sign_pretraining with two random clips a row, RandAugment and crops, loader workers, forward, backward, fairseq's Adam.
Wall time; "data" is how long the step waits for its batch. On a GPU it is autocast to bf16 on float32 weights, while
the recipes train bf16 weights with float32 copies (common.bf16): memory and optimiser differ from theirs.
Weights are random. Tables go to stdout, progress to stderr.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from fairseq.optim.adam import Adam
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench_encoder import Device, autocast, progress  # noqa: E402
from bench_machine import machine  # noqa: E402
from mae_dense import DenseMAE  # noqa: E402

from slt_plugin.data.clips import ClipOptions  # noqa: E402
from slt_plugin.data.manifest import Row  # noqa: E402
from slt_plugin.data.pretraining import PretrainingDataset, RandomClips  # noqa: E402
from slt_plugin.data.transforms import VideoAugment  # noqa: E402
from slt_plugin.extraction.options import available_cpus  # noqa: E402
from slt_plugin.models.sign_mae import prepare_clips  # noqa: E402
from slt_plugin.modules.hiera import SignHiera  # noqa: E402
from slt_plugin.modules.hiera_mae import VARIANTS, SignHieraMAE  # noqa: E402

MASK_RATIO = 0.9
PHASES = ("data", "forward", "backward", "optimiser")


@dataclass
class Step:
    """One row of the first table; seconds of a whole batch."""

    padding: int  # frames of each clip
    dense_s: float = 0.0
    ours_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    speedup: float = 0.0
    difference: float = 0.0  # of the losses
    ours_bf16_s: float = 0.0
    bf16_speedup: float = 0.0
    dense_gib: float | None = None
    ours_gib: float | None = None


@dataclass
class Training:
    """The second table; wall-clock seconds of a step, medians."""

    clips: int
    workers: int
    precision: str
    phases: dict[str, float] = field(default_factory=dict)
    clips_per_second: float = 0.0
    gib: float | None = None


def build(arguments: argparse.Namespace) -> SignHieraMAE:
    torch.manual_seed(0)
    if not arguments.quick:
        return VARIANTS[arguments.model]()
    encoder = SignHiera(input_size=(32, 64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), num_classes=0)
    mae = SignHieraMAE(encoder, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=2)
    mae.reset_encoder()
    return mae


def dense_mask(mae: SignHieraMAE, batch: int, padding: int) -> Tensor:
    """Equally many kept units for each clip, padded ones among them, as the dense computation needs: (B, units)."""
    units, steps = mae.encoder.layout.units, mae.encoder.max_steps
    generator = torch.Generator().manual_seed(padding)
    mask = torch.zeros(batch, units * steps, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(len(row), generator=generator)[: max(1, int(len(row) * (1 - MASK_RATIO)))]] = True
        if not row[: (steps - padding // mae.encoder.temporal_stride) * units].any():  # a small model alone
            row[row.nonzero()[0]] = False
            row[0] = True
    return mask


class Steps:
    """Runs forward and backward passes; ``batch`` clips at a time."""

    def __init__(self, mae: SignHieraMAE, device: Device, arguments: argparse.Namespace):
        self.mae, self.dense, self.device = mae, DenseMAE(mae), device
        self.arguments, self.repeats, self.batch = arguments, arguments.repeats, arguments.batch
        generator = torch.Generator().manual_seed(0)
        self.video = torch.randn(self.batch, 3, *mae.encoder.input_size, generator=generator).to(device.device)

    def loss(self, kind: str, mask: Tensor, paddings: Tensor) -> Tensor:
        """kind: dense, ours or bf16."""
        with autocast(self.device, torch.bfloat16 if kind == "bf16" else torch.float32):
            if kind == "dense":
                return self.dense(self.video, mask, paddings)[0]
            return self.mae(self.video, mask=mask, padding=paddings).loss

    def run(self, padding: int) -> Step:
        paddings = torch.full((self.batch,), padding)
        mask = dense_mask(self.mae, self.batch, padding).to(self.device.device)
        losses: dict[str, Tensor] = {}
        seconds: dict[str, list[float]] = {}
        memory: dict[str, float | None] = {}

        def forward(kind: str) -> None:
            losses[kind] = self.loss(kind, mask, paddings)

        def turn(kind: str) -> None:
            for parameter in self.mae.parameters():
                parameter.grad = None
            first = self.device.seconds(lambda: forward(kind))
            second = self.device.seconds(losses[kind].backward)
            losses[kind] = losses[kind].detach()
            for name, value in ((kind, first + second), (f"{kind} forward", first), (f"{kind} backward", second)):
                seconds.setdefault(name, []).append(value)

        kinds = ("dense", "ours", "bf16")
        if self.device.cuda:  # kernels are chosen and workspaces allocated at the first call
            for kind in kinds:
                turn(kind)
            seconds.clear()
        for repeat in range(self.repeats):
            for kind in kinds:
                progress(f"{padding} padding frames, turn {repeat + 1} of {self.repeats}: {kind}")
                if repeat == 0 and self.device.cuda:
                    memory[kind] = self.device.peak_gib(lambda kind=kind: turn(kind))
                else:
                    turn(kind)
                progress(f"    {seconds[kind][-1]:.3g} s")
        if not self.device.cuda:
            memory = {kind: peak_of_a_process(self.arguments, kind, padding) for kind in ("dense", "ours")}

        def ratio(a: str, b: str) -> float:
            return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

        median = {name: statistics.median(values) for name, values in seconds.items()}
        return Step(
            padding=padding,
            dense_s=median["dense"],
            ours_s=median["ours"],
            forward_s=median["ours forward"],
            backward_s=median["ours backward"],
            speedup=ratio("dense", "ours"),
            difference=abs(losses["dense"] - losses["ours"]).item(),
            ours_bf16_s=median["bf16"],
            bf16_speedup=ratio("ours", "bf16"),
            dense_gib=memory["dense"],
            ours_gib=memory["ours"],
        )


def peak_of_a_process(arguments: argparse.Namespace, kind: str, padding: int) -> float | None:
    """Peak memory of a new process that computes one loss and its gradient: what earlier steps left does not count."""
    progress(f"{padding} padding frames: memory of {kind}")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (arguments, kind, padding))


def _peak(arguments: argparse.Namespace, kind: str, padding: int) -> float | None:
    device = Device("cpu")
    runner = Steps(build(arguments), device, arguments)
    mask = dense_mask(runner.mae, runner.batch, padding)
    return device.peak_gib(lambda: runner.loss(kind, mask, torch.full((runner.batch,), padding)).backward())


def make_videos(folder: Path, count: int, size: int) -> list[Row]:
    """H.264 files of moving noise, 25 frames a second."""
    rows, generator = [], np.random.default_rng(0)
    for i in range(count):
        frames = int(generator.integers(200, 401))
        picture = generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        with av.open(str(folder / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for t in range(frames):
                frame = av.VideoFrame.from_ndarray(np.roll(picture, (t, 2 * t), (0, 1)), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows.append(Row(id=str(i), path=f"{i}.mp4", num_frames=frames, fps=25.0))
    return rows


def batches(dataset: PretrainingDataset, rows: int, workers: int) -> Iterator[dict]:
    """Batches of ``rows`` rows without end, from loader workers."""
    epoch = 1
    while True:
        dataset.set_epoch(epoch)
        order = np.random.default_rng(epoch).permutation(len(dataset))
        chosen = [order[i : i + rows].tolist() for i in range(0, len(order) - rows + 1, rows)]
        yield from torch.utils.data.DataLoader(
            dataset, batch_sampler=chosen, collate_fn=dataset.collater, num_workers=workers, pin_memory=False
        )
        epoch += 1


def train(mae: SignHieraMAE, device: Device, arguments: argparse.Namespace, folder: Path) -> Training:
    frames, size = mae.encoder.input_size[:2]
    rows, clips = arguments.train_clips // 2, arguments.train_clips
    videos = make_videos(folder, max(2 * rows, 4), arguments.video_size)
    augment = VideoAugment(randaugment_ops=4, randaugment_magnitude=7, crop=size // 7, flip=0.5)
    options = ClipOptions(num_frames=frames, size=size, augment=augment)
    source = RandomClips(folder, options)
    dataset = PretrainingDataset([videos], source, [source.length(row) for row in videos], copies=2, training=True)
    optimiser = Adam(mae.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)
    precision = torch.bfloat16 if device.cuda else torch.float32
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    stream = batches(dataset, rows, arguments.workers)

    def clock() -> float:
        if device.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step() -> None:
        stamps = [clock()]
        batch = next(stream)["net_input"]
        inputs = {name: value.to(device.device, non_blocking=True) for name, value in batch.items()}
        stamps.append(clock())
        video, padding = prepare_clips(inputs["src_tokens"], inputs["src_lengths"])
        with autocast(device, precision):
            loss = mae(video, padding=padding, seeds=inputs["mask_seeds"], mask_ratio=MASK_RATIO).loss
        stamps.append(clock())
        optimiser.zero_grad()
        loss.backward()
        stamps.append(clock())
        optimiser.step()
        stamps.append(clock())
        for phase, begin, end in zip(PHASES, stamps, stamps[1:], strict=False):
            times[phase].append(end - begin)
        progress("training step: " + ", ".join(f"{phase} {times[phase][-1]:.3g} s" for phase in PHASES))

    step()  # starts workers, allocates the optimiser's state
    for values in times.values():
        values.clear()
    gib = device.peak_gib(step)
    for _ in range(arguments.train_steps - 1):
        step()
    result = Training(clips, arguments.workers, str(precision).removeprefix("torch."), gib=gib)
    result.phases = {phase: statistics.median(values) for phase, values in times.items()}
    # of the sum, not of the medians: a wait every few steps counts
    result.clips_per_second = clips * arguments.train_steps / sum(map(sum, times.values()))
    return result


def table(steps: list[Step], training: Training, about: list[str]) -> str:
    """Markdown for the README."""

    def gib(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.1f}"

    columns = ["padding frames", "dense s", "ours s", "of it forward, backward", "dense / ours", "loss difference"]
    columns += ["memory GiB, dense / ours", "ours bf16 s", "fp32 / bf16"]
    lines = [*about, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {s.padding} | {s.dense_s:.3g} | {s.ours_s:.3g} | {s.forward_s:.3g}, {s.backward_s:.3g} | {s.speedup:.2f} | "
        f"{s.difference:.0e} | {gib(s.dense_gib)} / {gib(s.ours_gib)} | {s.ours_bf16_s:.3g} | {s.bf16_speedup:.2f} |"
        for s in steps
    ]
    whole = sum(training.phases.values())
    lines += ["", "| clips a step | workers | precision | data | forward | backward | optimiser | clips/s | GiB |"]
    lines += ["|---" * 9 + "|"]
    parts = " | ".join(f"{training.phases[phase]:.3g} s ({training.phases[phase] / whole:.0%})" for phase in PHASES)
    lines.append(
        f"| {training.clips} | {training.workers} | {training.precision} | {parts} | {training.clips_per_second:.3g} | "
        f"{gib(training.gib)} |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(VARIANTS), default="base_128x224")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="turns of each computation (2 on a CPU, 5 on a GPU)")
    parser.add_argument("--batch", type=int, help="clips at once in the first table (1 on a CPU, 8 on a GPU)")
    parser.add_argument("--paddings", type=int, nargs="+", help="padding frames (default 0, 40, 64, 96 of 128)")
    parser.add_argument("--train-clips", type=int, help="clips of a training step (2 on a CPU, 32 on a GPU)")
    parser.add_argument("--train-steps", type=int, help="training steps (3 on a CPU, 20 on a GPU)")
    parser.add_argument("--workers", type=int, help="loader workers (1 on a CPU, one for each core but one on a GPU)")
    parser.add_argument("--video-size", type=int, default=224, help="side of the videos in pixels (default 224)")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    defaults = (5, 8, 32, 20, max(1, available_cpus() - 1)) if device.cuda else (2, 1, 2, 3, 1)
    for name, value in zip(("repeats", "batch", "train_clips", "train_steps", "workers"), defaults, strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.train_clips < 2 or arguments.train_clips % 2:
        parser.error("--train-clips: give an even number, two clips for each video")

    mae = build(arguments).to(device.device)
    frames = mae.encoder.input_size[0]
    paddings = arguments.paddings or [frames * part // 128 for part in (0, 40, 64, 96)]
    runner = Steps(mae, device, arguments)
    steps = [runner.run(padding) for padding in paddings]
    with tempfile.TemporaryDirectory() as folder:
        training = train(mae, device, arguments, Path(folder))
    about = [
        f"{'small model' if arguments.quick else arguments.model}, random weights, mask ratio {MASK_RATIO}, batches of "
        f"{arguments.batch}, {arguments.repeats} turns; {'wall' if device.cuda else 'CPU-'}seconds of a batch; "
        f"{machine('cuda' if device.cuda else 'cpu')}.",
        f"Training: videos of {arguments.video_size} x {arguments.video_size} pixels, {arguments.train_steps} steps, "
        f"wall time; load average at the end {os.getloadavg()[0]:.1f}.",
    ]
    if arguments.json:
        print(json.dumps({"about": about, "steps": [asdict(s) for s in steps], "training": asdict(training)}, indent=1))
    else:
        print(table(steps, training, about))


if __name__ == "__main__":
    main()
