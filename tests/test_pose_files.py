"""The .pose and .npy readers: versions, segments, and every way in which a file can be broken."""

import struct

import numpy as np
import pytest
from pose_format import Pose
from pose_helpers import REALDATA, needs_realdata, random_pose, write_pose

from slt_plugin.data.landmarks import MMPOSE_133, OPENPOSE_137, PARTS, PoseError, layout_indices
from slt_plugin.data.pose_files import BinaryPose, NpyPose, open_pose

BODY = PARTS["body"]


def read_body(path, first=0, last=None):
    file = open_pose(path)
    xy, confidence = file.values(first, file.num_frames if last is None else last, file.indices(BODY))
    return np.concatenate([xy, confidence[..., None]], axis=-1)


@pytest.mark.parametrize("version", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("components", [OPENPOSE_137, MMPOSE_133], ids=["openpose", "mmpose"])
def test_all_versions_and_segments(tmp_path, version, components):
    points = sum(len(names) for _, names in components)
    pose = random_pose(7, points)
    pose[2, :, 2] = 0
    path = write_pose(tmp_path / "a.pose", pose, components, version=version, fps=24)
    expected = pose[:, layout_indices(points, BODY)]
    file = open_pose(path)
    assert (file.kind, file.num_frames, file.fps, file.shape) == ("pose file", 7, 24, (7, 1, points, 2))
    seen = expected[..., 2] > 0
    np.testing.assert_array_equal(read_body(path)[seen], expected[seen])
    np.testing.assert_array_equal(read_body(path, 3, 5), expected[3:5])
    assert not read_body(path)[2, :, 2].any()


def test_first_of_several_people(tmp_path):
    pose = random_pose(4, 137)
    path = write_pose(tmp_path / "a.pose", pose)
    content = path.read_bytes()
    body = len(content) - 10 - pose.nbytes
    head = content[:body] + struct.pack("<fIH", 25.0, 4, 2)
    two = np.stack([pose, pose + 1], axis=1).astype("<f4")
    path.write_bytes(head + two[..., :2].tobytes() + two[..., 2].tobytes())
    np.testing.assert_array_equal(read_body(path), pose[:, layout_indices(137, BODY)])


def test_16_bit_frame_count_of_version_0_1_overflows(tmp_path):
    components = (("BODY", MMPOSE_133[0][1][:7]),)
    path = write_pose(tmp_path / "long.pose", random_pose(2**16 + 3, 7), components, version=0.1)
    assert open_pose(path).num_frames == 2**16 + 3


@needs_realdata
@pytest.mark.parametrize("path", sorted(REALDATA.glob("pose/pose_format/*.pose")), ids=lambda path: path.name)
def test_same_values_as_pose_format(path):
    with open(path, "rb") as file:
        reference = Pose.read(file.read())
    ours = open_pose(path)
    assert ours.num_frames == len(reference.body.data)
    assert ours.fps == pytest.approx(reference.body.fps)
    xy, confidence = ours.values(2, 9, np.arange(40))
    seen = reference.body.confidence[2:9, 0, :40] > 0
    np.testing.assert_array_equal(confidence, reference.body.confidence[2:9, 0, :40])
    np.testing.assert_array_equal(xy[seen], reference.body.data.data[2:9, 0, :40, :2][seen])


def test_an_unusable_frame_rate_is_unknown(tmp_path):
    for fps in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        assert open_pose(write_pose(tmp_path / "a.pose", random_pose(2, 137), fps=fps)).fps is None


def broken(path, content):
    path.write_bytes(content)
    with pytest.raises(PoseError, match=r"a\.pose: .*(remove the row|extract)") as caught:
        read_body(path)
    return str(caught.value)


@pytest.mark.parametrize("version", [0.0, 0.1, 0.2])
def test_truncated_anywhere(tmp_path, version):
    path = write_pose(tmp_path / "a.pose", random_pose(3, 137), version=version)
    content = path.read_bytes()
    for size in (0, 3, 11, 500, len(content) - 3 * 137 * 12, len(content) - 137 * 12, len(content) - 1):
        broken(path, content[:size])


@pytest.mark.parametrize("version", [0.0, 0.1, 0.2])
def test_bytes_after_the_end(tmp_path, version):
    path = write_pose(tmp_path / "a.pose", random_pose(3, 137), version=version)
    broken(path, path.read_bytes() + b"more")


def test_an_empty_file_is_called_empty(tmp_path):
    assert "it is empty" in broken(tmp_path / "a.pose", b"")


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path):
    path = write_pose(tmp_path / "a.pose", random_pose(3, 137))
    content = bytearray(path.read_bytes())
    at = len(content) - 3 * 137 * 12 - 10
    content[at : at + 10] = struct.pack("<fIH", 25.0, 2**32 - 1, 2**16 - 1)
    assert "declares 4294967295 frames" in broken(path, content)
    content[at : at + 10] = struct.pack("<fIH", 25.0, 3, 0)
    assert "no person" in broken(path, content)


