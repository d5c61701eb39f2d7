"""Reading, normalising and laying out poses."""

import pickle
import warnings

import numpy as np
import pytest
from pose_helpers import REALDATA, needs_realdata, random_pose, write_mmpose, write_openpose, write_pose

from slt_plugin.data.landmarks import MMPOSE_133, PARTS, PoseError, layout_indices, part_names
from slt_plugin.data.pose import PoseAugment, PoseOptions, PoseSequence, channels, prepare, read_for_model, read_pose

ALL = part_names(PARTS)
BODY_AND_HANDS = ("body", "left_hand", "right_hand")


def save(path, pose):
    np.save(path, pose)
    return path


def load(path, options=None, rng=None, **segment):
    """What a source does: read, then lay out."""
    options = options or PoseOptions()
    return prepare(read_for_model(path, options, **segment), options, rng)


# ---- reading ----


@pytest.mark.parametrize("points", [543, 553, 576, 586, 137, 133, 51, 72])
def test_arrays_of_every_layout(tmp_path, points):
    pose = random_pose(5, points)
    pose[2, 7, 2] = 0
    sequence = read_pose(save(tmp_path / "a.npy", pose), parts=tuple(PARTS))
    indices = layout_indices(points, ALL)
    expected, has = pose[:, indices], indices >= 0
    assert sequence.points.dtype == np.float32
    assert sequence.points.shape == (5, 72, 2)
    assert sequence.present.dtype == bool
    np.testing.assert_array_equal(sequence.present, (expected[..., 2] > 0) & has)
    np.testing.assert_array_equal(sequence.points, expected[..., :2] * sequence.present[..., None])


def test_every_format_gives_the_same_landmarks(tmp_path):
    """The same numbers stored four ways; parts in another order than in the files."""
    parts = ("right_hand", "face", "body")
    for points, write_json, components in ((137, write_openpose, None), (133, write_mmpose, MMPOSE_133)):
        pose = random_pose(4, points)
        pose[1] = 0
        pose[2, 40:100, 2] = 0
        expected = read_pose(save(tmp_path / f"{points}.npy", pose), parts=parts)
        files = [write_json(tmp_path / (f"{points}.json" if points == 133 else "folder"), pose)]
        for version in (0.0, 0.1, 0.2):
            options = {} if components is None else {"components": components}
            files.append(write_pose(tmp_path / f"{points}-{version}.pose", pose, version=version, **options))
        for path in files:
            sequence = read_pose(path, parts=parts)
            np.testing.assert_array_equal(sequence.points, expected.points, err_msg=str(path))
            np.testing.assert_array_equal(sequence.present, expected.present, err_msg=str(path))


def test_segments_and_frame_rates(tmp_path):
    pose = random_pose(50, 137)
    array, file = save(tmp_path / "a.npy", pose), write_pose(tmp_path / "a.pose", pose, fps=25)
    whole = read_pose(array, parts=("body",))
    assert whole.fps is None
    assert read_pose(file, parts=("body",)).fps == 25
    for path, fps in ((array, 25.0), (file, None), (file, 25.0)):
        part = read_pose(path, parts=("body",), start=0.4, end=1.0, fps=fps)
        assert part.fps == 25
        np.testing.assert_array_equal(part.points, whole.points[10:25])
    with pytest.raises(PoseError, match=r"a\.npy: start and end are in seconds.*fps column"):
        read_pose(array, parts=("body",), start=0.4, end=1.0)
    with pytest.raises(PoseError, match=r"a\.pose: recorded at 25 fps, but fps=30 is given"):
        read_pose(file, parts=("body",), fps=30.0)
    with pytest.raises(PoseError, match=r"a\.pose: the segment from 3 s to 4 s lies past"):
        read_pose(file, parts=("body",), start=3.0, end=4.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_where_present(tmp_path, value):
    pose = random_pose(6, 51)
    pose[4, 2, 0] = value
    with pytest.raises(PoseError, match=r"a\.npy: NaN or infinite values in 1 landmarks, first in frame 4; extract"):
        read_pose(save(tmp_path / "a.npy", pose), parts=("body",))
    with pytest.raises(PoseError, match="first in frame 4"):
        read_pose(save(tmp_path / "b.npy", pose), parts=("body",), start=0.08, fps=25.0)
    read_pose(tmp_path / "a.npy", parts=("left_hand",))  # not among the landmarks asked for
    pose[4, 2, 2] = 0
    sequence = read_pose(save(tmp_path / "c.npy", pose), parts=("body",))
    assert np.isfinite(sequence.points).all()
    assert not sequence.present[4, 2]
    pose[4, 2] = [1, 1, np.nan]
    with pytest.raises(PoseError, match="NaN"):
        read_pose(save(tmp_path / "d.npy", pose), parts=("body",))
    pose[4, 2, 0] = value
    path = save(tmp_path / "e.npy", pose[..., :2])
    with pytest.raises(PoseError, match="x = y = 0"):
        read_pose(path, parts=("body",))


def test_a_double_too_large_for_single_precision(tmp_path):
    pose = random_pose(6, 51).astype(np.float64)
    pose[4, 2, 0] = 1e200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PoseError, match="infinite"):
            read_pose(save(tmp_path / "a.npy", pose), parts=("body",))


