"""Pose sequences: chosen landmarks of one clip, normalised, augmented and laid out as model input.

Readers of the file formats are in pose_files.py, names in landmarks.py, augmentation in pose_augment.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.errors import DataError
from slt_plugin.data.landmarks import PARTS, SHOULDERS, PoseError, part_names
from slt_plugin.data.pose_augment import PoseAugment, augment
from slt_plugin.data.pose_files import PoseFile, open_pose
from slt_plugin.data.segments import agreed_fps, segment_frames

__all__ = [
    "PoseAugment",
    "PoseError",
    "PoseOptions",
    "PoseSequence",
    "channels",
    "normalise",
    "prepare",
    "read_for_model",
    "read_frames",
    "read_pose",
]

# shoulder widths; no camera sees a person and anything of them this far away
MAX_EXTENT = 1000.0
NO_SHOULDERS = (
    "no frame shows both shoulders, so it cannot be normalised: remove the row, or set task.pose_normalise=none"
)
NORMALISATIONS = ("shoulders", "none")


@dataclass(frozen=True)
class PoseSequence:
    """points (T, P, 2) float32, 0 where missing; present (T, P) bool; fps None where nobody knows it."""

    points: np.ndarray
    present: np.ndarray
    fps: float | None


@dataclass(frozen=True)
class PoseOptions:
    """What a model sees of a pose.

    parts: of `landmarks.PARTS`, in this order. step_frames: every n-th frame is used. normalise: "shoulders" or
    "none" (coordinates as in the file). augment: training-time variation, None for none.
    """

    parts: tuple[str, ...] = tuple(PARTS)
    step_frames: int = 1
    normalise: str = "shoulders"
    augment: PoseAugment | None = None

    def __post_init__(self) -> None:
        part_names(self.parts)  # raises for unknown parts
        # one name, or a list from a config file
        object.__setattr__(self, "parts", (self.parts,) if isinstance(self.parts, str) else tuple(self.parts))
        if isinstance(self.step_frames, bool) or not isinstance(self.step_frames, int) or self.step_frames < 1:
            raise PoseError(f"task.step_frames={self.step_frames!r}: give a whole number from 1 up")
        if self.normalise not in NORMALISATIONS:
            hint = did_you_mean(self.normalise, NORMALISATIONS)
            raise PoseError(f"task.pose_normalise={self.normalise!r}: choose one of {', '.join(NORMALISATIONS)}{hint}")
        if self.augment is not None and self.augment.moves_points and self.normalise == "none":
            raise PoseError(
                "task.augment_rotation, augment_scale, augment_shear and augment_noise are measured in shoulder widths "
                "about the shoulders: set task.pose_normalise=shoulders, or these four to 0"
            )


def channels(options: PoseOptions) -> int:
    """Channels of `prepare`'s output: x, y and present of each landmark."""
    return 3 * len(part_names(options.parts))


