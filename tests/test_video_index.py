"""How frames are found: cheaply where the container tells, by seeking, with edit lists; and what misleads."""

import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from video_helpers import decode_everything, numbered, numbers_of, write_video

from slt_plugin.data import video, video_decode, video_scan
from slt_plugin.data.h264 import ReferenceTest
from slt_plugin.data.video import check_segment, decode_clip, probe
from slt_plugin.data.video_index import Source
from slt_plugin.data.video_scan import frame_index

LONG = 600  # frames, a keyframe every 12


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return [write_video(folder / name, LONG, gop=12) for name in ("a.mp4", "a.mkv", "a.ts", "a.flv")]


@pytest.fixture
def sent(monkeypatch):
    """The packets given to decoders for frames that were asked for."""
    packets = []
    decode = video_decode._Decoding._decode

    def counted(self, place, packet):
        packets.append(packet)
        return decode(self, place, packet)

    monkeypatch.setattr(video_decode._Decoding, "_decode", counted)
    return packets


@pytest.mark.parametrize(
    ("name", "settings", "source"),
    [
        ("a.mp4", {}, Source.TABLE),
        ("a.mov", {"codec": "libx265", "audio_seconds": 1.0}, Source.TABLE),
        ("av1.mp4", {"codec": "libsvtav1"}, Source.TABLE),
        ("ntsc.mp4", {"fps": Fraction(30000, 1001)}, Source.TABLE),
        ("vfr.mp4", {"pts": [0, 1, 2, 4, 8, 9, 12, *range(13, 36)]}, Source.PACKETS),
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, Source.PACKETS),
        ("mixed.mp4", {"container_options": {"movflags": "frag_keyframe"}}, Source.PACKETS),
        ("a.mkv", {}, Source.PACKETS),
        ("a.ts", {}, Source.PACKETS),
        ("interlaced.ts", {"options": {"x264-params": "interlaced=1"}}, Source.FRAMES),
        ("reordered.avi", {}, Source.FRAMES),
    ],
)
def test_the_cheapest_exact_way(tmp_path, name, settings, source):
    path = write_video(tmp_path / name, 30, **settings)
    assert frame_index(path).source == source
    assert probe(path).num_frames == 30


def test_probe_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", 10)
    opened = []
    build = video_scan._build
    monkeypatch.setattr(video_scan, "_build", lambda *args: opened.append(args) or build(*args))
    for _ in range(3):
        assert probe(path).num_frames == 10
        assert probe(path, 0.0, 0.2).num_frames == 5
    assert len(opened) == 1
    write_video(path, 7)
    os.utime(path, ns=(1, 1))
    assert probe(path).num_frames == 7
    assert len(opened) == 2


def test_the_cache_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(video_scan, "_CACHE_BYTES", 3000)
    cache = video_scan._Cache()
    index = frame_index(write_video(tmp_path / "a.mp4", 3))
    for i in range(10):
        cache.put((str(i), 0, 0), index)
        assert cache.get((str(i), 0, 0)) is index
    assert cache.get(("0", 0, 0)) is None
    assert len(cache._indices) == 2


# ---- seeking ----


def test_segments_are_reached_by_seeking(long_videos, sent):
    for path in long_videos:
        probe(path)
        sent.clear()
        assert numbers_of(decode_clip(path, 500 / 25, 510 / 25).frames) == list(range(500, 510))
        # from the keyframe before (or the one before that), and those the decoder wants before it gives one out
        assert len(sent) <= 2 * 12 + 10 + 6


def test_groups_without_a_wanted_frame_are_skipped(long_videos, sent):
    for path in long_videos:
        probe(path)
        sent.clear()
        wanted = [1, 200, 203, 401, 599]
        assert numbers_of(decode_clip(path, indices=wanted).frames) == wanted
        assert len(sent) <= 4 * (12 + 10)


