"""slurm/*.sbatch: what they do before srun (everywhere, with a srun that writes down its words), and real jobs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_video_corpus
from extract_helpers import words as extract_words
from extract_helpers import write_checkpoint, write_corpus
from pretraining_helpers import CLIP_WORDS
from slurm_helpers import (
    ENDED,
    call,
    environment,
    exit_code,
    explain,
    log,
    nodes,
    processes,
    record,
    start_now,
    state,
    states,
    submit,
    wait_for,
    wait_until,
)

from slt_plugin.data.manifest import read_manifest

FILES = sorted((ROOT / "slurm").glob("*.sbatch"))
TINY = (
    "+model.encoder_layers=1", "+model.decoder_layers=1", "dataset.num_workers=0", "lr_scheduler.warmup_updates=1",
    "common.cpu=true", "dataset.batch_size=4",
)  # fmt: skip
CPUS = ("--gpus-per-node=0", "--cpus-per-task=2")
FAKE_SRUN = '#!/usr/bin/env bash\nprintf "%s\\0" "$@" >"$SRUN_WORDS"\nexit "${SRUN_STATUS:-0}"\n'


# Everywhere


@pytest.mark.parametrize("script", [*FILES, ROOT / "slurm" / "dev_cluster.sh"], ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", FILES, ids=lambda path: path.name)
def test_what_every_file_asks_for(script):
    """reliability.md 4, 7, 8: requeueing, one log, USR2 and its delay, all ranks end together."""
    text = script.read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert "requeue" in options and options["open-mode"] == "append" and "%" in options["output"]
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    if script.name == "generate.sbatch":  # it cannot go on where it was
        assert "signal" not in options and "SLT_SIGNAL_DELAY" not in text
    else:
        number, delay = options["signal"].split("@")
        assert number == "USR2" and f"SLT_SIGNAL_DELAY:-{delay}}}" in text
    commands = re.findall(r"^[^#\n]*\bsrun (.*)$", text, re.MULTILINE)
    assert commands and all(each.startswith("--kill-on-bad-exit=1 ") for each in commands)
    assert re.search(rf"^#   sbatch .*slurm/{script.name}", text, re.MULTILINE)
    assert not re.search(r"(KEY|TOKEN|SECRET|PASSWORD)=", text)


def test_what_the_files_share_is_the_same():
    def shared(path: Path) -> str:
        return re.search(r"^# The environment.*?^fi\n\n", path.read_text(), re.M | re.S)[0]

    assert len(FILES) == 6 and len({shared(path) for path in FILES}) == 1


@pytest.fixture
def script(tmp_path):
    """Runs a file of slurm/ as a job would; the result and the words that srun was given (None: it was not called)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(FAKE_SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)

    def run(name: str, *words, **variables: str):
        called = tmp_path / "srun.words"
        called.unlink(missing_ok=True)
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "VENV": sys.prefix, "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "job", "SLURM_SUBMIT_DIR": str(ROOT), "SRUN_WORDS": str(called), **variables,
        }  # fmt: skip
        result = subprocess.run(
            ["bash", str(ROOT / "slurm" / name), *map(str, words)],
            capture_output=True, text=True, cwd=tmp_path, check=False, env=environment,
        )  # fmt: skip
        return result, called.read_text().split("\0")[:-1] if called.exists() else None

    return run


