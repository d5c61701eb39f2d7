"""Awkward real files and real How2Sign clips, where ../shared/realdata is present."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from video_helpers import decode_everything

from slt_plugin.data.video import VideoError, check_segment, decode_clip, probe

REAL = Path(__file__).parents[2] / "shared" / "realdata"
DECODE, HOW2SIGN = REAL / "decode", REAL / "video_how2sign"
pytestmark = pytest.mark.skipif(not DECODE.is_dir(), reason=f"{DECODE} is not there")


@pytest.mark.parametrize(
    ("name", "frames", "width", "height", "codec"),
    [
        ("FOOTBALL.mp4", 62, 640, 360, "h264"),  # declares 64, of which its edit list shows 62
        ("dc_video_0.mov", 3, 568, 320, "h264"),
        ("mp_big_buck_bunny_432_433.webm", 24, 1280, 720, "vp8"),
        ("mp_no_duration.webm", 74, 1280, 720, "vp9"),
        ("tc_av1_video.mkv", 125, 640, 360, "av1"),
        ("tc_h265_video.mp4", 10, 128, 128, "hevc"),
        ("tc_var_fps_video.mp4", 300, 128, 128, "h264"),
    ],
)
def test_sound_files(name, frames, width, height, codec):
    info = probe(DECODE / name)
    assert (info.num_frames, info.width, info.height, info.codec) == (frames, width, height, codec)
    assert check_segment(DECODE / name) == frames
    everything = decode_everything(DECODE / name)
    assert len(everything) == frames
    indices = [frames - 1, *range(0, frames, 7)]
    np.testing.assert_array_equal(decode_clip(DECODE / name, indices=indices).frames, everything[indices])


def test_rotation():
    info = probe(DECODE / "dc_video_90.mov")
    assert (info.width, info.height) == (320, 568)
    frames = decode_clip(DECODE / "dc_video_90.mov").frames
    np.testing.assert_array_equal(frames, np.rot90(decode_everything(DECODE / "dc_video_90.mov"), -1, axes=(1, 2)))


def test_variable_rate():
    path = DECODE / "tc_var_fps_video.mp4"
    frames = json.loads((DECODE / "tc_var_fps_video.all_frames_info.json").read_text())
    times = np.array([float(frame["pts_time"]) for frame in frames])
    info = probe(path)
    assert info.num_frames == len(times)
    assert info.fps == pytest.approx((len(times) - 1) / times[-1], rel=1e-4)
    everything, half = decode_everything(path), 0.5 / info.fps
    for start, end in ((0.0, 1.0), (4.9, 5.6), (8.0, 12.3), (14.0, None)):
        shown = (times > start - half) & (times <= (np.inf if end is None else end - half))
        np.testing.assert_array_equal(decode_clip(path, start, end).frames, everything[shown])


def test_corrupt():
    path = DECODE / "dc_corrupted.mp4"
    assert probe(path).num_frames == 50
    with pytest.raises(VideoError, match=r"frame (2\d) of 50 cannot be decoded .*; the first \1 frames of the segment"):
        check_segment(path)
    assert decode_clip(path, indices=[0, 20], size=64).frames.shape == (2, 64, 64, 3)
    with pytest.raises(VideoError, match=r"frame 49 of 50 cannot be decoded"):
        decode_clip(path, indices=[0, 49], size=64)


def test_no_video():
    with pytest.raises(VideoError, match=r"the file is empty \(0 bytes\), 0 frames"):
        probe(DECODE / "mp_result.webm")
    with pytest.raises(VideoError, match=r"no video that can be decoded \(there is audio in it\)"):
        probe(DECODE / "tc_sine_mono_s16.wav")


@pytest.mark.skipif(not HOW2SIGN.is_dir(), reason=f"{HOW2SIGN} is not there")
def test_how2sign():
    with open(HOW2SIGN / "labels.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 30
    for row in rows:
        path = next((HOW2SIGN / "clips").glob(row["name"] + ".*"))
        frames = int(row["frames"])
        info = probe(path)
        assert (info.num_frames, info.width, info.height) == (frames, 1280, 720)
        numerator, denominator = map(int, row["fps"].split("/"))
        assert info.fps == pytest.approx(numerator / denominator)
        assert check_segment(path) == frames
        clip = decode_clip(path, indices=[frames // 2], size=224, box=(0.2, -0.1, 0.8, 1.1))
        assert clip.num_frames == frames and clip.frames[:, 50:150, 50:150].float().std() > 5
