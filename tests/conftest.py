"""Shared fixtures: a tiny pose corpus whose texts can be read off the poses, and its character vocabulary."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from absl import logging as absl_logging
from hypothesis import settings

from slt_plugin.data.manifest import Row, write_manifest

# The same examples at every run: a test that fails once in a hundred runs stops whoever comes by, not who broke it.
# For new ones: HYPOTHESIS_PROFILE=default (and scripts/fuzz.py, whose cases are numbered by seed).
settings.register_profile("repeatable", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).parents[1]
LANDMARKS = 51  # body, left hand, right hand: the layout of 51-point arrays
FPS = 25.0


def pytest_configure(config):
    torch.set_num_threads(1)
    # absl (rouge_score, tensorboard) keeps the stderr of the moment it is imported, pytest's, and closes it when Hydra
    # sets up logging anew; not this one
    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


def letter_pose(letter: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, 51, 3) x, y, confidence: a hand shape of its own for each letter, the left hand missing."""
    shape = np.random.default_rng(ord(letter)).normal(size=(LANDMARKS, 2))
    pose = np.concatenate([np.broadcast_to(shape, (frames, LANDMARKS, 2)), np.ones((frames, LANDMARKS, 1))], axis=-1)
    pose[..., :2] += rng.normal(scale=0.02, size=pose[..., :2].shape)
    pose[:, 3, :2], pose[:, 4, :2] = (0.5, 0.0), (-0.5, 0.0)  # shoulders: left, right
    pose[:, 9:30, 2] = 0
    return pose


def write_pose_corpus(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """Manifests ``<split>.tsv`` over one long array a split, as the fingerspelling builder writes them."""
    (folder / "poses").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    words = ["aba", "cad", "dab", "bcd", "ada", "cab"]
    for split, size in sizes.items():
        parts, rows, start = [], [], 0
        for i in range(size):
            text = " ".join(rng.choice(words, size=2))
            pose = np.concatenate([letter_pose(c, int(rng.integers(5, 8)), rng) for c in text])
            end = start + len(pose)
            rows.append(
                Row(f"{split}-{i}", f"poses/{split}.npy", text, start / FPS, end / FPS, len(pose), FPS, text_lang="en")
            )
            parts.append(pose)
            start = end
        np.save(folder / "poses" / f"{split}.npy", np.concatenate(parts).astype(np.float16))
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


@pytest.fixture(autouse=True)
def _no_handlers_left():
    """Commands that are called in this process set up logging to a stream that pytest closes after the test."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) in (logging.StreamHandler, logging.FileHandler):  # not pytest's own
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def pose_corpus(tmp_path_factory) -> Path:
    return write_pose_corpus(tmp_path_factory.mktemp("corpus"), {"train": 40, "valid": 11, "test": 13})


@pytest.fixture(scope="session")
def spm_model(tmp_path_factory) -> Path:
    """A character vocabulary of a, b, c, d and the space."""
    prefix = tmp_path_factory.mktemp("spm") / "char"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab cd", "ba dc", "ad bc"]),
        model_prefix=str(prefix),
        model_type="char",
        vocab_size=8,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def run_command(*words, cwd=ROOT, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a console command of this environment (``fairseq-generate``, ``slt-score``, ``python``) on one thread."""
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        [str(bin_folder / words[0]), *map(str, words[1:])],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode != 0:
        pytest.fail(
            f"{' '.join(map(str, words))} exited {result.returncode}:\n{(result.stdout + result.stderr)[-6000:]}"
        )
    return result


def write_video_corpus(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """Manifests ``<split>.tsv`` over one small video a row; each letter of its text is a colour of the frame."""
    from video_helpers import write_video

    (folder / "videos").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    colours = {"a": (200, 60, 60), "b": (60, 200, 60), "c": (60, 60, 200), "d": (200, 200, 60), " ": (20, 20, 20)}
    for split, size in sizes.items():
        rows = []
        for i in range(size):
            text = " ".join(rng.choice(["ab", "cad", "dab", "bcd"], size=2))
            images = [np.full((64, 64, 3), colours[c], np.uint8) for c in text for _ in range(rng.integers(5, 8))]
            path = f"videos/{split}-{i}.mp4"
            write_video(folder / path, images, fps=FPS)
            rows.append(Row(f"{split}-{i}", path, text, num_frames=len(images), fps=FPS, text_lang="en"))
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


@pytest.fixture(scope="session")
def video_corpus(tmp_path_factory) -> Path:
    return write_video_corpus(tmp_path_factory.mktemp("videos") / "corpus", {"train": 12, "valid": 5, "test": 7})


@pytest.fixture(scope="session")
def slurm():
    """A cluster that takes jobs (slurm_helpers); what the tests submitted and did not wait for is cancelled.

    It is not started here: .ci/run and developers do that with slurm/dev_cluster.sh.
    """
    import slurm_helpers

    if reason := slurm_helpers.missing():
        pytest.skip(reason)
    yield
    for job in slurm_helpers.submitted:
        slurm_helpers.cancel(job)


@pytest.fixture(scope="session")
def _browser(tmp_path_factory):
    """The DevTools address of a headless Chromium that all tests share."""
    import browser

    if reason := browser.missing():
        pytest.skip(reason)
    with browser.running_browser(tmp_path_factory.mktemp("browser")) as address:
        yield address


@pytest.fixture
def browser_page(_browser):
    """A `browser.BrowserPage`: ``.page`` (Playwright's), ``.console_errors``, ``.outside_requests``."""
    import browser

    with browser.open_page(_browser) as opened:
        yield opened


def pytest_collection_modifyitems(items):
    """Marked ``slurm``: needs the cluster, whether or not the test names the fixture. ``browser``: has its fixture."""
    for item in items:
        if "browser_page" in item.fixturenames:
            item.add_marker("browser")
        if item.get_closest_marker("slurm") and "slurm" not in item.fixturenames:
            item.fixturenames.insert(0, "slurm")
