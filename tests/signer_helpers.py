"""Small videos for the tests of the signer's box, and a detector that takes coloured squares for faces."""

from pathlib import Path

import av
import numpy as np
import torch

REALDATA = Path(__file__).parents[2] / "shared/realdata"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def write_video(path: Path, frames: np.ndarray, fps: int = 25) -> Path:
    """Frames (T, H, W, 3) uint8 with even sides, with little loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey_video(path: Path, frames: int = 20, size: tuple[int, int] = (64, 48)) -> Path:
    """A video (width, height) in which there is nothing to find."""
    return write_video(path, np.full((frames, size[1], size[0], 3), 128, np.uint8))


def squares(*places: tuple[int, int, int, tuple[int, int, int]], size: tuple[int, int] = (160, 96)) -> np.ndarray:
    """A grey frame (H, W, 3) with squares: x, y, side, colour of each."""
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    for x, y, side, colour in places:
        frame[y : y + side, x : x + side] = colour
    return frame


def find_squares(frame: torch.Tensor) -> list[tuple[float, float, float, float]]:
    """The bounding boxes of what is red and of what is blue, in this order."""
    values, found = frame.int(), []
    for channel in (0, 2):
        others = values[..., 2 - channel] + values[..., 1]
        rows, columns = torch.nonzero((values[..., channel] > 180) & (others < 150), as_tuple=True)
        if len(rows):
            x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            found.append(tuple(map(float, (x0, y0, x1, y1))))
    return found
