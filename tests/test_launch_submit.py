"""The sbatch file, what a job holds, and secrets: without SLURM."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slt_plugin.cli import extract, finetune
from slt_plugin.cli.launching import Request, Work, launch, read_request
from slt_plugin.common import slurm
from slt_plugin.launch import submit as submitting
from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.job import Job, why_not_to_go_on
from slt_plugin.launch.profile import Profile
from slt_plugin.launch.running import note_jobs, refuse_running
from slt_plugin.launch.secrets import refuse_secrets
from slt_plugin.launch.submit import job_calls, sbatch_text, submit
from slt_plugin.models.errors import OptionError

SECRET = "b52f9d3ae0c14e7786d5a4d3a1c0ffee"


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]


def test_sbatch_file():
    profile = Profile(
        "x", partition="gpu", account="abc", qos="high", nodes=2, gpus_per_node="a100:4", cpus_per_task=8, mem="120G",
        time="2-00", constraint="a100|h100", comment="a b", extra={"exclusive": True, "mail_type": "END", "x": False},
        setup=("module load cuda",), signal_delay=300,
    )  # fmt: skip
    text = sbatch_text(profile, Path("/runs/x/slurm/1"), name="slt-finetune-x", elements=1)
    assert options(text) == [
        "account=abc", "comment='a b'", "constraint='a100|h100'", "cpus-per-task=8", "exclusive",
        "gpus-per-node=a100:4", "job-name=slt-finetune-x", "mail-type=END", "mem=120G", "nodes=2", "ntasks-per-node=4",
        "open-mode=append", "output=/runs/x/slurm/1/%j_0_log.out", "partition=gpu", "qos=high", "requeue",
        "signal=USR2@300", "time=2880",
    ]  # fmt: skip
    assert text.index("module load cuda") < text.index("srun ")
    command = text[text.index("srun ") :]
    assert "--kill-on-bad-exit=1" in command and "--cpus-per-task=8" in command
    assert f"{sys.executable} -u -m submitit.core._submit /runs/x/slurm/1" in command


def test_sbatch_file_of_an_array():
    profile = Profile("x", array_parallelism=2, requeue=False, python="apptainer exec --nv slt.sif python")
    text = sbatch_text(profile, Path("/a b"), name="s", elements=4, dependency="afterany:7")
    assert {
        "array=0-3%2", "output='/a b/%A_%a_0_log.out'", "no-requeue", "dependency=afterany:7", "kill-on-invalid-dep=yes"
    } <= set(options(text))  # fmt: skip
    assert "requeue" not in options(text) and "gpus-per-node" not in text
    assert "apptainer exec --nv slt.sif python -u -m submitit.core._submit '/a b'" in text


@pytest.mark.parametrize(("gpus", "asked"), [("a100:4", ["gres=gpu:a100:4"]), ("4", ["gres=gpu:4"]), ("0", [])])
def test_clusters_that_only_know_gres(gpus, asked):
    text = sbatch_text(Profile("x", gpus_per_node=gpus, gres=True), Path("/x"), name="s", elements=1)
    given = options(text)
    assert [option for option in given if "gpu" in option] == asked
    assert f"ntasks-per-node={4 if asked else 1}" in given  # still one task for each


def test_a_job_holds_words_and_settings_alone(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    jobs = job_calls(Profile("x", signal_delay=60), "slt_plugin.cli.finetune", [["a=1"], ["a=2"]])
    assert [job.words for job in jobs] == [("a=1",), ("a=2",)]
    assert jobs[0].settings == {"SLT_SIGNAL_DELAY": "60", "SLT_REQUEUE": "1"}
    assert SECRET.encode() not in pickle.dumps(jobs) and pickle.loads(pickle.dumps(jobs)) == jobs  # noqa: S301
    chained = job_calls(Profile("x", chain=2), "m", [["a"]], after="7")[0]
    assert chained.settings["SLT_REQUEUE"] == "0" and chained.after == "7"
    assert chained.checkpoint() is None and jobs[0].checkpoint().function == jobs[0]


def test_a_failing_command_ends_the_job_with_its_status(monkeypatch):
    called = []

    def main(words):
        called.append(words)
        return 3

    monkeypatch.setattr(extract, "main", main)
    monkeypatch.setenv("SLT_REQUEUE", "before")
    with pytest.raises(SystemExit) as exit_:
        Job("slt_plugin.cli.extract", ("a=1",), {"SLT_REQUEUE": "0"})()
    assert exit_.value.code == 3 and called == [["a=1"]]
    monkeypatch.setattr(extract, "main", lambda words: 0)
    assert Job("slt_plugin.cli.extract", (), {})() is None


@pytest.mark.parametrize(
    ("before", "goes_on"),
    [
        ({"JobState": "FAILED", "ExitCode": "75:0"}, True),  # preempted: saved, and not requeued
        ({"JobState": "TIMEOUT", "ExitCode": "0:15"}, True),
        ({"JobState": "NODE_FAIL", "ExitCode": "0:0"}, True),
        ({"JobState": "PREEMPTED", "ExitCode": "0:0"}, True),
        ({"JobState": "FAILED", "ExitCode": "1:0"}, False),
        ({"JobState": "CANCELLED", "ExitCode": "0:15"}, False),
        ({"JobState": "CANCELLED", "ExitCode": "75:0"}, False),  # training saved before it ended
        (None, True),
    ],
)
def test_a_chain_stops_at_an_error(monkeypatch, before, goes_on):
    def show(job):
        assert job == "7"
        if before is None:
            raise slurm.SlurmError("unknown")
        return before

    monkeypatch.setattr(slurm, "show", show)
    assert (why_not_to_go_on("7") is None) == goes_on
    if not goes_on:
        said = "was cancelled" if before["JobState"] == "CANCELLED" else "failed with exit status 1"
        with pytest.raises(SystemExit, match=rf"job 7, .* {said}"):
            Job("slt_plugin.cli.nothing", (), {}, after="7")()


def test_without_slurm_the_message_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LaunchError, match=r"this machine has no SLURM.*launcher=local"):
        submit(Profile("x"), job_calls(Profile("x"), "m", [[]]), tmp_path / "logs", name="x")
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def fake_sbatch(monkeypatch, tmp_path):
    """A ``sbatch`` that prints its arguments' file and fails or not, as its text says."""

    def make(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("sbatch", "srun", "scontrol"):
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return make


def test_what_sbatch_says_is_one_line_and_nothing_is_left(fake_sbatch, tmp_path, capfd):
    fake_sbatch(
        'echo "sbatch: error: invalid partition specified: x" >&2; echo "sbatch: error: Batch job failed" >&2; exit 1'
    )
    with pytest.raises(LaunchError) as error:
        submit(Profile("x"), job_calls(Profile("x"), "m", [["a"], ["b"]]), tmp_path / "logs", name="x")
    assert str(error.value) == "sbatch refused the job: invalid partition specified: x; Batch job failed"
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "logs").exists()


