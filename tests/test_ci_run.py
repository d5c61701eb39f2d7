""".ci/run: the cluster and the browser around the tests, and what happens where there can be none.

All that it calls is a stand-in.
"""

import shutil
import subprocess

import pytest
from conftest import ROOT

CLUSTER = """#!/usr/bin/env bash
echo "cluster $1" >>"$CALLS"
echo "dev cluster: $1"
case "$1" in status) exit "$UP" ;; start) exit "$START" ;; esac
"""
TESTS = (
    'echo "tests $*" >>"$CALLS"\n[ "$TESTS" != killed ] || kill -TERM $PPID\necho "3 passed in 1.00s"\nexit "$TESTS"\n'
)
TOOLS = {"id": "echo $USER_ID", "apt-get": 'echo "apt-get $*" >>"$CALLS"; echo E: no network; exit $APT'}
SLURM = ("slurmctld", "slurmd", "sbatch", "munged")


@pytest.fixture
def ci_run(tmp_path):
    """Runs .ci/run with its surroundings: (result, what it called)."""
    for folder in (".ci", "slurm", "scripts", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "slurm" / "dev_cluster.sh").write_text(CLUSTER)
    (tmp_path / "scripts" / "test.sh").write_text(TESTS)
    for tool in ("bash", "dirname", "mktemp", "tail", "rm"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))

    def run(*words, installed=(*SLURM, "chromium"), **given):
        tools = TOOLS | dict.fromkeys(installed, "true")
        for name, code in tools.items():
            (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{code}\n")
            (tmp_path / "bin" / name).chmod(0o755)
        variables = {"UP": 1, "START": 0, "TESTS": 0, "USER_ID": 0, "APT": 0} | given
        result = subprocess.run(
            [tmp_path / ".ci" / "run", *words],
            capture_output=True, text=True, check=False, cwd="/", timeout=60,
            env={"PATH": str(tmp_path / "bin"), "CALLS": str(tmp_path / "calls"), "TMPDIR": str(tmp_path)}
            | {name: str(value) for name, value in variables.items()},
        )  # fmt: skip
        return result, (tmp_path / "calls").read_text().splitlines()

    return run


@pytest.mark.parametrize("status", [0, 1])
def test_starts_and_stops_the_cluster(ci_run, status):
    result, calls = ci_run("-k", "x", TESTS=status)
    assert calls == ["cluster status", "cluster start", "tests -k x", "cluster stop"]
    assert result.returncode == status and result.stdout.splitlines()[-1] == "3 passed in 1.00s"


def test_a_cluster_that_is_up_is_left_up(ci_run):
    result, calls = ci_run(UP=0)
    assert calls == ["cluster status", "tests "] and result.returncode == 0
    assert "up already" in result.stdout


@pytest.mark.parametrize(
    ("installed", "slurm", "chromium"),
    [
        (
            (),
            ["apt-get update", "apt-get install -y slurm-wlm munge"],
            ["apt-get update", "apt-get install -y chromium"],
        ),
        (SLURM, [], ["apt-get update", "apt-get install -y chromium"]),
        (("google-chrome",), ["apt-get update", "apt-get install -y slurm-wlm munge"], []),
    ],
)
def test_installs_what_is_missing(ci_run, installed, slurm, chromium):
    result, calls = ci_run(installed=installed)
    assert calls == ["cluster status", *slurm, "cluster start", *chromium, "tests ", "cluster stop"]
    assert "skipped" not in result.stdout and result.stdout.splitlines()[-1] == "3 passed in 1.00s"


@pytest.mark.parametrize(
    ("given", "said", "expected"),
    [
        ({"USER_ID": 1000}, ["not root: SLURM is not started"], []),
        (
            {"USER_ID": 1000, "installed": ()},
            ["not root: SLURM is not started", "not root: Chromium is not installed, the tests marked browser"],
            [],
        ),
        (
            {"APT": 100, "installed": ()},
            ["E: no network", "apt-get could not install SLURM", "apt-get could not install Chromium"],
            ["apt-get update"] * 2,
        ),
        ({"START": 1}, ["SLURM could not be started"], ["cluster start", "cluster stop"]),
    ],
)
def test_without_slurm_or_browser_the_other_tests_run(ci_run, given, said, expected):
    result, calls = ci_run(TESTS=5, **given)
    assert calls == ["cluster status", *expected, "tests "]
    assert result.returncode == 5 and all(text in result.stdout for text in said)
    assert result.stdout.count("skipped") == sum(text != "E: no network" for text in said)
    assert result.stdout.splitlines()[-1] == "3 passed in 1.00s"


def test_stopped_by_a_signal(ci_run):
    result, calls = ci_run(TESTS="killed")
    assert calls[-1] == "cluster stop" and result.returncode == -15
