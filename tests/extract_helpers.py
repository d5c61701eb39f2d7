"""A corpus of small videos and a tiny SignHiera with random weights, for the tests of slt-extract."""

from pathlib import Path

import numpy as np
import torch
from video_helpers import write_video

from slt_plugin.checkpoints.sign_hiera import FORMAT
from slt_plugin.cli import extract
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.store import FeatureStore
from slt_plugin.modules.hiera import VARIANTS

FRAMES = {"a": 20, "b": 33, "c": 70, "d": 131, "e": 64}  # at 25 fps; windows of 32 frames cover 64 of them


def write_moving(path: Path, frames: int, *, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
    """H.264 of a moving square over a gradient at 25 fps, other for each seed; ``size`` is width, height."""
    width, height = size
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 100, width))
    background = (ramp[..., None] + rng.integers(0, 30, 3)).astype(np.uint8)
    speed, colour = rng.integers(1, 4, 2), rng.integers(120, 256, 3)
    images = []
    for number in range(frames):
        images.append(background.copy())
        y, x = (number * speed) % (np.array([height, width]) - 16)
        images[-1][y : y + 16, x : x + 16] = colour
    return write_video(path, images)


def write_corpus(folder: Path) -> Path:
    """The manifest: five whole videos and two segments of the longest; ``c`` has rows in two languages."""
    folder.mkdir()
    for seed, (name, frames) in enumerate(FRAMES.items()):
        write_moving(folder / f"{name}.mp4", frames, seed=seed)
    rows = [Row(name, f"{name}.mp4", f"text {name}", text_lang="en") for name in FRAMES]
    rows.append(Row("c-de", "c.mp4", "Text c", text_lang="de"))
    rows.append(Row("d-begin", "d.mp4", "begin", 0.0, 2.0, 50, 25.0))
    rows.append(Row("d-end", "d.mp4", "end", 2.0, 5.24, 81, 25.0, (0.25, 0.0, 1.0, 0.75), signer="s1"))
    write_manifest(folder / "train.tsv", rows)
    return folder / "train.tsv"


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """tiny_32x64 with random weights; a new one's are large enough that frames and order matter."""
    torch.manual_seed(seed)
    model = VARIANTS["tiny_32x64"](num_classes=2)
    provenance = {"source": "test", "sha256": "0" * 64}
    content = {"format": FORMAT, "variant": "tiny_32x64", "model": model.state_dict(), "provenance": provenance}
    torch.save(content, path)
    return path


def words(corpus: Path, checkpoint: Path, out: Path, /, **options) -> list[str]:
    """The command line; options as in extract.yaml, decoding in the same process unless they say otherwise."""
    given = {"manifest": corpus, "checkpoint": checkpoint, "out": out, "num_workers": 0, "device": "cpu"} | options
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]


def run(corpus: Path, checkpoint: Path, out: Path, /, **options) -> int:
    """slt-extract in this process; its exit status."""
    return extract.main(words(corpus, checkpoint, out, **options))


def contents(folder: Path) -> dict[tuple[str, int], np.ndarray]:
    """(key, copy) -> features of a store."""
    store = FeatureStore(folder)
    names = [(key, copy) for key in store.keys() for copy in store.copies(key)]  # noqa: SIM118
    return {(key, copy): np.array(store.read(key, copy)) for key, copy in names}


def assert_same(one: dict, other: dict, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Two stores' contents."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=atol, rtol=rtol, err_msg=str(name))