def element(number: int, last: int = 3) -> dict[str, str]:
    """The variables of an element of an array 0-last."""
    return {
        "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MAX": str(last),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "variables", "message"),
    [
        ("finetune.sbatch", (), {"VENV": "/nowhere"}, "/nowhere is no environment with slt_plugin"),
        ("pretrain.sbatch", (), {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "1"},
         "not 1 for 8 GPUs: sbatch --gpus-per-node=8 --ntasks-per-node=8"),
        ("extract.sbatch", ("out=x.store",), element(0), "give num_shards=N"),
        ("extract.sbatch", ("out=x.store", "num_shards=4"), {}, "with --array=0-(N-1)"),
        ("extract.sbatch", ("out=x.store", "num_shards=4", "shard=1"), element(0), "(and no shard=)"),
        ("extract.sbatch", ("out=x.store", "num_shards=4", "merge=true"), element(0), "no --array"),
        ("generate.sbatch", ("slt-finetune",), {}, "slt-evaluate or fairseq-generate, not 'slt-finetune'"),
        ("sweep.sbatch", ("grid.txt",), element(0), "usage: sbatch --array"),
        ("sweep.sbatch", ("grid.txt", "true"), {}, "this is for an array"),
        ("sweep.sbatch", ("none.txt", "true"), element(0), "no grid file none.txt"),
        ("sweep.sbatch", ("grid.txt", "true"), element(0, last=3), "has 3 lines of overrides: --array=0-2"),
        ("sweep.sbatch", ("grid.txt", "true"), element(1, last=2), "checkpoint.save_dir=x belongs into the command"),
        ("sweep.sbatch", ("grid.txt", "true"), element(2, last=2), "line 2 of grid.txt is not quoted right: x='a b"),
        ("sweep.sbatch", ("empty.txt", "true"), element(0), "has 0 lines of overrides"),
    ],
)  # fmt: skip
def test_refused_before_anything_starts(script, tmp_path, name, words, variables, message):
    (tmp_path / "grid.txt").write_text("common.seed=1\ncheckpoint.save_dir=x\nx='a b\n")
    (tmp_path / "empty.txt").write_text("# nothing yet\n\n")
    result, called = script(name, *words, **variables)
    assert result.returncode == 2 and called is None
    assert result.stderr.splitlines()[-1].startswith("job: ") and message in result.stderr


def test_sweep_takes_the_line_of_its_number(script, tmp_path):
    grid = tmp_path / "grid.txt"
    grid.write_text("# lr\n\ncommon.seed=1\r\n  # seeds\n'task.name=a b' optimization.lr=[*,$HOME]  x=2\nlast=1")
    command = ("grid.txt", "slt-finetune", "--config-name", "n m", "checkpoint.save_dir=out/s", "y=1")
    result, called = script("sweep.sbatch", *command, **element(1, last=2))
    assert result.returncode == 0, result.stderr
    assert called == [
        "--kill-on-bad-exit=1", "slt-finetune", "--config-name", "n m", "y=1", "task.name=a b",
        "optimization.lr=[*,$HOME]", "x=2", "checkpoint.save_dir='out/s/1'",
    ]  # fmt: skip
    assert script("sweep.sbatch", *command, **element(0, last=2))[1][-2:] == [
        "common.seed=1",
        "checkpoint.save_dir='out/s/0'",
    ]
    assert script("sweep.sbatch", *command, **element(2, last=2))[1][-2:] == ["last=1", "checkpoint.save_dir='out/s/2'"]
    # queued again: the same folder; another line in the file now: not into the same folder
    assert script("sweep.sbatch", *command, **element(1, last=2))[1] == called
    grid.write_text(grid.read_text().replace("x=2", "x=3"))
    refused, again = script("sweep.sbatch", *command, **element(1, last=2))
    assert refused.returncode == 2 and again is None and "was trained with other overrides" in refused.stderr


def test_sweep_says_which_lines_are_left_out(script, tmp_path):
    (tmp_path / "grid.txt").write_text("a=1\nb=2\nc=3\n")
    result, called = script("sweep.sbatch", "grid.txt", "true", **element(0, last=1))
    assert "lines 2 to 2 of grid.txt are not in this array" in result.stdout
    assert called[-1] == "checkpoint.save_dir='runs/job-12/0'"


@pytest.mark.parametrize("given", ["out dir", "'out dir'", '"out dir"'])
def test_sweep_folder_with_a_space(script, tmp_path, given):
    """As Hydra needs it, the word may have quotes of its own: they are not of the folder's name."""
    (tmp_path / "grid.txt").write_text("a=1\n")
    _, called = script("sweep.sbatch", "grid.txt", "true", f"checkpoint.save_dir={given}", **element(0, last=0))
    assert called[-1] == "checkpoint.save_dir='out dir/0'" and (tmp_path / "out dir/0/overrides.txt").is_file()