def test_folders_made_for_a_refused_job_are_removed_again(fake_sbatch, tmp_path):
    fake_sbatch("exit 1")
    (tmp_path / "mine").mkdir()
    for folder in ("r2/slurm/1", "mine/slurm/1"):
        with pytest.raises(LaunchError):
            submit(Profile("x"), job_calls(Profile("x"), "m", [["a"]]), tmp_path / folder, name="x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bin", "mine", "sbatch", "scontrol", "srun"]


def test_an_array_that_is_too_large(fake_sbatch, tmp_path):
    said = "sbatch: error: Batch job submission failed: Invalid job array specification"
    fake_sbatch(
        f'[[ $0 != *scontrol ]] || {{ echo "MaxArraySize            = 1001"; exit 0; }}; echo "{said}" >&2; exit 1'
    )
    jobs = job_calls(Profile("x"), "m", [["a"]] * 3)
    with pytest.raises(LaunchError) as error:
        submit(Profile("x"), jobs, tmp_path / "logs", name="x")
    assert str(error.value).startswith("sbatch refused the job: Batch job submission failed: Invalid job array ")
    assert "3 elements" in str(error.value) and "MaxArraySize=1001" in str(error.value)
    assert "fewer num_shards" in str(error.value)


LOGGING = """
import logging, sys, types
import submitit.core.logger
from slt_plugin.launch.job import Job
def main(words):
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("submitit").info("Caught signal")
    logging.getLogger("submitit").warning("Bypassing signal")
    return 0
sys.modules["command"] = types.ModuleType("command")
sys.modules["command"].main = main
Job("command", (), {})()
Job("command", (), {})()
"""


