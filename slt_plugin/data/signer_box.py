"""The signer's box in a video, by the ROI rule that the released SSVP-SLT weights were made with.

Faces are found in every 16th frame and each is expanded to the region of a signer. Where no frame shows more than one
face, the mean of the regions is taken; where one shows several, the person who is there for long and moves most; where
none is found, the frame's centre. The result is squared; what lies outside of the frame is black when it is cropped.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from slt_plugin.data import signer_frames, video
from slt_plugin.data.errors import DataError
from slt_plugin.data.signer_geometry import (
    Box,
    Tube,
    centre_square,
    choose_tube,
    expand,
    in_parts,
    limited,
    link_tubes,
    mean_box,
    square,
)

EVERY = 16
# frames in memory at once, 2.8 MB each at 1280x720
_AT_ONCE = 16
# beyond these the released weights' input and a frame without a box are clearly not the same picture
_LARGER = 1.5
_NOT_SQUARE = 1.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SignerBox:
    """Where the signer is.

    box: x0, y0, x1, y1 in parts of the frame's width and height, square in pixels; from -1 to 2, as it may reach
        beyond the frame.
    faces_found: samples with at least one face.
    samples: frames that were looked at.
    source: how it was found: no frame with more than one face; several, and the one tube of them that was chosen;
        no face, the centre instead.
    limited: whether the box was cut to -1..2, so that it is not square any more.
    """

    box: Box
    faces_found: int
    samples: int
    source: Literal["one face", "tube", "no face"]
    limited: bool = False


def signer_box(
    path: str | os.PathLike,
    start: float | None = None,
    end: float | None = None,
    *,
    detector: str = "hog",
    fps: float | None = None,
    every: int = EVERY,
) -> SignerBox:
    """The box of the signer in a video file or folder of images, or in a segment of it (seconds).

    Args:
        detector: "hog" or "cnn", see `signer_frames.load_detector`.
        fps: as `video.decode_clip` takes it: needed for a folder where start or end is given.
        every: look for faces in each n-th frame, from the first.

    Raises:
        VideoError: the media cannot be read.
        DataError: another detector, `every` below 1, or a package of the extra `prep` is not installed.
    """
    if every < 1:
        raise DataError(f"every={every}: look for faces in each n-th frame, n a whole number from 1 up")
    detect = signer_frames.load_detector(detector)
    frames = _Frames(path, start, end, fps)
    samples = range(0, frames.count, every)
    faces = [detect(frame) for (frame,) in frames.groups([(index,) for index in samples])]
    regions = [[expand(face) for face in sample] for sample in faces]
    width, height = frames.size
    found = sum(bool(sample) for sample in regions)
    if not found:
        region, source = centre_square(width, height), "no face"
    elif max(map(len, regions)) == 1:
        region, source = mean_box([sample[0] for sample in regions if sample]), "one face"
    else:
        tube = choose_tube(link_tubes(regions), len(samples), lambda tubes: _motion(frames, tubes, every))
        region, source = mean_box(tube.regions), "tube"
    exact = in_parts(square(region), width, height)
    box = limited(exact)
    if box != exact:
        logger.warning(
            "%s: the signer's box %s is cut to %s, the most that a manifest's box may hold", path, exact, box
        )
    return SignerBox(box, found, len(samples), source, limited=box != exact)


def large_frame_without_box(width: int, height: int, box: Box | None, size: int) -> str | None:
    """A warning where frames come without a signer box and are clearly no crop of a signer; None where all is well.

    Args:
        width, height: of the frames as displayed, in pixels.
        size: side of the model's square input, in pixels (224 for the released weights).
    """
    short, long = sorted((width, height))
    if box is not None or (short <= _LARGER * size and long <= _NOT_SQUARE * short):
        return None
    return (
        f"frames of {width}x{height} without a signer box: the centre square is used, but released weights expect "
        f"{size}-pixel crops of the signer; find boxes with scripts/signer_boxes.py, or give one"
    )


class _Frames:
    """Frames of one segment by number, a few at a time; `size` (width, height) is known once one was read."""

    def __init__(self, path: str | os.PathLike, start: float | None, end: float | None, fps: float | None):
        self._segment, self._fps = (path, start, end), fps
        info = video.probe(path, start, end, fps=fps)
        self.count, self.size = info.num_frames, (info.width, info.height)

    def groups(self, groups: Sequence[tuple[int, ...]]) -> Iterator[list]:
        """The frames (H, W, 3) uint8 of each group of frame numbers, in order."""
        per_batch = max(1, _AT_ONCE // max(map(len, groups), default=1))
        for at in range(0, len(groups), per_batch):
            batch = groups[at : at + per_batch]
            clip = video.decode_clip(*self._segment, indices=[i for group in batch for i in group], fps=self._fps)
            self.size = (clip.frames.shape[2], clip.frames.shape[1])
            frames = iter(clip.frames)
            for group in batch:
                yield [next(frames) for _ in group]


def _motion(frames: _Frames, tubes: Sequence[Tube], every: int) -> list[float]:
    """The mean optical flow inside each tube, over the samples that it has; 0 in a video of one frame."""
    if frames.count < 2:
        return [0.0] * len(tubes)
    width, height = frames.size
    regions = [dict(zip(tube.samples, tube.regions, strict=True)) for tube in tubes]
    samples = sorted(set().union(*regions))
    # the flow that leads to a sample; to the first frame nothing leads
    pairs = [(max(0, sample * every - 1), max(1, sample * every)) for sample in samples]
    total = [0.0] * len(tubes)
    for sample, pair in zip(samples, frames.groups(pairs), strict=True):
        flow = signer_frames.flow_magnitude(*pair)
        for number, places in enumerate(regions):
            if sample in places:
                total[number] += signer_frames.mean_inside(flow, places[sample], width, height)
    return [motion / len(tube.samples) for motion, tube in zip(total, tubes, strict=True)]
