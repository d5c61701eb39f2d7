"""Decoding: exactly the frames asked for, from every kind of file, compared with decoding everything."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from video_helpers import decode_everything, number_of, numbered, numbers_of, write_video

from slt_plugin.data.errors import DataError
from slt_plugin.data.segments import segment_frames
from slt_plugin.data.video import VideoError, check_segment, decode_clip, probe

LENGTH = 60
SIZE = (96, 64)
# name -> how it is written; all have 60 frames at 25 fps
KINDS = {
    "b_frames.mp4": {},
    "b_frames.mkv": {},
    "b_frames.mov": {"audio_seconds": 2.4},
    "b_frames.avi": {},  # stores no times of presentation
    "starts_late.ts": {},  # a transport stream begins at 1.4 s
    "b_frames.flv": {},
    "one_keyframe.mp4": {"gop": 250, "bframes": 3},
    "open_gop.mkv": {"options": {"x264-params": "open-gop=1:bframes=3:b-pyramid=normal"}},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1:bframes=0:keyint=20"}},  # no keyframes but the first
    "interlaced.ts": {"options": {"x264-params": "interlaced=1"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "live.mkv": {"container_options": {"live": "1"}},  # no duration, no number of frames, no index
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265"},
    "hevc.mkv": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.mkv": {"codec": "libsvtav1"},
    "picture.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "raw.h264": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module", params=KINDS)
def video(request, folder):
    """Path and all frames, decoded the plain way."""
    path = write_video(folder / request.param, LENGTH, size=SIZE, **KINDS[request.param])
    return path, decode_everything(path)


def test_probe_agrees_with_decoding(video):
    path, everything = video
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (*SIZE, LENGTH)
    assert info.fps == pytest.approx(25)
    assert len(everything) == LENGTH
    assert check_segment(path) == LENGTH


def test_all_frames(video):
    path, everything = video
    clip = decode_clip(path)
    assert clip.frames.dtype == torch.uint8 and clip.num_frames == LENGTH and clip.fps == pytest.approx(25)
    assert numbers_of(clip.frames) == list(range(LENGTH))
    np.testing.assert_array_equal(clip.frames, everything)


@pytest.mark.parametrize(
    "indices",
    [[0], [59], [31], [7, 8, 9, 10], [0, 14, 28, 42, 56], [58, 3, 3, 41, 0, 58], torch.tensor([50, 2]), []],
    ids=str,
)
def test_indices(video, indices):
    path, everything = video
    clip = decode_clip(path, indices=indices)
    assert clip.num_frames == LENGTH
    np.testing.assert_array_equal(clip.frames, everything[np.array(indices, dtype=int)])


@pytest.mark.parametrize(("first", "last"), [(0, 5), (13, 14), (20, 47), (55, 60)])
def test_segments(video, first, last):
    path, everything = video
    start, end = first / 25, last / 25
    assert probe(path, start, end, fps=25).num_frames == last - first
    assert check_segment(path, start, end) == last - first
    np.testing.assert_array_equal(decode_clip(path, start, end).frames, everything[first:last])
    clip = decode_clip(path, start, end, indices=[last - first - 1, 0])
    np.testing.assert_array_equal(clip.frames, everything[[last - 1, first]])


def test_adjacent_segments_share_no_frame(folder):
    path = write_video(folder / "adjacent.mp4", 50, fps=Fraction(30000, 1001))
    times = [0.0, 0.51, 0.85, 1.1234, None]
    parts = [decode_clip(path, a or None, b).frames for a, b in pairwise(times)]
    assert numbers_of(torch.cat(parts)) == list(range(50))


def test_constant_rate_in_milliseconds(folder):
    """Matroska rounds time stamps: segments are still those of the rate, not of the rounded times."""
    path = write_video(folder / "rounded.mkv", 60, fps=30)
    assert probe(path).fps == 30
    for first in (2.499, 2.501, 7.51, 13.495):
        numbers = numbers_of(decode_clip(path, first / 30, 1.5).frames)
        assert numbers == list(range(*segment_frames(first / 30, 1.5, 30, 60)))


def test_end_past_the_file(folder):
    path = write_video(folder / "short.mp4", 50)
    assert probe(path, 1.0, 2.9).num_frames == 25  # a sloppy annotation: less than a second
    for start, end in ((1.0, 3.5), (2.5, 2.8), (2.5, None)):
        with pytest.raises(VideoError, match=r"short\.mp4: the segment from .* lies past the file's 50 frames"):
            probe(path, start, end)
    with pytest.raises(VideoError, match="has no frames"):
        decode_clip(path, 1.0, 1.01)


def test_frame_rate_of_the_manifest(folder):
    path = write_video(folder / "rate.mkv", 30, fps=Fraction(30000, 1001))
    assert probe(path, 0.5, fps=30).fps == pytest.approx(29.97, abs=1e-3)
    for call in (probe, decode_clip, check_segment):
        with pytest.raises(VideoError, match=r"recorded at 29\.97 fps, but fps=25 is given"):
            call(path, fps=25)


@pytest.mark.parametrize("times", [{"start": -0.1}, {"end": np.nan}, {"start": np.inf}, {"fps": 0.0}])
def test_bad_times(folder, times):
    path = write_video(folder / "times.mp4", 3)
    for call in (probe, decode_clip, check_segment):
        with pytest.raises(VideoError, match=rf"times\.mp4: {next(iter(times))}=.*; give a number above 0, or None"):
            call(path, **times)


@pytest.mark.parametrize("indices", [[60], [-1], [0, 99]])
def test_indices_outside(folder, indices):
    path = write_video(folder / "outside.mp4", LENGTH)
    with pytest.raises(VideoError, match=rf"frames .*{indices[-1]} asked for; give numbers from 0 to 59"):
        decode_clip(path, indices=indices)
    assert issubclass(VideoError, DataError)


# ---- variable frame rate ----

STAMPS = [0, 40, 80, 120, 500, 540, 1000, 1020, 1040, 1500]  # milliseconds


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4", "vfr.webm", "vfr.mov"])
def test_variable_rate(folder, name):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_video(folder / name, 10, codec=codec, pts=STAMPS, time_base=Fraction(1, 1000))
    info = probe(path)
    assert info.num_frames == 10
    assert info.fps == pytest.approx(9 / 1.5)
    assert numbers_of(decode_clip(path).frames) == list(range(10))
    # half an average frame is 83 ms: segments take what is shown from 83 ms before their start to 83 ms before the end
    for start, end, expected in (
        (0.0, 0.3, [0, 1, 2, 3]),
        (0.5, 1.0, [4, 5]),
        (1.0, 1.2, [6, 7, 8]),
        (1.2, None, [9]),
        (None, 0.15, [0, 1]),
    ):
        assert numbers_of(decode_clip(path, start, end).frames) == expected
        assert probe(path, start, end).num_frames == check_segment(path, start, end) == len(expected)
    with pytest.raises(VideoError, match=r"no frame of the file is shown from 0\.7 s to 0\.8 s"):
        probe(path, 0.7, 0.8)
    with pytest.raises(VideoError, match=r"lies past the file's 10 frames \(1.67 s, variable rate\)"):
        probe(path, 1.0, 3.0)


def test_a_dropped_frame_is_not_constant_rate(folder):
    path = write_video(folder / "gap.avi", 9, codec="mpeg4", pts=[0, 1, 2, 3, 5, 6, 7, 8, 9])
    assert probe(path).fps == pytest.approx(25 * 8 / 9)
    assert numbers_of(decode_clip(path, 0.2, 0.4, fps=None).frames) == [4, 5, 6, 7, 8]


# ---- several streams, names ----


def test_the_largest_stream_is_read(folder):
    small = [np.full((32, 32, 3), 20 * i, dtype=np.uint8) for i in range(10)]
    for name in ("streams.mp4", "streams.mkv"):
        path = write_video(folder / name, 10, more_streams=[small], audio_seconds=0.3)
        assert probe(path).width == 64
        assert numbers_of(decode_clip(path, indices=[9, 4]).frames) == [9, 4]


def test_a_cover_picture_is_no_video(folder):
    path = folder / "cover.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 256, 256, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(numbered(99, 256, 256), format="rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture) + cover.encode(None))
        for i in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        container.mux(video.encode(None))
    assert probe(path).width == 64
    assert numbers_of(decode_clip(path).frames) == [0, 1, 2, 3, 4]


def test_a_name_that_looks_like_a_protocol(folder, monkeypatch):
    write_video(folder / "tmp.mp4", 3).rename(folder / "http:clip.mp4")
    monkeypatch.chdir(folder)
    assert probe("http:clip.mp4").num_frames == 3


def test_any_file_name(folder):
    path = write_video(folder / "tmp.mp4", 3).rename(folder / "file: 100%d, größe [a].mp4")
    assert numbers_of(decode_clip(path).frames) == [0, 1, 2]
    assert number_of(decode_clip(str(path), indices=[1]).frames[0]) == 1
