"""Which frames a video file has, and when each is shown, read as cheaply as the container allows.

Frame i of a file is the i-th in the order of presentation among those that a decoder gives out. Three ways lead to
that list, cheapest first; the first that is exact for the file at hand is taken:

1. the sample table of an MP4 or MOV file of constant rate: only its last group of packets is read, to verify it;
2. the time stamps of all packets: the file is read once, nothing is decoded;
3. decoding: for codecs and containers where a packet is not a frame (interlaced transport streams, packed B-frames),
   or where packets have no or repeated time stamps.

All three decode the first frame: only there PyAV tells how the frames are to be turned.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from slt_plugin.data.arrays import unreadable
from slt_plugin.data.errors import DataError
from slt_plugin.data.video_container import cut_off, is_fragmented
from slt_plugin.data.video_file import AV_ERRORS, REMEDY, VideoError, open_video, reason
from slt_plugin.data.video_index import FrameIndex, Source
from slt_plugin.data.video_scale import frame_turn

# a packet of these codecs is one frame (VP8: apart from hidden ones, which are recognised)
_ONE_FRAME_A_PACKET = frozenset(
    {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "png", "gif", "apng", "ffv1"}
    | {"prores", "dnxhd", "theora", "h263", "flv1", "huffyuv", "ffvhuff", "rawvideo"}
)
_WHOLE_FRAMES = frozenset({"mov", "matroska"})  # containers whose packets are whole frames even where interlaced
_NO_KEYFRAMES = frozenset({"gif", "apng"})  # each frame is drawn over the ones before
_CACHE_BYTES = 64 << 20


class _Cache:
    """The indices last used in this process: thousands of rows may be segments of one long file."""

    def __init__(self):
        self._indices: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, int, int]) -> FrameIndex | None:
        index = self._indices.pop(key, None)
        if index is not None:
            self._indices[key] = index  # the last to go now
        return index

    def put(self, key: tuple[str, int, int], index: FrameIndex) -> None:
        old = self._indices.pop(key, None)
        self._bytes -= self._size(old) if old is not None else 0
        self._indices[key] = index
        self._bytes += self._size(index)
        while self._bytes > _CACHE_BYTES and len(self._indices) > 1:
            self._bytes -= self._size(self._indices.popitem(last=False)[1])

    @staticmethod
    def _size(index: FrameIndex) -> int:
        return 1000 + index.keys.nbytes + (0 if index.times is None else index.times.nbytes)


_cache = _Cache()


def frame_index(path: Path, misled_by: FrameIndex | None = None) -> FrameIndex:
    """The index of a file, kept in this process until the file changes. Raises VideoError.

    Args:
        misled_by: an index of the file that decoding has proved wrong: a more costly one takes its place.
    """
    try:
        stat = path.stat()
    except OSError as err:
        raise VideoError(unreadable(path, err)) from err
    key = str(path), stat.st_mtime_ns, stat.st_size
    index = _cache.get(key)
    if index is None or (misled_by is not None and index.source <= misled_by.source):
        index = _build(path, Source.TABLE if misled_by is None else Source(misled_by.source + 1))
        _cache.put(key, index)
    return index


@dataclass
class _Head:
    """What the opened stream and its first frame tell."""

    frame: VideoFrame
    codec: str
    demuxer: str
    time_base: Fraction
    rates: list[Fraction]
    reordered: bool  # has B-frames
    start: int | None  # time stamp of the first frame
    clean: bool  # nothing before the first frame failed to decode


def _build(path: Path, least: Source) -> FrameIndex:
    try:
        damage = cut_off(path)
        with open_video(path) as (container, stream):
            table = _sample_table(path, container, stream) if least <= Source.TABLE else None
            head = _read_head(path, container, stream, damage)
            index = _from_table(container, stream, head, table) if table is not None and damage is None else None
        if index is None and least <= Source.PACKETS and _packets_are_frames(head):
            index = _from_packets(path, head, damage)
        return index or _from_frames(path, head, damage)
    except AV_ERRORS as err:
        if isinstance(err, DataError):
            raise
        raise VideoError(f"{path}: cannot be read ({reason(err)}), 0 frames could be read; {REMEDY}") from err


def _packets_are_frames(head: _Head) -> bool:
    if head.codec not in _ONE_FRAME_A_PACKET:
        return False
    if head.demuxer == "avi":  # has no times of presentation
        return not head.reordered
    return head.demuxer in _WHOLE_FRAMES or not head.frame.interlaced_frame


def _read_head(path: Path, container: InputContainer, stream: VideoStream, damage: str | None) -> _Head:
    cause, key = None, None
    for packet in _from_first_keyframe(container, stream):
        key = packet.pts if key is None else key
        try:
            frames = packet.decode()
        except AV_ERRORS as err:
            if key is None or packet.pts is None or packet.pts >= key:  # others refer to frames that were cut off
                cause = cause or reason(err)
            continue
        if frames:
            context = stream.codec_context
            rates = [r for r in (stream.average_rate, stream.base_rate, stream.guessed_rate) if r]
            return _Head(
                frame=frames[0],
                codec=context.codec.canonical_name,
                demuxer=container.format.name.split(",")[0],
                time_base=stream.time_base,
                rates=rates,
                reordered=context.reorder_depth > 0,
                start=frames[0].pts if cause is None else stream.start_time,
                clean=cause is None,
            )
    cause = damage or cause or "no video data"
    raise VideoError(f"{path}: no frame can be decoded ({cause}), 0 frames could be read; {REMEDY}")


def _sample_table(path: Path, container: InputContainer, stream: VideoStream) -> np.ndarray | None:
    """(samples, 3) in decoding order: time stamp (decoding), keyframe, discarded; None where there is no table."""
    if not container.format.name.startswith("mov,") or not stream.frames or is_fragmented(path):
        return None
    rows = [(e.timestamp, e.is_keyframe, e.is_discard) for e in stream.index_entries]
    return np.array(rows, dtype=np.int64) if rows else None


def _from_table(container: InputContainer, stream: VideoStream, head: _Head, table: np.ndarray) -> FrameIndex | None:
    """None where the times of presentation, which the table does not hold, may not be evenly spaced.

    They are if those of decoding are, if the first and the last frame are shown when they should be, and if every
    decoded frame proves to be in its place (`video_decode`).
    """
    rate = _constant_rate(table[:, 0], head.time_base, head.rates)
    kept = table[:, 2] == 0
    num_frames = int(kept.sum())
    if rate is None or num_frames == 0 or head.start is None or head.codec not in _ONE_FRAME_A_PACKET:
        return None
    step = 1 / (rate * head.time_base)
    container.seek(int(table[kept][-1, 0]), stream=stream)
    last = max((p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard), default=None)
    if last is None or abs(last - head.start - (num_frames - 1) * step) > 1:
        return None
    # a sample's place in presentation is known only roughly; keyframes come before what refers to them
    place = np.cumsum(kept) - kept
    return _index(
        head,
        num_frames,
        source=Source.TABLE,
        seekable=True,
        rate=rate,
        step=step,
        keys=place[table[:, 1] != 0],
        damage=None,
    )


def _from_packets(path: Path, head: _Head, damage: str | None) -> FrameIndex | None:
    """None where a time stamp is missing or repeated: then packets do not tell the order of presentation."""
    stamps, keys, seekable = [], [], head.codec not in _NO_KEYFRAMES
    with open_video(path) as (container, stream):
        try:
            for packet in _from_first_keyframe(container, stream):
                if packet.is_discard or not _shown(packet, head.codec):
                    continue
                if packet.is_corrupt and head.demuxer != "mpegts":  # there it is only a hint
                    damage = damage or "its last packet is cut off"
                    continue
                if packet.pts is None:
                    return None
                stamps.append(packet.pts)
                seekable = seekable and packet.pos is not None  # None: the parser counts on from an earlier time stamp
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except AV_ERRORS as err:
            damage = damage or reason(err)
    times = np.sort(np.array(stamps, dtype=np.int64))
    if head.start is not None and head.clean:
        times = times[times >= head.start]  # those before the first decoded one refer to frames cut off before it
    if len(times) == 0 or (np.diff(times) == 0).any() or head.start is None or (head.clean and times[0] != head.start):
        return None
    rate = _constant_rate(times, head.time_base, head.rates)
    keys = np.searchsorted(times, np.sort(np.array(keys, dtype=np.int64)))
    return _index(
        head,
        len(times),
        source=Source.PACKETS,
        seekable=seekable,
        rate=rate,
        times=times,
        keys=keys,
        damage=damage,
    )


def _from_frames(path: Path, head: _Head, damage: str | None) -> FrameIndex:
    stamps, keys, seekable = [], [], head.codec not in _NO_KEYFRAMES
    with open_video(path) as (container, stream):
        try:
            for packet in _from_first_keyframe(container, stream):
                seekable = seekable and (packet.size == 0 or packet.pos is not None)
                for frame in packet.decode():
                    if frame.key_frame:
                        keys.append(len(stamps))
                    stamps.append(frame.pts)
        except AV_ERRORS as err:
            damage = damage or reason(err)
    if not stamps:
        raise VideoError(f"{path}: no frame can be decoded ({damage}), 0 frames could be read; {REMEDY}")
    if None in stamps or (np.diff(stamps) <= 0).any():
        times, keys, rate = None, [0], head.rates[0] if head.rates else None
    else:
        times = np.array(stamps, dtype=np.int64)
        rate = _constant_rate(times, head.time_base, head.rates)
    return _index(
        head,
        len(stamps),
        source=Source.FRAMES,
        seekable=seekable and times is not None,
        rate=rate,
        times=times,
        keys=np.array(keys),
        damage=damage,
    )


def _from_first_keyframe(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Packets without those at the start of a cut stream that refer to frames before the cut; then the empty last."""
    entries = stream.index_entries
    # of a damaged keyframe only the container's index still says that it is one
    first = entries[0].timestamp if len(entries) and entries[0].is_keyframe else None
    started = False
    for packet in container.demux(stream):
        started = started or packet.is_keyframe or packet.size == 0
        started = started or (first is not None and first in (packet.pts, packet.dts))
        if started:
            yield packet


