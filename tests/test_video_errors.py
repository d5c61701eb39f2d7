"""Files that are empty, cut off, damaged or something else: an error that says so, and no frame in place of another."""

import pickle
import random
import re

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from video_helpers import decode_everything, numbered, numbers_of, write_video

from slt_plugin.data.video import VIDEO_SUFFIXES, VideoError, check_segment, decode_clip, probe

CALLS = [probe, decode_clip, check_segment]


def refused(path, said: str) -> None:
    """All three calls give the same message: file, cause, frames that could be read, what to do."""
    for call in CALLS:
        with pytest.raises(VideoError, match=rf"{re.escape(str(path))}: .*{said}.*(or remove the row|inside them)"):
            call(path)


# ---- no video ----


def test_empty(tmp_path):
    (tmp_path / "a.mp4").touch()
    refused(tmp_path / "a.mp4", r"the file is empty \(0 bytes\), 0 frames could be read")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.m4a"])
def test_audio_only(tmp_path, name):
    path = write_video(tmp_path / "sound.mp4", [], audio_seconds=1.0).rename(tmp_path / name)
    refused(path, r"no video that can be decoded \(there is audio in it\), 0 frames could be read")


def test_other_files(tmp_path):
    for name, content in (
        ("a.mp4", b"text\n" * 99),
        ("b.avi", b"\0" * 999),
        ("c.gif", b"GIF89a"),
        ("d.txt", b"#EXTM3U"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, r"not a complete video file \(.*\), 0 frames could be read")


def test_playlists_open_no_other_file(tmp_path):
    """FFmpeg would follow the names, even to the network."""
    write_video(tmp_path / "a.ts", 10)
    (tmp_path / "b.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\na.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "c.mp4").write_text("ffconcat version 1.0\nfile a.ts\n")
    for name in ("b.mp4", "c.mp4"):
        refused(tmp_path / name, r"not a complete video file \(.*\), 0 frames could be read")


def test_missing(tmp_path):
    for call in CALLS:
        with pytest.raises(VideoError, match=r"a\.mp4: no such file or folder; correct the manifest's path"):
            call(tmp_path / "a.mp4")


def test_errors_survive_pickling(tmp_path):
    with pytest.raises(VideoError) as caught:
        probe(tmp_path / "a.mp4")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_suffixes():
    assert {".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".ts"} <= VIDEO_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in VIDEO_SUFFIXES)


# ---- cut off ----

CUT = {
    "a.mp4": {"container_options": {"movflags": "faststart"}},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4"},
    "a.flv": {},
    "a.ts": {},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.wmv": {"codec": "wmv2"},
}


@pytest.mark.parametrize("name", CUT)
def test_cut_off(tmp_path, name):
    """The frames before the cut are still there for those who ask for a segment of them."""
    path = write_video(tmp_path / name, 60, gop=6, **CUT[name])
    everything, data = decode_everything(path), path.read_bytes()
    path.write_bytes(data[: int(0.7 * len(data)) | 1])
    refused(path, r"(the file ends .*|its last packet is cut off); \d+ frames \(\d\.\d\d s\) could be read")
    with pytest.raises(VideoError) as caught:
        probe(path)
    readable = int(re.search(r"(\d+) frames \(", str(caught.value))[1])
    assert 15 <= readable < 60
    np.testing.assert_array_equal(decode_clip(path, 0.2, 0.6).frames, everything[5:15])
    for start, end in ((0.2, 2.4), (2.3, 2.4), (0.2, None)):
        with pytest.raises(VideoError, match=r"frames .* could be read"):
            decode_clip(path, start, end)


def test_cut_off_before_the_index(tmp_path):
    """A recording that was not closed: without its index at the end, an MP4 cannot be read at all."""
    path = write_video(tmp_path / "a.mp4", 30)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, r"(no frame can be decoded|not a complete video file) \(.*\), 0 frames could be read; download")
    path.write_bytes(path.read_bytes()[:-900])
    refused(path, r"(no video that can be decoded|not a complete video file) \(.*\), 0 frames could be read; download")


# ---- damaged ----


def damage(path, *numbers: int) -> None:
    """Overwrite the compressed data of frames of an MP4, not the first bytes that tell its kind.

    Some random data pass for a picture: the decoder has to notice, which is tried here.
    """
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    packets.sort(key=lambda packet: packet.pts)
    for number in numbers:
        at, end = packets[number].pos + 6, packets[number].pos + packets[number].size
        for seed in range(100):
            data[at:end] = random.Random(seed).randbytes(end - at)
            path.write_bytes(data)
            if not decodes(path, packets[number].pts):
                break


def decodes(path, pts: int) -> bool:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        context.thread_count, context.options = 1, {"err_detect": "explode"}
        for packet in container.demux(video=0):
            try:
                packet.decode()
            except av.FFmpegError:
                if packet.pts == pts:
                    return False
    return True


STEADY = {  # no keyframes but those of the groups; for x264 no choice between P and B frames
    "libx264": {"x264-params": "scenecut=0:b-adapt=0"},
    "libx265": {"x265-params": "log-level=error:scenecut=0:bframes=0:keyint=20:pools=1:frame-threads=1"},
}


def noisy(count: int) -> list[np.ndarray]:
    """Frames that need many bytes each."""
    rng = np.random.default_rng(0)
    return [numbered(i, 96, 96) + rng.integers(0, 30, (96, 96, 1), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_damaged_packet(tmp_path, codec):
    """A frame is refused if damage has a part in it, until the next keyframe; the others are as they were."""
    path = write_video(tmp_path / "a.mp4", noisy(60), codec=codec, gop=20, bframes=0, options=STEADY[codec])
    everything = decode_everything(path)
    damage(path, 27)
    assert probe(path).num_frames == 60  # the container does not tell
    said = r"frame 27 of 60 cannot be decoded \(.+\); the first 27 frames of the segment could be read; download"
    for call in (decode_clip, check_segment):
        with pytest.raises(VideoError, match=said):
            call(path)
    for indices in ([26], [40], [0, 26, 40, 59], list(range(20, 27)), list(range(40, 60))):
        np.testing.assert_array_equal(decode_clip(path, indices=indices).frames, everything[indices])
    for frame in (27, 28, 39):
        with pytest.raises(VideoError, match=f"frame {frame} of 60 cannot be decoded .*; the first 27 frames"):
            decode_clip(path, indices=[3, frame, 50])
    np.testing.assert_array_equal(decode_clip(path, 1.6, 2.4).frames, everything[40:])
    with pytest.raises(VideoError, match=r"frame 7 of 15 cannot be decoded .*; the first 7 frames of the segment"):
        decode_clip(path, 0.8, 1.4)


def test_damaged_frame_that_nothing_refers_to(tmp_path):
    path = write_video(tmp_path / "a.mp4", noisy(30), gop=30, options=STEADY["libx264"])
    everything = decode_everything(path)
    with av.open(str(path)) as container:
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert "".join(kinds[:4]) == "IBBP"
    damage(path, 2)
    others = [i for i in range(30) if i != 2]
    np.testing.assert_array_equal(decode_clip(path, indices=others).frames, everything[others])
    with pytest.raises(VideoError, match=r"frame 2 of 30 cannot be decoded"):
        decode_clip(path)


def test_damage_ends_with_the_group(tmp_path):
    """Also where decoding goes on over it."""
    path = write_video(tmp_path / "a.mp4", noisy(60), gop=20, bframes=0, options=STEADY["libx264"])
    everything = decode_everything(path)
    damage(path, 37)
    wanted = [*range(30, 37), *range(40, 60)]
    np.testing.assert_array_equal(decode_clip(path, indices=wanted).frames, everything[wanted])
    with pytest.raises(VideoError, match=r"frame 38 of 60 cannot be decoded"):
        decode_clip(path, indices=[36, 38, 40])


def test_damage_before_an_open_group(tmp_path):
    """Frames shown before a keyframe, but stored after it, refer to the group before."""
    options = {"x264-params": "open-gop=1:bframes=2:b-adapt=0:b-pyramid=none:keyint=12:min-keyint=12:scenecut=0"}
    path = write_video(tmp_path / "a.mp4", noisy(40), options=options)
    everything = decode_everything(path)
    with av.open(str(path)) as container:
        order = [round(p.pts * p.time_base * 25) for p in container.demux(video=0) if p.size]
    key = order.index(12) if 12 in order[:16] else None
    assert key is not None and order[key + 1 : key + 3] == [10, 11]
    damage(path, 9)
    wanted = [6, 8, 12, 13, 14]  # 8 is stored after 9 and refers to it
    with pytest.raises(VideoError, match=r"frame 8 of 40 cannot be decoded"):
        decode_clip(path, indices=wanted)
    for frame in (10, 11):
        with pytest.raises(VideoError, match=rf"frame {frame} of 40 cannot be decoded"):
            decode_clip(path, indices=[6, frame, 12])
    wanted = [3, 6, 12, 13, 14, 20]
    np.testing.assert_array_equal(decode_clip(path, indices=wanted).frames, everything[wanted])


def test_damage_that_leads_an_open_group(tmp_path):
    """What is shown before a keyframe but stored after it spoils none of the frames from the keyframe on."""
    params = "log-level=error:open-gop=1:bframes=2:b-adapt=0:keyint=12:min-keyint=12:scenecut=0:pools=1:frame-threads=1"
    path = write_video(tmp_path / "a.mkv", noisy(40), codec="libx265", options={"x265-params": params})
    everything = decode_everything(path)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    numbers = {packet.pts: i for i, packet in enumerate(sorted(packets, key=lambda packet: packet.pts))}
    at = next(i for i, packet in enumerate(packets) if packet.is_keyframe and i > 0)
    key, leading = numbers[packets[at].pts], numbers[packets[at + 1].pts]
    assert leading < key
    damage(path, leading)
    wanted = [key - 6, key, key + 1, key + 5]
    np.testing.assert_array_equal(decode_clip(path, indices=wanted).frames, everything[wanted])
    with pytest.raises(VideoError, match=rf"frame {leading} of 40 cannot be decoded"):
        decode_clip(path, indices=[key - 6, leading])


def test_damaged_from_the_first_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", noisy(40), gop=20, bframes=0, options=STEADY["libx264"])
    everything = decode_everything(path)
    damage(path, 0)
    with pytest.raises(VideoError, match=r"frame 0 of 40 cannot be decoded .*; the first 0 frames"):
        decode_clip(path)
    np.testing.assert_array_equal(decode_clip(path, 0.8, 1.2).frames, everything[20:30])
    damage(path, *range(40))
    refused(path, r"no frame can be decoded \(.+\), 0 frames could be read")


def test_not_enough_memory(tmp_path):
    path = write_video(tmp_path / "a.mp4", 3)
    with pytest.raises(VideoError, match=r"no memory for 3 frames of 16777216x16777216; give fewer indices, or a size"):
        decode_clip(path, size=1 << 24)


# ---- mutated ----

MUTATED = {
    "a.mp4": {},
    "hevc.mp4": {"codec": "libx265"},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mkv": {"codec": "libsvtav1"},
    "a.avi": {},
    "a.ts": {},
    "a.flv": {},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.mpg": {"codec": "mpeg2video"},
}


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    return {name: write_video(folder / name, 20, gop=8, **settings).read_bytes() for name, settings in MUTATED.items()}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_files_give_frames_or_an_error(tmp_path, sound_files, name):
    """Nothing else is raised, and what probe announces is what comes."""
    rng = random.Random(name)
    path = tmp_path / name
    outcomes = set()
    for _ in range(40):
        data = bytearray(sound_files[name])
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data))]
        if rng.random() < 0.2:
            at = rng.randrange(len(data) + 1)
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        path.write_bytes(data)
        try:
            announced = probe(path).num_frames
            assert len(decode_clip(path, size=16).frames) == check_segment(path) == probe(path).num_frames
            assert len(decode_clip(path, indices=[announced // 2], size=16).frames) == 1
            outcomes.add("frames")
        except VideoError as err:
            outcomes.add(str(err).split(": ")[0])
    assert outcomes == {"frames", str(path)}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.flv", "a.gif"])
def test_cut_anywhere(tmp_path, sound_files, name):
    """No shorter file passes for a whole one."""
    path = tmp_path / name
    data = sound_files[name]
    for length in range(1, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        try:
            frames = decode_clip(path, size=64).frames
        except VideoError:
            continue
        # a transport stream that ends with a packet, or bytes after the last frame
        assert (name == "a.ts" and length % 188 == 0) or numbers_of(frames) == list(range(20))
