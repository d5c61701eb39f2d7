"""scripts/bench_encoder.py runs, and its two encoders agree."""

import json

import pytest
from conftest import ROOT, run_command


def quick(*words) -> str:
    script = ROOT / "scripts" / "bench_encoder.py"
    return run_command(
        "python", script, "--quick", "--device", "cpu", "--repeats", "1", "--mix-windows", "2", *words
    ).stdout


@pytest.mark.slow
def test_the_quick_benchmark_reports_every_case():
    report = json.loads(quick("--json"))
    cases = {case["name"]: case for case in report["cases"]}
    assert list(cases) == ["0 % padded", "25 % padded", "50 % padded", "75 % padded", "How2Sign-like mix"]
    for case in cases.values():
        assert case["max_difference"] < 1e-4 and 1e-4 < case["bf16_error"] < 0.05
        assert min(case["dense_s"], case["ours_s"], case["ours_bf16_s"], case["tflop"]) > 0
        assert case["speedup"] == pytest.approx(case["dense_s"] / case["ours_s"])
    assert cases["50 % padded"]["tflop"] < 0.5 * cases["0 % padded"]["tflop"]
    assert len(cases["How2Sign-like mix"]["paddings"]) == 2
    assert any("math" in kernel for kernel in report["kernels"]["dense fp32"])
    assert all("math" not in kernel and "softmax" not in kernel for kernel in report["kernels"]["ours fp32"])
    assert report["kernels"]["ours fp32"]
