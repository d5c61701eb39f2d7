"""Raw video: how many frames a segment has, and exactly the frames asked for as RGB.

A segment is given in seconds after the file's first frame; frames are counted inside it, in order of presentation
(`video_scan`). Only the frames asked for are converted, a signer's box is cut out and scaled on the way
(`video_scale`), and a segment of a long file is reached by seeking (`video_decode`), so that full-length videos need
no cutting. A folder of images is read like a video (`frame_folder`).
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from av.video.frame import VideoFrame

from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.frame_folder import ImageFolder, has_images
from slt_plugin.data.video_decode import MisleadingIndexError, UndecodableError, read_frames, runs
from slt_plugin.data.video_file import AV_ERRORS, REMEDY, VIDEO_SUFFIXES, VideoError, reason
from slt_plugin.data.video_index import FrameIndex
from slt_plugin.data.video_scale import Box, Converter
from slt_plugin.data.video_scan import frame_index

__all__ = [
    "VIDEO_SUFFIXES",
    "VideoClip",
    "VideoError",
    "VideoInfo",
    "check_segment",
    "decode_clip",
    "is_video",
    "probe",
]

_MAX_THREADS = 8
_FRAMES_WORTH_A_THREAD = 50  # opening the file anew costs as much as decoding a few frames
T = TypeVar("T")
Sink = Callable[[int, VideoFrame], None]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a segment without decoding it."""

    width: int  # as displayed: rotation applied
    height: int
    fps: float | None  # average rate of the file; None = a folder of images and no fps given
    num_frames: int  # of the segment
    codec: str


@dataclass(frozen=True)
class VideoClip:
    """Frames of a segment."""

    frames: torch.Tensor  # (T, H, W, 3) uint8 RGB
    fps: float | None
    num_frames: int  # of the segment, not of `frames`


def is_video(path: Path) -> bool:
    """Whether the path is read as video: a file with a video's suffix, or a folder that holds images."""
    return has_images(path) if path.is_dir() else path.suffix.lower() in VIDEO_SUFFIXES


def probe(
    path: str | os.PathLike, start: float | None = None, end: float | None = None, *, fps: float | None = None
) -> VideoInfo:
    """Size, rate and number of frames of the seconds [start, end) of a video file or folder of images.

    No frame but the first is decoded where the container tells the frames and their times (see `video_scan`); what
    was found is kept in this process until the file changes.

    Args:
        fps: the manifest's frame rate, which must agree with the file's; for a folder, its rate.

    Raises:
        VideoError: names the file, the cause, how many frames could be read, and what to do.
    """
    segment = _open_segment(path, start, end, fps)
    index = segment.index
    return VideoInfo(index.width, index.height, segment.fps, segment.last - segment.first, index.codec)


def decode_clip(
    path: str | os.PathLike,
    start: float | None = None,
    end: float | None = None,
    indices: Sequence[int] | torch.Tensor | None = None,
    size: int | None = None,
    box: Box | None = None,
    *,
    fps: float | None = None,
) -> VideoClip:
    """Frames of the seconds [start, end) of a video file or folder of images, as RGB.

    Args:
        indices: frame numbers inside the segment, in any order, repeats allowed (each is decoded once); None = all.
            Output row k is frame indices[k].
        size: side of the square output: the box (none: the centre square of the short side) keeps its aspect ratio,
            black on both sides makes it square. None = the pixels of the box, or of the whole frame.
        box: (x0, y0, x1, y1) as parts of the displayed width and height; what lies beyond the frame is black.
        fps: as in `probe`.

    Raises:
        VideoError: as in `probe`; also for an index outside the segment, and for every frame asked for that cannot be
            decoded: it is never replaced by another.
    """
    if size is not None and size < 1:
        raise VideoError(f"{path}: size={size}; give a number of pixels above 0")
    if box is not None and not (-1 <= box[0] < box[2] <= 2 and -1 <= box[1] < box[3] <= 2):
        raise VideoError(f"{path}: box={box}; give x0, y0, x1, y1 from -1 to 2 with x0 < x1 and y0 < y1")

    def decode(segment: _Segment) -> VideoClip:
        rows = _rows(segment, indices)
        distinct, inverse = rows.unique(return_inverse=True)
        frames = _convert(segment, distinct.tolist(), size, box)
        if not torch.equal(rows, distinct):
            frames = frames[inverse]
        return VideoClip(frames, segment.fps, segment.num_frames)

    return _with_right_index(_open_segment(path, start, end, fps), decode)


def check_segment(
    path: str | os.PathLike, start: float | None = None, end: float | None = None, *, fps: float | None = None
) -> int:
    """Decode every frame of the seconds [start, end), without converting them, and return how many there are.

    Raises VideoError as `decode_clip`.
    """

    def check(segment: _Segment) -> int:
        _each_frame(segment, range(segment.num_frames), lambda: lambda place, frame: None)
        return segment.num_frames

    return _with_right_index(_open_segment(path, start, end, fps), check)


@dataclass(frozen=True)
class _Segment:
    path: Path
    index: FrameIndex | ImageFolder
    times: tuple[float | None, float | None, float | None]  # start, end and fps as given
    first: int  # frames of the file
    last: int

    @property
    def num_frames(self) -> int:
        return self.last - self.first

    @property
    def fps(self) -> float | None:
        return self.index.fps if self.index.fps is not None else self.times[2]


