"""slt-doctor: environment checks on made-up versions, the report, and real runs in this environment."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from slt_plugin.cli import doctor
from slt_plugin.cli.checks import child, machine, python_environment, result
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), FAIL), ((3, 11, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), FAIL)]
)
def test_python(version, status):
    check = python_environment.check_python(version)
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
    check = python_environment.check_requirement(Requirement(requirement), version, extra=extra)
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
    assert python_environment.build_cuda(line) == cuda


def test_cuda_of_the_installed_torch_is_read_without_importing_it():
    import torch

    assert python_environment.installed_cuda("torch") == (torch.version.cuda or "cpu")
    assert python_environment.installed_cuda("no_such_package") is None


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
    (check,) = python_environment.check_cuda_builds(torch, {"torchaudio": other})
    assert check.status == status
    assert text in check.remedy


@pytest.mark.parametrize(
    ("owners", "status"), [(["ve-fairseq"], OK), (["fairseq"], FAIL), (["fairseq", "ve-fairseq"], FAIL), ([], FAIL)]
)
def test_fairseq(owners, status):
    check = python_environment.check_fairseq(owners)
    assert check.status == status
    assert ("pip install ve-fairseq" in check.remedy) == (status == FAIL)


# ---- children, report


def test_children_that_fail_crash_hang_or_do_not_exist():
    assert child.run_python("-c", "print('x')") == child.Output("x\n", None)
    assert child.run_python("-c", "import sys; sys.exit('the reason\\n')").problem == "the reason"
    assert child.run_python("-c", "import os; os._exit(7)").problem == "exit code 7"
    assert child.run_python("-c", "import os; os.kill(os.getpid(), 11)").problem == "ended by SIGSEGV"
    hangs = child.run_python("-c", "import time; print('before', flush=True); time.sleep(60)", timeout=1.0)
    assert hangs == child.Output("before\n", "no answer within 1 s")
    assert "No such file" in child.run(["no-such-command"], 1.0).problem
    mixed = child.Output('noise\n{"fact": "a", "x": 1}\n[1]\n{"b": 2}\n', None)
    assert child.read_facts(mixed) == {"a": {"fact": "a", "x": 1}}


def test_imports_in_a_child_report_each_failure_and_survive_a_crash(tmp_path, monkeypatch):
    (tmp_path / "doctor_crash.py").write_text("import os\nprint('json')\nos._exit(7)\n")
    (tmp_path / "doctor_error.py").write_text("raise RuntimeError('compiled with different CUDA versions')\n")
    (tmp_path / "doctor_hangs.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    failed = python_environment.failed_imports(("json", "doctor_crash", "csv", "doctor_error", "no_such_module"))
    assert failed == {
        "doctor_crash": "exit code 7",
        "doctor_error": "RuntimeError: compiled with different CUDA versions",
        "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert python_environment.failed_imports(("json", "csv")) == {}
    assert python_environment.failed_imports(("doctor_hangs",), timeout=1.0) == {"doctor_hangs": "no answer within 1 s"}


def test_user_dir_warns_of_another_folder_of_that_name(tmp_path):
    assert python_environment.check_user_dir(tmp_path).status == OK
    assert python_environment.check_user_dir(ROOT).status == OK  # the repository itself
    (tmp_path / "slt_plugin").mkdir()
    check = python_environment.check_user_dir(tmp_path)
    assert check.status == WARN
    assert "slt-doctor --user-dir" in check.remedy


def test_user_dir_option_prints_only_the_folder(capsys):
    assert doctor.main(["--user-dir"]) == 0
    assert capsys.readouterr().out == f"{ROOT / 'slt_plugin'}\n"


def test_packages_cover_setup_py_once_each():
    names = [check.name for check in python_environment.check_packages()]
    assert {"ve-fairseq", "torch", "hydra-core", "transformers", "gradio"} <= set(names)
    assert len(names) == len(set(names))
    assert max(map(len, names)) <= result.NAME_WIDTH


def test_amounts():
    bounds = {"warn": 4, "fail": 2, "remedy": "get more"}
    assert result.check_amount("memory", 8, **bounds) == Check(OK, "memory", "8.0 GB")
    assert result.check_amount("memory", 3.96, **bounds) == Check(WARN, "memory", "4.0 GB", "get more")
    assert result.check_amount("memory", 1, **bounds).status == FAIL


def test_machine_counts_the_cores_that_are_allowed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert machine.check_machine()[-1].found == f"1 usable of {os.cpu_count()}"


@pytest.fixture
def made_up(monkeypatch):
    checks = [Check(OK, "Python", "3.11.7"), Check(WARN, "GPU", "none", "buy one")]
    monkeypatch.setattr(doctor, "sections", lambda folder, workers: (("Machine", lambda: checks), ("None", list)))
    return checks


def test_exit_code_and_report_follow_the_checks(made_up, capsys):
    assert doctor.main([]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["Machine"],
        ["OK", "Python", "3.11.7"],
        ["WARN", "GPU", "none"],
        ["->", "buy", "one"],
        ["None"],
        ["1", "OK,", "1", "warnings,", "0", "failures"],
    ]
    made_up.append(Check(FAIL, "fairseq", "broken", "install it"))
    assert doctor.main([]) == 1


def test_a_check_that_fails_itself_does_not_take_the_others_along(monkeypatch, capsys):
    def fails() -> list[Check]:
        raise KeyError("NodeName")

    fine = [Check(OK, "Python", "3.11.7")]
    monkeypatch.setattr(doctor, "sections", lambda folder, workers: (("SLURM", fails), ("Machine", lambda: fine)))
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "the check itself failed: KeyError: 'NodeName'" in out and "1 OK, 0 warnings, 1 failures" in out


def test_json(made_up, capsys):
    made_up.append(Check(FAIL, "fairseq", "broken", "install it"))
    assert doctor.main(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"OK": 1, "WARN": 1, "FAIL": 1}
    assert found["checks"][1] == {
        "status": "WARN", "name": "GPU", "found": "none", "remedy": "buy one", "section": "Machine",
    }  # fmt: skip


def test_colour_only_in_a_terminal_that_wants_it(made_up):
    class Stream:
        def __init__(self, terminal):
            self.isatty = lambda: terminal

    assert doctor.wants_colour(Stream(True), {"TERM": "xterm"})
    assert not doctor.wants_colour(Stream(False), {"TERM": "xterm"})
    assert not doctor.wants_colour(Stream(True), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not doctor.wants_colour(Stream(True), {"TERM": "dumb"})
    made_up.append(Check(FAIL, "fairseq", "broken", "install it"))
    text = result.format_section("Machine", made_up, colour=True)
    assert [text.count(f"\x1b[{code}m") for code in (32, 33, 31)] == [1, 1, 1]
    assert "\x1b" not in result.format_section("Machine", made_up, colour=False)


def test_real_run(tmp_path):
    """The whole command here, where a failure would be a fault of this environment; it imports nothing heavy itself."""
    command = [sys.executable, "-m", "slt_plugin.cli.doctor", "--json", "--folder", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(run.stdout)
    # a nearly full disk is no fault of the code
    assert [c for c in found["checks"] if c["status"] == FAIL and c["name"] != "free space"] == []
    assert run.returncode == (found["counts"]["FAIL"] > 0), run.stderr
    names = {check["name"] for check in found["checks"]}
    assert {"import slt_plugin.tasks", "fused attention", "decoding", "writing", "hard links"} <= names
    assert list(dict.fromkeys(c["section"] for c in found["checks"])) == [
        "Environment", "GPU", "Video", "Machine", "Output folder", "SLURM",
    ]  # fmt: skip
    assert all(bool(check["remedy"]) == (check["status"] != OK) for check in found["checks"])
    assert list(tmp_path.iterdir()) == []
    code = "import slt_plugin.cli.doctor, sys; print(sorted({'torch', 'fairseq', 'numpy', 'av'} & set(sys.modules)))"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"


def test_without_torch_everything_else_is_still_reported(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "slt_plugin.cli.doctor", "--folder", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    lines = [line.split() for line in run.stdout.splitlines()]
    failed = {" ".join(line[1:3]) for line in lines if line and line[0] == FAIL}
    assert run.returncode == 1 and run.stderr == ""
    assert {"import torch", "import fairseq", "torch ImportError:"} <= failed
    assert "libcudart.so.13" in run.stdout
    assert ["OK", "hard", "links", "work"] in lines and ["SLURM"] in lines


def test_readme_has_the_section_that_remedies_name():
    assert python_environment.README_SECTION in python_environment.CUDA12
    assert f"# {python_environment.README_SECTION}\n" in (ROOT / "README.md").read_text()


def test_launcher_options_in_remedies_exist():
    from slt_plugin.launch.profile import Profile

    text = "".join(path.read_text() for path in (ROOT / "slt_plugin/cli/checks").glob("*.py"))
    named = set(re.findall(r"launcher\.(\w+)", text))
    assert {"chain", "partition"} <= named <= {field.name for field in dataclasses.fields(Profile)}


def test_loader_workers_are_those_of_the_configurations():
    config = yaml.safe_load((ROOT / "slt_plugin/config/finetune/_base.yaml").read_text())
    assert config["dataset"]["num_workers"] == doctor.WORKERS
