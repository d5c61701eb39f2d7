"""Draws landmarks of the fingerspelling corpus as a stylised signer, and writes the pictures as H.264 video.

A fixed camera, so that what varies between the sentences (place, size, turn of the signer) varies in the pictures too.
Everything is drawn twice as large and then averaged down, because PIL's lines have no soft edges.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from fingerspelling_synthesis import NAMES, SIDES
from PIL import Image, ImageDraw

from slt_plugin.common.files import atomic_open

# What the camera sees, in the corpus's shoulder widths: a square around the signer's right half, where the hand spells.
VIEW = 2.0
CENTRE = (-0.7, -0.1)
OVERSAMPLING = 2

# The box of a sentence: the square in which the hand spells, in shoulder widths. A hand is 0.4 high.
BOX = 0.8
RAISED = 0.6  # a hand lower than this below the shoulders does not spell

# Greys near the mean that models subtract from pixels, so that what stands out is the hand: from the little finger to
# the thumb, in the order of drawing. Brightness differs too, because video stores colours at half the resolution.
BACKGROUND, CLOTHES, SLEEVE, SKIN, PALM = (
    (115, 115, 115),
    (104, 104, 108),
    (92, 92, 98),
    (150, 132, 122),
    (165, 120, 100),
)
FINGERS = {
    "pinky": (20, 60, 255),
    "ring": (30, 200, 60),
    "middle": (255, 245, 60),
    "index": (235, 60, 20),
    "thumb": (15, 0, 30),
}
LIMB_WIDTH, FINGER_WIDTH, HEAD_RADIUS, TORSO_HEIGHT = 0.16, 0.05, 0.28, 1.6

Box = tuple[float, float, float, float]

_INDEX = {name: i for i, name in enumerate(NAMES)}


@dataclass(frozen=True)
class Job:
    """One video file: `spans` are its sentences, each the frames [first, last) of a pose file."""

    spans: list[tuple[Path, int, int]]
    video: Path


def render_file(job: Job, *, pose_fps: float, fps: float, size: int) -> list[tuple[int, Box]]:
    """Write the sentences of a job one after another into one video; frames and box of each.

    The first frame of a sentence is a keyframe, so that reading a sentence never decodes another one. A video that is
    there is kept: it was complete when it appeared.
    """
    sentences = []
    for path, first, last in job.spans:
        poses = np.load(path, mmap_mode="r")[first:last]
        sentences.append(poses[frame_times(len(poses), pose_fps, fps)])
    if not job.video.is_file():
        images = ((draw(pose, size), k == 0) for sentence in sentences for k, pose in enumerate(sentence))
        with atomic_open(job.video) as file:
            write_video(file, images, fps=fps, size=size)
    return [(len(sentence), signing_box(sentence, size)) for sentence in sentences]


def frame_times(count: int, pose_fps: float, fps: float) -> np.ndarray:
    """Which of `count` poses are the frames of a video at the rate `fps`: the nearest in time, (T,) int64."""
    step = Fraction(pose_fps) / Fraction(fps)
    frames = -(-count // step)  # the last one begins before the poses end
    return np.array([min(count - 1, int(k * step + Fraction(1, 2))) for k in range(frames)], dtype=np.int64)


def draw(pose: np.ndarray, size: int) -> Image.Image:
    """One landmark set (51, 3) of x, y, confidence -> an RGB picture of size x size pixels."""
    side = size * OVERSAMPLING
    scale = side / VIEW
    points = (pose[:, :2].astype(np.float64) - CENTRE) * scale + side / 2
    seen = pose[:, 2] > 0
    at = {name: (float(points[i, 0]), float(points[i, 1])) for name, i in _INDEX.items() if seen[i]}
    image = Image.new("RGB", (side, side), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    shoulders = [at.get(f"body.{side}_shoulder") for side in SIDES]
    if all(shoulders):
        (x0, y0), (x1, y1) = shoulders
        down = TORSO_HEIGHT * scale
        canvas.polygon([(x0, y0), (x1, y1), (x1, y1 + down), (x0, y0 + down)], fill=CLOTHES)
    if "body.nose" in at:
        x, y = at["body.nose"]
        across = HEAD_RADIUS * scale
        canvas.ellipse((x - across, y - 1.35 * across, x + across, y + 1.2 * across), fill=SKIN)
    for signer_side in SIDES:
        arm = [at.get(f"body.{signer_side}_{joint}") for joint in ("shoulder", "elbow", "wrist")]
        _line(canvas, [point for point in arm if point], SLEEVE, LIMB_WIDTH * scale)
    for signer_side in SIDES:
        if f"{signer_side}_hand.wrist" in at:
            _draw_hand(canvas, at, f"{signer_side}_hand", FINGER_WIDTH * scale)
    return image.reduce(OVERSAMPLING)


def signing_box(poses: np.ndarray, size: int) -> Box:
    """The square around the places where a hand spells: x0, y0, x1, y1 in parts of the picture.

    Its side is BOX times the signer's size, more where two hands spell apart from each other; it is moved, not cut,
    where it would reach out of the picture, and lies on whole pixels.
    """
    poses = poses.astype(np.float64)
    left, right = (poses[:, _INDEX[f"body.{side}_shoulder"], :2] for side in SIDES)
    height = (left + right)[:, 1] / 2
    scale = float(np.median(np.linalg.norm(left - right, axis=-1)))
    centres = []
    for side in SIDES:
        first = _INDEX[f"{side}_hand.wrist"]
        hand = poses[:, first : first + 21]
        centre = hand[..., :2].mean(1)
        centres.append(centre[(hand[..., 2] > 0).all(1) & (centre[:, 1] - height < RAISED * scale)])
    found = np.concatenate(centres)
    if len(found) == 0:
        return (0.0, 0.0, 1.0, 1.0)
    low, high = np.quantile(found, (0.1, 0.9), axis=0)
    width = min(size, round(max(BOX * scale, float((high - low).max()) + BOX * scale / 2) / VIEW * size))
    corner = ((low + high) / 2 - CENTRE) / VIEW * size + size / 2 - width / 2
    x, y = (min(max(0, round(float(value))), size - width) for value in corner)
    return (x / size, y / size, (x + width) / size, (y + width) / size)


def write_video(file, images: Iterable[tuple[Image.Image, bool]], *, fps: float, size: int) -> None:
    """H.264 in MP4 of (picture, is a keyframe); the same pictures give the same bytes on one machine."""
    # ultrafast: it costs less than drawing, and its streams (no B-frames, no CABAC) decode in half the time of others
    options = {"preset": "ultrafast", "crf": "20", "forced-idr": "1"}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # several threads cut pictures into slices: other bytes
        for number, (image, key) in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts = number
            if key:
                frame.pict_type = av.video.frame.PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _draw_hand(canvas: ImageDraw.ImageDraw, at: dict[str, tuple[float, float]], hand: str, width: float) -> None:
    wrist = at[f"{hand}.wrist"]
    knuckles = [at.get(f"{hand}.{finger}_1") for finger in FINGERS]
    outline = [wrist, *(point for point in knuckles if point)]
    if len(outline) > 2:
        canvas.polygon(outline, fill=PALM)
    for finger, colour in FINGERS.items():
        joints = [wrist, *(at.get(f"{hand}.{finger}_{k}") for k in range(1, 5))]
        _line(canvas, [point for point in joints if point], colour, width)


def _line(canvas: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: tuple, width: float) -> None:
    """A line with a round end."""
    if len(points) < 2:
        return
    canvas.line(points, fill=colour, width=max(1, round(width)), joint="curve")
    (x, y), radius = points[-1], width / 2
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