def _index(
    head: _Head,
    num_frames: int,
    *,
    source: Source,
    seekable: bool,
    rate: Fraction | None,
    keys: np.ndarray,
    damage: str | None,
    step: Fraction | None = None,
    times: np.ndarray | None = None,
) -> FrameIndex:
    turn = frame_turn(head.frame)
    width, height = turn.displayed(head.frame.width, head.frame.height)
    fps = float(rate) if rate is not None else None
    if fps is None and times is not None and len(times) > 1:
        fps = (len(times) - 1) / float((times[-1] - times[0]) * head.time_base)
    if fps is None and head.rates:
        fps = float(head.rates[0])
    return FrameIndex(
        codec=head.codec,
        width=width,
        height=height,
        turn=turn,
        num_frames=num_frames,
        fps=fps,
        constant=rate is not None,
        time_base=head.time_base,
        # without times and step, frames are counted: no time stamp can be trusted
        first=int(times[0]) if times is not None else head.start if step is not None else None,
        step=step,
        times=times,
        seekable=seekable,
        keys=np.unique(keys),
        damage=damage,
        source=source,
    )


def _shown(packet: Packet, codec: str) -> bool:
    """Whether a packet gives a frame to show: not the empty one at the end, nor a hidden reference frame of VP8."""
    if packet.size == 0:
        return False
    return codec != "vp8" or bool(memoryview(packet)[0] & 0x10)  # show_frame, RFC 6386, 9.1


def _constant_rate(times: np.ndarray, time_base: Fraction, rates: list[Fraction]) -> Fraction | None:
    """The rate at which every time stamp is its place rounded to a tick, if there is one: a declared one first."""
    if len(times) < 2:
        return rates[0] if rates else None
    span = int(times[-1] - times[0])
    if span <= 0:
        return None
    for rate in [*rates, (len(times) - 1) / (span * time_base)]:
        step = float(1 / (rate * time_base))
        if np.abs(times - times[0] - np.arange(len(times)) * step).max() <= min(1.0, step / 4):
            return rate
    return None