@pytest.mark.parametrize("name", [path.name for path in FILES if path.name != "smoke_multinode.sbatch"])
def test_the_commands_exit_status_is_the_jobs(script, tmp_path, name):
    (tmp_path / "grid.txt").write_text("a=1\n")
    words = {
        "extract.sbatch": ("num_shards=4",), "generate.sbatch": ("fairseq-generate",),
        "sweep.sbatch": ("grid.txt", "x"),
    }.get(name, ())  # fmt: skip
    variables = element(0, last=0) if name in ("extract.sbatch", "sweep.sbatch") else {}
    result, called = script(name, *words, SRUN_STATUS="75", **variables)
    assert result.returncode == 75 and called is not None


def test_extract_gives_its_number_and_the_merge_none(script):
    _, called = script("extract.sbatch", "out=x.store", "num_shards=64", **element(7, last=63))
    assert called[-4:] == ["slt-extract", "out=x.store", "num_shards=64", "shard=7"]
    _, called = script("extract.sbatch", "out=x.store", "num_shards=64", "merge=true")
    assert called[-4:] == ["slt-extract", "out=x.store", "num_shards=64", "merge=true"]


# On the cluster


def training_words(corpus, spm, save_dir, *overrides) -> list[str]:
    return [
        "--config-name", "fingerspelling_pose", f"task.data={corpus}", f"task.codec_path={spm}",
        f"checkpoint.save_dir={save_dir}", *TINY, *overrides,
    ]  # fmt: skip


def updates(folder: Path) -> int:
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)["optimizer_history"][-1]["num_updates"]


@pytest.fixture(scope="module")
def trainings(slurm, pose_corpus, spm_model, tmp_path_factory):
    """(job, folder of the run) of finetune.sbatch, with the GPU that it asks for, and of pretrain.sbatch: both run."""
    folder = tmp_path_factory.mktemp("trainings")
    corpus = write_video_corpus(folder / "videos", {"train": 6, "valid": 2})
    log_file = f"--output={folder}/%x-%j.out"
    finetune = submit(
        "--cpus-per-task=2", log_file, "slurm/finetune.sbatch",
        *training_words(pose_corpus, spm_model, folder / "tuned", "optimization.max_update=4", "task.eval_max_len=5"),
    )  # fmt: skip
    pretrain = submit(
        *CPUS, log_file, "slurm/pretrain.sbatch", "--config-name", "mae_tiny_cpu", f"task.data={corpus}",
        f"checkpoint.save_dir={folder / 'pretrained'}", *CLIP_WORDS, "dataset.num_workers=0",
        "task.clips_per_update=4", "optimization.max_update=1", "common.cpu=true",
    )  # fmt: skip
    return {"finetune": (finetune, folder / "tuned"), "pretrain": (pretrain, folder / "pretrained")}


@pytest.mark.slurm
@pytest.mark.parametrize(("name", "count"), [("finetune", 4), ("pretrain", 1)])
def test_training(trainings, name, count):
    job, folder = trainings[name]
    wait_for(job, "COMPLETED")
    assert "done training" in log(job) and updates(folder) == count


@pytest.mark.slurm
def test_generate(trainings, pose_corpus, tmp_path):
    job, folder = trainings["finetune"]
    wait_for(job, "COMPLETED")
    commands = {
        "results": ("slt-evaluate", f"checkpoint={folder}/checkpoint_last.pt", f"data={pose_corpus}",
                    f"results={tmp_path}/results", "generation.max_len_b=5", "dataset.num_workers=0",
                    "common.cpu=true"),
        "generated": ("fairseq-generate", pose_corpus, "--user-dir", "slt_plugin", "--task", "sign_to_text", "--path",
                      folder / "checkpoint_last.pt", "--gen-subset", "test", "--beam", 2, "--max-len-b", 5,
                      "--results-path", tmp_path / "generated", "--cpu"),
    }  # fmt: skip
    options = ("--cpus-per-task=2", f"--output={tmp_path}/%x-%j.out", "slurm/generate.sbatch")
    jobs = [submit(*options, *words) for words in commands.values()]
    for job in jobs:
        wait_for(job, "COMPLETED")
    output = (tmp_path / "generated" / "generate-test.txt").read_text().splitlines()
    assert sum(line.startswith("D-") for line in output) == 13
    metrics = json.loads((tmp_path / "results" / "test" / "metrics.json").read_text())
    assert metrics["sentences"] == 13


