"""One small set of body, hand and face landmarks, found by name in every estimator's output.

Left and right are the signer's own. Names are "<part>.<landmark>", for example "left_hand.index_2".

Face table (canonical name: MediaPipe face mesh index, iBUG 68/70 index as in OpenPose and MMPose):

    right_brow_outer   70 17    right_brow_middle 105 19    right_brow_inner  107 21
    left_brow_inner   336 22    left_brow_middle  334 24    left_brow_outer   300 26
    right_eye_outer    33 36    right_eye_upper   160 37    right_eye_inner   133 39    right_eye_lower 144 41
    left_eye_inner    362 42    left_eye_upper    387 44    left_eye_outer    263 45    left_eye_lower  373 46
    mouth_right        61 48    upper_lip           0 51    mouth_left        291 54    lower_lip        17 57
    upper_lip_inner    13 62    lower_lip_inner    14 66    chin              152  8

Sources: the MediaPipe face mesh contours (FACEMESH_LEFT_EYE and so on), the iBUG 300-W mark-up, and the point lists
of the pose-format library. Both columns were compared on one video read by both estimators (tests/test_landmarks.py).
Estimated depth (z) and MediaPipe's POSE_WORLD_LANDMARKS are not used.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.errors import DataError


class PoseError(DataError):
    """A pose file, array or option that cannot be used: the message names it and says what to do."""


_FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_HAND = ("wrist", *(f"{finger}_{joint}" for finger in _FINGERS for joint in range(1, 5)))

# canonical name: (MediaPipe Holistic, OpenPose BODY_25, COCO wholebody)
_BODY_TABLE = {
    "nose": ("NOSE", "Nose", "nose"),
    "left_eye": ("LEFT_EYE", "LEye", "left_eye"),
    "right_eye": ("RIGHT_EYE", "REye", "right_eye"),
    "left_shoulder": ("LEFT_SHOULDER", "LShoulder", "left_shoulder"),
    "right_shoulder": ("RIGHT_SHOULDER", "RShoulder", "right_shoulder"),
    "left_elbow": ("LEFT_ELBOW", "LElbow", "left_elbow"),
    "right_elbow": ("RIGHT_ELBOW", "RElbow", "right_elbow"),
    "left_wrist": ("LEFT_WRIST", "LWrist", "left_wrist"),
    "right_wrist": ("RIGHT_WRIST", "RWrist", "right_wrist"),
}

# canonical name: (MediaPipe face mesh index, iBUG index)
_FACE_TABLE = {
    "right_brow_outer": (70, 17),
    "right_brow_middle": (105, 19),
    "right_brow_inner": (107, 21),
    "left_brow_inner": (336, 22),
    "left_brow_middle": (334, 24),
    "left_brow_outer": (300, 26),
    "right_eye_outer": (33, 36),
    "right_eye_upper": (160, 37),
    "right_eye_inner": (133, 39),
    "right_eye_lower": (144, 41),
    "left_eye_inner": (362, 42),
    "left_eye_upper": (387, 44),
    "left_eye_outer": (263, 45),
    "left_eye_lower": (373, 46),
    "mouth_right": (61, 48),
    "upper_lip": (0, 51),
    "mouth_left": (291, 54),
    "lower_lip": (17, 57),
    "upper_lip_inner": (13, 62),
    "lower_lip_inner": (14, 66),
    "chin": (152, 8),
}

PARTS: dict[str, tuple[str, ...]] = {
    "body": tuple(f"body.{name}" for name in _BODY_TABLE),
    "left_hand": tuple(f"left_hand.{name}" for name in _HAND),
    "right_hand": tuple(f"right_hand.{name}" for name in _HAND),
    "face": tuple(f"face.{name}" for name in _FACE_TABLE),
}
SHOULDERS = ("body.left_shoulder", "body.right_shoulder")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# ---- component and point names as the estimators' .pose headers spell them ----

_HOLISTIC_BODY = _words(
    "NOSE LEFT_EYE_INNER LEFT_EYE LEFT_EYE_OUTER RIGHT_EYE_INNER RIGHT_EYE RIGHT_EYE_OUTER LEFT_EAR RIGHT_EAR "
    "MOUTH_LEFT MOUTH_RIGHT LEFT_SHOULDER RIGHT_SHOULDER LEFT_ELBOW RIGHT_ELBOW LEFT_WRIST RIGHT_WRIST LEFT_PINKY "
    "RIGHT_PINKY LEFT_INDEX RIGHT_INDEX LEFT_THUMB RIGHT_THUMB LEFT_HIP RIGHT_HIP LEFT_KNEE RIGHT_KNEE LEFT_ANKLE "
    "RIGHT_ANKLE LEFT_HEEL RIGHT_HEEL LEFT_FOOT_INDEX RIGHT_FOOT_INDEX"
)
_HOLISTIC_HAND = _words(
    "WRIST THUMB_CMC THUMB_MCP THUMB_IP THUMB_TIP INDEX_FINGER_MCP INDEX_FINGER_PIP INDEX_FINGER_DIP INDEX_FINGER_TIP "
    "MIDDLE_FINGER_MCP MIDDLE_FINGER_PIP MIDDLE_FINGER_DIP MIDDLE_FINGER_TIP RING_FINGER_MCP RING_FINGER_PIP "
    "RING_FINGER_DIP RING_FINGER_TIP PINKY_MCP PINKY_PIP PINKY_DIP PINKY_TIP"
)
_OPENPOSE_BODY = _words(
    "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee LAnkle REye LEye "
    "REar LEar LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel"
)
_OPENPOSE_HAND = _words(
    "BASE T_STT T_BCMC T_MCP T_IP I_CMC I_MCP I_PIP I_DIP M_CMC M_MCP M_PIP M_DIP R_CMC R_MCP R_PIP R_DIP "
    "P_CMC P_MCP P_PIP P_DIP"
)
_COCO_BODY = _words(
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle left_big_toe left_small_toe left_heel "
    "right_big_toe right_small_toe right_heel"
)
# pose-format names the iBUG points of OpenPose by region: border, eyebrow, nose, eye, lips outer and inner, pupil
_OPENPOSE_FACE_REGIONS = (("FB", 17), ("FEB", 27), ("FN", 36), ("FE", 48), ("FLO", 60), ("FLI", 68), ("FP", 70))


def _openpose_face_name(index: int) -> str:
    prefix = next(prefix for prefix, stop in _OPENPOSE_FACE_REGIONS if index < stop)
    return f"{prefix}_{index}"


def _spellings() -> dict[str, tuple[tuple[str, str], ...]]:
    """Canonical name -> every (component, point) pair that estimators call it by."""
    spellings = {}
    for name, (holistic, openpose, coco) in _BODY_TABLE.items():
        spellings[f"body.{name}"] = (
            ("POSE_LANDMARKS", holistic),
            ("pose_keypoints_2d", openpose),
            ("BODY", coco),
        )
    for side in ("left", "right"):
        for i, name in enumerate(_HAND):
            spellings[f"{side}_hand.{name}"] = (
                (f"{side.upper()}_HAND_LANDMARKS", _HOLISTIC_HAND[i]),
                (f"hand_{side}_keypoints_2d", _OPENPOSE_HAND[i]),
                (f"{side.upper()}_HAND", f"hand_{i}"),  # pose-format >= 0.14
                (f"{side.upper()}_HAND", f"{side}_hand_{i}"),  # older files
            )
    for name, (mesh, ibug) in _FACE_TABLE.items():
        spellings[f"face.{name}"] = (
            ("FACE_LANDMARKS", str(mesh)),
            ("face_keypoints_2d", _openpose_face_name(ibug)),
            ("FACE", f"face-{ibug}"),
        )
    return spellings


_SPELLINGS = _spellings()
_COMPONENTS = frozenset(component for pairs in _SPELLINGS.values() for component, _ in pairs)

OPENPOSE_137 = (
    ("pose_keypoints_2d", _OPENPOSE_BODY),
    ("face_keypoints_2d", tuple(_openpose_face_name(i) for i in range(70))),
    ("hand_left_keypoints_2d", _OPENPOSE_HAND),
    ("hand_right_keypoints_2d", _OPENPOSE_HAND),
)
MMPOSE_133 = (
    ("BODY", _COCO_BODY),
    ("FACE", tuple(f"face-{i}" for i in range(68))),
    ("LEFT_HAND", tuple(f"hand_{i}" for i in range(21))),
    ("RIGHT_HAND", tuple(f"hand_{i}" for i in range(21))),
)


def _holistic(face_points: int, world: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    components = (
        ("POSE_LANDMARKS", _HOLISTIC_BODY),
        ("FACE_LANDMARKS", tuple(str(i) for i in range(face_points))),
        ("LEFT_HAND_LANDMARKS", _HOLISTIC_HAND),
        ("RIGHT_HAND_LANDMARKS", _HOLISTIC_HAND),
    )
    return (*components, ("POSE_WORLD_LANDMARKS", _HOLISTIC_BODY)) if world else components


# point count -> components in order; 478 face points are the 468 of the mesh and 10 of the irises
_LAYOUTS = {
    543: _holistic(468, world=False),
    553: _holistic(478, world=False),
    576: _holistic(468, world=True),
    586: _holistic(478, world=True),
    137: OPENPOSE_137,
    133: MMPOSE_133,
}
_CANONICAL_LAYOUTS = {
    51: ("body", "left_hand", "right_hand"),
    sum(map(len, PARTS.values())): tuple(PARTS),
}
_LAYOUT_NOTES = (
    "543, 553, 576 or 586 (MediaPipe Holistic), 137 (OpenPose), 133 (MMPose wholebody), "
    f"51 (body, left_hand, right_hand of slt_plugin.data.landmarks), {sum(map(len, PARTS.values()))} (all of its parts)"
)


def part_names(parts: Iterable[str]) -> tuple[str, ...]:
    """The landmark names of these parts, in the order given.

    Raises PoseError for an unknown part, a part given twice, or none at all.
    """
    if isinstance(parts, str):
        parts = (parts,)
    parts = tuple(parts)
    choices = ", ".join(PARTS)
    if not parts:
        raise PoseError(f"task.pose_parts is empty; choose some of {choices}")
    for i, part in enumerate(parts):
        if part not in PARTS:
            hint = did_you_mean(part, PARTS)
            raise PoseError(f"task.pose_parts: unknown landmark part {part!r}{hint or '.'} Choose some of {choices}")
        if part in parts[:i]:
            raise PoseError(f"task.pose_parts has {part!r} twice in {','.join(parts)}; remove one of them")
    return tuple(name for part in parts for name in PARTS[part])


def header_indices(components: Sequence[tuple[str, Sequence[str]]], names: Sequence[str]) -> np.ndarray:
    """Where each landmark stands in a file whose header lists these components.

    components: (component name, point names) in file order, as in a .pose header. names: canonical landmark names.
    Returns int64 (len(names),), counted over all points of the file; -1 where this file lacks the landmark.
    Raises PoseError where no component is one of a known estimator.
    """
    positions: dict[tuple[str, str], int] = {}
    offset = 0
    for component, points in components:
        for i, point in enumerate(points):
            positions.setdefault((component, point), offset + i)
        offset += len(points)
    if _COMPONENTS.isdisjoint(component for component, _ in components):
        raise PoseError(
            f"no known component among {[component for component, _ in components]}; use poses with the components of "
            "MediaPipe Holistic (POSE_LANDMARKS, ...), OpenPose (pose_keypoints_2d, ...) or COCO wholebody (BODY, ...)"
        )
    found = (next((positions[pair] for pair in _SPELLINGS[name] if pair in positions), -1) for name in names)
    return np.fromiter(found, dtype=np.int64, count=len(names))


def layout_indices(num_points: int, names: Sequence[str]) -> np.ndarray:
    """Where each landmark stands in a raw array of `num_points` points. Returns and raises as `header_indices`.

    The layout is known by its point count alone, so a count that no estimator has raises PoseError and lists those
    that are known.
    """
    return _layout_indices(num_points, tuple(names))


@lru_cache(maxsize=64)  # asked for once per clip with few different arguments
def _layout_indices(num_points: int, names: tuple[str, ...]) -> np.ndarray:
    if num_points in _LAYOUTS:
        indices = header_indices(_LAYOUTS[num_points], names)
    elif num_points in _CANONICAL_LAYOUTS:
        order = {name: i for i, name in enumerate(part_names(_CANONICAL_LAYOUTS[num_points]))}
        indices = np.array([order.get(name, -1) for name in names], dtype=np.int64)
    else:
        raise PoseError(f"{num_points} points are no known landmark layout; save arrays of {_LAYOUT_NOTES}")
    indices.flags.writeable = False  # shared by every caller
    return indices