def test_none_of_the_landmarks(tmp_path):
    path = save(tmp_path / "a.npy", random_pose(6, 51))
    with pytest.raises(PoseError, match=r"a\.npy: has none of the chosen landmarks; choose other task\.pose_parts"):
        read_pose(path, parts=("face",))


# ---- options ----


def test_options_take_lists_and_can_be_pickled():
    options = PoseOptions(parts=["body", "face"], augment=PoseAugment(speed=0.1))
    assert options.parts == ("body", "face")
    assert PoseOptions(parts="body").parts == ("body",)
    assert channels(options) == 3 * 30
    assert pickle.loads(pickle.dumps(options)) == options  # noqa: S301
    assert channels(PoseOptions()) == 216


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": ("bdy",)}, "did you mean 'body'"),
        ({"step_frames": 0}, r"task\.step_frames=0"),
        ({"step_frames": 1.5}, r"task\.step_frames=1\.5"),
        (
            {"normalise": "shoulder"},
            r"task\.pose_normalise='shoulder': choose one of .*; did you mean 'shoulders'",
        ),
        (
            {"normalise": "none", "augment": PoseAugment(rotation=5)},
            "set task.pose_normalise=shoulders",
        ),
    ],
)
def test_refused_options(options, said):
    with pytest.raises(PoseError, match=said):
        PoseOptions(**options)


def test_time_may_be_augmented_without_normalisation():
    PoseOptions(normalise="none", augment=PoseAugment(speed=0.1, frame_drop=0.1, landmark_drop=0.1))


# ---- model input ----


def test_channels_are_x_y_present(tmp_path):
    pose = random_pose(5, 51)
    pose[3, 20, 2] = 0
    out = load(save(tmp_path / "a.npy", pose), PoseOptions(BODY_AND_HANDS, normalise="none"))
    assert out.dtype == np.float32
    assert out.shape == (5, 153)
    expected = pose.copy()
    expected[3, 20] = 0
    expected[..., 2] = expected[..., 2] > 0
    np.testing.assert_array_equal(out.reshape(5, 51, 3), expected)


def test_normalised_by_the_shoulders(tmp_path):
    pose = random_pose(9, 51)  # shoulders at (6, 4) and (2, 4)
    out = load(save(tmp_path / "a.npy", pose), PoseOptions(BODY_AND_HANDS)).reshape(9, 51, 3)
    np.testing.assert_allclose(out[:, 3], [[0.5, 0, 1]] * 9)
    np.testing.assert_allclose(out[:, 4], [[-0.5, 0, 1]] * 9)
    np.testing.assert_allclose(out[..., :2], (pose[..., :2] - [4, 4]) / 4, atol=1e-6)


def test_normalisation_is_of_the_whole_clip(tmp_path):
    """Medians: a frame with wrong shoulders changes nothing, and the body's movement stays."""
    pose = random_pose(9, 51)
    pose[4, 3:5, :2] += [[500, 0], [0, 0]]
    pose[5, 3:5, 2] = 0
    moved = pose.copy()
    moved[8, :, :2] += [2, 1]
    for name, clip, shift in (("a", pose, [0, 0]), ("b", moved, [0.5, 0.25])):
        out = load(save(tmp_path / f"{name}.npy", clip), PoseOptions(BODY_AND_HANDS)).reshape(9, 51, 3)
        np.testing.assert_allclose(out[8, 3, :2], np.add([0.5, 0], shift), atol=1e-6)
        assert not out[5, 3:5].any()


