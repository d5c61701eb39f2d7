"""OpenPose folders and MMPose files."""

import json

import numpy as np
import pytest
from pose_helpers import random_pose, write_mmpose, write_openpose

from slt_plugin.data.landmarks import PARTS, PoseError, layout_indices, part_names
from slt_plugin.data.pose_files import open_pose

ALL = part_names(PARTS)


def read_all(path, first=0, last=None):
    file = open_pose(path)
    xy, confidence = file.values(first, file.num_frames if last is None else last, file.indices(ALL))
    return np.concatenate([xy, confidence[..., None]], axis=-1)


def frame_file(folder, number):
    return folder / f"clip_{number:012d}_keypoints.json"


@pytest.mark.parametrize(("points", "write"), [(137, write_openpose), (133, write_mmpose)])
def test_values_segments_and_empty_frames(tmp_path, points, write):
    pose = random_pose(5, points)
    pose[3] = 0
    path = write(tmp_path / ("a.json" if points == 133 else "a"), pose)
    expected = pose[:, layout_indices(points, ALL)]
    file = open_pose(path)
    assert (file.num_frames, file.fps, file.shape) == (5, None, (5, points, 3))
    np.testing.assert_array_equal(read_all(path), expected)
    np.testing.assert_array_equal(read_all(path, 2, 4), expected[2:4])


def test_openpose_frames_go_by_number(tmp_path):
    pose = random_pose(12, 137)
    folder = write_openpose(tmp_path / "a", pose, first=95)
    for number in range(95, 107):  # as text, 100 sorts before 95
        frame_file(folder, number).rename(folder / f"clip_{number}_keypoints.json")
    (folder / "notes.json").write_text("{}")
    np.testing.assert_array_equal(read_all(folder), pose[:, layout_indices(137, ALL)])


def test_openpose_gap_is_an_error(tmp_path):
    folder = write_openpose(tmp_path / "a", random_pose(8, 137))
    frame_file(folder, 3).unlink()
    frame_file(folder, 6).unlink()
    with pytest.raises(PoseError, match=r"a: no file for frame 3, 6; copy the folder again"):
        open_pose(folder)


def test_openpose_folder_changes_are_seen(tmp_path):
    folder = write_openpose(tmp_path / "a", random_pose(4, 137))
    assert open_pose(folder).num_frames == 4
    frame_file(folder, 3).unlink()
    assert open_pose(folder).num_frames == 3


def test_openpose_two_clips_in_a_folder(tmp_path):
    folder = write_openpose(tmp_path / "a", random_pose(2, 137))
    (folder / "other_000000000001_keypoints.json").write_text("{}")
    with pytest.raises(PoseError, match=r"are both frame 1; keep one clip"):
        open_pose(folder)


def test_empty_folder(tmp_path):
    with pytest.raises(PoseError, match=r"no \*_keypoints\.json file"):
        open_pose(tmp_path)


def test_openpose_face_and_hands_may_be_left_out(tmp_path):
    pose = random_pose(1, 137)
    folder = write_openpose(tmp_path / "a", pose)
    content = json.loads(frame_file(folder, 0).read_text())
    content["people"][0]["face_keypoints_2d"] = []
    del content["people"][0]["hand_left_keypoints_2d"]
    content["people"].append({})
    frame_file(folder, 0).write_text(json.dumps(content))
    missing = [name for name, c in zip(ALL, read_all(folder)[0, :, 2], strict=True) if c == 0]
    assert missing == [*PARTS["left_hand"], *PARTS["face"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid JSON"),
        ('{"people": [', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "no list 'people'"),
        ('{"people": 3}', "no list 'people'"),
        ('{"people": [7]}', "no list 'people'"),
        ('{"people": [{}]}', "no 'pose_keypoints_2d'"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', r"shape \(3,\), expected \(75,\)"),
        ('{"people": [{"pose_keypoints_2d": "text"}]}', "does not hold numbers"),
        ('{"people": [{"pose_keypoints_2d": [[1], [2, 3]]}]}', "does not hold numbers"),
        ('{"people": [{"pose_keypoints_2d": {"a": 1}}]}', "does not hold numbers"),
    ],
)
def test_broken_openpose_frame(tmp_path, content, said):
    folder = write_openpose(tmp_path / "a", random_pose(3, 137))
    frame_file(folder, 1).write_text(content)
    with pytest.raises(PoseError, match=rf"clip_000000000001_keypoints\.json.*{said}"):
        read_all(folder)
    read_all(folder, 2, 3)  # only the frames asked for are opened


def test_mmpose_inferencer_files(tmp_path):
    pose = random_pose(3, 133)
    path = write_mmpose(tmp_path / "a.json", pose)
    frames = json.loads(path.read_text())
    for frame in frames:
        frame["frame_id"] += 1
    path.write_text(json.dumps({"meta_info": {}, "instance_info": frames}))
    np.testing.assert_array_equal(read_all(path), pose[:, layout_indices(133, ALL)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frames: {"a": frames}, "not MMPose output"),
        (lambda frames: [1, *frames], "not MMPose output"),
        (lambda frames: frames[::-1], "do not count up"),
        (lambda frames: [frames[0], frames[2]], "do not count up"),
        (lambda frames: [{**frames[0], "instances": None}], "frame 0: no list of 'instances'"),
        (lambda frames: [{**frames[0], "instances": [{}]}], "frame 0: 'keypoints'"),
        (
            lambda frames: [{**frames[0], "instances": [{"keypoints": [[1, 2]] * 133, "keypoint_scores": [1] * 9}]}],
            r"'keypoint_scores' has shape \(9,\), expected \(133,\)",
        ),
    ],
)
def test_broken_mmpose_file(tmp_path, change, said):
    path = write_mmpose(tmp_path / "a.json", random_pose(3, 133))
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(PoseError, match=rf"a\.json.*{said}"):
        read_all(path)
