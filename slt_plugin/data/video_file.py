"""Opening a video file with PyAV: the stream that is decoded, and one error class for all that can go wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from slt_plugin.data.arrays import first_line, unreadable
from slt_plugin.data.errors import DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".flv"}
    | {".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf"}
)
# FFmpeg also "plays" text files, playlists that open other files, and images: only these demuxers may answer (those
# of sound so that the error can say what the file is)
_FORMATS = (
    "mov,matroska,avi,gif,mpeg,mpegvideo,mpegts,flv,live_flv,asf,ogg,mxf,mjpeg,nut,ivf,obu,h264,hevc,m4v,dv,apng,"
    "wav,mp3,flac,aac,aiff"
)
_MAX_PIXELS = 1 << 26  # 8192 x 8192: a damaged header must not allocate gigabytes
# of one stream; a cover image inside an audio file is a video stream to FFmpeg
_STILL = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
REMEDY = "download or convert the file again, or remove the row"
# what PyAV raises on damaged files (found by mutating valid files)
AV_ERRORS = (
    av.FFmpegError,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    LookupError,
    ZeroDivisionError,
    EOFError,
    OSError,
)


class VideoError(DataError):
    """A video that cannot be read, or not as far as asked: the message names file, cause and what to do."""


def reason(err: BaseException) -> str:
    """One line of an exception of PyAV, without the path that the message names anyway."""
    return (getattr(err, "strerror", None) or first_line(err)).rstrip(".")


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened file and its video stream with the most pixels, to be decoded in one thread.

    Raises VideoError where there is none.
    """
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes), 0 frames could be read; {REMEDY}")
    except OSError as err:
        raise VideoError(unreadable(path, err)) from err
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        # "file:": a colon in the name is no protocol; metadata may be in any encoding
        container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    except AV_ERRORS as err:
        # the whitelist's refusal is an "invalid argument"
        why = "no known video format" if isinstance(err, av.error.ArgumentError) else reason(err)
        raise VideoError(f"{path}: not a complete video file ({why}), 0 frames could be read; {REMEDY}") from err
    with container:
        stream = _largest(path, container)
        if len(stream.index_entries) > container.size:
            raise VideoError(f"{path}: damaged header (more frames than bytes), 0 frames could be read; {REMEDY}")
        context = stream.codec_context
        # concealment would fill damaged parts of a frame from its neighbours: "explode" makes them errors
        context.options = {"max_pixels": str(_MAX_PIXELS), "err_detect": "explode"}
        context.thread_count = 1
        yield container, stream


def _largest(path: Path, container: InputContainer) -> VideoStream:
    def pixels(stream: VideoStream) -> int:
        return stream.codec_context.width * stream.codec_context.height

    streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & _STILL]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        what = "its codec is not known" if container.streams.video else f"there is {found} in it"
        raise VideoError(f"{path}: no video that can be decoded ({what}), 0 frames could be read; {REMEDY}")
    return max(streams, key=pixels)
