"""slt-doctor: GPUs as nvidia-smi describes them, and what the probe of torch finds."""

import pytest

from slt_plugin.cli.checks import child, gpu
from slt_plugin.cli.checks.result import FAIL, OK, WARN

H200 = "NVIDIA H200, 580.95.05, 143771 MiB"
V100 = "Tesla V100-SXM2-32GB, 535.104.05, 32768 MiB"
OLD = "Tesla K80, 470.82.01, 11441 MiB"


@pytest.mark.parametrize(
    ("report", "cuda", "statuses", "text"),
    [
        (H200, "13.0", [OK], ""),
        (f"{H200}\n{H200}", "12.6", [OK, OK], ""),
        (V100, "13.0", [FAIL], "driver 580 or newer: update the driver, or use constraints-cuda12.txt"),
        (V100, "12.6", [OK], ""),
        (OLD, "12.6", [FAIL], "driver 525 or newer: update the driver"),
        (H200, "cpu", [FAIL], "CPU-only"),
        (H200, None, [OK], ""),
        (None, "13.0", [WARN], "srun"),
        ("", "13.0", [WARN], "srun"),
    ],
)
def test_gpus(report, cuda, statuses, text):
    checks = gpu.check_gpus(report, cuda)
    assert [check.status for check in checks] == statuses
    assert text in checks[0].remedy
    assert ("cuda12" in checks[0].remedy) == (report == V100 and cuda == "13.0")


@pytest.mark.parametrize(
    ("line", "cuda", "status", "text"),
    [
        (
            "NVIDIA H200, 580.95.05, 143771 MiB, 4 MiB, 9.0, Disabled",
            "13.0",
            OK,
            "4 MiB in use, compute capability 9.0",
        ),
        ("NVIDIA H200, 580.95.05, 143771 MiB, 90123 MiB, 9.0, Disabled", "13.0", WARN, "somebody's process"),
        ("NVIDIA A100, 580.95.05, 81920 MiB, [N/A], 8.0, Enabled", "13.0", OK, "cut into MIG parts"),
        (
            "Tesla V100, 580.95.05, 32768 MiB, 3 MiB, 7.0, [N/A]",
            "13.0",
            FAIL,
            "7.5 or newer: use constraints-cuda12.txt",
        ),
        ("Tesla V100, 580.95.05, 32768 MiB, 3 MiB, 7.0, [N/A]", "12.6", OK, "compute capability 7.0"),
        ("Quadro RTX 6000, 580.95.05, 24576 MiB, 3 MiB, 7.5, [N/A]", "13.0", OK, "compute capability 7.5"),
        ("Tesla K80, 525.95.05, 11441 MiB, 0 MiB, 3.7, [N/A]", "13.0", FAIL, "too old, use another"),
        ("NVIDIA B200, 580.95.05, 183359 MiB, 0 MiB, 10.0, Disabled", "12.6", FAIL, "use constraints.txt"),
        ("NVIDIA B200, 580.95.05, 183359 MiB, 0 MiB, 10.0, Disabled", "12.8", OK, "compute capability 10.0"),
    ],
)
def test_gpu_generation_and_memory_in_use(line, cuda, status, text):
    (check,) = gpu.check_gpus(line, cuda)
    assert check.status == status and text in f"{check.found} {check.remedy}"
    assert bool(check.remedy) == (status != OK)


def test_mig_parts_and_hidden_gpus():
    listing = (
        "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5c4e)\n"
        "  MIG 3g.40gb     Device  0: (UUID: MIG-aa)\n  MIG 1g.10gb     Device  1: (UUID: MIG-bb)\n"
    )
    checks = gpu.check_gpus(H200, "13.0", listing, {"CUDA_VISIBLE_DEVICES": "0"})
    assert [(c.status, c.name) for c in checks] == [(OK, "GPU"), (OK, "MIG"), (OK, "CUDA_VISIBLE_DEVICES")]
    assert "2 MIG parts visible: 3g.40gb, 1g.10gb" in checks[1].found
    hidden = gpu.check_gpus(H200, "13.0", "", {"CUDA_VISIBLE_DEVICES": ""})[-1]
    assert hidden.status == WARN and "--gres=gpu:1" in hidden.remedy


def test_a_job_that_was_given_gpus_and_sees_none():
    (check,) = gpu.check_gpus(None, "13.0", "", {"SLURM_GPUS_ON_NODE": "2"})
    assert check.status == FAIL and "gave this job 2" in check.found and "--nv" in check.remedy
    (check,) = gpu.check_gpus(None, "13.0", "", {"SLURM_GPUS_ON_NODE": "0"})
    assert check.status == WARN


