"""Raw video as a source: the sliding windows of a row, decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slt_plugin.data import video
from slt_plugin.data.errors import DataError, naming_file, naming_row
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.sampling import Window, random_window, sliding_windows
from slt_plugin.data.segments import check_num_frames, known_frames
from slt_plugin.data.transforms import VideoAugment, augment_clip


@dataclass(frozen=True)
class ClipOptions:
    """How a video is cut into clips; the defaults are those of the released 128x224 models.

    num_frames: sampled frames of a clip.
    sampling_rate, target_fps: every n-th frame of a video at that rate.
    stride: sampled frames from the start of one clip to the start of the next.
    size: side of the square frames, in pixels.
    truncate: keep at most this many clips of a row, from its start; 0: all.
    """

    num_frames: int = 128
    sampling_rate: int = 2
    target_fps: float = 25.0
    stride: int = 64
    size: int = 224
    truncate: int = 0
    augment: VideoAugment = field(default_factory=VideoAugment)

    def __post_init__(self):
        if self.size < 1 or self.truncate < 0:
            raise DataError(f"size={self.size}, truncate={self.truncate}: give a size from 1 up and truncate from 0 up")

    def windows(self, num_video_frames: int, fps: float) -> list[Window]:
        """All clips of a video, also those that ``truncate`` leaves out."""
        return sliding_windows(
            num_video_frames,
            fps,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            stride=self.stride,
        )

    def random_window(self, num_video_frames: int, fps: float, rng: np.random.Generator) -> Window:
        """One clip at a random place of a video; ``stride`` and ``truncate`` have no part in it."""
        return random_window(
            num_video_frames,
            fps,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            rng=rng,
        )


class Clips(NamedTuple):
    """The clips of a row, one behind the other, without their padding.

    frames: (F, 3, size, size) uint8.
    lengths: frames of each clip, even; their sum is F.
    """

    frames: Tensor
    lengths: tuple[int, ...]


class VideoSource:
    """Raw video: (F, 3, size, size) uint8 frames of the sliding windows, in the manifest's order of time.

    A step is a sampled frame here; SignHiera makes one feature of two. Padding is left out: padded time steps are
    trailing and change nothing before them, so they need not be decoded, moved or computed.
    """

    def __init__(self, root: Path, options: ClipOptions):
        self.root, self.options = Path(root), options
        self.channels = 3

    def num_steps(self, row: Row) -> int:
        """See `sources.Source`: the sum of `clip_lengths`."""
        return sum(self.clip_lengths(row))

    def clip_lengths(self, row: Row) -> tuple[int, ...]:
        """Frames of each clip that `load` will give, from the row's own fields where they tell, else from the file."""
        return tuple(window.kept_frames for window in self._kept(self._windows(row)))

    def truncated_clips(self, row: Row) -> int:
        """How many clips of the row ``truncate`` leaves out."""
        if not self.options.truncate:
            return 0
        return max(0, len(self._windows(row)) - self.options.truncate)

    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> Clips:
        """See `sources.Source`; one random change is drawn for all clips of the row."""
        augment = self.options.augment
        with naming_row(row.id):
            windows = self._windows_of_file(row)
            frames = self.decode(row, windows, self.options.size + (augment.crop if rng is not None else 0))
        if rng is not None:
            frames = augment_clip(frames, self.options.size, augment, rng)
        return Clips(frames, tuple(window.kept_frames for window in windows))

    def clips(self, row: Row) -> Iterator[Tensor]:
        """The clips of `load` one by one, (T, 3, size, size) uint8: a long video is never in memory as a whole."""
        with naming_row(row.id):
            for window in self._windows_of_file(row):
                yield self.decode(row, [window], self.options.size)

    def known_length(self, row: Row) -> tuple[int, float]:
        """Frames of the row and their rate, from its own fields where they tell, else from the file."""
        with naming_row(row.id):
            with naming_file(row.path):
                frames, rate = known_frames(row), row.fps
            if frames is None or rate is None:
                path = resolve_path(row, self.root)
                info = video.probe(path, row.start, row.end, fps=row.fps)
                frames, rate = info.num_frames, _rate(path, info.fps)
            return frames, rate

    def file_length(self, row: Row) -> tuple[int, float]:
        """Frames of the row and their rate as the file has them. Raises DataError where the row says otherwise."""
        path = resolve_path(row, self.root)
        info = video.probe(path, row.start, row.end, fps=row.fps)
        rate = _rate(path, info.fps)
        with naming_file(path):
            check_num_frames(row, info.num_frames, rate)
        return info.num_frames, rate

    def decode(self, row: Row, windows: Sequence[Window], size: int) -> Tensor:
        """The kept frames of the windows, one behind the other, in one pass: (F, 3, size, size) uint8."""
        decoded = video.decode_clip(
            resolve_path(row, self.root),
            row.start,
            row.end,
            indices=torch.cat([window.indices[: window.kept_frames] for window in windows]),
            size=size,
            box=row.box,
            fps=row.fps,
        )
        return decoded.frames.permute(0, 3, 1, 2)

    def _windows_of_file(self, row: Row) -> list[Window]:
        return self._kept(self.options.windows(*self.file_length(row)))

    def _kept(self, windows: list[Window]) -> list[Window]:
        return windows[: self.options.truncate or None]

    def _windows(self, row: Row) -> list[Window]:
        frames, rate = self.known_length(row)
        with naming_row(row.id):
            return self.options.windows(frames, rate)


def _rate(path: Path, fps: float | None) -> float:
    if fps is None:
        raise DataError(f"{path}: the frame rate is not known; add an fps column")
    return fps
