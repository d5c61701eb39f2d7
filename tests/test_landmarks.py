"""Landmark names, and where they stand in each estimator's output."""

import numpy as np
import pytest
from pose_format import Pose
from pose_helpers import REALDATA, needs_realdata

from slt_plugin.data import landmarks
from slt_plugin.data.errors import DataError
from slt_plugin.data.landmarks import PARTS, PoseError, header_indices, layout_indices, part_names

ALL = part_names(PARTS)


def test_parts_are_small_and_named_by_part():
    assert {part: len(names) for part, names in PARTS.items()} == {
        "body": 9,
        "left_hand": 21,
        "right_hand": 21,
        "face": 21,
    }
    assert len(set(ALL)) == len(ALL) == 72
    assert all(name.startswith(f"{part}.") for part, names in PARTS.items() for name in names)
    assert PARTS["left_hand"][6] == "left_hand.index_2"
    assert PARTS["body"][3:5] == landmarks.SHOULDERS


def test_part_names_keep_the_given_order():
    assert part_names(["right_hand", "body"]) == PARTS["right_hand"] + PARTS["body"]
    assert part_names("face") == PARTS["face"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["lefthand"], "'left_hand'"),
        (["body", "body"], "twice"),
        ([], r"task\.pose_parts is empty"),
        (["zz"], "'zz'. Choose some of body, left_hand"),
        ([""], "''. Choose some of body, left_hand"),
    ],
)
def test_part_names_refuse(parts, said):
    with pytest.raises(PoseError, match=said):
        part_names(parts)


def test_pose_errors_are_data_errors():
    assert issubclass(PoseError, DataError)


@pytest.mark.parametrize("points", [543, 553, 576, 586, 137, 133, 72])
def test_every_landmark_stands_somewhere_else_in_full_layouts(points):
    indices = layout_indices(points, ALL)
    assert len(set(indices.tolist())) == 72
    assert indices.min() >= 0
    assert indices.max() < points


def test_layouts_place_known_points():
    names = ("body.left_wrist", "left_hand.wrist", "right_hand.pinky_4", "face.chin", "face.mouth_right")
    assert layout_indices(543, names).tolist() == [15, 33 + 468, 33 + 468 + 41, 33 + 152, 33 + 61]
    # ten iris points move the hands; world landmarks come last and move nothing
    assert layout_indices(586, names).tolist() == [15, 33 + 478, 33 + 478 + 41, 33 + 152, 33 + 61]
    assert layout_indices(553, names).tolist() == layout_indices(586, names).tolist()
    assert layout_indices(137, names).tolist() == [7, 95, 136, 25 + 8, 25 + 48]
    assert layout_indices(133, names).tolist() == [9, 23 + 68, 132, 23 + 8, 23 + 48]
    assert layout_indices(51, names).tolist() == [7, 9, 50, -1, -1]


def test_unknown_layout_lists_the_known_ones():
    with pytest.raises(PoseError, match=r"77 points .* 543, 553, 576 or 586 .* 137 .* 133 .* 51 .* 72"):
        layout_indices(77, ALL)


def test_layout_indices_cannot_be_changed_by_a_caller():
    with pytest.raises(ValueError, match="read-only"):
        layout_indices(51, ALL)[0] = 5


def test_header_indices_go_by_name_not_by_order():
    components = [("FACE_LANDMARKS", ["152", "13"]), ("POSE_LANDMARKS", ["RIGHT_SHOULDER", "LEFT_SHOULDER"])]
    names = ("body.left_shoulder", "body.right_shoulder", "face.chin", "body.nose", "left_hand.wrist")
    assert header_indices(components, names).tolist() == [3, 2, 0, -1, -1]


def test_world_landmarks_are_not_taken_for_the_body():
    body = ("NOSE", "LEFT_EYE")
    assert header_indices([("POSE_WORLD_LANDMARKS", body), ("POSE_LANDMARKS", body)], ["body.nose"]).tolist() == [2]
    assert header_indices([("POSE_WORLD_LANDMARKS", body), ("FACE_LANDMARKS", ["0"])], ["body.nose"]).tolist() == [-1]


def test_both_spellings_of_mmpose_hands():
    for point in ("hand_8", "left_hand_8"):
        assert header_indices([("LEFT_HAND", ["x", point])], ["left_hand.index_4"]).tolist() == [1]


def test_unknown_components_are_refused():
    with pytest.raises(PoseError, match=r"no known component among \['BODY_135'\].*POSE_LANDMARKS"):
        header_indices([("BODY_135", ["Nose"])], ["body.nose"])


def _read(name: str) -> tuple[list, np.ndarray, np.ndarray]:
    pose = Pose.read((REALDATA / "pose/pose_format" / name).read_bytes())
    components = [(part.name, part.points) for part in pose.header.components]
    return components, pose.body.data.data[:, 0, :, :2], pose.body.confidence[:, 0]


@needs_realdata
@pytest.mark.parametrize(
    "name", ["colin-1-HOUSE.pose", "poses__mmposewholebody__FOOTBALL.pose", "src__python__tests__data__openpose.pose"]
)
def test_real_headers_are_the_layouts_of_their_point_count(name):
    components, xy, _ = _read(name)
    assert header_indices(components, ALL).tolist() == layout_indices(xy.shape[1], ALL).tolist()


@needs_realdata
def test_reduced_holistic_file_has_what_its_header_says():
    components, _, _ = _read("src__python__tests__data__mediapipe.pose")  # 8 body points, 128 face contour points
    lacking = [name for name, i in zip(ALL, header_indices(components, ALL), strict=True) if i < 0]
    assert lacking == ["body.nose", "body.left_eye", "body.right_eye"]


@needs_realdata
def test_two_estimators_put_each_landmark_at_the_same_place():
    """One video read by MediaPipe and by MMPose: a wrong row of the face table would be far off."""
    components, a, seen = _read("poses__FOOTBALL.pose")
    a_at = header_indices(components, ALL)
    components, b, _ = _read("poses__mmposewholebody__FOOTBALL.pose")
    distance = np.linalg.norm(a[:, a_at] - b[:, header_indices(components, ALL)], axis=-1)
    distance[seen[:, a_at] == 0] = np.nan
    shoulders = a[:, a_at[3]] - a[:, a_at[4]]
    median = np.nanmedian(distance, axis=0) / np.linalg.norm(shoulders, axis=-1).mean()
    face = np.array([name.startswith("face.") for name in ALL])
    assert median[face].max() < 0.03
    assert median.max() < 0.2  # the two disagree by this much about a hidden thumb