def test_reference_test():
    """A second field may be referred to where the first is not."""
    avcc = ReferenceTest(b"\1\x64\0\x1f\xfd\xe1\0")  # lengths of 2 bytes
    annex_b = ReferenceTest(b"\0\0\0\1\x67")
    for kinds, disposable in (("\6\1", True), ("\6\x41", False), ("\1\1", True), ("\1\x41", False), ("\6", False)):
        units = [bytes([ord(kind)]) + b"\xaa" * 5 for kind in kinds]
        assert avcc.is_disposable(b"".join(b"\0\6" + unit for unit in units)) == disposable
        assert annex_b.is_disposable(b"".join(b"\0\0\1" + unit for unit in units)) == disposable
    for test in (avcc, annex_b, ReferenceTest(None)):
        assert not test.is_disposable(b"")
        assert not test.is_disposable(b"\0\0\1"[: 3 if test is not avcc else 2])
    assert avcc.is_disposable(b"\0\6" + b"\1" * 6)
    assert not avcc.is_disposable(b"\0\6" + b"\1" * 6 + b"\0\7" + b"\1" * 6)


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])  # NAL units with lengths, with start codes
def test_frames_nothing_refers_to_are_not_decoded(tmp_path, sent, name):
    path = write_video(
        tmp_path / name, 60, gop=60, options={"x264-params": "b-adapt=0:scenecut=0:bframes=2:b-pyramid=none"}
    )
    everything = decode_everything(path)
    for wanted in ([0, 59], list(range(0, 60, 2)), list(range(1, 60, 7))):
        sent.clear()
        np.testing.assert_array_equal(decode_clip(path, indices=wanted).frames, everything[wanted])
        b_frames = [i for i in range(59) if i % 3]
        assert len([packet for packet in sent if packet.size]) == 60 - len(set(b_frames) - set(wanted))


def test_several_groups_at_a_time(long_videos, monkeypatch):
    monkeypatch.setattr(video, "_threads", lambda: 4)
    started = []
    read = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *args: started.append(args) or read(*args))
    wanted = list(range(3, LONG, 5))
    for path in long_videos[:2]:
        assert numbers_of(decode_clip(path, indices=wanted).frames) == wanted
        assert check_segment(path) == LONG
    assert len(started) == 2 * (4 + 4)


def test_workers_decode_in_one_thread(monkeypatch):
    monkeypatch.setattr(video.os, "sched_getaffinity", lambda _: set(range(64)))
    assert video._threads() == 8
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert video._threads() == 1


# ---- edit lists ----


def edit(path, media_time: int, duration: int) -> None:
    """Change the one edit of an MP4's track: show `duration` ms of it from `media_time` on (ticks of the media)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    assert data[at] == 0 and struct.unpack_from(">I", data, at + 4) == (1,)
    struct.pack_into(">Ii", data, at + 8, duration, media_time)
    path.write_bytes(data)


@pytest.mark.parametrize(("skip", "show"), [(0, 60), (5, 55), (5, 40), (12, 48), (17, 20), (0, 33)])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_edit_lists(tmp_path, codec, skip, show):
    """Frames outside the edit are decoded, because others refer to them, but not shown."""
    path = write_video(tmp_path / "a.mp4", 60, codec=codec)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        delay = -next(container.demux(stream)).dts  # of the first shown frame, in the media's own time
        frame = round(1 / 25 / stream.time_base)
    edit(path, delay + skip * frame, show * 40)
    plain = numbers_of(decode_everything(path))
    assert frame_index(path).source == Source.TABLE
    info = probe(path)
    assert plain == list(range(plain[0], plain[0] + info.num_frames))
    assert abs(plain[0] - skip) <= 1 and abs(info.num_frames - show) <= 2
    assert numbers_of(decode_clip(path).frames) == plain
    assert check_segment(path) == info.num_frames
    assert numbers_of(decode_clip(path, indices=[info.num_frames - 1, 7]).frames) == [plain[-1], plain[7]]
    assert numbers_of(decode_clip(path, 0.4, 0.6).frames) == plain[10:15]


# ---- what misleads ----


def remux(source, target, change) -> None:
    """Copy the packets; `change` gets each before it is written, and drops it where it returns False."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(container.streams.video[0]):
            if packet.size and change(packet) is not False:
                packet.stream = stream
                out.mux(packet)


def test_even_decoding_times_with_uneven_presentation(tmp_path):
    """A pause of the camera that only the times of presentation show: the sample table alone would mislead."""

    def pause(packet):
        tick = round(1 / 25 / packet.time_base)
        packet.pts += 3 * tick * (packet.pts >= 30 * tick)
        packet.dts -= 5 * tick

    source = write_video(tmp_path / "a.mp4", 60)
    remux(source, tmp_path / "b.mp4", pause)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stamps = [entry.timestamp for entry in container.streams.video[0].index_entries]
    assert len(set(np.diff(stamps))) == 1
    assert frame_index(tmp_path / "b.mp4").source == Source.PACKETS
    assert numbers_of(decode_clip(tmp_path / "b.mp4", 1.2, 1.5).frames) == [30, 31, 32, 33]
    assert numbers_of(decode_clip(tmp_path / "b.mp4", indices=[40, 29, 30]).frames) == [40, 29, 30]


