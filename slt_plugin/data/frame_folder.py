"""A folder of images as a video: PHOENIX-2014T and CSL-Daily come as images0001.png, images0002.png, ..."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
from av.codec import CodecContext
from av.video.frame import VideoFrame

from slt_plugin.data.arrays import unreadable
from slt_plugin.data.segments import segment_frames
from slt_plugin.data.video_file import AV_ERRORS, VideoError, reason
from slt_plugin.data.video_scale import Turn, frame_turn

_DECODERS = {".png": "png", ".jpg": "mjpeg", ".jpeg": "mjpeg", ".bmp": "bmp", ".webp": "webp"}
_OPEN_FOLDERS = 256


def has_images(folder: Path) -> bool:
    """Whether a folder holds at least one image of the kinds that are read."""
    return any(entry.suffix.lower() in _DECODERS for entry in folder.iterdir())


@dataclass(frozen=True)
class ImageFolder:
    """Frame i is the i-th image in the order of the numbers in the names; files of other kinds are left out."""

    path: Path
    names: tuple[str, ...]
    width: int  # as displayed
    height: int
    turn: Turn
    codec: str
    # as in FrameIndex
    fps: float | None = None
    damage: str | None = None

    @staticmethod
    def open(path: Path) -> "ImageFolder":
        """VideoError where the folder cannot be read, holds no image, or one that cannot be told from the next."""
        try:
            return _open(str(path), path.stat().st_mtime_ns)
        except OSError as err:
            raise VideoError(unreadable(path, err)) from err

    @property
    def num_frames(self) -> int:
        return len(self.names)

    def segment(self, start: float | None, end: float | None, fps: float | None) -> tuple[int, int]:
        """The images [first, last) of the seconds [start, end) at the manifest's rate; DataError as there."""
        return segment_frames(start, end, fps, self.num_frames)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        for number in numbers:
            yield number, read_image(self.path / self.names[number])


def read_image(path: Path) -> VideoFrame:
    """VideoError where the image cannot be decoded."""
    try:
        frames = _decode(path)
    except OSError as err:
        raise VideoError(unreadable(path, err)) from err
    except AV_ERRORS as err:
        raise VideoError(f"{path}: not a complete image ({reason(err)}); copy it again") from err
    if not frames:
        raise VideoError(f"{path}: not a complete image; copy it again")
    return frames[0]


def _decode(path: Path) -> list[VideoFrame]:
    context = CodecContext.create(_DECODERS[path.suffix.lower()], "r")
    context.thread_count = 1
    context.options = {"err_detect": "explode"}
    return [*context.decode(av.Packet(path.read_bytes())), *context.decode(None)]


@lru_cache(maxsize=_OPEN_FOLDERS)
def _open(path: str, _: int) -> ImageFolder:
    folder = Path(path)
    names = [entry.name for entry in folder.iterdir() if entry.suffix.lower() in _DECODERS]
    if not names:
        raise VideoError(f"{path}: no image in the folder ({', '.join(sorted(_DECODERS))}); correct the path")
    order: dict[tuple, str] = {}
    for name in names:
        key = _order(name)
        if key in order:
            raise VideoError(f"{path}: {order[key]} and {name} have the same place in the order; remove one of them")
        order[key] = name
    first = read_image(folder / order[min(order)])
    turn = frame_turn(first)
    width, height = turn.displayed(first.width, first.height)
    ordered = tuple(order[key] for key in sorted(order))
    return ImageFolder(folder, ordered, width, height, turn, _DECODERS[Path(ordered[0]).suffix.lower()])


def _order(name: str) -> tuple:
    """Numbers compare as numbers: image10 comes after image9."""
    parts = re.split(r"(\d+)", Path(name).stem)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))
