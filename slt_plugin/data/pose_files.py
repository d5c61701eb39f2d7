"""Readers of the pose file formats: .pose (pose-format), raw .npy arrays, OpenPose folders and MMPose JSON.

Each reader knows how long a clip is without reading it, and copies only the frames and landmarks that are asked for.
Where a frame holds several people, the first one listed is used.

Raw arrays are (T, points, 3) with the columns x, y, confidence (0 = missing, up to 1), or (T, points, 2) with x, y.
Estimated depth (z) has no column: a third column that is no confidence is refused. x and y are of one unit, pixels for
example: MediaPipe's 0 to 1 coordinates have to be multiplied by the image's width and height first, else the body
comes out stretched by the image's aspect ratio.
"""

import math
import struct
from pathlib import Path
from typing import Protocol

import numpy as np
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeader
from pose_format.utils.reader import BufferReader

from slt_plugin.data.arrays import open_array, unreadable
from slt_plugin.data.landmarks import PoseError, header_indices, layout_indices
from slt_plugin.data.pose_json import MmposeJson, OpenPoseFolder

KINDS = ".pose, .npy (T, points, 2 or 3), .json (MMPose), or a folder of OpenPose *_keypoints.json files"
SUFFIXES = (".pose", ".npy", ".json")
_MAX_FPS = 1000.0
# of a third column: depth is below 0 at many points; OpenPose's interpolated confidences come out a little above 1
_CONFIDENCES = (-1e-3, 1.1)
# what pose-format raises on truncated or garbled files (found by mutating valid files)
_POSE_ERRORS = (struct.error, ValueError, TypeError, IndexError, OverflowError, EOFError, MemoryError)


