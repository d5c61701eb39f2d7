"""scripts/bench_pretrain.py runs, and its two computations agree."""

import json

import pytest
from conftest import ROOT, run_command


@pytest.mark.slow
def test_the_quick_benchmark_reports_every_case():
    script = ROOT / "scripts" / "bench_pretrain.py"
    words = ("--quick", "--device", "cpu", "--repeats", "1", "--train-steps", "2", "--video-size", "64", "--json")
    report = json.loads(run_command("python", script, *words).stdout)
    assert [step["padding"] for step in report["steps"]] == [0, 10, 16, 24]
    for step in report["steps"]:
        assert step["difference"] < 1e-5
        assert step["ours_s"] == pytest.approx(step["forward_s"] + step["backward_s"])
        assert step["speedup"] == pytest.approx(step["dense_s"] / step["ours_s"])
    assert set(report["training"]["phases"]) == {"data", "forward", "backward", "optimiser"}
    assert report["training"]["clips_per_second"] > 0