@pytest.mark.slurm
def test_sweep(slurm, pose_corpus, spm_model, tmp_path):
    """Two at once, one with a bad override, one that is queued again: it goes on in its folder, and in its log."""
    grid = tmp_path / "grid.txt"
    grid.write_text("# seeds\ncommon.seed=1\ntask.nonsense=1\n\ncommon.seed=2 optimization.lr=[0.002]\ncommon.seed=3\n")
    job = submit(
        "--array=0-3%2", *CPUS, f"--output={tmp_path}/%x-%A_%a.out", "slurm/sweep.sbatch", grid, "slt-finetune",
        *training_words(pose_corpus, spm_model, tmp_path / "sweep", "optimization.max_update=2",
                        "dataset.disable_validation=true"),
    )  # fmt: skip
    wait_until(lambda: "element 0 of" in log(f"{job}_0"), job=job)
    call("scontrol", "requeue", f"{job}_0")
    wait_for(f"{job}_0", "PENDING")
    start_now(f"{job}_0")
    together = []

    def over() -> bool:
        now = states(job)
        together.append(sum(each == "RUNNING" for each in now.values()))
        return len(now) == 4 and set(now.values()) <= ENDED

    wait_until(over, 300)
    assert states(job) == {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED", "3": "COMPLETED"}, explain(job)
    assert max(together) == 2
    assert "slt-finetune: task.nonsense is no option" in log(f"{job}_1")
    assert [updates(tmp_path / "sweep" / name) for name in "023"] == [2, 2, 2]
    assert (tmp_path / "sweep" / "2" / "overrides.txt").read_text() == "common.seed=2 optimization.lr=[0.002]\n"
    assert record(f"{job}_0")["Restarts"] == "1" and log(f"{job}_0").count("element 0 of") == 2


@pytest.mark.slurm
def test_extract(slurm, tmp_path):
    """Three shards, one of them killed: the merge names what is missing; that one again, and the merge is complete."""
    corpus = write_corpus(tmp_path / "corpus")
    given = extract_words(corpus, write_checkpoint(tmp_path / "tiny.pt"), tmp_path / "f.store", num_shards=3)

    def extract(*options, words=()) -> str:
        return submit(*options, *CPUS, f"--output={tmp_path}/%x-%j.out", "slurm/extract.sbatch", *given, *words)

    job = extract("--array=0-2")
    wait_until(lambda: processes(f"{job}_1", "slt-extract"), job=f"{job}_1")
    os.kill(processes(f"{job}_1", "slt-extract")[0], signal.SIGKILL)
    merge = extract(f"--dependency=afterany:{job}", words=["merge=true"])
    wait_for(merge, "FAILED")
    assert states(job) == {"0": "COMPLETED", "1": "FAILED", "2": "COMPLETED"}, explain(job)
    assert exit_code(f"{job}_1") == 137
    missing = log(merge)
    assert "num_shards=3 shard=1 again" in missing and not (tmp_path / "f.tsv").exists(), missing

    again = extract("--array=1")
    merge = extract(f"--dependency=afterok:{again}", words=["merge=true"])
    wait_for(merge, "COMPLETED")
    assert state(f"{again}_1") == "COMPLETED"
    assert len(read_manifest(tmp_path / "f.tsv")) == len(read_manifest(corpus))


@pytest.mark.slurm
def test_smoke_multinode(slurm, tmp_path):
    """Two nodes where the cluster has them, else two ranks on one."""
    options = () if nodes() > 1 else ("--nodes=1", "--ntasks-per-node=2")
    job = submit(
        *options, "--gpus-per-node=0", f"--output={tmp_path}/%x-%j.out", "slurm/smoke_multinode.sbatch",
        env=environment(SMOKE_DIR=str(tmp_path)),
    )  # fmt: skip
    wait_for(job, "COMPLETED")
    text = log(job)
    assert re.search(r"all-reduce over 2 ranks on \d node\(s\) \(.*\), gloo: right, 16 MiB in ", text)
    passed = text.splitlines()[-1]
    assert passed.startswith(f"smoke test passed: 2 ranks on {min(nodes(), 2)} nodes")
    assert not list(tmp_path.glob("slt-smoke-*/"))