def _open_segment(
    path: str | os.PathLike,
    start: float | None,
    end: float | None,
    fps: float | None,
    misled_by: FrameIndex | None = None,
) -> _Segment:
    path = Path(path)
    for name, value, least in (("start", start, 0.0), ("end", end, 0.0), ("fps", fps, 1e-9)):
        if value is not None and not least <= value < math.inf:
            raise VideoError(f"{path}: {name}={value}; give a number above 0, or None")
    index = ImageFolder.open(path) if path.is_dir() else frame_index(path, misled_by)
    try:
        first, last = index.segment(start, end, fps)
    except DataError as err:
        raise VideoError(_cut_off(path, index) if index.damage else f"{path}: {err}") from err
    if index.damage and last >= index.num_frames:
        raise VideoError(_cut_off(path, index))
    return _Segment(path, index, (start, end, fps), first, last)


def _with_right_index(segment: _Segment, read: Callable[[_Segment], T]) -> T:
    """read(segment); where decoding shows that the index was wrong, again with a more costly one."""
    while True:
        try:
            return read(segment)
        except MisleadingIndexError:
            segment = _open_segment(segment.path, *segment.times, misled_by=segment.index)


def _rows(segment: _Segment, indices: Sequence[int] | torch.Tensor | None) -> torch.Tensor:
    if indices is None:
        return torch.arange(segment.num_frames)
    rows = torch.as_tensor(indices, dtype=torch.long)
    if rows.ndim != 1 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < segment.num_frames):
        raise VideoError(
            f"{segment.path}: frames {listing(rows.flatten().tolist())} asked for; give numbers from 0 to "
            f"{segment.num_frames - 1}"
        )
    return rows


def _cut_off(path: Path, index: FrameIndex | ImageFolder) -> str:
    length = f" ({index.num_frames / index.fps:.2f} s)" if index.fps else ""
    return (
        f"{path}: {index.damage}; {index.num_frames} frames{length} could be read; download or convert the file again, "
        "or keep to segments inside them"
    )


def _each_frame(segment: _Segment, numbers: Sequence[int], sinks: Callable[[], Sink]) -> None:
    """Hand each of the frames (increasing numbers in the segment) with its place in `numbers` to a sink.

    Several groups of pictures are decoded at a time, each thread with a sink of its own.
    """

    def work(first: int, last: int) -> None:
        sink = sinks()
        wanted = [segment.first + number for number in numbers[first:last]]
        for place, (_, frame) in enumerate(_read(segment, wanted), first):
            sink(place, frame)

    pieces = _pieces(segment, numbers)
    try:
        if len(pieces) == 1:
            work(*pieces[0])
        else:
            with ThreadPoolExecutor(len(pieces)) as pool:
                for done in [pool.submit(work, *piece) for piece in pieces]:
                    done.result()
    except UndecodableError as err:
        bad = err.number - segment.first
        raise VideoError(
            f"{segment.path}: frame {bad} of {segment.num_frames} cannot be decoded ({err.cause}); the first "
            f"{_count_readable(segment, bad)} frames of the segment could be read; {REMEDY}"
        ) from err
    except AV_ERRORS as err:
        if isinstance(err, DataError):
            raise
        raise VideoError(f"{segment.path}: frames cannot be converted ({reason(err)}); {REMEDY}") from err


def _read(segment: _Segment, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    if isinstance(segment.index, ImageFolder):
        return segment.index.read(wanted)
    return read_frames(segment.path, segment.index, wanted)


def _pieces(segment: _Segment, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Parts [first, last) of `numbers` of about the same length, one a thread, cut where a keyframe is."""
    threads = _threads()
    if len(numbers) > 1:
        threads = min(threads, 1 + (numbers[-1] - numbers[0]) // _FRAMES_WORTH_A_THREAD)
    if threads == 1 or len(numbers) < 2:
        return [(0, len(numbers))]
    if isinstance(segment.index, ImageFolder):
        cuts = np.arange(len(numbers) + 1)
    else:
        wanted = [segment.first + number for number in numbers]
        cuts = np.array([0, *(last for _, last in runs(segment.index, wanted, worth=1))])
    even = np.arange(1, threads) * len(numbers) / threads
    chosen = {int(cuts[np.abs(cuts - cut).argmin()]) for cut in even}
    return list(pairwise(sorted(chosen | {0, len(numbers)})))


def _count_readable(segment: _Segment, stop: int) -> int:
    count = 0
    try:
        for _ in _read(segment, range(segment.first, segment.first + stop)):
            count += 1
    except UndecodableError:
        pass
    return count


def _convert(segment: _Segment, numbers: list[int], size: int | None, box: Box | None) -> torch.Tensor:
    """(len(numbers), H, W, 3) uint8."""
    index = segment.index
    height, width = Converter(index.turn, size, box).shape(*index.turn.displayed(index.width, index.height))
    try:
        frames = torch.zeros((len(numbers), height, width, 3), dtype=torch.uint8)
    except RuntimeError as err:
        raise VideoError(
            f"{segment.path}: no memory for {len(numbers)} frames of {width}x{height}; give fewer indices, or a size"
        ) from err
    out = frames.numpy()

    def sinks() -> Sink:
        converter = Converter(index.turn, size, box)
        return lambda place, frame: converter.write(frame, out[place])

    _each_frame(segment, numbers, sinks)
    return frames


def _threads() -> int:
    """One in a worker process, because the workers already share the cores."""
    if torch.utils.data.get_worker_info() is not None or multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MAX_THREADS)