def test_size_and_place_in_the_picture_do_not_count(tmp_path):
    pose = random_pose(9, 51)
    other = pose * [7, 7, 1] + [300, -80, 0]
    first, second = (load(save(tmp_path / f"{i}.npy", p.astype(np.float32))) for i, p in enumerate((pose, other)))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_parts_without_the_body_are_normalised_too(tmp_path):
    path = save(tmp_path / "a.npy", random_pose(9, 51))
    with_body = load(path, PoseOptions(BODY_AND_HANDS))
    hands = load(path, PoseOptions(("right_hand", "left_hand")))
    np.testing.assert_array_equal(hands, np.concatenate([with_body[:, 90:], with_body[:, 27:90]], axis=1))


@pytest.mark.parametrize(("step", "steps"), [(1, 7), (2, 4), (3, 3), (7, 1), (50, 1)])
def test_step_frames(tmp_path, step, steps):
    path = save(tmp_path / "a.npy", random_pose(7, 51))
    out = load(path, PoseOptions(step_frames=step))
    assert len(out) == steps
    np.testing.assert_array_equal(out, load(path)[::step])


def test_without_shoulders(tmp_path):
    pose = random_pose(6, 51)
    pose[:3, 3, 2] = pose[3:, 4, 2] = 0  # never both
    path = save(tmp_path / "a.npy", pose)
    with pytest.raises(PoseError, match=r"no frame shows both shoulders.*set task\.pose_normalise=none"):
        load(path)
    assert load(path, PoseOptions(normalise="none")).shape == (6, 216)


def test_impossible_shoulders(tmp_path):
    pose = random_pose(6, 51)
    pose[:, 4] = pose[:, 3]
    with pytest.raises(PoseError, match="same place"):
        load(save(tmp_path / "a.npy", pose))
    pose[:, 4, 0] += 1e-4
    with pytest.raises(PoseError, match="shoulder widths away"):
        load(save(tmp_path / "b.npy", pose))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pose[:, 9, :2] = 3e38
        with pytest.raises(PoseError, match="shoulder widths away"):
            load(save(tmp_path / "c.npy", pose))


def test_augmentation_needs_a_generator_and_follows_it(tmp_path):
    augment = PoseAugment(speed=0.2, rotation=10, noise=0.01, frame_drop=0.1, landmark_drop=0.1)
    options = PoseOptions(BODY_AND_HANDS, step_frames=2, augment=augment)
    path = save(tmp_path / "a.npy", random_pose(60, 51))
    plain = load(path, PoseOptions(BODY_AND_HANDS, step_frames=2))
    np.testing.assert_array_equal(load(path, options), plain)
    first, second = (load(path, options, np.random.default_rng([1, 2])) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = load(path, options, np.random.default_rng([1, 3]))
    assert other.shape != first.shape or not np.array_equal(other, first)
    landmarks = first.reshape(len(first), 51, 3)
    assert not landmarks[landmarks[..., 2] == 0].any()
    assert 0.8 < landmarks[..., 2].mean() < 0.97


def test_prepare_takes_a_sequence_made_elsewhere():
    sequence = PoseSequence(random_pose(4, 72)[..., :2], np.ones((4, 72), bool), None)
    assert prepare(sequence, PoseOptions()).shape == (4, 216)


# ---- real files ----


@needs_realdata
@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("pose_format/colin-1-HOUSE.pose", 0.6),
        ("pose_format/poses__mmposewholebody__FOOTBALL.pose", 0.99),
        ("pose_format/src__python__tests__data__mediapipe.pose", 0.6),
        ("pose_format/src__python__tests__data__openpose.pose", 0.8),
        ("openpose_json", 0.99),
        ("mmpose_json/SOUP.json", 0.99),
    ],
)
def test_real_files(name, seen):
    out = load(REALDATA / "pose" / name).reshape(-1, 72, 3)
    assert out[..., 2].mean() > seen
    assert np.abs(out).max() < 3  # arms reach about two shoulder widths
    shoulders = out[:, 3, 0] - out[:, 4, 0]
    assert np.median(shoulders[out[:, 3, 2] > 0]) == pytest.approx(1, abs=0.05)  # the signer's left is at larger x
    both = (out[:, 0, 2] > 0) & (out[:, 3, 2] > 0)
    assert (out[both, 0, 1] < out[both, 3, 1]).all()  # the nose is above the shoulders: y points down
