#!/usr/bin/env python3
"""Times and memory of SignHiera's packed encoder against the dense, masked one of tests/hiera_dense.py.

    python scripts/bench_encoder.py            # base_128x224: half an hour on 2 CPU cores; needs 10 GiB
    python scripts/bench_encoder.py --quick    # a small model, seconds: does it run at all

Both encoders share weights and process and take turns (A B A B); a ratio is the median over the turns. Time is the
process's CPU-seconds on a CPU (other load changes them little), wall time between synchronisations on a GPU. Memory is
the peak of one call, on a CPU of the whole process (Linux only), on a GPU of what PyTorch allocated. The cases are
single clips with parts of them padded, and the windows of How2Sign-like videos: lognormal lengths of 8 s on average
(sigma 0.7, ours), windows of 128 sampled frames every 64, of which evenly spaced quantiles of padding are run.
Weights are random unless --checkpoint gives some. The table goes to stdout, progress to stderr.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench_machine import machine  # noqa: E402
from hiera_dense import DenseHiera  # noqa: E402

from slt_plugin.data.sampling import sliding_windows  # noqa: E402
from slt_plugin.modules.hiera import VARIANTS, SignHiera  # noqa: E402

PADDED_PARTS = (0, 25, 50, 75)  # per cent of a clip
MIX_VIDEOS, MIX_SECONDS, MIX_SIGMA, FPS = 400, 8.0, 0.7, 25.0


@dataclass
class Case:
    """One row of the table; seconds and FLOP are of all its clips together."""

    name: str
    paddings: list[int]
    dense_s: float = 0.0
    ours_s: float = 0.0
    speedup: float = 0.0
    max_difference: float = 0.0  # dense against ours
    ours_bf16_s: float = 0.0
    bf16_speedup: float = 0.0  # ours against ours
    bf16_error: float = 0.0  # relative, in the L2 norm of all features
    dense_bf16_s: float | None = None
    speedup_in_bf16: float | None = None
    dense_gib: float | None = None
    ours_gib: float | None = None
    tflop: float = 0.0
    peak_share: float = 0.0  # of the measured rate of one large matrix product
    peak_share_bf16: float = 0.0


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Device:
    """Clock, memory and matrix-product rate of the device under test."""

    def __init__(self, name: str):
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.process_time()
            call()
            return time.process_time() - start
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def peak_gib(self, call: Callable[[], object]) -> float | None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            call()
            return torch.cuda.max_memory_allocated() / 2**30
        status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        if not os.access(reset, os.W_OK):
            return None
        reset.write_text("5")  # proc(5): sets the peak of the resident size back to its present value
        call()
        lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(lines[0][1]) / 2**20 if lines else None

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """FLOP a second of one large matrix product, the best of several; for a CPU: a second of CPU time."""
        n = 8192 if self.cuda else 2048
        a, b = torch.randn(2, n, n, device=self.device, dtype=dtype).unbind(0)
        return 2 * n**3 / min(self.seconds(lambda: a @ b) for _ in range(8))


def autocast(device: Device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def build(arguments: argparse.Namespace) -> SignHiera:
    torch.manual_seed(0)
    if arguments.quick:
        return SignHiera(input_size=(32, 64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), num_classes=4)
    if arguments.checkpoint:
        from slt_plugin.checkpoints.importer import load_sign_hiera

        return load_sign_hiera(arguments.checkpoint, arguments.model)
    return VARIANTS[arguments.model]()


def spread_weights(model: SignHiera) -> None:
    """Random weights that keep the size of activations, so that attention and rounding errors are not trivial."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            torch.nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def mix(model: SignHiera, count: int) -> tuple[list[int], float, float]:
    """Paddings of ``count`` windows that stand for all; windows a video and mean padding of all."""
    frames, normal = model.input_size[0], statistics.NormalDist()
    middle = torch.tensor([normal.inv_cdf((i + 0.5) / MIX_VIDEOS) for i in range(MIX_VIDEOS)])
    seconds = MIX_SECONDS * torch.exp(MIX_SIGMA * middle - MIX_SIGMA**2 / 2)
    paddings = []
    for length in seconds.mul(FPS).round().clamp(min=1).int().tolist():
        windows = sliding_windows(length, FPS, num_frames=128, sampling_rate=2, target_fps=FPS, stride=64)
        paddings += [window.padding * frames // 128 for window in windows]
    paddings.sort()
    chosen = [paddings[int((i + 0.5) / count * len(paddings))] for i in range(count)]
    return chosen, len(paddings) / MIX_VIDEOS, statistics.mean(paddings)


def flop(model: SignHiera, paddings: list[int]) -> int:
    """Floating-point operations that the kept steps take, counted on tensors without data."""
    shadow = copy.deepcopy(model).to("meta")
    frames, *size = model.input_size
    kept = [frames - model.temporal_stride * (padding // model.temporal_stride) for padding in paddings]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for count in kept:
            shadow.encode_clips([torch.empty(3, count, *size, device="meta")])
    return counter.get_total_flops()


class Runner:
    """Runs the cases; ``batch`` clips at a time."""

    def __init__(self, model: SignHiera, device: Device, repeats: int, batch: int):
        self.model, self.dense, self.device = model, DenseHiera(model), device
        self.repeats, self.batch = repeats, batch
        generator = torch.Generator().manual_seed(0)
        self.video = torch.randn(batch, 3, *model.input_size, generator=generator).to(device.device)
        progress("measuring matrix products")
        self.rate = {dtype: device.matmul_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def encode(self, encoder: SignHiera | DenseHiera, paddings: list[int], dtype: torch.dtype) -> list[Tensor]:
        """Features of all clips, batch by batch."""
        out = []
        for start in range(0, len(paddings), self.batch):
            part = torch.tensor(paddings[start : start + self.batch])
            with torch.no_grad(), autocast(self.device, dtype):
                features, mask = encoder.extract_features(self.video[: len(part)], part)
            out.append(features[~mask].float())
        return out

    def run(self, name: str, paddings: list[int]) -> Case:
        kinds = {
            "dense": (self.dense, torch.float32),
            "ours": (self.model, torch.float32),
            "ours bf16": (self.model, torch.bfloat16),
        }
        if self.device.cuda:
            kinds["dense bf16"] = (self.dense, torch.bfloat16)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        memory: dict[str, float | None] = {}
        features: dict[str, Tensor] = {}

        def turn(kind: str) -> None:
            seconds[kind].append(
                self.device.seconds(lambda: features.update({kind: torch.cat(self.encode(*pair(kind)))}))
            )

        def pair(kind: str) -> tuple[SignHiera | DenseHiera, list[int], torch.dtype]:
            return kinds[kind][0], paddings, kinds[kind][1]

        if self.device.cuda:  # kernels are chosen and workspaces allocated at the first call
            for kind in kinds:
                self.encode(*pair(kind))
        for repeat in range(self.repeats):
            for kind in kinds:
                progress(f"{name}, turn {repeat + 1} of {self.repeats}: {kind}")
                if repeat == 0:
                    memory[kind] = self.device.peak_gib(lambda kind=kind: turn(kind))
                else:
                    turn(kind)
                progress(f"    {seconds[kind][-1]:.3g} s")

        def ratio(a: str, b: str) -> float:
            return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

        case = Case(name, paddings)
        case.dense_s, case.ours_s = (statistics.median(seconds[kind]) for kind in ("dense", "ours"))
        case.ours_bf16_s = statistics.median(seconds["ours bf16"])
        case.speedup, case.bf16_speedup = ratio("dense", "ours"), ratio("ours", "ours bf16")
        case.max_difference = (features["dense"] - features["ours"]).abs().max().item()
        case.bf16_error = ((features["ours bf16"] - features["ours"]).norm() / features["ours"].norm()).item()
        if self.device.cuda:
            case.dense_bf16_s = statistics.median(seconds["dense bf16"])
            case.speedup_in_bf16 = ratio("dense bf16", "ours bf16")
        case.dense_gib, case.ours_gib = memory["dense"], memory["ours"]
        operations = flop(self.model, paddings)
        case.tflop = operations / 1e12
        case.peak_share = operations / case.ours_s / self.rate[torch.float32]
        case.peak_share_bf16 = operations / case.ours_bf16_s / self.rate[torch.bfloat16]
        return case

    def attention_kernels(self, encoder: SignHiera | DenseHiera, dtype: torch.dtype) -> dict[str, int]:
        """Attention operators, and on a GPU kernels that look like attention, of one full clip in a profile: counts."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.cuda else [])]
        with profile(activities=activities, acc_events=True) as profiled:
            self.encode(encoder, [0], dtype)
        marks = ("_scaled_dot_product_", "fmha", "flash_fwd", "softmax")
        return {
            event.key[:80]: event.count
            for event in profiled.key_averages()
            if any(mark in event.key for mark in marks) and not event.key.startswith("aten::scaled_dot")
        }


def table(cases: list[Case], kernels: dict[str, dict[str, int]], about: list[str]) -> str:
    """Markdown for the README."""

    def gib(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.1f}"

    lines = [*about, ""]
    columns = ["clips", "dense s", "ours s", "dense / ours", "difference", "memory GiB, dense / ours", "of matmul peak"]
    columns += ["ours bf16 s", "fp32 / bf16", "bf16 feature error", "of bf16 peak", "dense / ours in bf16"]
    lines += [f"| {' | '.join(columns)} |"]
    lines += ["|---" * len(columns) + "|"]
    for c in cases:
        in_bf16 = "n/a" if c.speedup_in_bf16 is None else f"{c.speedup_in_bf16:.2f}"
        memory = f"{gib(c.dense_gib)} / {gib(c.ours_gib)}"
        lines.append(
            f"| {c.name} | {c.dense_s:.3g} | {c.ours_s:.3g} | {c.speedup:.2f} | {c.max_difference:.0e} | {memory} | "
            f"{c.peak_share:.0%} | {c.ours_bf16_s:.3g} | {c.bf16_speedup:.2f} | {c.bf16_error:.2%} | "
            f"{c.peak_share_bf16:.0%} | {in_bf16} |"
        )
    for name, counts in kernels.items():
        lines += ["", f"Attention in a profile, {name}:"]
        lines += [f"- {count} x `{kernel}`" for kernel, count in counts.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(VARIANTS), default="base_128x224")
    parser.add_argument("--checkpoint", help="weights of that model, as slt-import-checkpoint reads or writes them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="turns of each encoder (2 on a CPU, 5 on a GPU)")
    parser.add_argument("--batch", type=int, help="clips at once (1 on a CPU, 8 on a GPU)")
    parser.add_argument("--mix-windows", type=int, default=8, help="windows that stand for the mix (default 8)")
    parser.add_argument("--quick", action="store_true", help="a small model, to see that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    arguments = parser.parse_args()
    device = Device(arguments.device)
    repeats = arguments.repeats or (5 if device.cuda else 2)
    batch = arguments.batch or (8 if device.cuda else 1)

    model = build(arguments).eval()
    if not arguments.checkpoint:
        spread_weights(model)
    runner = Runner(model.to(device.device), device, repeats, batch)
    frames = model.input_size[0]
    cases = [runner.run(f"{part} % padded", [frames * part // 100] * batch) for part in PADDED_PARTS]
    paddings, windows, mean_padding = mix(model, arguments.mix_windows)
    cases.append(runner.run("How2Sign-like mix", paddings))
    kernels = {
        "ours fp32": runner.attention_kernels(runner.model, torch.float32),
        "ours bf16": runner.attention_kernels(runner.model, torch.bfloat16),
        "dense fp32": runner.attention_kernels(runner.dense, torch.float32),
    }
    where = machine("cuda" if device.cuda else "cpu")
    about = [
        f"{'small model' if arguments.quick else arguments.model}, "
        f"{'weights of ' + arguments.checkpoint if arguments.checkpoint else 'random weights'}, batches of {batch}, "
        f"{repeats} turns; {'wall' if device.cuda else 'CPU-'}seconds of all clips of a row; {where}.",
        f"The mix: {windows:.2f} windows a video, mean padding {mean_padding:.0f} of {frames} frames; "
        f"run: padding {', '.join(map(str, paddings))}.",
        "Measured matrix products: "
        + ", ".join(f"{str(dtype)[6:]} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in runner.rate.items())
        + (" of wall time." if device.cuda else " of CPU time."),
    ]
    if arguments.json:
        print(json.dumps({"about": about, "cases": [asdict(case) for case in cases], "kernels": kernels}, indent=1))
    else:
        print(table(cases, kernels, about))


if __name__ == "__main__":
    main()
