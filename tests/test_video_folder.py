"""Folders of images, as PHOENIX-2014T and CSL-Daily come."""

import os

import numpy as np
import pytest
from PIL import Image
from video_helpers import number_of, numbered, numbers_of, positions

from slt_plugin.data.video import VideoError, check_segment, decode_clip, probe


def write_images(folder, names, width=64, height=48):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.fromarray(numbered(i, width, height)).save(folder / name, quality=95)
    return folder


PHOENIX = [f"images{i:04d}.png" for i in range(1, 31)]


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp"])
def test_images(tmp_path, suffix):
    folder = write_images(tmp_path / "a", [name.replace("png", suffix) for name in PHOENIX])
    info = probe(folder, fps=25)
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 48, 30, 25)
    assert check_segment(folder) == 30
    clip = decode_clip(folder, fps=25)
    assert clip.frames.shape == (30, 48, 64, 3)
    assert numbers_of(clip.frames) == list(range(30))
    assert numbers_of(decode_clip(folder, indices=[29, 3, 3]).frames) == [29, 3, 3]


def test_png_is_exact(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    folder = write_images(tmp_path / "a", [])
    Image.fromarray(image).save(folder / "1.png")
    np.testing.assert_array_equal(decode_clip(folder).frames[0], image)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_kinds_of_png(tmp_path, mode):
    folder = write_images(tmp_path / "a", [])
    Image.fromarray(numbered(77)).convert(mode).save(folder / "1.png")
    assert number_of(decode_clip(folder).frames[0]) == 77
    assert number_of(decode_clip(folder, size=32).frames[0]) == 77


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(1, 13)],  # 10 comes after 9
        [f"25October_{i}.png" for i in (8, 9, 10, 100, 1000)],
        [f"01April_2010_Thursday_heute.avi_pid0_fn{i:06d}-0.png" for i in range(12)],  # PHOENIX-2014
    ],
)
def test_order(tmp_path, names):
    folder = write_images(tmp_path / "a", names)
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "notes1.txt").write_text("x")
    assert numbers_of(decode_clip(folder).frames) == list(range(len(names)))


def test_segments_need_a_rate(tmp_path):
    folder = write_images(tmp_path / "a", PHOENIX)
    clip = decode_clip(folder, 0.4, 0.8, fps=25)
    assert clip.num_frames == 10 and clip.fps == 25
    assert numbers_of(clip.frames) == list(range(10, 20))
    assert decode_clip(folder).fps is None and probe(folder).fps is None
    with pytest.raises(VideoError, match=r"a: start and end are in seconds, .* rate is not known; add an fps column"):
        decode_clip(folder, 0.4, 0.8)
    with pytest.raises(VideoError, match=r"lies past the file's 30 frames at 25 fps"):
        probe(folder, 1.0, 3.0, fps=25)


@pytest.mark.parametrize(("orientation", "quarters"), [(6, -1), (8, 1), (3, 2)])
def test_box_size_and_turn(tmp_path, orientation, quarters):
    folder = write_images(tmp_path / "a", [])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(positions(96, 64)).save(folder / "1.jpg", quality=100, subsampling=0, exif=exif)
    upright = np.rot90(positions(96, 64), quarters)
    height, width = upright.shape[:2]
    assert (probe(folder).width, probe(folder).height) == (width, height)
    assert np.abs(decode_clip(folder).frames[0].numpy().astype(int) - upright).mean() < 1
    cut = decode_clip(folder, box=(0.25, 0.5, 0.75, 1.0)).frames[0].numpy().astype(int)
    assert np.abs(cut - upright[height // 2 :, width // 4 : width * 3 // 4]).mean() < 1
    assert decode_clip(folder, size=20).frames.shape == (1, 20, 20, 3)


def test_new_images_are_seen(tmp_path):
    folder = write_images(tmp_path / "a", PHOENIX[:3])
    assert probe(folder).num_frames == 3
    write_images(folder, PHOENIX[:5])
    os.utime(folder, ns=(1, 1))
    assert probe(folder).num_frames == 5


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(VideoError, match=r"a: no image in the folder \(.*\.png.*\); correct the path"):
        probe(write_images(tmp_path / "a", []))
    with pytest.raises(VideoError, match=r"b: 1\.(png|jpg) and 1\.(png|jpg) have the same place in the order"):
        probe(write_images(tmp_path / "b", ["1.png", "1.jpg"]))
    with pytest.raises(VideoError, match=r"c: 0?1\.png and 0?1\.png have the same place"):
        probe(write_images(tmp_path / "c", ["1.png", "01.png"]))


@pytest.mark.parametrize("content", [b"", b"text", "cut"])
def test_a_broken_image(tmp_path, content):
    folder = write_images(tmp_path / "a", PHOENIX, 128, 128)
    broken = folder / PHOENIX[7]
    broken.write_bytes(broken.read_bytes()[:200] if content == "cut" else content)
    for call in (decode_clip, check_segment):
        with pytest.raises(VideoError, match=r"images0008\.png: not a complete image.*; copy it again"):
            call(folder)
    assert numbers_of(decode_clip(folder, indices=[6, 8]).frames) == [6, 8]


def test_an_image_of_another_size(tmp_path):
    folder = write_images(tmp_path / "a", PHOENIX[:4])
    Image.fromarray(numbered(4, 80, 80)).save(folder / PHOENIX[4])
    with pytest.raises(VideoError, match=r"a: .*the frame size changes inside the video to 80x80; give a size"):
        decode_clip(folder)
    assert numbers_of(decode_clip(folder, size=48).frames[4:]) == [4]