BUILD = {"version": "2.11.0", "cuda": "13.0", "architectures": ["sm_75"]}
KERNEL = {"count": 2, "capability": [9, 0], "free": 140 * 2**30, "total": 141 * 2**30}
FUSED = {"kernels": {"flash": None, "memory-efficient": None, "cuDNN": "No available kernel. Aborting execution."}}
WORKING = {
    "build": BUILD,
    "nccl": {"version": "2.28.9"},
    "kernel": KERNEL,
    "bfloat16": {"native": True, "error": 0.1},
    "attention": FUSED,
}


@pytest.mark.parametrize(
    ("change", "problem", "gpus", "expected"),
    [
        ({}, None, True, {"NCCL": OK, "GPU works": OK, "bf16": OK, "fused attention": OK}),
        ({"nccl": {"version": None}}, None, True, {"NCCL": WARN}),
        ({"kernel": {"problem": "AcceleratorError: no kernel image is available"}}, None, True, {"GPU works": FAIL}),
        ({"kernel": None, "bfloat16": None}, None, True, {"GPU works": FAIL}),  # torch sees none
        ({"bfloat16": {"native": False, "error": 0.1}}, None, True, {"bf16": WARN}),
        ({"bfloat16": {"problem": "RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"}}, None, True, {"bf16": FAIL}),
        ({"attention": {"kernels": {"flash": "No kernel", "cuDNN": None}}}, None, True, {"fused attention": WARN}),
        ({"attention": {"kernels": {"flash": "wrong by nan", "memory-efficient": None}}}, None, True,
         {"fused attention": FAIL}),
        ({"attention": {"problem": "RuntimeError: CUDA error"}}, None, True, {"fused attention": FAIL}),
        ({"attention": None}, "ended by SIGSEGV", True, {"GPU works": OK, "torch": FAIL}),
        ({"kernel": None, "bfloat16": None, "attention": {"kernels": {"plain": None}}}, None, False,
         {"NCCL": OK, "fused attention": OK}),
        (dict.fromkeys(WORKING), "ModuleNotFoundError: No module named 'torch'", False, {"torch": FAIL}),
    ],
)  # fmt: skip
def test_what_the_torch_probe_found(change, problem, gpus, expected):
    facts = {name: fact for name, fact in {**WORKING, **change}.items() if fact is not None}
    checks = {check.name: check for check in gpu.check_torch(facts, problem, gpus=gpus)}
    assert {name: checks[name].status for name in expected} == expected
    assert set(checks) == set(expected) or gpus
    assert all(bool(check.remedy) == (check.status != OK) for check in checks.values())


def test_the_torch_probe_runs_here():
    import torch

    output = child.run_python("-P", "-m", "slt_plugin.cli.checks.probe_torch")
    facts = child.read_facts(output)
    assert output.problem is None
    assert facts["build"]["cuda"] == torch.version.cuda
    kernels = facts["attention"]["kernels"]
    if torch.cuda.is_available():
        assert None in kernels.values() and facts["kernel"]["count"] == torch.cuda.device_count()
    else:
        assert kernels == {"plain": None} and "kernel" not in facts


def test_attention_that_computes_something_else_is_seen(monkeypatch):
    from slt_plugin.cli.checks import probe_torch

    monkeypatch.setattr(probe_torch, "scaled_dot_product_attention", lambda query, key, value: value)
    assert probe_torch.attention("cpu")["kernels"]["plain"].startswith("wrong by")
    monkeypatch.setattr(probe_torch, "scaled_dot_product_attention", lambda query, key, value: value * float("nan"))
    assert probe_torch.attention("cpu")["kernels"]["plain"] == "wrong by nan"


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("echo 'No devices were found'", None),
        ("exit 9", None),
        ("case $1 in *mig*) exit 2 ;; esac; echo 'NVIDIA A100, 525.1, 40960 MiB'", 1),  # a driver that knows less
        ("for i in 1 2; do echo 'NVIDIA H200, 580.95.05, 143771 MiB, 4 MiB, 9.0, Disabled'; done", 2),
    ],
)
def test_answers_of_nvidia_smi(tmp_path, monkeypatch, script, lines):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    report = gpu.nvidia_smi()
    assert (report and len(report.splitlines())) == lines
    checks = gpu.check_gpus(report, "13.0" if lines == 2 else "12.6")
    assert [check.status for check in checks] == ([OK] * lines if lines else [WARN])
