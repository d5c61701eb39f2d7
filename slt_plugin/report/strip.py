"""A clip as a strip of pictures over time: its skeleton, or small frames where the caller asks for them.

A skeleton shows no face. Frames do: faces are personal data, so they are made on request only, and can be blurred.
"""

import base64
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from slt_plugin.data.landmarks import PARTS, SHOULDERS, part_names
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.pose import read_pose
from slt_plugin.data.signer_frames import load_detector
from slt_plugin.data.signer_geometry import Box
from slt_plugin.data.video import decode_clip, probe
from slt_plugin.report.errors import ReportError

STEPS = 24
LONG_SIDE = 160  # pixels of a picture, at most
QUALITY = 70  # of the JPEGs
FRAMES_AT_ONCE = 4  # 6 MB each at full HD
# A face's box is widened by this part of its size on every side before it is blurred: dlib's boxes end at the brows.
FACE_MARGIN = 0.5
FACE_CELLS = 5  # a blurred face keeps as many averages along its width: nobody is recognised by 25 colours
WHOLE_CELLS = 12  # the same of a frame that is blurred as a whole
DIGITS = 3
# Points further outside than this part of the picture are an estimator's slips and are not drawn.
BEYOND = 0.25

Kind = Literal["pose", "video", "features"]

NECK = "body.neck"  # no estimator's point
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_CHAINS = (
    "body.left_wrist body.left_elbow body.left_shoulder body.right_shoulder body.right_elbow body.right_wrist",
    "body.left_eye body.nose body.right_eye",
    "body.nose body.neck",
    *(
        f"{side}_hand.wrist " + " ".join(f"{side}_hand.{finger}_{joint}" for joint in range(1, 5))
        for side in ("left", "right")
        for finger in _FINGERS
    ),
    *(f"face.{side}_brow_outer face.{side}_brow_middle face.{side}_brow_inner" for side in ("left", "right")),
    *(
        " ".join(f"face.{side}_eye_{at}" for at in ("outer", "upper", "inner", "lower", "outer"))
        for side in ("left", "right")
    ),
    "face.mouth_right face.upper_lip face.mouth_left face.lower_lip face.mouth_right",
)


def strip(
    row: Row, root: Path, kind: Kind, *, frames: bool, blur_faces: bool, steps: int = STEPS
) -> dict[str, object] | None:
    """Pictures of a row at evenly spaced times, for ``evidence.json`` and the demo; None where there is nothing to see.

    Args:
        root: the folder that manifest paths start from.
        kind: what the row's media are. A pose is drawn as a skeleton, whatever ``frames`` says.
        frames: of videos, show small JPEGs. Faces are personal data.
        blur_faces: blur the faces in them: wherever dlib finds one in any of these frames, and a frame without a
            found face as a whole. A detector makes mistakes; this lowers the risk and is no anonymisation.
        steps: pictures, at most.

    Returns:
        {"kind": "skeleton", "times": seconds from the row's start, "edges": [[i, j]], "parts": [part of each point],
        "points": [[[x, y] or None, ...] at each time]}, x and y from 0 to 1 in one square picture, y downwards; or
        {"kind": "frames", "times", "images": ["data:image/jpeg;base64,..."], "blurred": bool}.

    Raises:
        DataError: the media cannot be read, or dlib (extra ``prep``) is needed and not installed.
        ReportError: another kind, or ``steps`` below 1.
    """
    if steps < 1:
        raise ReportError(f"steps={steps}: a strip needs at least one picture")
    if kind == "pose":
        return _skeleton(row, root, steps)
    if kind not in ("video", "features"):
        raise ReportError(f"kind={kind!r}: a strip is made of pose or video; features have none")
    return _frames(row, root, blur_faces, steps) if kind == "video" and frames else None