def test_submitits_lines_are_in_the_log_once():
    run = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True)
    lines = [line.rpartition(" - ")[2] for line in (run.stdout + run.stderr).splitlines()]
    assert lines == ["Caught signal", "Bypassing signal"] * 2


class Controller:
    """What SLURM knows of jobs."""

    def __init__(self, monkeypatch):
        self.states = {}
        monkeypatch.setattr(slurm, "show_all", self.show_all)

    def show_all(self, job):
        return {name: {"JobState": s} for name, s in self.states.items() if name.partition("_")[0] == job}


def test_one_training_at_a_time_in_a_folder(monkeypatch, tmp_path):
    controller = Controller(monkeypatch)
    refuse_running(tmp_path)  # nobody has trained there
    note_jobs(tmp_path, ["7", "8"])
    refuse_running(tmp_path)  # both are forgotten
    controller.states = {"7": "FAILED", "8": "PENDING"}
    with pytest.raises(LaunchError, match=r"job 8 trains there and has not ended \(PENDING\).*scancel 7 8\)"):
        refuse_running(tmp_path)
    controller.states = {"7": "FAILED", "8": "CANCELLED"}
    refuse_running(tmp_path)
    note_jobs(tmp_path, ["9"])
    controller.states |= {"9_0": "COMPLETED", "9_1": "RUNNING"}
    with pytest.raises(LaunchError, match=r"job 9 .*\(RUNNING\)"):
        refuse_running(tmp_path)
    (tmp_path / "slurm" / "jobs.json").write_text("{}")
    with pytest.raises(LaunchError, match="cannot be read"):
        refuse_running(tmp_path)


@pytest.mark.parametrize(("more", "noted"), [([], ["12"]), (["launcher.chain=1"], ["12", "13"]),
                                             (["-m", "common.seed=1,2"], ["12"])])  # fmt: skip
def test_the_same_training_again_is_refused(
    fake_sbatch, pose_corpus, spm_model, tmp_path, monkeypatch, capsys, more, noted
):
    monkeypatch.chdir(tmp_path)
    fake_sbatch(f'echo x >> {tmp_path}/n; echo "Submitted batch job $(($(wc -l < {tmp_path}/n) + 11))"')
    controller = Controller(monkeypatch)
    words = ["--config-name", "fingerspelling_pose", f"task.data={pose_corpus}", f"task.codec_path={spm_model}",
             "checkpoint.save_dir=run", "launcher=slurm_cpu", *more]  # fmt: skip
    assert finetune.main(words) == 0
    controller.states = {noted[-1]: "RUNNING"}
    assert finetune.main(words) == 1
    assert f"run: job {noted[-1]} trains there and has not ended" in capsys.readouterr().err
    assert (tmp_path / "n").read_text().count("x") == len(noted)  # nothing was submitted
    assert finetune.main([*words, "dry_run=true"]) == 0  # which only shows
    controller.states = {noted[-1]: "COMPLETED"}
    assert finetune.main(words) == 0


def test_the_merge_asks_for_no_node_of_the_others(fake_sbatch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_sbatch(f'cat "$1" >> {tmp_path}/text; echo "Submitted batch job 12"')
    profile = Profile("x", gpus_per_node="a100:1", cpus_per_task=8, mem="120G", constraint="a100", partition="gpu",
                      extra={"exclusive": True})  # fmt: skip
    work = Work("slt-extract", "m", "n", [["a"], ["b"]], tmp_path / "logs", "", [], last=["c"])
    assert launch(Request(profile, [], False, False), work) == 0
    array, merge = (options(f"#!{part}") for part in (tmp_path / "text").read_text().split("#!")[1:])
    gone = {"gpus-per-node=a100:1", "mem=120G", "constraint=a100", "exclusive"}
    assert (
        gone <= set(array) and not gone & set(merge) and not [o for o in merge if "gpu" in o and "partition" not in o]
    )
    assert {"partition=gpu", "cpus-per-task=1"} <= set(merge)


def test_a_submission_from_within_a_job(fake_sbatch, tmp_path, monkeypatch):
    """sbatch exports everything: the outer job's tasks and memory would be the inner one's."""
    fake_sbatch(f'env > {tmp_path}/env; cp "$1" {tmp_path}/text; echo "Submitted batch job 12"')
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_CPU", "SLURM_CONF", "RANK", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    submitted = submit(Profile("x"), job_calls(Profile("x"), "m", [["a"]]), tmp_path / "logs", name="n")
    assert (submitted.job, submitted.ids, submitted.elements) == ("12", ["12"], 1)
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert given["WANDB_API_KEY"] == SECRET  # inherited, and only so
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= given.keys()
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_MEM_PER_CPU", "RANK"} & given.keys()
    assert (tmp_path / "text").read_text() == sbatch_text(Profile("x"), tmp_path / "logs", name="n", elements=1)
    files = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".pkl", ".sh"}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert os.environ["SLURM_NTASKS"] == "5"  # of this process, again


