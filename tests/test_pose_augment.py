"""Training-time augmentation of poses."""

import math

import numpy as np
import pytest

from slt_plugin.data.landmarks import PoseError
from slt_plugin.data.pose_augment import PoseAugment, augment, change_speed

EVERYTHING = PoseAugment(speed=0.3, rotation=15, scale=0.2, shear=0.2, noise=0.05, frame_drop=0.2, landmark_drop=0.2)


def clip(frames=40, points=6, seed=0):
    rng = np.random.default_rng(seed)
    present = rng.random((frames, points)) > 0.2
    return (rng.normal(size=(frames, points, 2)) * present[..., None]).astype(np.float32), present


def rng(seed=0):
    return np.random.default_rng(seed)


def test_everything_off_changes_nothing():
    points, present = clip()
    out, out_present = augment(points, present, PoseAugment(), rng())
    np.testing.assert_array_equal(out, points)
    np.testing.assert_array_equal(out_present, present)


def test_same_generator_same_result_and_input_untouched():
    points, present = clip()
    before = points.copy(), present.copy()
    first, second = (augment(points, present, EVERYTHING, rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    other = augment(points, present, EVERYTHING, rng(4))
    assert other[0].shape != first[0].shape or not np.array_equal(other[0], first[0])
    np.testing.assert_array_equal(points, before[0])
    np.testing.assert_array_equal(present, before[1])


@pytest.mark.parametrize("name", [*PoseAugment.__dataclass_fields__, "all"])
def test_missing_points_stay_zero(name):
    options = EVERYTHING if name == "all" else PoseAugment(**{name: 0.5})
    for seed in range(5):
        points, present = augment(*clip(), options, rng(seed))
        assert points.dtype == np.float32
        assert points.shape == (*present.shape, 2)
        assert len(points) >= 1
        assert not points[~present].any()
        assert present.any()


def test_speed_changes_the_length_both_ways():
    lengths = {len(augment(*clip(), PoseAugment(speed=0.25), rng(seed))[0]) for seed in range(40)}
    assert min(lengths) >= round(40 / 1.25)
    assert max(lengths) <= round(40 / 0.75)
    assert min(lengths) < 36 < 44 < max(lengths)


def test_change_speed_interpolates_linearly():
    points = np.arange(5, dtype=np.float32)[:, None, None] * np.float32([1, 10])
    out, present = change_speed(points, np.ones((5, 1), bool), 5 / 9)
    np.testing.assert_allclose(out[:, 0, 0], np.arange(9) / 2)
    np.testing.assert_allclose(out[:, 0, 1], np.arange(9) * 5)
    assert present.all()


def test_change_speed_beside_a_gap_takes_the_nearer_frame():
    points = np.float32([1, 2, 0, 4])[:, None, None].repeat(2, axis=-1)
    present = np.array([True, True, False, True])[:, None]
    out, out_present = change_speed(points, present, 4 / 13)  # 13 frames: 0, 0.25, ..., 3
    assert out_present[:, 0].tolist() == [True] * 6 + [False] * 4 + [True] * 3
    np.testing.assert_allclose(out[:, 0, 0], [1, 1.25, 1.5, 1.75, 2, 2, 0, 0, 0, 0, 4, 4, 4])


def test_change_speed_of_one_frame():
    out, present = change_speed(np.ones((1, 1, 2), np.float32), np.ones((1, 1), bool), 0.7)
    assert out.tolist() == [[[1, 1]]]
    assert change_speed(np.ones((3, 1, 2), np.float32), np.ones((3, 1), bool), 50)[0].shape == (1, 1, 2)
    assert present.all()


def test_rotation_turns_about_the_origin_by_at_most_the_angle():
    points = np.float32([[[1, 0], [0, 2]]])
    angles = []
    for seed in range(200):
        (a, b), _ = augment(points, np.ones((1, 2), bool), PoseAugment(rotation=30), rng(seed))[0][0], None
        assert np.hypot(*a) == pytest.approx(1, rel=1e-5)
        assert a @ b == pytest.approx(0, abs=1e-5)
        angles.append(math.degrees(math.atan2(a[1], a[0])))
    assert -30 <= min(angles) < -25
    assert 25 < max(angles) <= 30


def test_scale_and_shear():
    points = np.float32([[[1, 0], [0, 1]]])
    present = np.ones((1, 2), bool)
    factors, slants = [], []
    for seed in range(200):
        out = augment(points, present, PoseAugment(scale=0.2), rng(seed))[0][0]
        np.testing.assert_allclose(out, out[0, 0] * np.eye(2), atol=1e-6)
        factors.append(out[0, 0])
        out = augment(points, present, PoseAugment(shear=0.3), rng(seed))[0][0]
        np.testing.assert_allclose(out, [[1, 0], [out[1, 0], 1]], atol=1e-6)
        slants.append(out[1, 0])
    assert 0.8 <= min(factors) < 0.85 < 1.15 < max(factors) <= 1.2
    assert -0.3 <= min(slants) < -0.25 < 0.25 < max(slants) <= 0.3


def test_noise_has_the_given_size():
    points, present = np.zeros((500, 20, 2), np.float32), np.ones((500, 20), bool)
    out, _ = augment(points, present, PoseAugment(noise=0.03), rng())
    assert out.std() == pytest.approx(0.03, rel=0.05)
    assert abs(out.mean()) < 1e-3


def test_frame_drop_keeps_frames_whole_and_never_drops_all():
    points, present = clip(400)
    out, out_present = augment(points, present, PoseAugment(frame_drop=0.25), rng())
    assert 270 < len(out) < 330
    rows = {frame.tobytes() for frame in points}
    assert all(frame.tobytes() in rows for frame in out)
    assert len(out_present) == len(out)
    for seed in range(30):
        assert len(augment(*clip(3), PoseAugment(frame_drop=0.999), rng(seed))[0]) >= 1


def test_landmark_drop_marks_landmarks_missing():
    points, present = np.ones((300, 20, 2), np.float32), np.ones((300, 20), bool)
    out, out_present = augment(points, present, PoseAugment(landmark_drop=0.1), rng())
    assert out_present.mean() == pytest.approx(0.9, abs=0.02)
    np.testing.assert_array_equal(out[..., 0] == 1, out_present)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speed", 1.0),
        ("speed", -0.1),
        ("scale", 1),
        ("frame_drop", 1.0),
        ("landmark_drop", 1.5),
        ("noise", math.inf),
        ("shear", math.nan),
        ("rotation", -3),
        ("rotation", "5"),
    ],
)
def test_refused_options(name, value):
    with pytest.raises(PoseError, match=rf"task\.augment_{name}=.*: give a number from 0 up"):
        PoseAugment(**{name: value})
