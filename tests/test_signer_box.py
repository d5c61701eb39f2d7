"""The signer's box of a video: which frames are looked at, who is taken, the detectors and their absence."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from signer_helpers import BLUE, REALDATA, RED, find_squares, grey_video, squares, write_video

from slt_plugin.data import signer_box as module
from slt_plugin.data.errors import DataError
from slt_plugin.data.signer_box import SignerBox, large_frame_without_box, signer_box
from slt_plugin.data.signer_frames import flow_magnitude, load_detector, mean_inside, scaled
from slt_plugin.data.video import VideoError, decode_clip

CLIPS = sorted((REALDATA / "video_how2sign/clips").glob("*.mp4"))
needs_clips = pytest.mark.skipif(not CLIPS, reason="needs ../shared/realdata/video_how2sign/clips")


@pytest.fixture
def coloured_faces(monkeypatch):
    """Red and blue squares are faces."""
    monkeypatch.setattr(module.signer_frames, "load_detector", lambda name: find_squares)


@pytest.fixture
def no_cache():
    load_detector.cache_clear()
    yield
    load_detector.cache_clear()


def test_the_mean_of_one_face(tmp_path, coloured_faces):
    # samples are the frames 0, 16 and 32: x = 60 and 64, none in the last; in the others it is elsewhere
    frames = [squares((100, 30, 10, RED))] * 33
    frames[0], frames[16], frames[32] = squares((60, 30, 10, RED)), squares((64, 30, 10, RED)), squares()
    found = signer_box(write_video(tmp_path / "a.mp4", np.stack(frames)))
    # mean face (62, 30, 72, 40): region (47, 20, 87, 70), 40 x 50, squared (42, 20, 92, 70)
    assert found == SignerBox(pytest.approx((42 / 160, 20 / 96, 92 / 160, 70 / 96)), 2, 3, "one face")
    other = signer_box(tmp_path / "a.mp4", every=8)
    assert (other.faces_found, other.samples) == (4, 5)


def test_a_segment_is_looked_at_from_its_start(tmp_path, coloured_faces):
    frames = np.stack([squares((20, 30, 10, RED))] * 25 + [squares((80, 30, 10, BLUE))] * 25)
    found = signer_box(write_video(tmp_path / "a.mp4", frames), 1.0, 1.8)
    assert (found.samples, found.source) == (2, "one face")
    assert found.box == pytest.approx((60 / 160, 20 / 96, 110 / 160, 70 / 96))


def test_no_face_is_the_centre(tmp_path):
    found = signer_box(grey_video(tmp_path / "a.mp4", size=(64, 48)))
    assert found == SignerBox((20 / 64, 12 / 48, 44 / 64, 36 / 48), 0, 2, "no face")


def two_people(moving: int, frames: int = 33) -> np.ndarray:
    """Two still faces; below one of them something textured goes to and fro."""
    video = np.stack([squares((20, 20, 10, RED), (124, 20, 10, BLUE))] * frames)
    hand = np.random.default_rng(0).integers(60, 200, (16, 16, 1), dtype=np.uint8).repeat(3, axis=-1)
    for t, frame in enumerate(video):
        x = (15, 115)[moving] + 2 * (t % 4)
        frame[40:56, x : x + 16] = hand
    return video


@pytest.mark.parametrize("moving", [0, 1])
def test_of_two_people_the_one_who_moves(tmp_path, coloured_faces, moving):
    found = signer_box(write_video(tmp_path / "a.mp4", two_people(moving)))
    assert (found.faces_found, found.samples, found.source) == (3, 3, "tube")
    x = (20, 124)[moving]
    assert found.box == pytest.approx(((x - 20) / 160, 10 / 96, (x + 30) / 160, 60 / 96))


def test_motion_counts_where_faces_were_looked_for(tmp_path, coloured_faces):
    """One person moves up to the sampled frames 16 and 32, the other a lot more, but between them."""
    video = two_people(0)
    video[[*range(15), *range(17, 31)]] = two_people(1)[[*range(15), *range(17, 31)]]
    video[0] = video[1]
    found = signer_box(write_video(tmp_path / "a.mp4", video))
    assert found.box[0] == pytest.approx(0)


def test_motion_is_a_mean_over_the_samples_that_a_tube_has(tmp_path, coloured_faces, monkeypatch):
    """Synthetic flow: 0.2 around the left one, seen three times, 0.25 around the right one, seen twice."""
    flow = torch.full((96, 160), 0.2)
    flow[:, 80:] = 0.25
    monkeypatch.setattr(module.signer_frames, "flow_magnitude", lambda before, after: flow)
    video = two_people(0)
    video[0] = squares((20, 20, 10, RED))
    found = signer_box(write_video(tmp_path / "a.mp4", video))
    assert found.box[0] == pytest.approx(104 / 160)


def test_who_is_seen_once_does_not_count(tmp_path, coloured_faces):
    """The right one moves, but is there in one of three samples only."""
    video = two_people(1)
    video[0], video[32] = squares((20, 20, 10, RED)), squares((20, 20, 10, RED))
    found = signer_box(write_video(tmp_path / "a.mp4", video))
    assert (found.box[0], found.source) == (pytest.approx(0), "tube")


def test_few_frames_are_in_memory_at_once(tmp_path, coloured_faces, monkeypatch):
    asked = []

    def decode(*args, indices, **options):
        asked.append(len(indices))
        return decode_clip(*args, indices=indices, **options)

    monkeypatch.setattr(module.video, "decode_clip", decode)
    signer_box(write_video(tmp_path / "a.mp4", two_people(0, frames=40)), every=1)
    # 40 samples, then the 40 pairs of frames for their motion
    assert asked == [16, 16, 8, *[16] * 5]


def test_two_people_in_a_single_frame(tmp_path, coloured_faces):
    video = np.stack([squares((20, 20, 10, RED), (124, 20, 12, BLUE))])
    found = signer_box(write_video(tmp_path / "a.mp4", video))
    assert found.source == "tube"
    assert found.box[0] == pytest.approx((124 - 18 - 6) / 160)


def test_a_box_far_outside_is_cut_and_it_is_said(tmp_path, coloured_faces, caplog):
    found = signer_box(write_video(tmp_path / "a.mp4", np.stack([squares((10, 20, 76, RED), size=(160, 96))])))
    # 76 high: 76 up to -56, 228 down to 324 = 3.375 frame heights
    assert found.limited
    assert found.box == pytest.approx(((48 - 190) / 160, -56 / 96, (48 + 190) / 160, 2.0))
    assert "a.mp4: the signer's box" in caplog.text


def test_a_segment_of_a_folder_of_images(tmp_path, coloured_faces):
    from PIL import Image

    for number in range(30):
        Image.fromarray(squares((50 + number, 30, 10, RED))).save(tmp_path / f"images{number + 1:04}.png")
    found = signer_box(tmp_path, 0.4, 1.2, fps=25.0)
    assert (found.faces_found, found.samples) == (2, 2)
    # frames 10 and 26: mean face from x = 68
    assert found.box == pytest.approx((48 / 160, 20 / 96, 98 / 160, 70 / 96))


def test_media_that_cannot_be_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(VideoError, match=r"a\.mp4"):
        signer_box(tmp_path / "a.mp4")


def test_options(tmp_path):
    with pytest.raises(DataError, match=r"detector 'hogg': choose hog or cnn; did you mean 'hog'\?"):
        signer_box(tmp_path / "a.mp4", detector="hogg")
    with pytest.raises(DataError, match=r"every=0"):
        signer_box(tmp_path / "a.mp4", every=0)


@pytest.mark.parametrize("detector", ["hog", "cnn"])
def test_without_dlib(monkeypatch, no_cache, detector):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(DataError, match=r"dlib is needed to find faces .* pip install 'slt-plugin\[prep\]'"):
        load_detector(detector)


def test_without_the_weights(monkeypatch, no_cache):
    find = importlib.util.find_spec
    hidden = "face_recognition_models"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else find(name, *rest))
    with pytest.raises(DataError, match=r"face_recognition_models is needed .* pip install 'slt-plugin\[prep\]'"):
        load_detector("cnn")
    load_detector("hog")


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"cv2 is needed to tell which .* pip install 'slt-plugin\[prep\]'"):
        flow_magnitude(torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8))


def test_flow_is_where_the_motion_is():
    rng = np.random.default_rng(1)
    frame = np.full((360, 640, 3), 90, np.uint8)
    patch = rng.integers(0, 255, (15, 15, 1), dtype=np.uint8).repeat(3, axis=-1).repeat(8, axis=0).repeat(8, axis=1)
    before, after = frame.copy(), frame.copy()
    before[100:220, 400:520], after[100:220, 408:528] = patch, patch
    flow = flow_magnitude(torch.from_numpy(before), torch.from_numpy(after))
    assert flow.shape == (180, 320)
    assert flow.min() >= 0 and flow.max() == pytest.approx(1)
    assert mean_inside(flow, (400, 100, 520, 220), 640, 360) > 0.5
    assert mean_inside(flow, (0, 0, 300, 360), 640, 360) < 0.01
    assert flow_magnitude(torch.from_numpy(before), torch.from_numpy(before)).max() == 0
    # half a pixel of the frame that is compared (320 wide): it is not blown up to 1
    after = frame.copy()
    after[100:220, 401:521] = patch
    assert 0.1 < flow_magnitude(torch.from_numpy(before), torch.from_numpy(after)).max() < 1


def test_mean_inside():
    values = torch.arange(12.0).reshape(3, 4)
    assert mean_inside(values, (20, 10, 40, 20), 40, 30) == 6.5
    assert mean_inside(values, (-50, -50, 10, 10), 40, 30) == 0
    assert mean_inside(values, (-50, -50, 90, 90), 40, 30) == 5.5
    assert mean_inside(values, (50, 0, 60, 30), 40, 30) == 0


def test_scaled():
    frame = torch.arange(2 * 6 * 3, dtype=torch.uint8).reshape(2, 6, 3)
    assert scaled(frame, 6) is frame
    assert scaled(frame, 12).shape == (4, 12, 3)
    assert scaled(frame.expand(2, 6, 3), 3).dtype == torch.uint8
    assert scaled(torch.zeros(1, 100, 3, dtype=torch.uint8), 10).shape == (1, 10, 3)


@pytest.mark.parametrize(
    ("width", "height", "box", "warned"),
    [
        (1280, 720, None, True),
        (1280, 720, (0.25, 0.0, 0.75, 1.0), False),
        (224, 224, None, False),
        (336, 336, None, False),
        (338, 338, None, True),
        (210, 260, None, True),
        (224, 240, None, False),
        (64, 64, None, False),
    ],
)
def test_large_frame_without_box(width, height, box, warned):
    warning = large_frame_without_box(width, height, box, 224)
    assert (warning is not None) == warned
    if warned:
        assert f"{width}x{height}" in warning
        assert "224-pixel" in warning and "scripts/signer_boxes.py" in warning


@needs_clips
def test_hog_on_real_clips():
    """A face in every clip, and in the crop of its box a face is where the rule puts it."""
    found = {path: signer_box(path) for path in CLIPS}
    assert {box.source for box in found.values()} == {"one face"}
    assert sum(box.faces_found for box in found.values()) >= 0.95 * sum(box.samples for box in found.values())
    hog = load_detector("hog")
    for path in CLIPS[::3]:
        crop = decode_clip(path, indices=[0], size=448, box=found[path].box).frames[0]
        ((x0, y0, x1, y1),) = hog(crop)
        # a fifth of the side, horizontally in the middle, one height below the top; detected sizes come in steps of 1.2
        assert (x1 - x0) / 448 == pytest.approx(0.2, abs=0.05)
        assert (x0 + x1) / 896 == pytest.approx(0.5, abs=0.08)
        assert (y0 + y1) / 896 == pytest.approx(0.3, abs=0.08)


@needs_clips
def test_cnn_finds_the_same_face_as_hog():
    frame = decode_clip(CLIPS[0], indices=[0]).frames[0][120:380]  # a strip: the CNN takes seconds for a whole frame
    (a,), (b,) = load_detector("cnn")(frame), load_detector("hog")(frame)
    assert a == pytest.approx(b, abs=25)