def test_array_elements(fake_sbatch, tmp_path):
    fake_sbatch('echo "Submitted batch job 12"')
    submitted = submit(Profile("x"), job_calls(Profile("x"), "m", [["a"], ["b"]]), tmp_path / "logs", name="n")
    assert submitted.ids == ["12_0", "12_1"] and submitted.log("12_1") == tmp_path / "logs" / "12_1_0_log.out"
    assert (tmp_path / "logs" / "12_1_submitted.pkl").is_file()


def test_percent_signs_in_the_log_folder():
    with pytest.raises(OptionError, match="replace the %"):
        submitting.check_folder(Path("runs/50%"))


@pytest.mark.parametrize(
    "text",
    [
        f"export WANDB_API_KEY={SECRET}",
        "env HF_TOKEN='abc' python",
        f"hydra.job.env_set.WANDB_API_KEY={SECRET}",
        "{WANDB_API_KEY: abc}",
        "--env AWS_SECRET=abc",
        "DB_PASSWORD=abc",
        "common.api_key=abc",
        "password=abc",
        "https://me:abc@example.org/x",
        "hf_abcdefghijklmnopqrstuvwxyzabcdef",
        f"wandb login {SECRET}00112233",
        "tool --token abc123secret",
        "--token=abc123secret",
        "curl -H 'Authorization: Bearer abcdef' x",
        "+common.hf_token=abcdefghijk",
        "export PGPASSWORD=abc",
        "OPENAI_KEY2=abc",
        "the value 1234567890abc of a variable",
    ],
)
def test_secrets_are_refused(text):
    with pytest.raises(OptionError) as error:
        refuse_secrets([("launcher.setup", text)], {"MY_TOKEN": "1234567890abc", "OTHER": "value"})
    message = str(error.value)
    assert message.startswith("launcher.setup holds ") and "inherits the environment" in message
    assert SECRET not in message and "1234567890abc" not in message


@pytest.mark.parametrize(
    "text",
    [
        "export WANDB_API_KEY=$(cat ~/.wandb)", 'export HF_TOKEN="$OTHER"', "export KEY=`cat x`", "unset WANDB_API_KEY",
        "dataset.max_tokens=4096", "TOKENIZERS_PARALLELISM=false", "task.codec_path=key.model", "generation.unkpen=0",
        "module load cuda", "model.mask_token=x", "task.api_key=null", "common.api_key=${oc.env:X}", "a=short",
        "source https://example.org/x", "task.codec_path=/home/me/x", f"model.path=/hub/snapshots/{SECRET}00112233/x",
        "tool --token $TOKEN", "tool --max-tokens 4096", "common.hf_token=${oc.env:X}", "curl -H \"Bearer $TOKEN\"",
        "task.src_lang_token=deu_Latn",
    ],
)  # fmt: skip
def test_no_secrets(text):
    refuse_secrets([("here", text)], {"MY_TOKEN": "short", "HOME": "value", "SSH_KEY": "/home/me"})


@pytest.mark.parametrize(
    "words",
    [
        ["launcher.setup=['export WANDB_API_KEY=abc']"],
        ["launcher.comment='HF_TOKEN=abc'"],
        ["launcher.extra.wckey='API_KEY=abc'"],
        ["launcher.python='apptainer exec --env HF_TOKEN=abc x.sif python'"],
        ["+hydra.job.env_set.WANDB_API_KEY=abc"],
        [f"common.wandb_project={SECRET}"],
    ],
)
def test_secrets_of_a_command_line(words, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(OptionError, match="written into the job's files"):
        read_request(["launcher=slurm", *words])
