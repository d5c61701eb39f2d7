"""Run in a child of ``slt-doctor``: writes a small H.264 video and reads it back the way training does."""

import json
import tempfile
from pathlib import Path

import av
import numpy as np

from slt_plugin.data.video import decode_clip

FRAMES, SIDE = 12, 64
TOLERANCE = 8  # of 255; H.264 is lossy
DECODERS = {"H.264": ("h264",), "HEVC": ("hevc",), "VP9": ("vp9", "libvpx-vp9"), "AV1": ("libdav1d", "libaom-av1")}


def shade(frame: int) -> int:
    return 20 + 18 * frame


def write(path: Path) -> None:
    """Frame i is of one grey, ``shade(i)``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(FRAMES):
            picture = np.full((SIDE, SIDE, 3), shade(i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    missing = [name for name, decoders in DECODERS.items() if not set(decoders) & av.codecs_available]
    with tempfile.TemporaryDirectory(prefix="slt-doctor-") as folder:
        path = Path(folder, "test.mp4")
        write(path)
        clip = decode_clip(path)
    found = clip.frames.float().mean(dim=(1, 2, 3)).tolist()
    worst = max((abs(value - shade(i)) for i, value in enumerate(found)), default=0.0)
    problem = None
    if len(found) != FRAMES:
        problem = f"{len(found)} frames came back of {FRAMES}"
    elif worst > TOLERANCE:
        problem = f"the frames came back with other colours: off by {worst:.0f} of 255"
    fact = {"fact": "decode", "frames": len(found), "av": av.__version__, "missing": missing, "problem": problem}
    print(json.dumps(fact), flush=True)


if __name__ == "__main__":
    main()
