"""Training-time augmentation of normalised pose sequences: time, viewpoint, noise and missing landmarks.

Everything is drawn from the numpy generator that is passed in, so the same generator state gives the same result.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from slt_plugin.data.landmarks import PoseError

_FRACTIONS = ("speed", "scale", "frame_drop", "landmark_drop")  # at 1, nothing of a clip might be left


@dataclass(frozen=True)
class PoseAugment:
    """How strongly to vary a clip; 0 switches a variation off.

    speed: the clip is played at a rate from [1 - speed, 1 + speed]. rotation: degrees, from [-rotation, rotation].
    scale: factor from [1 - scale, 1 + scale]. shear: x gains k * y, k from [-shear, shear]. These are drawn once a
    clip, uniformly. noise: standard deviation, in shoulder widths, of what is added to each coordinate of each frame.
    frame_drop: probability that a frame is removed. landmark_drop: probability that a landmark of a frame goes missing.
    """

    speed: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    noise: float = 0.0
    frame_drop: float = 0.0
    landmark_drop: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limit = 1.0 if field.name in _FRACTIONS else math.inf
            # NaN fails the comparison too
            if not isinstance(value, int | float) or not 0 <= value < limit:
                raise PoseError(
                    f"task.augment_{field.name}={value!r}: give a number from 0 up, "
                    + ("below 1" if limit == 1 else "not infinite")
                )

    @property
    def moves_points(self) -> bool:
        """Whether coordinates change, which needs normalised ones."""
        return self.rotation > 0 or self.scale > 0 or self.shear > 0 or self.noise > 0


def augment(
    points: np.ndarray, present: np.ndarray, options: PoseAugment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vary one clip. points (T, P, 2) float32 about the normalised origin, 0 where missing; present (T, P) bool.

    Returns arrays of the same kind with another number of frames T' >= 1; missing points stay 0. The input is left as
    it is.
    """
    if options.speed > 0:
        points, present = change_speed(points, present, rng.uniform(1 - options.speed, 1 + options.speed))
    if options.frame_drop > 0:
        kept = rng.random(len(points)) >= options.frame_drop
        if not kept.any():
            kept[rng.integers(len(points))] = True
        points, present = points[kept], present[kept]
    if options.rotation > 0 or options.scale > 0 or options.shear > 0:
        (a, b), (c, d) = _random_view(options, rng).tolist()
        x, y = points[..., 0], points[..., 1]
        points = np.stack((a * x + c * y, b * x + d * y)).transpose(1, 2, 0)  # 0 stays 0: missing points need no mask
    if options.landmark_drop > 0:
        present = present & (rng.random(present.shape, dtype=np.float32) >= options.landmark_drop)
    if options.noise > 0:
        noise = rng.standard_normal((2, *present.shape), dtype=np.float32)
        noise *= np.float32(options.noise)
        points = points + noise.transpose(1, 2, 0)
    if options.noise > 0 or options.landmark_drop > 0:
        points = points * present[..., None]
    return points, present


def change_speed(points: np.ndarray, present: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Play a clip at `rate` times its speed: T / rate frames (at least 1) by linear interpolation between neighbours.

    Where one of the two neighbours is missing, the nearer one counts: its position is taken, or the landmark is missing
    there too. So no position is mixed with a missing one, and a gap keeps its length in time.
    """
    num_frames = len(points)
    times = np.linspace(0, num_frames - 1, max(1, round(num_frames / rate)))
    before = times.astype(np.int64)
    after = np.minimum(before + 1, num_frames - 1)
    weight = (times - before).astype(np.float32)[:, None]
    present_before, present_after = present[before], present[after]
    nearer_after = weight >= 0.5
    weight = np.where(present_before & present_after, weight, nearer_after.astype(np.float32))
    start = points[before]
    moved = points[after]
    moved -= start
    moved *= weight[..., None]
    moved += start
    return moved, np.where(nearer_after, present_after, present_before)


def _random_view(options: PoseAugment, rng: np.random.Generator) -> np.ndarray:
    """The (2, 2) float32 matrix, applied from the right, of shear, then rotation, then scale."""
    angle = math.radians(rng.uniform(-options.rotation, options.rotation))
    factor = rng.uniform(1 - options.scale, 1 + options.scale)
    shear = np.array([[1, 0], [rng.uniform(-options.shear, options.shear), 1]])
    cos, sin = math.cos(angle), math.sin(angle)
    return (shear @ np.array([[cos, sin], [-sin, cos]]) * factor).astype(np.float32)
