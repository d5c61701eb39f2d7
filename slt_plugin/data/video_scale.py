"""From decoded frames to RGB: the signer's box cut out, turned as displayed, scaled by swscale."""

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as parts of the displayed width and height


@dataclass(frozen=True)
class Turn:
    """How stored pixels are displayed: first rows and columns change places, then the result is mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def displayed(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """A view of image (H, W, ...) as displayed."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def stored(self, rect: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 in stored pixels of a rectangle in displayed ones; width and height are the displayed."""
        x0, y0, x1, y1 = rect
        if self.flip_x:
            x0, x1 = width - x1, width - x0
        if self.flip_y:
            y0, y1 = height - y1, height - y0
        return (y0, x0, y1, x1) if self.transpose else (x0, y0, x1, y1)


def frame_turn(frame: VideoFrame) -> Turn:
    """From the frame's display matrix (ISO/IEC 14496-12, 6.2.2): x' = a x + c y, y' = b x + d y.

    Raises ValueError for turns by other than quarters.
    """
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know another kind of the frame's side data, as EXIF of JPEG files
        quarters = round(frame.rotation / 90) % 4  # counterclockwise
        return (Turn(), Turn(True, False, True), Turn(False, True, True), Turn(True, True, False))[quarters]
    if data is None:
        return Turn()
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    large, small = sorted((max(abs(a), abs(d)), max(abs(b), abs(c))), reverse=True)
    if large == 0 or small > 0.01 * large:
        raise ValueError("its display matrix turns it by other than quarters")
    if abs(a) > abs(b):
        return Turn(False, a < 0, d < 0)
    return Turn(True, c < 0, b < 0)


@dataclass(frozen=True)
class _Plan:
    crop: tuple[int, int, int, int]  # stored pixels
    scaled: tuple[int, int]  # stored width and height after scaling
    trim: tuple[slice, slice]  # of the scaled stored image: what chroma alignment added
    place: tuple[slice, slice]  # rows and columns of the output
    shape: tuple[int, int]  # height and width of the output


