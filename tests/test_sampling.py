"""Temporal sampling: the reference's windows, random windows, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from slt_plugin.data.errors import DataError
from slt_plugin.data.sampling import Window, random_window, sliding_windows

CASES = json.loads((Path(__file__).parent / "golden" / "temporal_windows.json").read_text())
BASE = {"num_frames": 128, "sampling_rate": 2, "target_fps": 25}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['num_video_frames']}@{c['fps']}x{c['num_frames']}")
def test_windows_equal_the_reference(case):
    options = {name: case[name] for name in ("num_frames", "sampling_rate", "target_fps", "stride")}
    windows = sliding_windows(case["num_video_frames"], case["fps"], **options)
    assert [
        {
            "first": int(w.indices[0]),
            "last": int(w.indices[-1]),
            "sum": int(w.indices.sum()),
            "unique": len(set(w.indices.tolist())),
            "padding": w.padding,
        }
        for w in windows
    ] == case["windows"]


@pytest.mark.parametrize(("padding", "kept"), [(0, 16), (1, 16), (2, 14), (9, 8), (15, 2)])
def test_padding_is_dropped_in_whole_steps(padding, kept):
    assert Window(torch.zeros(16, dtype=torch.long), padding).kept_frames == kept


@pytest.mark.parametrize("frames", [1, 2, 100, 255, 256, 1000])
@pytest.mark.parametrize("fps", [12.5, 25.0, 29.97, 59.94])
def test_kept_frames_always_hold_the_whole_video(frames, fps):
    windows = sliding_windows(frames, fps, stride=64, **BASE)
    seen = {int(i) for w in windows for i in w.indices[: w.kept_frames]}
    assert min(seen) == 0
    # nothing but the rounding of the last step is lost: one sampled frame
    assert frames - 1 - max(seen) <= 2 * fps / 25
    assert all(2 <= w.kept_frames <= 128 for w in windows)


def test_random_windows_stay_inside_and_follow_the_seed():
    options = {**BASE, "num_frames": 16}
    starts = []
    for seed in range(200):
        window = random_window(100, 25.0, rng=np.random.default_rng(seed), **options)
        again = random_window(100, 25.0, rng=np.random.default_rng(seed), **options)
        assert torch.equal(window.indices, again.indices)
        assert window.padding == 0
        assert window.indices[0] >= 0 and window.indices[-1] <= 99
        starts.append(int(window.indices[0]))
    assert min(starts) < 5 and max(starts) > 62  # 100 - 32 = 68 frames of room


def test_a_random_window_of_a_short_video_is_its_beginning():
    window = random_window(10, 25.0, rng=np.random.default_rng(0), **BASE)
    assert torch.equal(window.indices, sliding_windows(10, 25.0, stride=64, **BASE)[0].indices)
    assert window.padding == 122


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 15}, "even number"),
        ({"num_frames": 0}, "even number"),
        ({"sampling_rate": 0}, "sampling rate"),
        ({"target_fps": 0}, "target_fps"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_impossible_sampling_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        sliding_windows(100, 25.0, **{**BASE, "stride": 64, **change})


@pytest.mark.parametrize(("frames", "fps"), [(0, 25.0), (10, 0.0), (10, float("nan"))])
def test_impossible_videos_are_refused(frames, fps):
    with pytest.raises(DataError):
        sliding_windows(frames, fps, stride=64, **BASE)
