"""The frames of a video file: how many, when each is shown, and which belong to a segment given in seconds."""

from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

import numpy as np

from slt_plugin.data.errors import DataError
from slt_plugin.data.segments import END_SLACK, agreed_fps, segment_frames
from slt_plugin.data.video_scale import Turn


class Source(IntEnum):
    """What an index was made from, cheapest first."""

    TABLE = 1
    PACKETS = 2
    FRAMES = 3


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames of one file in order of presentation.

    Either `step` is given (ticks of time_base between frames, all alike), or `times`, or, where the file has no usable
    time stamps, neither: its frames can only be counted from the start.
    """

    codec: str
    width: int  # as displayed
    height: int
    turn: Turn
    num_frames: int
    fps: float | None  # average; None where a single frame has no duration
    constant: bool  # rate
    time_base: Fraction
    first: int | None  # time stamp of frame 0
    step: Fraction | None
    times: np.ndarray | None  # int64, increasing
    seekable: bool  # whether packets have the same time stamps after seeking as from the start
    keys: np.ndarray  # frames near which decoding can start, increasing: a guess that seeking verifies
    damage: str | None  # why the file has no more frames, though it should
    source: Source

    def pts(self, number: int) -> int:
        if self.times is not None:
            return int(self.times[number])
        return self.first + round(number * self.step)

    def number(self, pts: int | None) -> int | None:
        """The frame shown at a time stamp; -1 = before the first frame, None = no frame of this index."""
        if pts is None:
            return None
        if pts < self.first:
            return -1
        if self.times is not None:
            at = int(np.searchsorted(self.times, pts))
            return at if at < self.num_frames and self.times[at] == pts else None
        ticks, step = (pts - self.first) * self.step.denominator, self.step.numerator  # whole numbers: called often
        at = (2 * ticks + step) // (2 * step)
        return at if abs(ticks - at * step) <= min(self.step.denominator, step // 4) else None

    def segment(self, start: float | None, end: float | None, fps: float | None) -> tuple[int, int]:
        """The frames [first, last) of the seconds [start, end) after frame 0; fps is the manifest's.

        A frame belongs to the segment where start and end are nearest to it: half a frame before and after. At a
        constant rate that is `segment_frames`. DataError as there.
        """
        rate = agreed_fps(fps, self.fps)
        if (start is None and end is None) or self.constant or self.times is None:
            return segment_frames(start, end, rate, self.num_frames)
        seconds = (self.times - self.times[0]) * float(self.time_base)
        half = 0.5 / rate
        first = int(np.searchsorted(seconds, (start or 0.0) - half, side="right"))
        last = self.num_frames if end is None else int(np.searchsorted(seconds, end - half, side="right"))
        length = float(seconds[-1]) + 1 / rate
        if first >= self.num_frames or (end is not None and end > length + END_SLACK):
            raise DataError(
                f"the segment from {start or 0:g} s{'' if end is None else f' to {end:g} s'} lies past the file's "
                f"{self.num_frames} frames ({length:.2f} s, variable rate); correct start or end"
            )
        if last <= first:
            raise DataError(
                f"no frame of the file is shown from {start or 0:g} s to {end:g} s; correct or remove the row"
            )
        return first, last