def evenly_spaced(count: int, steps: int) -> list[int]:
    """The middles of ``steps`` equal stretches of ``count`` frames; all frames where there are fewer."""
    steps = min(count, steps)
    return [(2 * step + 1) * count // (2 * steps) for step in range(steps)]


def _skeleton(row: Row, root: Path, steps: int) -> dict[str, object]:
    sequence = read_pose(resolve_path(row, root), parts=tuple(PARTS), start=row.start, end=row.end, fps=row.fps)
    seen = sequence.present.any(axis=0)
    names = [name for name, there in zip(part_names(tuple(PARTS)), seen, strict=True) if there]
    chosen = evenly_spaced(len(sequence.points), steps)
    points, present = sequence.points[:, seen], sequence.present[:, seen]
    if set(SHOULDERS) <= set(names):
        names.append(NECK)
        points, present = _with_neck(points, present, *(names.index(name) for name in SHOULDERS))
    placed = _in_square(points, present)[chosen]
    shown = present[chosen] & (np.abs(placed - 0.5) <= 0.5 + BEYOND).all(axis=-1)
    values = [
        [
            [round(float(x), DIGITS), round(float(y), DIGITS)] if there else None
            for (x, y), there in zip(*step, strict=True)
        ]
        for step in zip(placed, shown, strict=True)
    ]
    number = {name: i for i, name in enumerate(names)}
    edges = [
        [number[a], number[b]]
        for chain in map(str.split, _CHAINS)
        for a, b in itertools.pairwise(chain)
        if a in number and b in number
    ]
    return {
        "kind": "skeleton",
        "times": _times(chosen, sequence.fps, row, len(sequence.points)),
        "edges": edges,
        "points": values,
        "parts": [name.partition(".")[0] for name in names],
    }


def _with_neck(points: np.ndarray, present: np.ndarray, left: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with one more point, the middle of the shoulders: without it the head floats."""
    neck = points[:, [left, right]].mean(axis=1, keepdims=True)
    there = present[:, [left, right]].all(axis=1, keepdims=True)
    return np.concatenate([points, neck], axis=1), np.concatenate([present, there], axis=1)


def _in_square(points: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(T, P, 2) -> the same in a square from 0 to 1 that holds 99 % of the points, one scale for x and y."""
    there = points[present].astype(np.float64)
    if not len(there):
        return np.zeros_like(points)
    low, high = np.percentile(there, [0.5, 99.5], axis=0)
    side = max(float((high - low).max()), 1e-6)
    return (points - (low + high) / 2) / (1.06 * side) + 0.5


def _times(indices: Sequence[int], fps: float | None, row: Row, count: int) -> list[float]:
    """Seconds from the row's start; without a frame rate the row's length decides, and without that each frame is 1."""
    if fps is None:
        known = row.end is not None
        fps = count / (row.end - (row.start or 0.0)) if known else 1.0
    return [round((index + 0.5) / fps, DIGITS) for index in indices]


def _frames(row: Row, root: Path, blur_faces: bool, steps: int) -> dict[str, object]:
    path = resolve_path(row, root)
    info = probe(path, row.start, row.end, fps=row.fps)
    chosen = evenly_spaced(info.num_frames, steps)
    # a missing dlib is told before anything is decoded
    detect = load_detector("hog") if blur_faces else None

    def read(numbers: Sequence[int]):
        return decode_clip(path, row.start, row.end, indices=numbers, fps=row.fps).frames

    groups = [chosen[at : at + FRAMES_AT_ONCE] for at in range(0, len(chosen), FRAMES_AT_ONCE)]
    faces = [detect(frame) for group in groups for frame in read(group)] if detect else [None] * len(chosen)
    hidden = _hider(faces) if detect else None
    pictures = (Image.fromarray(frame.numpy()) for group in groups for frame in read(group))
    images = []
    for picture, found in zip(pictures, faces, strict=True):
        if hidden is not None:
            picture = hidden(picture, found)
        images.append(data_url(_small(picture, row.box)))
    return {
        "kind": "frames",
        "times": _times(chosen, info.fps, row, info.num_frames),
        "images": images,
        "blurred": blur_faces,
    }


def _hider(faces: Sequence[Sequence[Box]]) -> Callable[[Image.Image, Sequence[Box]], Image.Image]:
    """Blurs a frame at every place where a face was found in any frame of the strip: a face that one frame's detection
    misses beside something that it takes for a face stays hidden, as it was nearby in other frames."""
    everywhere = [face for found in faces for face in found]

    def hide(picture: Image.Image, found: Sequence[Box]) -> Image.Image:
        return blur_boxes(picture, everywhere) if found else pixelate(picture, WHOLE_CELLS)

    return hide


def blur_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with the boxes (x0, y0, x1, y1 in pixels), widened by FACE_MARGIN, beyond recognition."""
    picture = picture.copy()
    for x0, y0, x1, y1 in boxes:
        across, down = FACE_MARGIN * (x1 - x0), FACE_MARGIN * (y1 - y0)
        area = (
            max(0, round(x0 - across)),
            max(0, round(y0 - down)),
            min(picture.width, round(x1 + across)),
            min(picture.height, round(y1 + down)),
        )
        if area[0] < area[2] and area[1] < area[3]:
            picture.paste(pixelate(picture.crop(area), FACE_CELLS), area[:2])
    return picture


def pixelate(picture: Image.Image, cells: int) -> Image.Image:
    """The picture with ``cells`` averages along its long side, softened."""
    factor = cells / max(picture.size)
    coarse = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.BOX)
    return coarse.resize(picture.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def _small(picture: Image.Image, box: Box | None) -> Image.Image:
    """The signer's box (beyond the frame: black), or the whole frame; the long side LONG_SIDE at most."""
    if box is not None:
        sides = (picture.width, picture.height) * 2
        x0, y0, x1, y1 = (round(part * side) for part, side in zip(box, sides, strict=True))
        picture = picture.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return picture


def data_url(picture: Image.Image) -> str:
    with io.BytesIO() as file:
        picture.save(file, format="JPEG", quality=QUALITY)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
