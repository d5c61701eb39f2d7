"""Strips: skeletons that lie in their picture, frames of the right moments, and faces that cannot be seen."""

import base64
import io

import numpy as np
import pytest
import torch
from conftest import FPS, write_pose_corpus
from PIL import Image
from video_helpers import write_video

from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.report import strip as module
from slt_plugin.report.errors import ReportError
from slt_plugin.report.strip import blur_boxes, evenly_spaced, strip

SIZE = 96


def picture(url: str) -> np.ndarray:
    """(H, W, 3) of a data URL."""
    kind, _, content = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames that become brighter, each with a checkerboard, the "face", at the left."""
    folder = tmp_path_factory.mktemp("video")
    frames = []
    for i in range(20):
        frame = np.full((SIZE, SIZE, 3), 5 * i, np.uint8)
        frame[30:50, 10:30] = 255 * (np.indices((20, 20)).sum(0) // 5 % 2)[..., None]
        frames.append(frame)
    write_video(folder / "a.mp4", frames, fps=10)
    return folder, Row("a", "a.mp4", num_frames=20, fps=10.0)


@pytest.fixture
def detector(monkeypatch):
    """Finds the face in bright frames alone."""
    asked = []

    def detect(frame: torch.Tensor):
        asked.append(tuple(frame.shape))
        return [(10.0, 30.0, 30.0, 50.0)] if frame[0, -1].float().mean() > 40 else []

    monkeypatch.setattr(module, "load_detector", lambda name: detect)
    return asked


def random_pose(frames: int) -> np.ndarray:
    """(frames, 51, 3), every landmark there."""
    pose = np.random.default_rng(0).random((frames, 51, 3))
    pose[..., 2] = 1
    return pose


def contrast(image: np.ndarray) -> float:
    """Of the face's place."""
    return float(image[30:50, 10:30].std())


def test_steps_are_the_middles_of_equal_stretches():
    assert evenly_spaced(8, 4) == [1, 3, 5, 7]
    assert evenly_spaced(3, 24) == [0, 1, 2] and evenly_spaced(1, 24) == [0]
    assert evenly_spaced(1000, 24)[-1] < 1000 and len(set(evenly_spaced(1000, 24))) == 24


def test_a_skeleton_lies_in_its_square_and_names_its_parts(tmp_path):
    folder = write_pose_corpus(tmp_path / "c", {"test": 2})
    row = read_manifest(folder / "test.tsv")[1]
    found = strip(row, folder, "pose", frames=False, blur_faces=False, steps=5)
    assert found["kind"] == "skeleton"
    assert len(found["times"]) == len(found["points"]) == 5
    assert 0 < found["times"][0] < found["times"][-1] < row.num_frames / FPS
    points = [point for step in found["points"] for point in step if point is not None]
    assert len(points) == 5 * len(found["parts"])
    assert np.min(points) > -0.1 and np.max(points) < 1.1 and np.ptp(points) > 0.7
    assert set(found["parts"]) == {"body", "right_hand"}  # the left hand is missing in every frame
    for a, b in found["edges"]:
        assert found["parts"][a] == found["parts"][b]
    assert found["parts"].count("right_hand") == 21
    assert sum(found["parts"][a] == "right_hand" for a, _ in found["edges"]) == 20


def test_a_landmark_that_is_missing_for_a_moment_is_none_then(tmp_path):
    pose = random_pose(4)
    pose[2, 0, 2] = 0  # the nose
    pose[3, 3, 2] = 0  # the left shoulder, and the neck with it
    np.save(tmp_path / "a.npy", pose)
    found = strip(Row("a", "a.npy", fps=FPS), tmp_path, "pose", frames=False, blur_faces=False)
    nose = [step[0] is None for step in found["points"]]
    neck = [step[-1] is None for step in found["points"]]
    assert nose == [False, False, True, False] and neck == [False, False, False, True]
    left, right, middle = (np.array(found["points"][0][i]) for i in (3, 4, -1))
    assert middle == pytest.approx((left + right) / 2, abs=2e-3)


