"""Decoding chosen frames of a video file: exactly those, in order, each once, or an error.

Decoding starts at the keyframe before the first frame asked for; where the next one lies beyond a later keyframe, it
starts anew there. Each decoded frame is recognised by its time stamp. What a damaged packet has spoilt (itself and,
until the next keyframe, what is decoded after it) counts as not decodable.

One decoder runs in one thread: FFmpeg's frame threads wait for each other for ever on some damaged HEVC, H.264, VP8 and
AV1 streams (FFmpeg 8.1, found by mutating valid files). `video` decodes several groups of pictures at a time instead.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from slt_plugin.data.h264 import ReferenceTest
from slt_plugin.data.video_file import AV_ERRORS, open_video, reason
from slt_plugin.data.video_index import FrameIndex, Source

_WORTH_SEEKING = 12  # frames from a wanted one to a keyframe ahead
_BACK = (0, 1, 4, 16, 64)  # seconds to go back further each time seeking has landed behind the frame asked for
_DAMAGE_KEPT = 32  # more than a decoder holds frames back
_MORE_HISTORY = 10.0  # seconds; enough for keyframes after which some frames still refer to earlier ones


class UndecodableError(Exception):
    """A frame asked for cannot be decoded: its number in the file, and the cause."""

    def __init__(self, number: int, cause: str):
        super().__init__(number, cause)
        self.number, self.cause = number, cause


class MisleadingIndexError(Exception):
    """What is decoded are not the frames of the index."""


class _MissedError(Exception):
    """A frame has not come: what the decoder said last, and the time stamps of the packets it refused."""

    def __init__(self, cause: str | None = None, refused: frozenset[int | None] = frozenset()):
        super().__init__(cause, refused)
        self.cause, self.refused = cause, refused


def read_frames(path: Path, index: FrameIndex, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) for every number in `wanted`, which is increasing.

    Raises UndecodableError, MisleadingIndexError, and VideoError where the file does not open.
    """
    if len(wanted) == 0:
        return
    done = 0
    missed = _MissedError()
    for back in (0.0, _MORE_HISTORY, None) if index.seekable else (None,):
        try:
            for number, frame in _pass(path, index, wanted[done:], back):
                yield number, frame
                done += 1
            return
        except _MissedError as err:
            # streams without clean keyframes need more history; a packet that is refused with it too is damaged
            damaged = err.refused & missed.refused
            missed = err
            if damaged:
                break
    if missed.cause is None and index.source < Source.FRAMES:
        raise MisleadingIndexError
    raise UndecodableError(wanted[done], missed.cause or "the decoder gives nothing out for it")


def runs(index: FrameIndex, wanted: Sequence[int], worth: int = _WORTH_SEEKING) -> list[tuple[int, int]]:
    """Parts [first, last) of `wanted` before each of which a keyframe is sought.

    Args:
        worth: frames that the keyframe must be ahead of the last wanted one; 1 = every keyframe.
    """
    if not index.seekable:
        return [(0, len(wanted))]
    numbers = np.asarray(wanted)
    ahead = np.searchsorted(index.keys, numbers[:-1] + worth)
    sought = ahead < np.searchsorted(index.keys, numbers[1:], side="right")
    bounds = [0, *(np.flatnonzero(sought) + 1).tolist(), len(wanted)]
    return list(pairwise(bounds))


def _pass(path: Path, index: FrameIndex, wanted: Sequence[int], back: float | None) -> Iterator[tuple[int, VideoFrame]]:
    """Seconds `back` before each run; None = everything from the file's start."""
    with open_video(path) as (container, stream):
        depth = stream.codec_context.reorder_depth
        for first, last in runs(index, wanted) if back is not None else [(0, len(wanted))]:
            packets = None if back is None else _packets_from(container, stream, index, wanted[first], back)
            # what the file's first packets have shown; after seeking, the decoder would have to guess it again
            stream.codec_context.reorder_depth = max(depth, stream.codec_context.reorder_depth)
            if packets is not None:
                yield from _run(stream, packets, index, wanted[first:last], sought=True)
            else:
                with open_video(path) as (whole, start):
                    yield from _run(start, whole.demux(start), index, wanted[first:last], sought=False)


def _run(
    stream: VideoStream, packets: Iterator[Packet], index: FrameIndex, wanted: Sequence[int], sought: bool
) -> Iterator[tuple[int, VideoFrame]]:
    decoding = _Decoding(stream, index, wanted)
    at = 0
    for number, frame in decoding.frames(packets):
        if sought and frame.pict_type != PictureType.I:
            break  # no real keyframe, but the start of a refreshing part by part, which is not exact
        sought = False
        if number > wanted[at]:
            break
        if number == wanted[at]:
            yield number, frame
            at += 1
            if at == len(wanted):
                return
    raise _MissedError(decoding.cause, frozenset(decoding.refused))


