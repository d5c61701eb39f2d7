"""The parts of scripts/bench_decode.py on a small video; times are never tested."""

import sys
from pathlib import Path

import numpy as np

from slt_plugin.data.video import decode_clip, probe

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import bench_decode


def test_bench_decode(tmp_path):
    frames = bench_decode.scene(64, 48, 50)
    path = bench_decode.encode(tmp_path / "a.mp4", frames)
    case = bench_decode.against_everything("a", path, 32)
    assert len(case.plain()) == len(case.ours().frames) == 50
    row = bench_decode.compare(case, 1)
    assert row[0] == "a, 50 of 50 frames" and len(row) == 9 and all(float(cell or 1) >= 0 for cell in row[1:])

    whole = bench_decode.repeat(tmp_path / "b.mp4", path, 8)
    assert probe(whole).num_frames == 400
    once = decode_clip(path).frames.numpy()
    np.testing.assert_array_equal(decode_clip(whole, 5.0, 6.0).frames, once[25:])
    segment = bench_decode.segment_case("b", whole, 4.0, path, 32)
    np.testing.assert_array_equal(segment.plain().frames[:25], segment.ours().frames[:25])
