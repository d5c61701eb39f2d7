"""Windows of many videos through the encoder, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.data.transforms import normalise
from slt_plugin.extraction.device import fitting
from slt_plugin.extraction.plan import Job
from slt_plugin.modules.hiera import SignHiera


class Window(NamedTuple):
    """One window of a job: ``frames`` (T, 3, S, S) uint8, ``number`` its place in the video."""

    job: Job
    number: int
    frames: Tensor


class WindowQueue:
    """Windows that wait for the model; those of a batch are of similar length, as attention is computed by length."""

    def __init__(self):
        self._waiting: list[Window] = []  # in order of arrival

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job, frames: Tensor, lengths: Sequence[int]) -> None:
        """All windows of a job, whose frames stand one behind the other."""
        parts = frames.split(list(lengths))
        self._waiting.extend(Window(job, number, part) for number, part in enumerate(parts))

    def next_batch(self, size: int) -> list[Window]:
        """The window that has waited longest with the ``size - 1`` nearest to it in length."""
        length = len(self._waiting[0].frames)
        order = sorted(range(len(self._waiting)), key=lambda i: abs(len(self._waiting[i].frames) - length))  # stable
        chosen = set(order[:size])
        batch = [self._waiting[i] for i in sorted(chosen)]
        self._waiting = [window for i, window in enumerate(self._waiting) if i not in chosen]
        return batch


@dataclass
class Pending:
    """A batch on its way: its windows' features are ``features`` when ``done`` has happened on the GPU."""

    windows: list[Window]
    features: Tensor  # (steps of all windows, C) float32, on the CPU
    steps: list[int]
    done: torch.cuda.Event | None = None
    source: Tensor | None = field(default=None, repr=False)  # pinned memory that the GPU still reads

    def collect(self) -> list[Tensor]:
        """Features of each window, (T', C) float32."""
        if self.done is not None:
            self.done.synchronize()
        return list(self.features.split(self.steps))


class Encoder:
    """The frozen model. On a GPU a batch is only started, so that the next one is prepared while it is computed.

    Args:
        model: is moved to ``device`` and set to evaluation.
        dtype: of autocast; float32: none.
        compile: torch.compile the model's blocks.
    """

    def __init__(self, model: SignHiera, device: torch.device, dtype: torch.dtype, *, compile: bool = False):
        self.model, self.device, self.dtype = model.to(device).eval().requires_grad_(False), device, dtype
        if compile:
            self.model.compile_blocks()

    @torch.inference_mode()
    def start(self, windows: list[Window]) -> Pending:
        """Begins a batch.

        Raises:
            ExtractionError: it does not fit into the GPU's memory.
        """
        lengths = [len(window.frames) for window in windows]
        steps = [length // self.model.temporal_stride for length in lengths]
        frames = torch.cat([window.frames for window in windows])
        cuda = self.device.type == "cuda"
        if cuda:
            frames = frames.pin_memory()
        with (
            fitting(self.device, f"{len(windows)} windows", "lower batch_clips"),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
        ):
            pixels = normalise(frames.to(self.device, non_blocking=True))
            features = self.model.encode_clips([clip.transpose(0, 1) for clip in pixels.split(lengths)])
        together = torch.cat(features).float()
        if not cuda:
            return Pending(windows, together, steps)
        host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
        host.copy_(together, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Pending(windows, host, steps, done, frames)


class Assembler:
    """Puts the features of windows together again to those of whole videos."""

    def __init__(self):
        self._parts: dict[tuple[str, int], list[Tensor | None]] = {}

    def expect(self, job: Job, windows: int) -> None:
        """A job will have so many windows."""
        self._parts[job.name] = [None] * windows

    def add(self, window: Window, features: Tensor) -> Tensor | None:
        """All features of the window's job, in order of time, when it was the last that lacked; else None."""
        parts = self._parts[window.job.name]
        parts[window.number] = features
        if any(part is None for part in parts):
            return None
        return torch.cat(self._parts.pop(window.job.name))