def test_one_uneven_time_of_presentation(tmp_path):
    """Neither the table nor the first and last frame show it: it is seen when the frame is decoded."""

    def late(packet):
        tick = round(1 / 25 / packet.time_base)
        packet.pts += tick // 2 * (packet.pts == 20 * tick)
        packet.dts -= 5 * tick

    remux(write_video(tmp_path / "a.mp4", 60), tmp_path / "b.mp4", late)
    path = tmp_path / "b.mp4"
    assert frame_index(path).source == Source.TABLE
    assert numbers_of(decode_clip(path, indices=[20, 3]).frames) == [20, 3]
    assert frame_index(path).source == Source.PACKETS


@pytest.mark.parametrize("options", [{}, {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:scenecut=0"}])
def test_stream_that_begins_inside_a_group(tmp_path, options):
    """Packets before the first keyframe, and those after it that refer to them, are no frames."""
    source = write_video(tmp_path / "a.ts", 40, gop=12, options=options)
    for name in ("b.ts", "b.mkv"):
        dropped = iter([False] * 5)
        remux(source, tmp_path / name, lambda packet, dropped=dropped: next(dropped, True))
        numbers = numbers_of(decode_clip(tmp_path / name).frames)
        assert numbers == list(range(numbers[0], 40)) and 8 <= numbers[0] <= 12
        assert probe(tmp_path / name).num_frames == check_segment(tmp_path / name) == len(numbers)


def test_hidden_frames_of_vp8(tmp_path):
    """A packet whose frame is only referred to."""
    source, path = write_video(tmp_path / "a.webm", 20, codec="libvpx"), tmp_path / "b.webm"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(p for p in container.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= 0xEF if number in (4, 11) else 0xFF  # show_frame
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, stream
            out.mux(changed)
    shown = [i for i in range(20) if i not in (4, 11)]
    assert probe(path).num_frames == check_segment(path) == 18
    assert numbers_of(decode_clip(path).frames) == shown
    assert numbers_of(decode_clip(path, indices=[17, 4]).frames) == [19, 5]
    assert frame_index(path).source == Source.PACKETS


def test_refreshing_part_by_part_is_decoded_from_the_start(tmp_path):
    """Seeking to where a refreshing begins gives pictures that are nearly, not quite, right."""
    options = {"x264-params": "intra-refresh=1:bframes=0:keyint=100"}
    path = write_video(tmp_path / "a.mp4", 1900, size=(96, 64), options=options)
    with av.open(str(path)) as container:
        frames = {i: frame for i, frame in enumerate(container.decode(video=0)) if i in (1000, 1850)}
    for number, frame in frames.items():
        np.testing.assert_array_equal(decode_clip(path, indices=[number]).frames[0], frame.to_ndarray(format="rgb24"))


def test_time_stamps_that_are_interpolated_after_seeking(tmp_path):
    """A program stream has a time stamp a packet of the container, not a frame: frames are counted from the start."""
    path = write_video(tmp_path / "a.mpg", 30, codec="mpeg2video", options={"bf": "2"})
    assert not frame_index(path).seekable
    assert frame_index(write_video(tmp_path / "a.ts", 30)).seekable
    assert not frame_index(write_video(tmp_path / "a.gif", 30, codec="gif", pix_fmt="rgb8")).seekable


def test_a_wrong_index_is_replaced(tmp_path, monkeypatch):
    """Where frames come that no packet has announced, decoding decides which there are."""
    path = write_video(tmp_path / "a.mkv", 30)
    build = video_scan._from_packets

    def wrong(*args):
        index = build(*args)
        times = np.sort(np.append(index.times, index.times[7] + 3))  # a packet that gives no frame
        return type(index)(**{**vars(index), "times": times, "num_frames": 31})

    monkeypatch.setattr(video_scan, "_from_packets", wrong)
    assert probe(path).num_frames == 31
    assert numbers_of(decode_clip(path).frames) == list(range(30))
    assert probe(path).num_frames == 30


def test_single_frame(tmp_path):
    for name, settings in (("a.mp4", {}), ("a.mkv", {}), ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"})):
        path = write_video(tmp_path / name, [numbered(77)], **settings)
        assert probe(path).num_frames == check_segment(path) == 1
        assert numbers_of(decode_clip(path).frames) == [77]
