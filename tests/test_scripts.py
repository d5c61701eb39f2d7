"""The shell scripts: syntax, which Python they take, when they install, and the shuffled texts of the control."""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slt_plugin.data.manifest import Row, read_manifest, write_manifest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
import shuffle_texts  # noqa: E402

FAKE_PYTHON = """#!/bin/bash
# what common.sh asks of a Python: its version, a venv, pip
case "$*" in
    "-c import sys"*) echo {version} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip --version") ;;
    "-m pip install"*) echo "$@" >>"{log}"; {install} ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


@pytest.fixture
def shell(tmp_path):
    """Runs bash code after common.sh in an environment without any Python but /usr/bin's own tools."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "basename", "sed", "readlink", "ls", "mkdir", "cp", "mv", "rm",
                 "tail", "touch", "diff"):  # fmt: skip
        (tmp_path / "bin" / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())

    def run(code: str, **environment: str) -> subprocess.CompletedProcess:
        environment = {"PATH": str(tmp_path / "bin"), "VENV": str(tmp_path / "env"), **environment}
        return subprocess.run(
            ["bash", "-c", f"set -euo pipefail\nsource {SCRIPTS}/common.sh\n{code}", "test.sh"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={key: value for key, value in environment.items() if value},
            check=False,
        )

    return run


def fake_python(path: Path, version: str, install: str = "true") -> Path:
    """An interpreter that notes what pip is asked for in pip.log of the test's folder."""
    log = next(p for p in path.parents if (p / "bin").is_dir() and p.name != "env") / "pip.log"
    path.write_text(FAKE_PYTHON.format(version=version, log=log, install=install))
    path.chmod(0o755)
    return path


def installs(tmp_path: Path) -> list[str]:
    log = tmp_path / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", [*sorted(SCRIPTS.glob("*.sh")), ROOT / ".ci/run"], ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("name", ["quickstart.sh", "control.sh", "ablation.sh", "test.sh"])
def test_help_costs_nothing(name):
    run = subprocess.run(["bash", str(SCRIPTS / name), "--help"], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) >= 2
    assert "set -" not in run.stdout  # the comment only, all of it
    if name != "test.sh":
        assert "VIDEO_DATA" in run.stdout


def test_a_wrong_python_is_refused_with_the_way_out(shell, tmp_path):
    old = fake_python(tmp_path / "bin/old", "3.9.18")
    run = shell("prepare_environment", PYTHON=str(old))
    assert run.returncode == 1
    assert f"error: PYTHON={old} is Python 3.9.18" in run.stderr
    assert "PYTHON=/path/to/python3.11 bash scripts/test.sh" in run.stderr
    assert "uv python install 3.11" in run.stderr
    assert not (tmp_path / "env").exists()


def test_the_first_python_that_fits_is_taken(shell, tmp_path):
    # pyenv's shims: in PATH, but they do not run
    (tmp_path / "bin/python3.11").write_text("#!/bin/bash\nexit 127\n")
    (tmp_path / "bin/python3.11").chmod(0o755)
    fake_python(tmp_path / "bin/python3.12", "3.12.4")
    fake_python(tmp_path / "bin/python3", "3.9.2")
    assert shell("find_python").stdout == "python3.12\n"


def test_no_python_at_all_and_too_new_ones_are_explained(shell, tmp_path):
    assert "none of python3.11, python3.12, python3 runs" in shell("prepare_environment").stderr
    fake_python(tmp_path / "bin/python3", "3.13.1")
    run = shell("prepare_environment")
    assert run.returncode == 1
    assert "python3 is 3.13.1" in run.stderr


def test_a_second_run_installs_nothing_and_takes_no_time(shell, tmp_path):
    fake_python(tmp_path / "bin/python3.11", "3.11.7")
    first = shell("prepare_environment")
    assert first.returncode == 0, first.stderr
    assert len(installs(tmp_path)) == 1
    assert f"-c {ROOT}/constraints.txt -e {ROOT}[hf,prep,track,bleurt,demo,dev]" in installs(tmp_path)[0]
    start = time.perf_counter()
    second = shell('prepare_environment; echo "$PATH"')
    assert time.perf_counter() - start < 1
    assert second.stdout.startswith(f"{tmp_path}/env/bin:")
    assert len(installs(tmp_path)) == 1


def test_other_constraints_install_again(shell, tmp_path):
    fake_python(tmp_path / "bin/python3.11", "3.11.7")
    mine = tmp_path / "mine.txt"
    for content, count in [("a==1\n", 1), ("a==1\n", 1), ("a==2\n", 2)]:
        mine.write_text(content)
        assert shell("prepare_environment", CONSTRAINTS="mine.txt").returncode == 0
        assert len(installs(tmp_path)) == count
    assert shell("prepare_environment", CONSTRAINTS="constraints-cuda12.txt").returncode == 0
    assert f"-c {ROOT}/constraints-cuda12.txt" in installs(tmp_path)[-1]
    wrong = shell("prepare_environment", CONSTRAINTS="constraints-cuda11.txt")
    assert wrong.returncode == 1
    assert "there are:  constraints-cuda12.txt constraints.txt" in wrong.stderr


def test_an_install_that_fails_is_explained_and_repeated(shell, tmp_path):
    fake_python(tmp_path / "bin/python3.11", "3.11.7", install="echo no route to host; exit 1")
    run = shell("prepare_environment")
    assert run.returncode == 1
    assert "no route to host" in run.stderr
    assert "a repeated run goes on" in run.stderr
    fake_python(tmp_path / "env/bin/python", "3.11.7")
    assert shell("prepare_environment").returncode == 0
    assert len(installs(tmp_path)) == 2


def test_environments_that_cannot_work_are_explained(shell, tmp_path):
    python = fake_python(tmp_path / "bin/python3.11", "3.11.7")
    assert shell("prepare_environment").returncode == 0

    other = fake_python(tmp_path / "bin/python3.12", "3.12.1")
    run = shell("prepare_environment", PYTHON=str(other))
    assert run.returncode == 1
    assert f"{tmp_path}/env is of Python 3.11.7, PYTHON={other} is 3.12.1" in run.stderr
    assert shell("prepare_environment", PYTHON=str(python)).returncode == 0

    (tmp_path / "env").rename(tmp_path / "moved")
    run = shell("prepare_environment", VENV=str(tmp_path / "moved"))
    assert run.returncode == 1
    assert "moved or copied" in run.stderr

    (tmp_path / "moved/bin/python").unlink()
    (tmp_path / "moved/bin/python").symlink_to("/nowhere/python3.11")
    run = shell("prepare_environment", VENV=str(tmp_path / "moved"))
    assert run.returncode == 1
    assert "does not run" in run.stderr and "rm -rf" in run.stderr

    (tmp_path / "files").mkdir()
    (tmp_path / "files/thesis.tex").touch()
    run = shell("prepare_environment", VENV="files")
    assert run.returncode == 1
    assert "exists and is no environment" in run.stderr
    assert (tmp_path / "files/thesis.tex").exists()


def test_once_skips_what_is_done_and_refuses_other_settings(shell, tmp_path):
    (tmp_path / "in.tsv").write_text("a\n")
    code = 'INPUTS=(in.tsv); once "$PWD/out/trained" bash -c "{}" >&2'
    (tmp_path / "out").mkdir()
    assert "ran" in shell(code.format("echo ran")).stderr
    again = shell(code.format("echo ran"))
    assert again.returncode == 0
    assert "done before" in again.stderr
    other = shell(code.format("echo other"))
    assert other.returncode == 1
    assert "other settings" in other.stderr
    (tmp_path / "in.tsv").write_text("b\n")
    assert "another corpus" in shell(code.format("echo ran")).stderr


def test_once_runs_an_interrupted_command_again(shell, tmp_path):
    (tmp_path / "in.tsv").write_text("a\n")
    code = 'INPUTS=(in.tsv); once "$PWD/trained" bash -c "echo ran; test -e go"'
    first = shell(code)
    assert first.returncode == 1
    (tmp_path / "go").touch()
    assert "\nran\n" in shell(code).stdout
    assert "done before" in shell(code).stdout


def test_weights_of_another_pretraining_are_another_training(shell, tmp_path):
    for name in ("_base", "_sign_to_text", "fingerspelling_video", "experiment/fingerspelling_video"):
        path = tmp_path / "slt_plugin/config/finetune" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("train.tsv", "valid.tsv", "char.model"):
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    code = "fairseq-hydra-train() { echo trained; }; TRACK=video SEED=1 DATA=. OUT=run; train . " + (
        "model.signhiera_pretrained=weights.pt"
    )
    for weights, text in (("one", "\ntrained\n"), ("one", "done before"), ("two", "results of other settings")):
        (tmp_path / "weights.pt").write_text(weights)
        run = shell(code)
        assert text in run.stdout + run.stderr


def test_wrong_settings_stop_before_any_work(shell):
    assert "SEED=one is no whole number" in shell("experiment_folders x", SEED="one").stderr
    for name in ("quickstart.sh", "control.sh"):
        run = subprocess.run(["bash", str(SCRIPTS / name), "--seed", "2"], capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert "SEED=2 bash scripts/" in run.stderr
    run = subprocess.run(["bash", str(SCRIPTS / "ablation.sh"), "3"], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "SEEDS='1 2' bash scripts/ablation.sh" in run.stderr
    command = ["bash", str(SCRIPTS / "control.sh"), "--track", "sound"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "--track sound: there are two tracks, pose and video" in run.stderr


def test_folders_of_the_tracks(tmp_path):
    """A copy of common.sh in an empty repository, because the folders are made."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/common.sh").write_text((SCRIPTS / "common.sh").read_text())
    code = (
        f'set -euo pipefail; source {tmp_path}/scripts/common.sh; experiment_folders "$1"; '
        'for t in pose video; do use_track $t; echo "$MANIFESTS $OUT $VARIABLE"; done; use_track sound'
    )

    def run(suffix: str, **settings: str) -> subprocess.CompletedProcess:
        env = {"PATH": "/usr/bin:/bin", **settings}
        return subprocess.run(
            ["bash", "-c", code, "test.sh", suffix], capture_output=True, text=True, check=False, env=env
        )

    for suffix in ("", "-control"):
        assert run(suffix).stdout.splitlines() == [
            f"data/fingerspelling runs/fingerspelling{suffix} RUN",
            f"data/fingerspelling_video runs/fingerspelling_video{suffix} VIDEO_RUN",
        ]
        assert run(suffix, SEED="3").stdout.splitlines() == [
            f"data/fingerspelling-3 runs/fingerspelling{suffix}-3 RUN",
            f"data/fingerspelling_video-3 runs/fingerspelling_video{suffix}-3 VIDEO_RUN",
        ]
    names = {"DATA": "d", "RUN": "r", "VIDEO_DATA": "v", "VIDEO_RUN": "vr"}
    given = {name: f"{tmp_path}/{folder}" for name, folder in names.items()}
    assert run("", **given).stdout.splitlines() == ["d r RUN", "v vr VIDEO_RUN"]
    assert "there are:  pose, video" in run("").stderr


EVALUATE = """
slt-evaluate() { echo "evaluates: $*"; mkdir -p run/results/test; echo said >&2; [ -z "${FAIL:-}" ]; }
OUT=run; MANIFESTS=data; FRAMES=77; mkdir -p run data; touch -d 2020-01-01 run/checkpoint_best.pt data/test.tsv
"""


def test_evaluation_is_done_once_for_a_model_and_a_manifest(shell, tmp_path):
    first = shell(f"{EVALUATE} evaluate test evidence=0")
    assert first.returncode == 0, first.stderr
    words = (
        "checkpoint=run/checkpoint_best.pt data=data subset=test results=run/results dataset.max_tokens=77 evidence=0"
    )
    assert first.stdout.splitlines() == [f"+ slt-evaluate {words}", f"evaluates: {words}"]
    assert (tmp_path / "run/results/test.log").read_text() == "said\n" and first.stderr == ""
    assert (
        "done before: slt-evaluate of test (again: rm 'run/results/test.done')"
        in shell(f"{EVALUATE} evaluate test").stdout
    )
    for changed in ("run/checkpoint_best.pt", "data/test.tsv"):
        again = shell(f"{EVALUATE} touch -d 2100-01-01 {changed}; evaluate test")
        assert "evaluates: " in again.stdout, changed


def test_an_evaluation_that_fails_is_shown_and_not_taken_for_done(shell):
    failed = shell(f"{EVALUATE} evaluate test", FAIL="1")
    assert failed.returncode == 1
    assert "said\n" in failed.stderr and "slt-evaluate failed; its whole log: run/results/test.log" in failed.stderr
    assert "evaluates: " in shell(f"{EVALUATE} evaluate test").stdout


def rows_of(texts: list[str]) -> list[Row]:
    return [Row(id=f"r{i}", path=f"{i}.npy", text=text, text_lang=f"l{text}") for i, text in enumerate(texts)]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30), st.integers(0, 5))
def test_shuffled_texts_are_a_permutation_with_as_few_fixed_points_as_possible(texts, seed):
    rows = rows_of(texts)
    shuffled = shuffle_texts.shuffle_texts(rows, seed)
    assert [(row.id, row.path) for row in shuffled] == [(row.id, row.path) for row in rows]
    assert Counter(row.text for row in shuffled) == Counter(texts)
    assert all(row.text_lang == f"l{row.text}" for row in shuffled)
    kept = sum(old.text == new.text for old, new in zip(rows, shuffled, strict=True))
    assert kept == max(0, 2 * max(Counter(texts).values()) - len(texts))


def test_the_seed_decides_the_shuffle():
    rows = rows_of([f"t{i}" for i in range(50)])
    assert shuffle_texts.shuffle_texts(rows, 1) == shuffle_texts.shuffle_texts(rows, 1)
    assert shuffle_texts.shuffle_texts(rows, 1) != shuffle_texts.shuffle_texts(rows, 2)


def test_shuffle_texts_writes_manifests(tmp_path, capsys):
    texts = [random.Random(0).choice("abc") + str(i) for i in range(9)]
    for split in ("train", "valid", "test"):
        write_manifest(tmp_path / f"{split}.tsv", rows_of(texts))
    assert shuffle_texts.main([str(tmp_path), "--out", str(tmp_path / "new/shuffled")]) == 0
    assert sorted(path.name for path in (tmp_path / "new/shuffled").iterdir()) == ["train.tsv", "valid.tsv"]
    assert read_manifest(tmp_path / "new/shuffled/train.tsv") == shuffle_texts.shuffle_texts(rows_of(texts), 1)
    with pytest.raises(SystemExit):
        shuffle_texts.main([str(tmp_path), "--out", str(tmp_path)])
    assert "choose another one" in capsys.readouterr().err
    assert shuffle_texts.main([str(tmp_path), "--out", str(tmp_path / "x"), "--splits", "dev"]) == 1