def _packets_from(
    container: InputContainer, stream: VideoStream, index: FrameIndex, wanted: int, back: float
) -> Iterator[Packet] | None:
    """Packets from a keyframe on that is shown at or before a frame; None where only the file's start is left.

    Containers seek by decoding times, by bytes, or by an index with gaps: so where it has landed is verified.
    """
    target = index.pts(wanted)
    ask = target - round(back / stream.time_base)
    for seconds in _BACK:
        ask -= round(seconds / stream.time_base)
        if ask < index.first:
            return None
        try:
            container.seek(ask, stream=stream)
            packets = container.demux(stream)
            key = next((packet for packet in packets if packet.is_keyframe and packet.size), None)
        except AV_ERRORS:
            return None
        if key is not None and key.pts is not None and key.pts <= target:
            return chain([key], _without_leading(packets, key.pts))
        if key is not None and key.dts is not None:  # it was found by its decoding time
            ask = min(ask, key.dts - 1)
    return None


def _without_leading(packets: Iterator[Packet], start: int) -> Iterator[Packet]:
    """Without the frames shown before the first keyframe: they refer to frames before it, which were not decoded."""
    for packet in packets:
        if packet.pts is None or packet.pts >= start:
            yield packet


@dataclass
class _Damage:
    """From a packet that was refused on (place in decoding order), to the next keyframe (place, time stamp)."""

    start: int
    end: tuple[int, int] | None = None

    def includes(self, place: int, pts: int) -> bool:
        return place >= self.start and (self.end is None or place < self.end[0] or pts < self.end[1])


class _Decoding:
    """Decodes packets of one stream and numbers the frames.

    Every sound frame asked for is given out, in order; of the others, those that nothing refers to may be left out.
    `cause` and `refused` (time stamps of packets) tell of damage met on the way.
    """

    def __init__(self, stream: VideoStream, index: FrameIndex, wanted: Sequence[int]):
        self.context, self.index, self._wanted = stream.codec_context, index, frozenset(wanted)
        self.cause: str | None = None
        self.refused: set[int | None] = set()
        self._reference_test = None
        if index.codec == "h264" and index.first is not None:
            self._reference_test = ReferenceTest(self.context.extradata)
        self._sent: dict[int | None, int] = {}  # time stamp -> place in decoding order
        self._key: tuple[int, int] | None = None  # place and time stamp of the last keyframe
        self._damage: deque[_Damage] = deque(maxlen=_DAMAGE_KEPT)

    def frames(self, packets: Iterator[Packet]) -> Iterator[tuple[int, VideoFrame]]:
        count = 0
        for place, packet in enumerate(self._read(packets)):
            if packet is not None and packet.size:
                if self._needless(packet):
                    continue
                self._note(place, packet)
            for frame in self._decode(place, packet):
                if self.index.first is None:
                    number, count = count, count + 1
                else:
                    number = self.index.number(frame.pts)
                    if number is None and self.index.source == Source.TABLE:
                        raise MisleadingIndexError
                if number is not None and number >= 0 and self._sound(frame):
                    yield number, frame

    def _read(self, packets: Iterator[Packet]) -> Iterator[Packet | None]:
        """The packets; a reading error ends them, and None empties the decoder."""
        try:
            yield from packets
        except AV_ERRORS as err:
            self.cause = reason(err)
            yield None

    def _needless(self, packet: Packet) -> bool:
        """Whether a frame is neither asked for nor referred to."""
        if self._reference_test is None:
            return False
        number = self.index.number(packet.pts)
        if number is None or number in self._wanted:
            return False
        return self._reference_test.is_disposable(bytes(packet))

    def _note(self, place: int, packet: Packet) -> None:
        self._sent[packet.pts] = place
        if packet.is_keyframe and packet.pts is not None:
            self._key = place, packet.pts
            if self._damage and self._damage[-1].end is None:
                self._damage[-1].end = self._key

    def _decode(self, place: int, packet: Packet | None) -> list[VideoFrame]:
        try:
            return self.context.decode(packet)
        except AV_ERRORS as err:
            self.cause = reason(err)
            pts = None if packet is None else packet.pts
            self.refused.add(pts)
            if not self._damage or self._damage[-1].end is not None:
                # what is shown before a keyframe but stored after it is referred to only by others of its kind
                leading = pts is not None and self._key is not None and pts < self._key[1]
                self._damage.append(_Damage(place, self._key if leading else None))
            return []

    def _sound(self, frame: VideoFrame) -> bool:
        """Whether no damaged packet has a part in a frame."""
        if frame.is_corrupt:
            self.cause = self.cause or "the decoder reports it as damaged"
            return False
        if not self._damage:
            return True
        place = self._sent.get(frame.pts)
        if place is None or frame.pts is None:
            return False
        return not any(damage.includes(place, frame.pts) for damage in self._damage)