class PoseFile(Protocol):
    """One clip on disk; `shape` is that of the stored coordinates.

    `fps` is None where the format has none, and an int where it stores whole numbers only.
    """

    kind: str
    path: Path
    num_frames: int
    fps: float | int | None
    shape: tuple[int, ...]

    def indices(self, names: tuple[str, ...]) -> np.ndarray:
        """Position of each landmark among the file's points, int64 (P,); -1 where the file lacks it."""
        ...

    def values(self, first: int, last: int, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """x, y (T, P, 2) and confidence (T, P) of the frames [first, last), any float type; 0 = missing."""
        ...


def open_pose(path: Path) -> PoseFile:
    """Open a pose file or folder by its kind. Raises PoseError for a kind that is not supported."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return NpyPose(path)
    if suffix == ".pose":
        return BinaryPose(path)
    if suffix == ".json":
        return MmposeJson(path)
    try:
        path.stat()
    except OSError as err:
        raise PoseError(unreadable(path, err)) from err
    if path.is_dir():
        return OpenPoseFolder(path)
    raise PoseError(f"{path}: {suffix or 'a file without a suffix'} is not a supported pose; give {KINDS}")


class NpyPose:
    """A raw array (T, points, 3) of x, y, confidence, or (T, points, 2) of x, y where (0, 0) means missing.

    `values` raises PoseError where the third column, as far as it is read, holds something else than confidences.
    """

    kind = "pose array"
    fps = None

    def __init__(self, path: Path):
        self.path = path
        self.array = open_array(path, PoseError)
        self.shape = self.array.shape
        if len(self.shape) != 3 or self.shape[2] not in (2, 3):
            raise PoseError(
                f"{path}: array of shape {self.shape}; save poses as (frames, points, 3) of x, y, confidence, or as "
                "(frames, points, 2); use task.source=features for features (frames, channels)"
            )
        self.num_frames = self.shape[0]

    def indices(self, names: tuple[str, ...]) -> np.ndarray:
        try:
            return layout_indices(self.shape[1], names)
        except PoseError as err:
            raise PoseError(f"{self.path}: {err}") from err

    def values(self, first: int, last: int, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.array[first:last, columns]
        if self.shape[2] == 2:
            return chosen, (chosen != 0).any(axis=-1).astype(np.float32)
        with np.errstate(over="ignore"):
            confidence = chosen[..., 2].astype(np.float32)  # contiguous and of a type that numpy compares fast
        low, high = confidence.min(initial=0.0), confidence.max(initial=0.0)
        if low < _CONFIDENCES[0] or high > _CONFIDENCES[1]:  # NaN is neither, and refused by the caller
            raise PoseError(
                f"{self.path}: the third column has values from {low:.4g} to {high:.4g}, but confidences are 0 to 1; "
                "is the third value z? save x, y, confidence, or (T, points, 2)"
            )
        return chosen[..., :2], confidence


class BinaryPose:
    """A .pose file, version 0.0, 0.1 or 0.2 (https://github.com/sign-language-processing/pose, docs/specs).

    pose-format parses the header, and the body of version 0.0, whose frames have no fixed size. The body of 0.1 and
    0.2 is two float32 arrays; they are memory-mapped here, because pose-format's own reading of segments takes the
    wrong frames where the header is shorter than its read-ahead, and allocates before it compares declared sizes with
    the file's size.
    """

    kind = "pose file"

    def __init__(self, path: Path):
        self.path = path
        try:
            empty = path.stat().st_size == 0
            self._buffer = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except OSError as err:
            raise PoseError(unreadable(path, err)) from err
        if empty:
            raise self._error("it is empty")
        reader = BufferReader(self._buffer)
        try:
            self.header = PoseHeader.read(reader)
        except _POSE_ERRORS as err:
            raise self._error(f"its header is broken ({err})") from err
        self._check_header()
        self._body_start = reader.read_offset
        self._read_layout()
        self.fps = self.fps if 0 < self.fps <= _MAX_FPS else None

    def indices(self, names: tuple[str, ...]) -> np.ndarray:
        try:
            return header_indices([(part.name, part.points) for part in self.header.components], names)
        except PoseError as err:
            raise PoseError(f"{self.path}: {err}") from err

    def values(self, first: int, last: int, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        if self._version == 0.0:
            data, confidence = self._read_v0_0()
        else:
            frames, people, points, dims = self.shape
            size = frames * people * points * 4
            data = np.ndarray(self.shape, "<f4", self._buffer, self._data_start)
            confidence = np.ndarray(self.shape[:3], "<f4", self._buffer, self._data_start + size * dims)
        person = 0
        return data[first:last, person, columns, :2], confidence[first:last, person, columns]

    def _error(self, reason: str) -> PoseError:
        return PoseError(f"{self.path}: not a usable .pose file: {reason}; extract it again, or remove the row")

    def _check_header(self) -> None:
        version = self.header.version
        known = [v for v in (0.0, 0.1, 0.2) if math.isclose(version, v, abs_tol=1e-4)]
        if not known:
            raise self._error(f"version {version:g} instead of 0.0, 0.1 or 0.2")
        self._version = known[0]
        formats = [part.format for part in self.header.components]
        if not formats or self.header.total_points() == 0:
            raise self._error("its header lists no points")
        if not all(text.startswith("XY") and text.endswith("C") and len(text) <= 8 for text in formats):
            raise self._error(f"point formats {formats}; expected x, y and confidence, as in XYC or XYZC")

    def _read_layout(self) -> None:
        """Set fps, num_frames and shape, and check that the body has exactly the bytes that they declare."""
        count_format = "<fIH" if self._version == 0.2 else "<HH" if self._version == 0.0 else "<HHH"
        try:
            self.fps, frames, *rest = struct.unpack_from(count_format, self._buffer, self._body_start)
        except struct.error as err:
            raise self._error("it ends after the header") from err
        people = rest[0] if rest else 1
        points, dims = self.header.total_points(), self.header.num_dims()
        self._data_start = self._body_start + struct.calcsize(count_format)
        found = len(self._buffer) - self._data_start
        if people == 0:
            raise self._error("it holds no person")
        frame_bytes = people * points * (dims + 1) * 4
        if self._version == 0.1:
            # the 16-bit frame count overflows in long clips: the size gives the count, the field its last 16 bits
            frames, declared = found // frame_bytes, frames
            if found % frame_bytes or frames % 2**16 != declared:
                raise self._error(f"its header declares {declared} frames, its size gives {found / frame_bytes:.2f}")
        elif self._version == 0.2 and frames * frame_bytes != found:
            raise self._error(f"its header declares {frames} frames, its size gives {found / frame_bytes:.2f}")
        self.num_frames = frames
        self.shape = (frames, people, points, dims)

    def _read_v0_0(self) -> tuple[np.ndarray, np.ndarray]:
        reader = BufferReader(self._buffer)
        reader.read_offset = self._body_start
        try:
            body = NumPyPoseBody.read_v0_0(self.header, reader)
        except _POSE_ERRORS as err:
            raise self._error(f"it is truncated or garbled ({err})") from err
        if reader.read_offset != len(self._buffer):
            raise self._error(f"{len(self._buffer) - reader.read_offset} bytes follow its last frame")
        return body.data.data, body.confidence
