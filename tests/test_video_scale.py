"""Turning, boxes and scaling of decoded frames."""

import struct

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from video_helpers import decode_everything, numbered, numbers_of, positions, write_video

from slt_plugin.data.video import VideoError, decode_clip, probe

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Three frames whose red is the place from left to right and whose green is the place from top to bottom."""
    return write_video(tmp_path_factory.mktemp("scale") / "a.mp4", [positions(WIDTH, HEIGHT)] * 3, pix_fmt="yuv444p")


def places(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What part of the width and of the height each pixel of `positions` shows."""
    image = np.asarray(image, dtype=float)
    return (image[..., 0] - 20) / 215, (image[..., 1] - 20) / 215


def is_black(image) -> bool:
    return not np.asarray(image).any()


# ---- turning ----


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(tmp_path, degrees, suffix):
    path = write_video(tmp_path / f"a.{suffix}", 3, size=(WIDTH, HEIGHT), rotation=degrees)
    upright = np.rot90(decode_everything(path), degrees // 90, axes=(1, 2))
    info = probe(path)
    assert (info.height, info.width) == upright.shape[1:3]
    np.testing.assert_array_equal(decode_clip(path).frames, upright)


@pytest.mark.parametrize("hflip", [True, False])
@pytest.mark.parametrize("degrees", [0, 90])
def test_mirrored(tmp_path, hflip, degrees):
    """The eight display matrices of quarter turns and mirrors, against FFmpeg's own reading of them."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.set_display_rotation(degrees, hflip=hflip, vflip=not hflip)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(positions(WIDTH, HEIGHT), format="rgb24")))
        container.mux(stream.encode(None))
    stored = decode_everything(path)[0]
    shown = decode_clip(path).frames[0]
    matrix = struct.unpack("=9i", bytes(next(av.open(str(path)).decode(video=0)).side_data["DISPLAYMATRIX"]))
    # where the corners of the stored picture go: x' = a x + c y, y' = b x + d y, moved to begin at 0
    corners = {(x, y): stored[y * (HEIGHT - 1), x * (WIDTH - 1)] for x in (0, 1) for y in (0, 1)}
    moved = {(x * matrix[0] + y * matrix[3], x * matrix[1] + y * matrix[4]): c for (x, y), c in corners.items()}
    left, top = min(x for x, _ in moved), min(y for _, y in moved)
    for (x, y), colour in moved.items():
        np.testing.assert_array_equal(shown[-1 if y > top else 0, -1 if x > left else 0], colour)


def test_box_and_size_are_of_the_displayed_picture(tmp_path):
    path = write_video(tmp_path / "a.mp4", [positions(WIDTH, HEIGHT)] * 2, rotation=90, pix_fmt="yuv444p")
    upright = np.rot90(decode_everything(path)[0])  # 96 high, 64 wide
    box = (0.25, 0.5, 0.75, 1.0)
    cut = decode_clip(path, indices=[0], box=box).frames[0]
    np.testing.assert_array_equal(cut, upright[48:96, 16:48])
    scaled = decode_clip(path, indices=[0], box=box, size=48).frames[0].numpy()
    assert is_black(scaled[:, :8]) and is_black(scaled[:, 40:])
    assert np.abs(scaled[:, 9:39].astype(int) - cut[:, 1:31].numpy()).max() <= 6


# ---- the box, without scaling ----


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 0, 1, 1), (0, 64), (0, 96)),
        ((0.5, 0.25, 0.75, 0.5), (16, 32), (48, 72)),
        ((0.1, 0.1, 0.5, 0.333), (6, 21), (10, 48)),  # 9.6 and 6.4 pixels: nearest; 21 cuts a chroma sample
        ((0.99, 0.99, 1, 1), (63, 64), (95, 96)),
    ],
)
def test_box(tmp_path, pix_fmt, box, rows, columns):
    path = write_video(tmp_path / "a.mp4", 2, size=(WIDTH, HEIGHT), pix_fmt=pix_fmt)
    expected = decode_everything(path)[:, slice(*rows), slice(*columns)]
    np.testing.assert_array_equal(decode_clip(path, box=box).frames, expected)


def test_box_beyond_the_frame(video):
    frames = decode_clip(video, box=(-0.5, -1, 0.5, 0.5)).frames
    assert frames.shape == (3, 96, 96, 3)
    np.testing.assert_array_equal(frames[:, 64:, 48:], decode_everything(video)[:, :32, :48])
    assert is_black(frames[:, :64]) and is_black(frames[:, :, :48])


def test_box_outside_the_frame(video):
    with pytest.raises(VideoError, match=r"a\.mp4: .* box \(1.1, 0.0, 1.5, 1.0\) lies outside the frame"):
        decode_clip(video, box=(1.1, 0.0, 1.5, 1.0))


# ---- scaling ----


def test_without_a_box_the_centre_square(video):
    frames = decode_clip(video, size=32).frames
    assert frames.shape == (3, 32, 32, 3)
    x, y = places(frames[0])
    middles = (np.arange(32) + 0.5) / 32
    np.testing.assert_allclose(y[:, 16], middles, atol=0.02)
    np.testing.assert_allclose(x[16], (16 + 64 * middles) / 96, atol=0.02)


@pytest.mark.parametrize("size", [17, 48, 224])
@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (0.25, 0, 0.75, 1), (0.1, 0.3, 0.6, 0.55), (-0.5, 0.2, 0.7, 1.4), (0.9, 0.9, 2, 2), (-1, -1, 2, 2)],
)
def test_a_box_becomes_a_square(video, box, size):
    image = decode_clip(video, indices=[0], box=box, size=size).frames[0]
    assert image.shape == (size, size, 3)
    x0, y0, x1, y1 = round(box[0] * WIDTH), round(box[1] * HEIGHT), round(box[2] * WIDTH), round(box[3] * HEIGHT)
    side = max(x1 - x0, y1 - y0)
    # where the middles of the output's pixels lie in the picture
    middles = (np.arange(size) + 0.5) / size * side
    x = x0 - (side - (x1 - x0)) / 2 + middles
    y = y0 - (side - (y1 - y0)) / 2 + middles
    inside_x = (x > max(x0, 0)) & (x < min(x1, WIDTH))
    inside_y = (y > max(y0, 0)) & (y < min(y1, HEIGHT))
    edge = side / size  # one output pixel
    far_x = (x < max(x0, 0) - edge) | (x > min(x1, WIDTH) + edge)
    far_y = (y < max(y0, 0) - edge) | (y > min(y1, HEIGHT) + edge)
    assert is_black(image[:, far_x]) and is_black(image[far_y])
    inner_x = inside_x & np.roll(inside_x, 1) & np.roll(inside_x, -1)
    inner_y = inside_y & np.roll(inside_y, 1) & np.roll(inside_y, -1)
    shown_x, shown_y = places(image[inner_y][:, inner_x])
    tolerance = 0.04 + edge / 64
    np.testing.assert_allclose(shown_x, np.broadcast_to(x[inner_x] / WIDTH, shown_x.shape), atol=tolerance)
    np.testing.assert_allclose(shown_y, np.broadcast_to(y[inner_y][:, None] / HEIGHT, shown_y.shape), atol=tolerance)


def test_scaling_averages_what_it_shrinks(tmp_path):
    """As torch's antialiased bilinear filter: no pixel of a fine pattern is dropped."""
    rng = np.random.default_rng(0)
    image = rng.integers(40, 200, (128, 128, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mkv", [image], codec="ffv1", pix_fmt="yuv444p")
    everything = torch.from_numpy(decode_everything(path)).permute(0, 3, 1, 2).float()
    expected = F.interpolate(everything, (32, 32), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    difference = (decode_clip(path, size=32).frames - expected).abs()
    assert difference.mean() < 1.5 and difference[:, 1:-1, 1:-1].max() < 5  # swscale repeats pixels at the edge
    dropping = F.interpolate(everything, (32, 32), mode="bilinear").permute(0, 2, 3, 1)
    assert (dropping - expected).abs().max() > 40


@pytest.mark.parametrize("size", [32, 64, 100])
def test_black_and_white_stay(tmp_path, size):
    for name, codec, pix_fmt in (
        ("a.mp4", "libx264", "yuv420p"),
        ("b.mp4", "libx264", "yuv420p10le"),
        ("c.avi", "mjpeg", "yuvj420p"),  # full range
    ):
        frames = [np.full((64, 64, 3), value, dtype=np.uint8) for value in (0, 255)]
        clip = decode_clip(write_video(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt), size=size).frames
        assert clip[0].max() <= 2 and clip[1].min() >= 253


@pytest.mark.parametrize("name", ["a.gif", "a.mkv", "gray.mkv"])
def test_formats_of_all_kinds_are_scaled(tmp_path, name):
    codec, pix_fmt = {"a.gif": ("gif", "rgb8"), "a.mkv": ("libx265", "yuv420p10le"), "gray.mkv": ("ffv1", "gray")}[name]
    path = write_video(tmp_path / name, [numbered(i + 7, 96, 96) for i in range(3)], codec=codec, pix_fmt=pix_fmt)
    assert numbers_of(decode_clip(path, size=48).frames) == [7, 8, 9]
    assert numbers_of(decode_clip(path, size=200).frames) == [7, 8, 9]


def test_bad_size(video):
    with pytest.raises(VideoError, match=r"a\.mp4: size=0; give a number of pixels above 0"):
        decode_clip(video, size=0)


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (0, 0.6, 1, 0.5), (-1.1, 0, 1, 1), (0, 0, 1, 2.1), (0, 0, np.nan, 1)]
)
def test_bad_box(video, box):
    with pytest.raises(VideoError, match=r"a\.mp4: box=.*; give x0, y0, x1, y1 from -1 to 2 with x0 < x1"):
        decode_clip(video, box=box)


def test_frame_size_that_changes(tmp_path):
    """Two H.264 streams one after the other in a transport stream."""
    path = tmp_path / "a.ts"
    small = write_video(tmp_path / "small.ts", 5, size=(64, 64), bframes=0)
    large = write_video(tmp_path / "large.ts", [numbered(i, 96, 96) for i in range(5, 9)], pts=range(5, 9), bframes=0)
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert numbers_of(decode_clip(path, size=32).frames) == list(range(9))
    with pytest.raises(VideoError, match="the frame size changes inside the video to 96x96; give a size"):
        decode_clip(path)