def test_a_stray_point_neither_shrinks_the_signer_nor_is_drawn(tmp_path):
    pose = random_pose(40)
    pose[20, 7, :2] = 500
    np.save(tmp_path / "a.npy", pose)
    found = strip(Row("a", "a.npy", fps=FPS), tmp_path, "pose", frames=False, blur_faces=False, steps=40)
    assert found["points"][20][7] is None
    assert np.ptp([point for point in found["points"][0] if point]) > 0.7


def test_frames_come_only_when_asked_for(video):
    folder, row = video
    assert strip(row, folder, "video", frames=False, blur_faces=True) is None
    assert strip(row, folder, "features", frames=True, blur_faces=False) is None
    found = strip(row, folder, "video", frames=True, blur_faces=False, steps=4)
    assert found["times"] == [0.25, 0.75, 1.25, 1.75] and found["blurred"] is False
    images = [picture(url) for url in found["images"]]
    assert [round(image[-5:, -5:].mean()) for image in images] == pytest.approx([10, 35, 60, 85], abs=5)
    assert all(contrast(image) > 60 for image in images)


def test_frames_are_small_and_cut_to_the_signer_s_box(tmp_path):
    frame = np.zeros((300, 600, 3), np.uint8)
    frame[:, 300:] = 200
    write_video(tmp_path / "a.mp4", [frame] * 3, fps=10)
    row = Row("a", "a.mp4", num_frames=3, fps=10.0)
    (whole,) = strip(row, tmp_path, "video", frames=True, blur_faces=False, steps=1)["images"]
    assert picture(whole).shape == (80, 160, 3)
    row = Row("a", "a.mp4", num_frames=3, fps=10.0, box=(0.5, -0.5, 1.0, 0.5))
    (cut,) = strip(row, tmp_path, "video", frames=True, blur_faces=False, steps=1)["images"]
    image = picture(cut)
    assert image.shape == (160, 160, 3)
    assert image[:70].mean() < 10 and image[90:].mean() > 180  # black above the frame, the right half in it


def test_blurring_hides_every_face_and_frames_without_one_as_a_whole(video, detector):
    folder, row = video
    found = strip(row, folder, "video", frames=True, blur_faces=True, steps=4)
    assert found["blurred"] is True and detector == [(SIZE, SIZE, 3)] * 4
    images = [picture(url) for url in found["images"]]
    clear = [picture(url) for url in strip(row, folder, "video", frames=True, blur_faces=False, steps=4)["images"]]
    for image, before in zip(images, clear, strict=True):
        assert contrast(image) < 0.35 * contrast(before)
    # where a face was found the rest of the frame stays as it is
    assert np.abs(images[3][70:] - clear[3][70:]).mean() < 2


def test_a_face_that_one_frame_s_detection_takes_something_else_for_stays_hidden(video, monkeypatch):
    """In the last frame only the lower right corner is found; the face was found in the frame before."""
    count = iter(range(4))
    boxes = {3: [(80.0, 80.0, 90.0, 90.0)]}
    face = [(10.0, 30.0, 30.0, 50.0)]
    monkeypatch.setattr(module, "load_detector", lambda name: lambda frame: boxes.get(next(count), face))
    folder, row = video
    images = strip(row, folder, "video", frames=True, blur_faces=True, steps=4)["images"]
    assert contrast(picture(images[3])) < 40


def test_boxes_are_widened_and_kept_inside_of_the_picture():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8))
    blurred = np.asarray(blur_boxes(noise, [(-20, -20, 20, 20), (200, 200, 210, 210)])).astype(int)
    original = np.asarray(noise).astype(int)
    assert blurred[:38, :38].std() < 0.5 * original[:38, :38].std()
    assert (blurred[45:] == original[45:]).all() and blurred.shape == original.shape


def test_wrong_options(video):
    folder, row = video
    with pytest.raises(ReportError, match="steps=0"):
        strip(row, folder, "video", frames=True, blur_faces=False, steps=0)
    with pytest.raises(ReportError, match="kind='audio'"):
        strip(row, folder, "audio", frames=True, blur_faces=False)
