"""slt-doctor: the checks themselves on made-up versions, and one real run in this environment."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from slt_plugin.cli import doctor
from slt_plugin.cli.doctor import FAIL, OK, WARN

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), FAIL), ((3, 11, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), FAIL)]
)
def test_python(version, status):
    check = doctor.check_python(version)
    assert check.status == status
    assert ("PYTHON=" in check.remedy) == (status == FAIL)


@pytest.mark.parametrize(
    ("requirement", "version", "extra", "status", "text"),
    [
        ("hydra-core>=1.3.2,<1.4", "1.3.8", "", OK, "1.3.8"),
        ("hydra-core>=1.3.2,<1.4", "1.0.7", "", FAIL, "hydra-core<1.4,>=1.3.2 is needed"),
        ("torch>=2.7,<2.12", "2.11.0+cu130", "", OK, "2.11.0"),
        ("torch>=2.7,<2.12", None, "", FAIL, "not installed"),
        ("transformers>=5.20,<6", None, "hf", OK, "pip install -e '.[hf]'"),
        ("transformers>=5.20,<6", "4.40.0", "hf", FAIL, "is needed"),
    ],
)
def test_requirement(requirement, version, extra, status, text):
    check = doctor.check_requirement(Requirement(requirement), version, extra=extra)
    assert check.status == status
    assert text in f"{check.found} {check.remedy}"


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("__version__ = '2.11.0+cu130'", "13.0"),
        ('__version__ = "0.22.1+cu126"\ngit_version = "a"', "12.6"),
        ("__version__ = '2.13.0+cpu'", "cpu"),
        ("__version__ = '2.11.0'", None),
        ("", None),
    ],
)
def test_build_cuda(line, cuda):
    assert doctor.build_cuda(line) == cuda


def test_cuda_of_the_installed_torch_is_read_without_importing_it():
    import torch

    assert doctor.installed_cuda("torch") == (torch.version.cuda or "cpu")
    assert doctor.installed_cuda("no_such_package") is None


@pytest.mark.parametrize(
    ("torch", "other", "status", "text"),
    [
        ("13.0", "13.0", OK, ""),
        ("13.2", "13.0", FAIL, "different CUDA versions"),
        ("cpu", "13.0", FAIL, "CPU-only torch"),
        ("cpu", "cpu", OK, ""),
        ("13.0", None, OK, ""),
    ],
)
def test_cuda_builds(torch, other, status, text):
    (check,) = doctor.check_cuda_builds(torch, {"torchaudio": other})
    assert check.status == status
    assert text in check.remedy


@pytest.mark.parametrize(
    ("owners", "status"), [(["ve-fairseq"], OK), (["fairseq"], FAIL), (["fairseq", "ve-fairseq"], FAIL), ([], FAIL)]
)
def test_fairseq(owners, status):
    check = doctor.check_fairseq(owners)
    assert check.status == status
    assert ("pip install ve-fairseq" in check.remedy) == (status == FAIL)


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
    checks = doctor.check_gpus(report, cuda)
    assert [check.status for check in checks] == statuses
    assert text in checks[0].remedy
    assert ("cuda12" in checks[0].remedy) == (report == V100 and cuda == "13.0")


def test_amounts():
    bounds = {"warn": 4, "fail": 2, "remedy": "get more"}
    assert doctor.check_amount("memory", 8, **bounds) == doctor.Check(OK, "memory", "8.0 GB")
    assert doctor.check_amount("memory", 3.96, **bounds) == doctor.Check(WARN, "memory", "4.0 GB", "get more")
    assert doctor.check_amount("memory", 1, **bounds).status == FAIL


def test_imports_in_a_child_report_each_failure_and_survive_a_crash(tmp_path, monkeypatch):
    (tmp_path / "doctor_crash.py").write_text("import os\nprint('json')\nos._exit(7)\n")
    (tmp_path / "doctor_error.py").write_text("raise RuntimeError('compiled with different CUDA versions')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failed = doctor.failed_imports(("json", "doctor_crash", "csv", "doctor_error", "no_such_module"))
    assert failed == {
        "doctor_crash": "exit code 7",
        "doctor_error": "RuntimeError: compiled with different CUDA versions",
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert doctor.failed_imports(("json", "csv")) == {}


def test_user_dir_warns_of_another_folder_of_that_name(tmp_path):
    assert doctor.check_user_dir(tmp_path).status == OK
    assert doctor.check_user_dir(ROOT).status == OK  # the repository itself
    (tmp_path / "slt_plugin").mkdir()
    check = doctor.check_user_dir(tmp_path)
    assert check.status == WARN
    assert "slt-doctor --user-dir" in check.remedy


def test_user_dir_option_prints_only_the_folder(capsys):
    assert doctor.main(["--user-dir"]) == 0
    assert capsys.readouterr().out == f"{ROOT / 'slt_plugin'}\n"


def test_packages_cover_setup_py_once_each():
    names = [check.name for check in doctor.check_packages()]
    assert {"ve-fairseq", "torch", "hydra-core", "transformers", "gradio"} <= set(names)
    assert len(names) == len(set(names))


def test_exit_code_and_report_follow_the_checks(monkeypatch, capsys):
    checks = [doctor.Check(OK, "Python", "3.11.7"), doctor.Check(WARN, "GPU", "none", "buy one")]
    monkeypatch.setattr(doctor, "run_checks", lambda: checks)
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK    Python  3.11.7",
        "WARN  GPU     none",
        "              -> buy one",
        "1 OK, 1 warnings, 0 failures",
    ]
    checks.append(doctor.Check(FAIL, "fairseq", "broken", "install it"))
    assert doctor.main([]) == 1


def test_real_run():
    """The whole command here, where a failure would be a fault of this environment; it imports nothing heavy itself."""
    run = subprocess.run([sys.executable, "-m", "slt_plugin.cli.doctor"], capture_output=True, text=True, check=False)
    failures = [line for line in run.stdout.splitlines() if line.startswith(FAIL)]
    assert failures == []
    assert run.returncode == 0, run.stderr
    assert "import slt_plugin.tasks" in run.stdout
    code = "import slt_plugin.cli.doctor, sys; print(sorted({'torch', 'fairseq'} & set(sys.modules)))"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"


def test_readme_has_the_section_that_remedies_name():
    assert doctor.README_SECTION in doctor.CUDA12
    assert f"# {doctor.README_SECTION}\n" in (ROOT / "README.md").read_text()
