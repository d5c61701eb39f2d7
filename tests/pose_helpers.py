"""Small pose files of every format, written byte by byte where pose-format writes only the newest version."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from pose_format import Pose
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

from slt_plugin.data.landmarks import OPENPOSE_137

REALDATA = Path(__file__).parents[2] / "shared/realdata"
needs_realdata = pytest.mark.skipif(not REALDATA.is_dir(), reason=f"no real data in {REALDATA}")


def random_pose(frames: int, points: int, seed: int = 0) -> np.ndarray:
    """(frames, points, 3) float32 x, y, confidence, everything present; points 3 and 4 are steady shoulders."""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(0.1, 1, size=(frames, points, 3)).astype(np.float32)
    pose[:, 3:5, :2] = [[6, 4], [2, 4]]
    return pose


def write_pose(
    path: Path, pose: np.ndarray, components=OPENPOSE_137, *, version: float = 0.2, fps: float = 25.0
) -> Path:
    """A .pose file of one person. pose: (frames, points, 3) x, y, confidence."""
    parts = [PoseHeaderComponent(name, list(points), [], [], "XYC") for name, points in components]
    header = PoseHeader(version, PoseHeaderDimensions(100, 100), parts)
    pose = pose.astype("<f4")
    with open(path, "wb") as file:
        if version == 0.2:
            Pose(header, NumPyPoseBody(fps, pose[:, None, :, :2], pose[:, None, :, 2])).write(file)
            return path
        header.write(file)
        if version == 0.1:
            file.write(struct.pack("<HHH", int(fps), len(pose) % 2**16, 1))
            file.write(pose[..., :2].tobytes() + pose[..., 2].tobytes())
        else:
            file.write(struct.pack("<HH", int(fps), len(pose)))
            for frame in pose:
                file.write(struct.pack("<Hh", 1, -1) + frame.tobytes())
        file.seek(0)
        file.write(struct.pack("<f", version))
    return path


def write_openpose(folder: Path, pose: np.ndarray, first: int = 0) -> Path:
    """A folder of OpenPose frames. pose: (frames, 137, 3); a frame whose confidences are all 0 lists nobody."""
    folder.mkdir()
    for number, frame in enumerate(pose.astype(np.float64), first):
        person, offset = {}, 0
        for name, points in OPENPOSE_137:
            person[name] = frame[offset : offset + len(points)].ravel().tolist()
            offset += len(points)
        people = [person] if frame[:, 2].any() else []
        (folder / f"clip_{number:012d}_keypoints.json").write_text(json.dumps({"version": 1.3, "people": people}))
    return folder


def write_mmpose(path: Path, pose: np.ndarray) -> Path:
    """An MMPose file. pose: (frames, 133, 3); a frame whose confidences are all 0 has no instances."""
    frames = []
    for number, frame in enumerate(pose.astype(np.float64)):
        instance = {"keypoints": frame[:, :2].tolist(), "keypoint_scores": frame[:, 2].tolist()}
        frames.append({"frame_id": number, "instances": [instance] if frame[:, 2].any() else []})
    path.write_text(json.dumps(frames))
    return path