def test_other_broken_headers(tmp_path):
    path = write_pose(tmp_path / "a.pose", random_pose(3, 137))
    content = path.read_bytes()
    assert "version 7" in broken(path, struct.pack("<f", 7) + content[4:])
    assert "version nan" in broken(path, struct.pack("<f", float("nan")) + content[4:])
    assert "XYC" in broken(path, content.replace(b"XYC", b"QQQ"))
    assert "header is broken" in broken(path, content.replace(b"Nose", b"\xff\xfe\xfd\xfc"))
    assert "lists no points" in broken(path, content[:10] + struct.pack("<H", 0) + content[12:])
    broken(path, b"this is a text file, not a pose")


def test_unknown_estimator_names_the_file(tmp_path):
    path = write_pose(tmp_path / "a.pose", random_pose(2, 5), (("STICKMAN", tuple("abcde")),))
    with pytest.raises(PoseError, match=r"a\.pose: no known component"):
        read_body(path)


def test_npy_with_confidence(tmp_path):
    pose = random_pose(6, 51)
    for dtype in ("<f2", "<f4", "<f8", ">f4"):
        np.save(tmp_path / "a.npy", pose.astype(dtype))
        np.testing.assert_allclose(read_body(tmp_path / "a.npy", 1, 4), pose[1:4, :9], rtol=1e-3)
    file = NpyPose(tmp_path / "a.npy")
    assert (file.kind, file.num_frames, file.fps, file.shape) == ("pose array", 6, None, (6, 51, 3))


def test_npy_without_confidence_takes_the_origin_for_missing(tmp_path):
    pose = random_pose(6, 51)[..., :2]
    pose[3, 5] = 0
    pose[4, 5, 0] = 0  # on the axis, not at the origin
    np.save(tmp_path / "a.npy", pose)
    assert np.argwhere(read_body(tmp_path / "a.npy")[..., 2] == 0).tolist() == [[3, 5]]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize(("low", "high"), [(-0.4, 0.4), (0.0, 300.0), (-0.05, 0.0), (-1.0, 1.0)])
def test_a_third_column_of_depths_is_refused(tmp_path, dtype, low, high):
    pose = random_pose(6, 51)
    pose[..., 2] = np.linspace(low, high, 6 * 51).reshape(6, 51)
    np.save(tmp_path / "a.npy", pose.astype(dtype))
    said = r"a\.npy: the third column .* is the third value z\? save x, y, confidence, or \(T, points, 2\)"
    with pytest.raises(PoseError, match=said):
        read_body(tmp_path / "a.npy")


def test_confidences_are_judged_as_far_as_they_are_read(tmp_path):
    pose = random_pose(6, 51)
    pose[3, 5, 2], pose[4, 5, 2] = 1.02, -1e-5  # as interpolation gives them
    pose[5, 5, 2] = pose[3, 40, 2] = -3
    np.save(tmp_path / "a.npy", pose)
    assert read_body(tmp_path / "a.npy", 0, 5)[3, 5, 2] == np.float32(1.02)
    with pytest.raises(PoseError, match="values from -3 to 1"):
        read_body(tmp_path / "a.npy", 0, 6)


@pytest.mark.parametrize("shape", [(), (51,), (4, 51), (4, 51, 4), (1, 4, 51, 3)])
def test_npy_of_another_shape(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    with pytest.raises(PoseError, match=r"a\.npy: .*\(frames, points, 3\)"):
        open_pose(tmp_path / "a.npy")


def test_npy_of_an_unknown_layout_names_the_file(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 50, 3), np.float32))
    with pytest.raises(PoseError, match=r"a\.npy: 50 points are no known landmark layout; save arrays of 543"):
        read_body(tmp_path / "a.npy")


def test_unsupported_kinds_list_the_supported_ones(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(PoseError, match=r"a\.mp4: \.mp4 is not a supported pose; give \.pose, \.npy"):
        open_pose(tmp_path / "a.mp4")
    with pytest.raises(PoseError, match=r"plain: .* give \.pose"):
        open_pose(tmp_path / "plain")


@pytest.mark.parametrize("name", ["a.pose", "a.npy", "a.json", "folder", "a.mp4"])
def test_missing_files(tmp_path, name):
    with pytest.raises(PoseError, match=rf"{name}: no such file or folder; correct the manifest's path"):
        open_pose(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pose", "a.npy", "a.json"])
def test_a_folder_in_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(PoseError, match=rf"{name}: cannot be read"):
        open_pose(tmp_path / name)


def test_only_the_header_is_read_to_know_the_length(tmp_path):
    path = write_pose(tmp_path / "a.pose", random_pose(3, 137), version=0.0)
    path.write_bytes(path.read_bytes()[:-1])
    assert BinaryPose(path).num_frames == 3  # the missing byte shows when the frames are read
