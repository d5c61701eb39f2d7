"""What is measured in frames to find the signer: faces (dlib) and motion (OpenCV). Both come with the extra `prep`."""

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.errors import DataError
from slt_plugin.data.signer_geometry import Box

DETECTORS = ("hog", "cnn")
# Frames are scaled to this long side first. Both detectors find faces from about 80 pixels up, so these are faces
# from 1/16 of the long side. Of 85 frames of How2Sign (1280x720, faces of 105 pixels) HOG finds all at 960 and at
# 1280, 60 at 640 and none at 480.
DETECTION_SIDE = 1280
FLOW_SIDE = 320
CNN_WEIGHTS = "mmod_human_face_detector.dat"

Detector = Callable[[Tensor], list[Box]]


class PrepError(DataError):
    """A package of the extra `prep` is missing, or an unknown detector was asked for."""


@functools.cache
def load_detector(name: str) -> Detector:
    """A function from a frame (H, W, 3) uint8 RGB to its face boxes in pixels of that frame; loaded once a process.

    Args:
        name: "hog" (dlib's frontal face detector: 60 ms a frame on one core) or "cnn" (dlib's max-margin detector,
            also for turned heads: about 5 s a frame on one core; on the GPU where dlib was built with CUDA).

    Raises:
        PrepError: another name, or dlib or its weights are not installed.
    """
    if name not in DETECTORS:
        raise PrepError(f"detector {name!r}: choose {' or '.join(DETECTORS)}{did_you_mean(name, DETECTORS)}")
    try:
        import dlib
    except ImportError as error:
        raise _missing("dlib", "to find faces", error) from error
    if name == "hog":
        hog = dlib.get_frontal_face_detector()
        return functools.partial(_detect, lambda frame: [*hog(frame, 0)])
    cnn = dlib.cnn_face_detection_model_v1(str(cnn_weights()))
    return functools.partial(_detect, lambda frame: [found.rect for found in cnn(frame, 0)])


def cnn_weights() -> Path:
    """Where face_recognition_models keeps the CNN's weights. Raises PrepError where it is not installed.

    The package itself is not imported: it asks for pkg_resources, which newer setuptools do not have.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    folders = spec.submodule_search_locations or [] if spec else []
    for folder in folders:
        if (path := Path(folder) / "models" / CNN_WEIGHTS).is_file():
            return path
    raise _missing("face_recognition_models", f"for detector 'cnn' ({CNN_WEIGHTS})", None)


def flow_magnitude(before: Tensor, after: Tensor) -> Tensor:
    """Motion from one frame to the next: Farnebäck's dense optical flow, 0 (least) to 1 (most) in each pair of frames.

    Args:
        before, after: (H, W, 3) uint8.

    Returns:
        (h, w) float32, long side FLOW_SIDE at most. The range is stretched in each pair, so that one jump of the
        camera does not outweigh the rest of the clip; flow of less than a pixel stays small.
    """
    try:
        import cv2
    except ImportError as error:
        raise _missing("cv2", "to tell which of several people signs", error) from error
    # workers run side by side, one a core
    cv2.setNumThreads(1)
    # long side above FLOW_SIDE only: an enlarged frame has no more motion to see
    side = min(FLOW_SIDE, max(before.shape[:2]))
    grey = [cv2.cvtColor(scaled(frame, side).numpy(), cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    flow = cv2.calcOpticalFlowFarneback(
        *grey, None, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    magnitude = np.hypot(flow[..., 0], flow[..., 1])
    least, most = float(magnitude.min()), float(magnitude.max())
    return torch.from_numpy((magnitude - least) / max(most - least, 1.0))


def mean_inside(values: Tensor, box: Box, width: int, height: int) -> float:
    """The mean of a map (h, w) over a box given in pixels of the frame (width, height) that the map is of.

    0 where no pixel of the map is inside the box.
    """
    rows, columns = values.shape
    x0, x1 = (min(columns, max(0, math.floor(x * columns / width + 0.5))) for x in box[::2])
    y0, y1 = (min(rows, max(0, math.floor(y * rows / height + 0.5))) for y in box[1::2])
    inside = values[y0:y1, x0:x1]
    return float(inside.mean()) if inside.numel() else 0.0


def scaled(frame: Tensor, long_side: int) -> Tensor:
    """The frame (H, W, 3) uint8 with its long side at `long_side` pixels, contiguous; bilinear, without aliasing."""
    height, width = frame.shape[:2]
    factor = long_side / max(height, width)
    if factor == 1:
        return frame.contiguous()
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    channels_first = frame.permute(2, 0, 1)[None]
    return F.interpolate(channels_first, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous()


def _detect(rectangles: Callable, frame: Tensor) -> list[Box]:
    small = scaled(frame, DETECTION_SIDE)
    # each side by its own factor: rounding to whole pixels changes the aspect ratio a little
    x, y = frame.shape[1] / small.shape[1], frame.shape[0] / small.shape[0]
    found = rectangles(small.numpy())
    # dlib's right and bottom are the last pixels inside
    return [(r.left() * x, r.top() * y, (r.right() + 1) * x, (r.bottom() + 1) * y) for r in found]


def _missing(package: str, why: str, error: ImportError | None) -> PrepError:
    detail = f" ({error})" if error is not None and getattr(error, "name", None) != package else ""
    return PrepError(f"{package} is needed {why} and is not there{detail}; pip install 'slt-plugin[prep]'")
