"""Pose estimates as JSON: OpenPose's folder with one file a frame, and MMPose's single file."""

import json
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from slt_plugin.data.arrays import unreadable
from slt_plugin.data.landmarks import PoseError, layout_indices

_FRAME_FILE = re.compile(r"(\d{1,15})_keypoints\.json$", re.ASCII)
# OpenPose's arrays of x, y, confidence, in the order of the 137-point layout
_OPENPOSE_ARRAYS = {
    "pose_keypoints_2d": 25,
    "face_keypoints_2d": 70,
    "hand_left_keypoints_2d": 21,
    "hand_right_keypoints_2d": 21,
}
_JSON_ERRORS = (ValueError, RecursionError, MemoryError)
_NUMBER_ERRORS = (ValueError, TypeError, OverflowError)


class OpenPoseFolder:
    """A folder of `<name>_<number>_keypoints.json`: one file a frame, in the order of the numbers.

    The numbers may start anywhere but must be without a gap: a missing file is an error, because OpenPose writes one
    for every frame, with an empty `people` list where it sees nobody (all landmarks missing). Of several people the
    first is used. Face and hands that were not estimated (empty or absent arrays) are missing.
    """

    kind = "OpenPose folder"
    fps = None

    def __init__(self, path: Path):
        self.path = path
        try:
            self.files = _frame_files(path, path.stat().st_mtime_ns)
        except OSError as err:
            raise PoseError(unreadable(path, err)) from err
        self.num_frames = len(self.files)
        self.shape = (self.num_frames, 137, 3)

    def indices(self, names: tuple[str, ...]) -> np.ndarray:
        return layout_indices(137, names)

    def values(self, first: int, last: int, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        frames = np.zeros((max(0, last - first), 137, 3), dtype=np.float32)
        for frame, name in zip(frames, self.files[first:last], strict=True):
            _read_openpose_frame(self.path / name, frame)
        chosen = frames[:, columns]
        return chosen[..., :2], chosen[..., 2]


@lru_cache(maxsize=8)  # many rows may be segments of one long folder
def _frame_files(path: Path, mtime_ns: int) -> tuple[str, ...]:
    numbered: dict[int, str] = {}
    for entry in sorted(path.iterdir()):
        match = _FRAME_FILE.search(entry.name)
        if match:
            number = int(match[1])
            if number in numbered:
                raise PoseError(
                    f"{path}: {numbered[number]} and {entry.name} are both frame {number}; keep one clip in a folder"
                )
            numbered[number] = entry.name
    if not numbered:
        raise PoseError(f"{path}: no *_keypoints.json file in this folder; point the row at OpenPose's output folder")
    order = sorted(numbered)
    gaps = [number for number, after in pairwise(order) if after != number + 1]
    if gaps:
        shown = ", ".join(str(number + 1) for number in gaps[:5])
        raise PoseError(
            f"{path}: no file for frame {shown}{' and others' if len(gaps) > 5 else ''}; copy the folder again, or "
            'write {"people": []} for frames that show nobody'
        )
    return tuple(numbered[number] for number in order)


def _read_openpose_frame(path: Path, out: np.ndarray) -> None:
    """Fill out (137, 3) with the first person of one frame; left at 0 where there is none."""
    content = _load_json(path)
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list) or (people and not isinstance(people[0], dict)):
        raise PoseError(f"{path}: not OpenPose output (no list 'people' of persons); run OpenPose again for this frame")
    if not people:
        return
    if "pose_keypoints_2d" not in people[0]:
        raise PoseError(f"{path}: the person has no 'pose_keypoints_2d'; run OpenPose 1.3 or newer")
    offset = 0
    for name, count in _OPENPOSE_ARRAYS.items():
        values = people[0].get(name) or []
        if values:
            out[offset : offset + count] = _numbers(values, (count * 3,), f"{path}: {name!r}").reshape(count, 3)
        offset += count


class MmposeJson:
    """MMPose whole-body output: a list of frames {"frame_id", "instances": [{"keypoints", "keypoint_scores"}]}.

    The same list under "instance_info" (MMPoseInferencer's own files) is read too. 133 points; a frame without
    instances has every landmark missing; of several instances the first is used. The file is read as a whole.
    """

    kind = "MMPose JSON"
    fps = None

    def __init__(self, path: Path):
        self.path = path
        content = _load_json(path)
        self.frames = content.get("instance_info") if isinstance(content, dict) else content
        if not isinstance(self.frames, list) or not all(isinstance(frame, dict) for frame in self.frames):
            raise PoseError(f"{path}: not MMPose output; give a list of frames with 'frame_id' and 'instances'")
        ids = [frame.get("frame_id") for frame in self.frames]
        if ids and (type(ids[0]) is not int or ids != list(range(ids[0], ids[0] + len(ids)))):
            raise PoseError(f"{path}: its 'frame_id' values do not count up one by one; run MMPose again")
        self.num_frames = len(self.frames)
        self.shape = (self.num_frames, 133, 3)

    def indices(self, names: tuple[str, ...]) -> np.ndarray:
        return layout_indices(133, names)

    def values(self, first: int, last: int, columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        frames = np.zeros((max(0, last - first), 133, 3), dtype=np.float32)
        for out, frame in zip(frames, self.frames[first:last], strict=True):
            place = f"{self.path}: frame {frame['frame_id']}"
            instances = frame.get("instances")
            if not isinstance(instances, list) or (instances and not isinstance(instances[0], dict)):
                raise PoseError(f"{place}: no list of 'instances'; run MMPose again")
            if instances:
                out[:, :2] = _numbers(instances[0].get("keypoints"), (133, 2), f"{place}: 'keypoints'")
                out[:, 2] = _numbers(instances[0].get("keypoint_scores"), (133,), f"{place}: 'keypoint_scores'")
        chosen = frames[:, columns]
        return chosen[..., :2], chosen[..., 2]


def _load_json(path: Path) -> object:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as err:
        raise PoseError(unreadable(path, err)) from err
    except _JSON_ERRORS as err:
        raise PoseError(f"{path}: not valid JSON ({err}); write the file again, or remove the row") from err


def _numbers(values: object, shape: tuple[int, ...], place: str) -> np.ndarray:
    """values as float32 of this shape; a number too large for float32 becomes inf, which the caller refuses."""
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, dtype=np.float64).astype(np.float32)
    except _NUMBER_ERRORS as err:
        raise PoseError(f"{place} does not hold numbers ({err}); estimate the poses again") from err
    if array.shape != shape:
        raise PoseError(f"{place} has shape {array.shape}, expected {shape}; estimate the poses again")
    return array
