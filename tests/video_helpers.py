"""Small video files made with PyAV, whose frames can be told apart after lossy coding and scaling."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 16  # of a frame's number, as a 4 x 4 board


def numbered(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """An image (height, width, 3) uint8 whose 4 x 4 light and dark fields are the bits of `number`."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], dtype=bool).reshape(4, 4)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    image = np.where(bits[rows][:, columns], 200, 50).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2)


def number_of(image) -> int:
    """The number that `numbered` has drawn into an image (H, W, 3), from the middles of its fields."""
    image = np.asarray(image).astype(float).mean(axis=2)
    height, width = image.shape
    number = 0
    for bit in range(BITS):
        y, x = (bit // 4 + 0.5) / 4 * height, (bit % 4 + 0.5) / 4 * width
        part = image[int(y - height / 16) : int(y + height / 16) + 1, int(x - width / 16) : int(x + width / 16) + 1]
        number |= int(part.mean() > 125) << bit
    return number


def numbers_of(frames) -> list[int]:
    return [number_of(frame) for frame in frames]


def positions(width: int, height: int) -> np.ndarray:
    """An image whose red grows from left to right and whose green grows from top to bottom; blue is 128."""
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    image[..., 0] = np.linspace(20, 235, width).round()[None, :]
    image[..., 1] = np.linspace(20, 235, height).round()[:, None]
    return image


def write_video(
    path: Path,
    frames: Sequence[np.ndarray] | int,
    fps: float | Fraction = 25,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 64),
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    gop: int = 12,
    bframes: int = 2,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
    more_streams: Sequence[Sequence[np.ndarray]] = (),
    audio_seconds: float = 0.0,
) -> Path:
    """Write frames (H, W, 3) uint8, or that many `numbered` ones of `size` (width, height), and return the path.

    Args:
        pts: time stamp of each frame in units of time_base; None = 0, 1, 2, ... frames.
        rotation: degrees counterclockwise that a player has to turn the pictures by.
        more_streams: the frames of further video streams, which stand before this one in the file.
        audio_seconds: of silence in an audio stream; with no frames, the file holds audio alone.
    """
    if isinstance(frames, int):
        frames = [numbered(i, *size) for i in range(frames)]
    rate = Fraction(fps).limit_denominator(1001)
    time_base = time_base or 1 / rate
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        streams = []
        for images in (*more_streams, frames) if len(frames) else ():
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = time_base
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            defaults = {}
            if codec == "libx264":
                defaults = {"preset": "veryfast", "bf": str(bframes), "crf": "18"}
            elif codec == "libx265":
                quiet = f"log-level=error:bframes={bframes}:keyint={gop}:pools=1:frame-threads=1"
                defaults = {"preset": "ultrafast", "x265-params": quiet}
            elif codec == "libsvtav1":
                defaults = {"preset": "12"}
            stream.options = {**defaults, **(options or {})}
            streams.append((stream, images))
        if streams and rotation:
            streams[-1][0].set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_seconds else None
        for stream, images in streams:
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts = i if pts is None else pts[i]
                frame.time_base = time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound is not None:
            for i in range(int(audio_seconds * 16000 / 1024)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 16000, i * 1024, Fraction(1, 16000)
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return Path(path)


def decode_everything(path: Path) -> np.ndarray:
    """The plain way: every frame of the first video stream as RGB (T, H, W, 3), not rotated."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
