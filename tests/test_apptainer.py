"""slurm/apptainer.def cannot be built here: it is held against what it installs and names."""

import ast
import os
import re
import shlex
import subprocess

import pytest
import slurm_helpers
from conftest import ROOT
from packaging.specifiers import SpecifierSet

import slt_plugin

TEXT = (ROOT / "slurm" / "apptainer.def").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def header() -> dict[str, str]:
    lines = [line for line in TEXT.split("\n%")[0].splitlines() if line and not line.startswith("#")]
    return dict(line.split(": ", 1) for line in lines)


def section(name: str) -> str:
    parts = re.split(r"^%(\w+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def test_header_and_sections():
    parts = re.findall(r"^%(\w+)$", TEXT, flags=re.MULTILINE)
    assert parts == ["arguments", "labels", "files", "post", "environment", "runscript", "test", "help"]
    assert header()["Bootstrap"] == "docker"


def test_base_is_a_python_that_setup_py_allows_and_the_constraints_are_of():
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", header()["From"])[1]
    wanted = SpecifierSet(re.search(r'python_requires="(.+)"', SETUP)[1])
    assert f"{version}.5" in wanted
    assert f"Python {version}" in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_version_label():
    assert f"org.opencontainers.image.version {slt_plugin.__version__}\n" in section("labels")


def test_files_are_there_and_no_more_than_the_repository_has():
    pairs = [line.split() for line in section("files").split("\n") if line.strip()]
    for source, target in pairs:
        assert (ROOT / source).exists(), source
        assert target == f"/opt/slt_plugin/{source}"
    sources = {source for source, _ in pairs}
    tracked = subprocess.run(["git", "ls-files", "-o", "-c", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if tracked.returncode == 0:  # a source archive has no history
        assert sources <= {line.split("/")[0] for line in tracked.stdout.decode().splitlines()}
    # what setup.py reads, and the folders of the top level that commands in the README name
    assert {"setup.py", "README.md", "slt_plugin", "manifests", "scripts", "slurm"} <= sources


def pip_line() -> list[str]:
    joined = section("post").replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if "pip install" in line]
    return shlex.split(line.replace("{{ constraints }}", "CONSTRAINTS"))


def test_installs_what_the_scripts_install():
    words = pip_line()
    extras = re.search(r'^EXTRAS="(.+)"$', (ROOT / "scripts/common.sh").read_text(), flags=re.MULTILINE)[1]
    assert words[-1] == f".[{extras}]" and words[-2] == "-e"
    assert words[words.index("-c") + 1] == "CONSTRAINTS"
    assert f"-c constraints.txt -e '.[{extras}]'" in (ROOT / "README.md").read_text()
    known = ast.literal_eval(re.search(r"extras_require=(\{.*?\n    \})", SETUP, flags=re.DOTALL)[1])
    assert set(extras.split(",")) <= set(known)


def test_both_constraints_files_can_be_chosen():
    assert section("arguments").strip() == "constraints=constraints.txt"
    copied = set(re.findall(r"(constraints\S*\.txt) /opt", section("files")))
    assert copied == {path.name for path in ROOT.glob("constraints*.txt")}
    assert "--build-arg constraints=constraints-cuda12.txt" in TEXT


def test_help_names_every_command():
    commands = set(re.findall(r'"(slt-[\w-]+)":', SETUP))
    listed = section("help").split("Commands:")[1].split(". Home")[0].split()
    assert set(listed) == commands


@pytest.mark.parametrize("name", ["post", "environment", "runscript", "test"])
def test_scripts_are_shell(name):
    script = section(name).replace("{{ constraints }}", "constraints.txt")
    run = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("words", "printed"), [(["printf", "%s-", "a b", "c"], "a b-c-"), ([], "the doctor")])
def test_runscript_gives_the_commands(tmp_path, words, printed):
    (tmp_path / "slt-doctor").write_text("#!/bin/sh\necho 'the doctor'\n")
    (tmp_path / "slt-doctor").chmod(0o755)
    script = tmp_path / "run"
    script.write_text(section("runscript"))
    run = subprocess.run(
        ["sh", script, *words], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}
    )
    assert run.stdout.strip() == printed


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (75, True), (1, False)])
def test_the_requeueing_that_help_advises(tmp_path, status, requeued):
    block = section("help").split("requeues:\n\n")[1]
    for name, body in {"srun": f"exit {status}", "scontrol": f'echo "$@" >{tmp_path}/said'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/bin:/usr/bin", "SLURM_JOB_ID": "12"}
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", block], env=env, capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    assert (tmp_path / "said").exists() == requeued
    assert not requeued or (tmp_path / "said").read_text() == "requeue 12\n"


@pytest.mark.slurm
def test_the_advised_requeueing_in_a_real_job(slurm, tmp_path):
    """A stand-in for apptainer that was told to stop when it first ran: the job runs again and then ends well."""
    block = section("help").split("requeues:\n\n")[1]
    (tmp_path / "apptainer").write_text(
        '#!/bin/sh\necho "run $SLURM_RESTART_COUNT: $*"\n[ -n "$SLURM_RESTART_COUNT" ] || exit 75\n'
    )
    (tmp_path / "apptainer").chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --requeue --open-mode=append --output=job.out --time=5\n{block}")
    env = slurm_helpers.environment()
    job = slurm_helpers.submit(script, cwd=tmp_path, env={**env, "PATH": f"{tmp_path}{os.pathsep}{env['PATH']}"})
    slurm_helpers.wait_until(lambda: slurm_helpers.record(job)["Restarts"] == "1", job=job)
    slurm_helpers.wait_for(job, "PENDING")
    slurm_helpers.start_now(job)
    slurm_helpers.wait_for(job, "COMPLETED")
    words = "run --nv slt.sif slt-finetune ..."
    runs = [line for line in slurm_helpers.log(job).splitlines() if line.startswith("run")]
    assert runs == [f"run : {words}", f"run 1: {words}"]
