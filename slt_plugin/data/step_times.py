"""When, in a row's clip, each step of its source is: for everything that shows time."""

from pathlib import Path

import torch
from torch import Tensor

from slt_plugin.data import pose_files
from slt_plugin.data.clips import VideoSource
from slt_plugin.data.errors import naming_row
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.segments import agreed_fps
from slt_plugin.data.sources import PoseSource, Source


def step_times(source: Source, row: Row, steps: int) -> tuple[Tensor, float] | None:
    """Seconds from the row's start at which each of its ``steps`` begins, (steps,), and how long the row is.

    Clips of raw video overlap, so their times go back now and then. None where nobody knows a frame rate or an end.

    Raises:
        DataError: the file cannot be read.
    """
    with naming_row(row.id):
        if isinstance(source, VideoSource):
            frames, rate = source.file_length(row)
            windows = source.options.windows(frames, rate)[: source.options.truncate or None]
            indices = torch.cat([window.indices[: window.kept_frames] for window in windows])
            return indices.double() / rate, frames / rate
        rate = row.fps
        step = getattr(source, "step", 1)  # of features
        if isinstance(source, PoseSource):
            rate = agreed_fps(row.fps, pose_files.open_pose(resolve_path(row, Path(source.root))).fps)
            step = source.options.step_frames
    if rate is not None:
        return torch.arange(steps, dtype=torch.float64) * (step / rate), steps * step / rate
    if row.end is not None:
        length = row.end - (row.start or 0.0)
        return torch.arange(steps, dtype=torch.float64) * (length / steps), length
    return None


def steps_within(times: Tensor, start: float, end: float) -> Tensor:
    """(T,) bool: the steps whose time is in [start, end)."""
    return (times >= start) & (times < end)