class Converter:
    """Converts frames of one stream; the output of all has the same height and width.

    Args:
        size: of the square output, None = the region's own pixels.
        box: the region; None = the whole frame, or with a size the centre square of the short side.
    """

    def __init__(self, turn: Turn, size: int | None, box: Box | None):
        self.turn, self.size, self.box = turn, size, box
        self._reformatter = VideoReformatter()
        self._plans: dict[tuple, _Plan] = {}
        self._graphs: dict[tuple, av.filter.Graph] = {}

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the output for frames of the stored width and height."""
        if self.size is not None:
            return self.size, self.size
        width, height = self.turn.displayed(width, height)
        x0, y0, x1, y1 = self._region(width, height)
        return y1 - y0, x1 - x0

    def write(self, frame: VideoFrame, out: np.ndarray) -> None:
        """Write the RGB image into out (H, W, 3) uint8, which holds zeros. ValueError where its shape is another."""
        key = (frame.width, frame.height, frame.format.name)
        if key not in self._plans:
            self._plans[key] = self._plan(frame)
        plan = self._plans[key]
        if plan.shape != out.shape[:2]:
            raise ValueError(f"the frame size changes inside the video to {frame.width}x{frame.height}; give a size")
        if plan.crop != (0, 0, frame.width, frame.height):
            frame = self._cropped(frame, plan.crop)
        # unscaled, as PyAV's to_ndarray; scaled, only planes keep the full resolution of colour (and are faster)
        scaled = plan.scaled != (frame.width, frame.height)
        image = self._reformatter.reformat(
            frame,
            *plan.scaled,
            format="gbrp" if scaled else "rgb24",
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
        target = out[plan.place]
        if scaled:
            for channel, plane in enumerate((image.planes[2], image.planes[0], image.planes[1])):
                target[..., channel] = self.turn.apply(_rows(plane)[:, : plane.width])
        else:
            rows = _rows(image.planes[0])[:, : 3 * image.width]
            target[:] = self.turn.apply(rows.reshape(image.height, image.width, 3)[plan.trim])

    def _region(self, width: int, height: int) -> tuple[int, int, int, int]:
        """In displayed pixels; may reach beyond the frame."""
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            x0, y0 = round(x0 * width), round(y0 * height)
            return x0, y0, max(round(x1 * width), x0 + 1), max(round(y1 * height), y0 + 1)
        if self.size is None:
            return 0, 0, width, height
        side = min(width, height)
        x0, y0 = (width - side) // 2, (height - side) // 2
        return x0, y0, x0 + side, y0 + side

    def _plan(self, frame: VideoFrame) -> _Plan:
        width, height = self.turn.displayed(frame.width, frame.height)
        x0, y0, x1, y1 = self._region(width, height)
        seen = (max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))
        if seen[0] >= seen[2] or seen[1] >= seen[3]:
            raise ValueError(f"the box {self.box} lies outside the frame; correct it")
        shape = self.shape(frame.width, frame.height)
        crop = self.turn.stored(seen, width, height)
        whole = (slice(None), slice(None))
        if self.size is None:
            place = (slice(seen[1] - y0, seen[3] - y0), slice(seen[0] - x0, seen[2] - x0))
            # the same pixels as cut out of the whole converted frame: swscale reads chroma in whole samples
            aligned = _aligned(frame, crop)
            trim = (
                slice(crop[1] - aligned[1], crop[3] - aligned[1]),
                slice(crop[0] - aligned[0], crop[2] - aligned[0]),
            )
            return _Plan(aligned, (aligned[2] - aligned[0], aligned[3] - aligned[1]), trim, place, shape)
        side = max(x1 - x0, y1 - y0)  # of the square that holds the region in its middle
        scale = self.size / side
        left, top = x0 - (side - (x1 - x0)) / 2, y0 - (side - (y1 - y0)) / 2
        columns = _span(seen[0] - left, seen[2] - left, scale, self.size)
        rows = _span(seen[1] - top, seen[3] - top, scale, self.size)
        scaled = self.turn.displayed(columns.stop - columns.start, rows.stop - rows.start)
        return _Plan(crop, scaled, whole, (rows, columns), shape)

    def _cropped(self, frame: VideoFrame, crop: tuple[int, int, int, int]) -> VideoFrame:
        key = (frame.width, frame.height, frame.format.name, crop)
        if key not in self._graphs:
            x0, y0, x1, y1 = crop
            graph = av.filter.Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            cut = graph.add("crop", f"w={x1 - x0}:h={y1 - y0}:x={x0}:y={y0}:exact=1")
            graph.link_nodes(source, cut, graph.add("buffersink")).configure()
            self._graphs[key] = graph
        graph = self._graphs[key]
        graph.vpush(frame)
        return graph.vpull()


def _rows(plane: VideoPlane) -> np.ndarray:
    """The bytes of a plane, rows with their padding."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)


def _span(start: float, stop: float, scale: float, size: int) -> slice:
    """Output pixels of a part of the square: at least one, inside the output."""
    first = min(round(start * scale), size - 1)
    return slice(first, min(max(round(stop * scale), first + 1), size))


def _aligned(frame: VideoFrame, crop: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The crop widened to whole chroma samples, and to pairs of rows, which swscale converts together."""
    components = {(c.width, c.height) for c in frame.format.components}
    step_x = max(2, *(-(-frame.width // max(width, 1)) for width, _ in components))
    step_y = max(2, *(-(-frame.height // max(height, 1)) for _, height in components))
    x0, y0, x1, y1 = crop
    return (
        x0 - x0 % step_x,
        y0 - y0 % step_y,
        min(-(-x1 // step_x) * step_x, frame.width),
        min(-(-y1 // step_y) * step_y, frame.height),
    )