def read_pose(
    path: str | Path,
    *,
    parts: tuple[str, ...],
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> PoseSequence:
    """Read the landmarks of some parts from a pose file, or from the seconds [start, end) of it.

    fps: frames per second, needed with start or end where the file has none (.npy, JSON); where the file has one, it
    decides, and the given one must agree within 1 %. A landmark that the estimator lacks is missing in every frame.
    Raises PoseError, naming the file, for unreadable or corrupt files, unknown layouts, segments outside the file, and
    coordinates that are NaN or infinite where the confidence is not 0.
    """
    return _read(Path(path), part_names(parts), start, end, fps)


def read_for_model(
    path: Path,
    options: PoseOptions,
    *,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> PoseSequence:
    """As `read_pose`, with the landmarks that `prepare` needs: those of the parts, then the shoulders if not among
    them."""
    return _read(path, _wanted(options), start, end, fps)


def _wanted(options: PoseOptions) -> tuple[str, ...]:
    names = part_names(options.parts)
    return names if options.normalise == "none" or "body" in options.parts else names + SHOULDERS


def _read(
    path: Path, names: tuple[str, ...], start: float | None, end: float | None, fps: float | None
) -> PoseSequence:
    file = open_pose(path)
    try:
        fps = agreed_fps(fps, file.fps)
        first, last = segment_frames(start, end, fps, file.num_frames)
    except DataError as err:
        raise PoseError(f"{path}: {err}") from err
    return PoseSequence(*read_frames(file, names, first, last), fps)


def read_frames(file: PoseFile, names: tuple[str, ...], first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """points (T, P, 2) and present (T, P) of the frames [first, last), as in PoseSequence. Raises as `read_pose`."""
    indices = file.indices(names)
    lacking = indices < 0
    if lacking.all():
        raise PoseError(
            f"{file.path}: has none of the chosen landmarks; choose other task.pose_parts of {', '.join(PARTS)}"
        )
    xy, confidence = file.values(first, last, _columns(indices))
    points, present = _masked(file.path, xy, confidence, first)
    if lacking.any():
        present[:, lacking] = False
        points[:, lacking] = 0
    return points, present


def _columns(indices: np.ndarray) -> np.ndarray | slice:
    """Indices for numpy; a slice, which is much faster, where they follow each other."""
    first = int(indices[0])
    if first >= 0 and np.array_equal(indices, np.arange(first, first + len(indices))):
        return slice(first, first + len(indices))
    return np.maximum(indices, 0)  # the caller clears the columns of -1


def _masked(path: Path, xy: np.ndarray, confidence: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """points (T, P, 2) float32, 0 where missing, and present (T, P); refuses values that are no numbers."""
    # all x, then all y in memory: loops over a last dimension of 2 cost numpy ten times as much
    points = np.empty((2, *confidence.shape), dtype=np.float32).transpose(1, 2, 0)
    with np.errstate(over="ignore"):  # float64 values beyond float32 become inf and are refused below
        points[...] = xy
    present = confidence > 0
    if not present.all():
        np.copyto(points, 0, where=~present[..., None])
    if not (np.isfinite(points).all() and np.isfinite(confidence).all()):
        bad = ~np.isfinite(points).all(axis=-1) | ~np.isfinite(confidence)
        frame = first + int(np.flatnonzero(bad.any(axis=1))[0])
        raise PoseError(
            f"{path}: NaN or infinite values in {int(bad.sum())} landmarks, first in frame {frame}; extract the poses "
            "again, or give missing landmarks confidence 0 (in arrays without confidence: x = y = 0)"
        )
    return points, present


def normalise(points: np.ndarray, present: np.ndarray, left: int, right: int) -> None:
    """Centre points (T, P, 2) on the shoulders' midpoint and divide by the shoulder width, in place.

    left, right: the shoulders' positions among P. Midpoint and width are medians over the frames that show both
    shoulders, so that movement of the body stays visible and single wrong frames do not count. Missing points stay 0.
    Raises PoseError where no frame shows both shoulders, both are at the same place, or a landmark is farther away
    than MAX_EXTENT.
    """
    both = present[:, left] & present[:, right]
    if not both.any():
        raise PoseError(NO_SHOULDERS)
    a, b = (points[both, at].astype(np.float64) for at in (left, right))
    measures = np.empty((len(a), 3))
    measures[:, :2] = (a + b) / 2
    measures[:, 2] = np.hypot(*(a - b).T)
    x, y, width = np.median(measures, axis=0)
    if not width > 0:
        raise PoseError("both shoulders are at the same place, so the pose cannot be normalised; remove the row")
    with np.errstate(over="ignore", invalid="ignore"):  # whatever this gives is refused below
        points -= np.array([x, y], dtype=np.float32)
        points *= np.float32(1 / width)
        points *= present[..., None]
    extent = np.abs(points).max()
    if not extent <= MAX_EXTENT:  # NaN too
        raise PoseError(
            f"landmarks lie up to {extent:.3g} shoulder widths away, so coordinates or shoulders are wrong; extract "
            "the poses again, or remove the row"
        )


def prepare(sequence: PoseSequence, options: PoseOptions, rng: np.random.Generator | None = None) -> np.ndarray:
    """Model input (T', 3 * P) float32 from what `read_for_model` read with the same options.

    For each landmark of the chosen parts x, y, present; x and y are 0 and present is 0.0 for missing landmarks.
    T' = ceil(T / step_frames). Augments where both rng and options.augment are given. May change the sequence's arrays.
    Raises PoseError as `normalise`.
    """
    points, present = sequence.points, sequence.present
    if options.normalise == "shoulders":
        wanted = _wanted(options)
        left, right = (wanted.index(name) for name in SHOULDERS)
        normalise(points, present, left, right)
        count = len(part_names(options.parts))
        points, present = points[:, :count], present[:, :count]
    if rng is not None and options.augment is not None:
        points, present = augment(points, present, options.augment, rng)
    points, present = points[:: options.step_frames], present[:: options.step_frames]
    output = np.empty((*present.shape, 3), dtype=np.float32)
    output[..., :2] = points
    output[..., 2] = present
    return output.reshape(len(output), -1)
