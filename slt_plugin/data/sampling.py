"""Temporal sampling of SSVP-SLT (Rust et al., 2024): which frames of a video make up the clips that SignHiera reads."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slt_plugin.data.errors import DataError


class Window(NamedTuple):
    """One clip.

    indices: (num_frames,) int64 frame numbers, never decreasing; past the video's end its last frame repeats.
    padding: how many of the sampled frames are padding.
    """

    indices: Tensor
    padding: int

    @property
    def kept_frames(self) -> int:
        """Leading sampled frames that count: padding is dropped in whole time steps of two frames, rounded down."""
        return len(self.indices) - 2 * (self.padding // 2)


def sliding_windows(
    num_video_frames: int, fps: float, *, num_frames: int, sampling_rate: int, target_fps: float, stride: int
) -> list[Window]:
    """All clips of a video, in order; the last one is the first that reaches the video's end.

    Clips start every ``stride * sampling_rate`` video frames whatever the frame rate, as in the released models: under
    ``target_fps * stride / num_frames`` frames per second there are gaps between them.

    Args:
        num_video_frames: frames of the video (or of its segment), at least 1.
        fps: their rate.
        num_frames: frames sampled for a clip, even.
        sampling_rate: every n-th frame of a video at ``target_fps`` is sampled.
        target_fps: the rate at which ``sampling_rate`` counts.
        stride: sampled frames from the start of one clip to the start of the next.

    Raises:
        DataError: a number that no sampling can have.
    """
    _check(num_video_frames, fps, num_frames=num_frames, sampling_rate=sampling_rate, target_fps=target_fps)
    if stride < 1:
        raise DataError(f"stride={stride} between windows: give a whole number of sampled frames, at least 1")
    length = clip_length(fps, num_frames=num_frames, sampling_rate=sampling_rate, target_fps=target_fps)
    windows, start = [], 0
    while True:
        windows.append(_window(start, length, num_video_frames, fps, num_frames, sampling_rate, target_fps))
        reached = start + length - 1 >= num_video_frames
        start += stride * sampling_rate
        if reached or start >= num_video_frames:
            return windows


def random_window(
    num_video_frames: int,
    fps: float,
    *,
    num_frames: int,
    sampling_rate: int,
    target_fps: float,
    rng: np.random.Generator,
) -> Window:
    """A clip that starts anywhere it fits into the video; the beginning of a video that is shorter than a clip."""
    _check(num_video_frames, fps, num_frames=num_frames, sampling_rate=sampling_rate, target_fps=target_fps)
    length = clip_length(fps, num_frames=num_frames, sampling_rate=sampling_rate, target_fps=target_fps)
    start = float(rng.uniform(0, max(0.0, num_video_frames - length)))
    return _window(start, length, num_video_frames, fps, num_frames, sampling_rate, target_fps)


def clip_length(fps: float, *, num_frames: int, sampling_rate: int, target_fps: float) -> float:
    """The length of a clip in video frames."""
    return sampling_rate * num_frames / target_fps * fps


def _window(
    start: float,
    length: float,
    num_video_frames: int,
    fps: float,
    num_frames: int,
    sampling_rate: int,
    target_fps: float,
) -> Window:
    # float32 like the reference: other rounding would now and then give the neighbouring frame
    middles = torch.linspace(start + 0.5, start + length - 1 + 0.5, num_frames)
    indices = middles.clamp(0, num_video_frames - 1).long()
    distinct = len(torch.unique(indices))
    if target_fps > fps * sampling_rate:  # a slow video: frames repeat without being padding
        distinct = int(distinct * target_fps / (fps * sampling_rate))
    return Window(indices, max(0, num_frames - distinct))


def _check(num_video_frames: int, fps: float, *, num_frames: int, sampling_rate: int, target_fps: float) -> None:
    if num_video_frames < 1:
        raise DataError("the video has no frames: write it again, or remove the row")
    for name, value in (("frame rate", fps), ("target_fps", target_fps)):
        if not 0 < value < float("inf"):
            raise DataError(f"{name} {value}: give a number of frames per second above 0")
    if num_frames < 2 or num_frames % 2 or sampling_rate < 1:
        raise DataError(
            f"num_frames={num_frames}, sampling_rate={sampling_rate}: clips have an even number of frames, at least 2, "
            "and a sampling rate of at least 1"
        )
