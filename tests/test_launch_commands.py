"""The four entry points: what a dry run shows, what is refused before anything is submitted. Without SLURM."""

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import run_command, write_video_corpus
from extract_helpers import write_checkpoint, write_corpus
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from slt_plugin.cli import evaluate, extract, finetune, launching, pretrain
from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.profile import Profile
from slt_plugin.launch.submit import Submission


@pytest.fixture
def finetuning(pose_corpus, spm_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").symlink_to(pose_corpus)
    return ["--config-name", "fingerspelling_pose", "task.data=corpus", f"task.codec_path={spm_model}",
            "checkpoint.save_dir=run", "launcher=slurm_cpu"]  # fmt: skip


@pytest.fixture
def failing(capfd, monkeypatch):
    """Runs a command that is refused before anything is submitted; returns the one line of its error."""

    def submitted(*_, **__):
        raise AssertionError("submitted")

    monkeypatch.setattr("slt_plugin.cli.launching.submit", submitted)
    monkeypatch.setattr("slt_plugin.cli.launching.check_sbatch", lambda: None)

    def run(main, *words):
        assert main(list(map(str, words))) == 1
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("slt-")]
        assert len(lines) == 1
        return lines[0]

    return run


@pytest.fixture
def submitting(monkeypatch):
    """Submits to nobody: the profiles, jobs 7, 8, ... of everything that would be submitted, in that order."""
    profiles = []

    def submit(profile, calls, folder, *, name, dependency=None):
        profiles.append(profile)
        return Submission(str(6 + len(profiles)), len(calls), folder, name)

    monkeypatch.setattr(launching, "submit", submit)
    monkeypatch.setattr(launching, "check_sbatch", lambda: None)
    return profiles


def parts(out: str) -> tuple[str, dict, dict[str, str]]:
    """sbatch file, configuration and estimate of a dry run."""
    text, _, rest = out.partition("# --- configuration\n")
    config, _, estimate = rest.partition("# --- estimate\n")
    lines = [line.removeprefix("# ") for line in estimate.splitlines()]
    return text, yaml.safe_load(config), dict(line.split(": ", 1) for line in lines if ": " in line)


def test_dry_run_of_a_training(finetuning, capsys, monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "abcdefgh12345")
    words = [*finetuning, "common.wandb_project=${oc.env:SOME_SECRET}", "launcher.local_ranks=2", "dry_run=true",
             "common.seed=7"]  # fmt: skip
    before = sorted(os.listdir())
    assert finetune.main(words) == 0
    out = capsys.readouterr().out
    text, config, estimate = parts(out)
    assert sorted(os.listdir()) == before  # nothing is written
    assert text.splitlines()[1] == "#!/bin/bash" and "#SBATCH --job-name=slt-finetune-fingerspelling_pose" in text
    assert "#SBATCH --ntasks-per-node=2" in text and f"{Path.cwd()}/run/slurm/DATE-TIME/%j_0_log.out" in text
    assert "# job: slt-finetune --config-name fingerspelling_pose task.data=corpus" in text
    assert "launcher" not in text.partition("# job:")[2]
    assert config["common"]["seed"] == 7 and config["task"]["seed"] == 7  # resolved, as the job sees it
    assert config["model"]["encoder_embed_dim"] == 192 and config["dataset"]["max_tokens"] == 6000
    assert config["common"]["wandb_project"] == "${oc.env:SOME_SECRET}" and "abcdefgh12345" not in out
    assert estimate["ranks"] == "2" and estimate["updates"] == "1,200 (optimization.max_update)"
    assert estimate["rows an epoch"].startswith("40 (")
    # Hydra is left as fairseq needs it
    from argparse import Namespace

    assert convert_namespace_to_omegaconf(Namespace(seed=7)).common.seed == 7


def test_the_composed_configuration_is_what_the_job_gets(finetuning, capsys, monkeypatch, tmp_path):
    """Against the one that a real training of these words composes."""
    words = [word for word in finetuning if not word.startswith("launcher")]
    more = ["+model.encoder_layers=1", "optimization.max_update=1", "~task.eval_samples", "dataset.max_tokens=700"]
    assert finetune.main([*words, *more, "dry_run=true"]) == 0
    _, shown, _ = parts(capsys.readouterr().out)
    got = {}
    monkeypatch.setattr("fairseq.distributed.utils.call_main", lambda cfg, main: got.update(cfg=cfg))
    monkeypatch.setattr("slt_plugin.tasks.preemption.check_trained", lambda: None)
    monkeypatch.setattr("sys.argv", ["x"])
    assert finetune.main([*words, *more]) == 0
    from omegaconf import OmegaConf

    real = OmegaConf.to_container(got["cfg"])
    real.pop("job_logging_cfg", None)
    assert shown == yaml.safe_load(yaml.safe_dump(real))


def test_dry_run_of_a_sweep(finetuning, capsys):
    words = [*finetuning, "-m", "common.seed=1,2", "optimization.lr=[1e-3],[2e-3]", "launcher.array_parallelism=3"]
    assert finetune.main([*words, "dry_run=true"]) == 0
    text, config, estimate = parts(capsys.readouterr().out)
    assert "#SBATCH --array=0-3%3" in text
    lines = re.findall(r"^# element \d: (.*)", text, re.MULTILINE)
    assert len(lines) == 4 and all("-m" not in line.split() for line in lines)
    assert "common.seed=2 'optimization.lr=[0.002]'" in lines[3] and "run/3_seed_2_lr_0.002" in lines[3]
    assert lines[0].count("checkpoint.save_dir") == 1
    assert config["optimization"]["lr"] == [0.001] and estimate["sentences in all for each of 4"]


def test_dry_run_on_this_machine(finetuning, capsys):
    assert finetune.main([*finetuning[:-1], "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert "SBATCH" not in out and "nothing ran" in out and parts(out)[2]["ranks"] == "1"


def test_dry_run_of_a_pretraining(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    videos = write_video_corpus(tmp_path / "videos", {"train": 2, "valid": 1})
    words = ["--config-name", "mae_tiny_cpu", f"task.data={videos}", "launcher=slurm_cpu", "dry_run=true",
             "launcher.clips_per_second=4"]  # fmt: skip
    assert pretrain.main(words) == 0
    estimate = parts(capsys.readouterr().out)[2]
    assert estimate["clips an update"] == "16 (task.clips_per_update)" and estimate["clips in all"] == "6,400"
    assert estimate["process-hours"].startswith("0.44 (clips / 4 a second)") and not Path("runs").exists()


def test_dry_run_of_an_extraction(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus, checkpoint = write_corpus(tmp_path / "corpus"), write_checkpoint(tmp_path / "tiny.pt")
    words = [f"manifest={corpus}", f"checkpoint={checkpoint}", "out=feats/train.store", "num_shards=64", "dry_run=true",
             "launcher=slurm", "staging=$SLURM_TMPDIR"]  # fmt: skip
    assert extract.main(words) == 0
    text, config, estimate = parts(capsys.readouterr().out)
    assert "#SBATCH --array=0-63%16" in text and "#SBATCH --gpus-per-node=1" in text
    lines = re.findall(r"^# element (\d+): (.*)", text, re.MULTILINE)
    assert all(line.endswith(f" shard={number}") and "num_shards=64" in line for number, line in lines)
    assert re.search(r"# afterwards \(--dependency=afterany\): .* merge=true$", text, re.MULTILINE)
    assert f"{tmp_path}/feats/train.slurm/DATE-TIME/%A_%a_0_log.out" in text and not Path("feats").exists()
    assert config["num_shards"] == 64 and estimate["GPU-hours"].startswith("unknown (the number of windows")
    assert extract.main([*words, "shard=[3,7]"]) == 0
    assert re.findall(r"^# element \d+: .* (shard=\d+)$", capsys.readouterr().out, re.MULTILINE) == [
        "shard=3",
        "shard=7",
    ]
    assert extract.main([*words, "merge=true"]) == 0
    text = capsys.readouterr().out
    assert "gpus-per-node" not in text and "array" not in text and "afterwards" not in text


def test_help_names_the_launcher(capsys):
    for main in (finetune.main, pretrain.main, extract.main, evaluate.main):
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert (
            all(word in out for word in ("launcher=local|slurm", "dry_run=true", "wait=true")) and "{HELP}" not in out
        )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["launcher=slurm"], "common.cpu=true with launcher.gpus_per_node=1: the GPUs would be idle"),
        (["task.data=nowhere"], "task.data=nowhere is no folder on this machine"),
        (["dataset.train_subset=trian"], "did you mean 'train'"),
        (["dataset.valid_subset=dev"], "corpus/dev.tsv does not exist"),
        (["task.codec_path=nothing.model"], "nothing.model"),
        (["~task.codec_path"], "task.codec_path is not set"),
        (["task.data=???"], "task.data must be given: task.data=..."),
        (["model._name=sign_to_text_tyn"], "did you mean 'sign_to_text_tiny'"),
        (["dataset.max_tokenss=3"], "did you mean 'dataset.max_tokens'"),
        (["task.step_frames=x"], "task.step_frames: Value 'x'"),
        (["common.seed=1,2"], "Hydra takes a value with commas for several runs; for one run with each value add -m."),
        (["laucher=slurm"], "laucher is no option; did you mean 'launcher'?"),
        (["+launcherr.time=5"], "launcherr is no option; did you mean 'launcher'?"),
        (["dryrun=true"], "dryrun is no option; did you mean 'dry_run'?"),
        (["--dry_run"], "--dry_run: write dry_run=true"),
        (["--dry-run=false"], "write dry_run=false"),
        (["--launcher"], "write launcher=slurm"),
        (["--launcher.time=5"], "write launcher.time=5"),
        (["--launcher.time", "5"], "write launcher.time=VALUE"),
        (["launcher.setup=[module load cuda, export X=y]"],
         """quote each item, and all of it: 'launcher.setup=["module load cuda","export X=y"]'"""),
        (["launcher.setup=export X=y"], """quote the value twice: 'launcher.setup="export X=y"'"""),
        (["checkpoint.finetune_from_model=/nope.pt"], "checkpoint.finetune_from_model: /nope.pt cannot be loaded"),
        (["checkpoint.restore_file=/nope.pt"], "checkpoint.restore_file: /nope.pt cannot be loaded (no such file)"),
        (["+model.text_pretrained=/nope/model.pt"], "model.text_pretrained=/nope/model.pt does not exist"),
        (["-m"], "-m without several values"),
        (["-m", "common.seed=1,2", "launcher.chain=2"], "launcher.chain is for one training"),
        (["-m", "task.step_frames=1,x"], "task.step_frames: Value 'x'"),
        (["-m", "common.seed=1,2", "checkpoint.save_dir=a/${common.seed}"], "differs from element to element"),
        (["launcher.folder=50%"], "SLURM would replace the %"),
        (["checkpoint.save_dir=/proc/nothing"], "cannot be written"),
        (["common.wandb_project=hf_abcdefghijklmnopqrstuvwxyz"], "looks like a key"),
    ],
)  # fmt: skip
def test_refused_before_submitting(finetuning, failing, words, expected):
    assert expected in failing(finetune.main, *finetuning, *words)


def test_a_path_that_only_the_job_has_is_not_looked_for(finetuning, capsys):
    """Its variable is not set here."""
    assert finetune.main([*finetuning, "task.data=${oc.env:NO_SUCH_VARIABLE}/x", "dry_run=true"]) == 0
    _, config, estimate = parts(capsys.readouterr().out)
    assert config["task"]["data"] == "${oc.env:NO_SUCH_VARIABLE}/x" and estimate["rows an epoch"].startswith("unknown")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["checkpoint=none.pt"], "checkpoint=none.pt does not exist"),
        (["out=feats"], "ends in .store"),
        (["manifest=none.tsv"], "manifest=none.tsv does not exist"),
        (["num_shards=4", "shard=[1,4]"], "give different numbers from 0 to 3"),
        (["num_shards=4", "shard=[1,1]"], "give different numbers from 0 to 3"),
        (["num_shards=4", "shard=x"], "give different numbers from 0 to 3"),
        (["spm=x"], "has no use for spm"),
        (["what=feature"], "did you mean 'features'"),
        (["launcher.gpus_per_node=8"], "is for training"),
    ],
)
def test_extractions_refused_before_submitting(failing, tmp_path, words, expected):
    corpus, checkpoint = write_corpus(tmp_path / "corpus"), write_checkpoint(tmp_path / "tiny.pt")
    given = [f"manifest={corpus}", f"checkpoint={checkpoint}", f"out={tmp_path}/train.store", "launcher=slurm"]
    changed = {word.split("=")[0] for word in words}
    assert expected in failing(extract.main, *[w for w in given if w.split("=")[0] not in changed], *words)


def test_evaluations_refused_before_submitting(failing, pose_corpus, tmp_path):
    words = [f"data={pose_corpus}", f"results={tmp_path}/r", "launcher=slurm"]
    assert "checkpoint=none.pt cannot be loaded" in failing(evaluate.main, "checkpoint=none.pt", *words)
    assert "did you mean 'test'" in failing(evaluate.main, "checkpoint=none.pt", "subset=tset", *words)
    assert "Missing mandatory value: checkpoint" in failing(evaluate.main, *words)


@pytest.fixture
def evaluation(pose_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("slt_plugin.cli.evaluate.check_checkpoints", lambda joined: [])
    return ["checkpoint=x.pt", f"data={pose_corpus}", f"results={tmp_path}/r"]


def test_an_evaluation_on_cpus_holds_no_gpus(evaluation, failing):
    assert "the GPUs would be idle" in failing(evaluate.main, *evaluation, "launcher=slurm", "common.cpu=true")


def test_what_cannot_go_on_is_not_queued_again_after_a_timeout(evaluation, submitting, tmp_path):
    assert evaluate.main([*evaluation, "launcher=slurm"]) == 0
    corpus, checkpoint = write_corpus(tmp_path / "corpus"), write_checkpoint(tmp_path / "tiny.pt")
    words = [f"manifest={corpus}", f"checkpoint={checkpoint}", f"out={tmp_path}/f.store", "launcher=slurm",
             "launcher.max_num_timeout=9", "num_shards=2"]  # fmt: skip
    assert extract.main(words) == 0 and extract.main([*words, "merge=true"]) == 0
    assert [profile.max_num_timeout for profile in submitting] == [0, 9, 0, 0]
    assert all(profile.requeues for profile in submitting)  # after a preemption


@pytest.mark.parametrize(("module", "called"), [(evaluate, "evaluate"), (extract, "run")])
def test_a_time_limit_that_was_too_short(evaluation, monkeypatch, capsys, module, called):
    """submitit raises this in the midst of the work."""
    from submitit.core.utils import UncompletedJobError

    def ended(*_):
        raise UncompletedJobError("Job not requeued because: timed-out too many times.")

    monkeypatch.setattr(module, called, ended)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    words = evaluation if module is evaluate else ["checkpoint=x.pt", "manifest=m.tsv", "out=f.store", "merge=true"]
    assert module.main(words) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "job 12: the time limit was too short" in last and "launcher.time" in last


def test_all_jobs_are_ended_with_one_line(finetuning, submitting, capsys, tmp_path):
    assert finetune.main([*finetuning, "launcher.chain=2"]) == 0
    assert "  end it: scancel 7 8 9\n" in capsys.readouterr().out
    corpus, checkpoint = write_corpus(tmp_path / "clips"), write_checkpoint(tmp_path / "tiny.pt")
    words = [f"manifest={corpus}", f"checkpoint={checkpoint}", "out=f.store", "launcher=slurm", "num_shards=2"]
    assert extract.main(words) == 0
    out = capsys.readouterr().out
    assert out.endswith("  end it: scancel 10 11\n") and out.count("scancel") == 1


def test_what_was_queued_before_a_refusal_can_be_ended(finetuning, submitting, capsys, monkeypatch):
    accept = launching.submit

    def submit(*arguments, **options):
        if submitting:
            raise LaunchError("sbatch refused the job: too many")
        return accept(*arguments, **options)

    monkeypatch.setattr(launching, "submit", submit)
    assert finetune.main([*finetuning, "launcher.chain=2"]) == 1
    assert capsys.readouterr().out.endswith("  end it: scancel 7\n")


@pytest.mark.parametrize(
    ("ranks", "elements", "expected"),
    [
        (1, 1, ["tail -F '/a b/it'\"'\"'s'/7_0_log.out\n"]),
        (2, 1, ["the same with _1_log.out\n"]),
        (3, 1, ["the same with _1_log.out to _2_log.out\n"]),
        (1, 2, ["tail -F '/a b/it'\"'\"'s'/7_*_0_log.out\n"]),  # the shell expands the *
    ],
)
def test_printed_paths_are_for_a_shell(capsys, ranks, elements, expected):
    launching.print_submission(Submission("7", elements, Path("/a b/it's"), "x"), Profile("p", local_ranks=ranks))
    out = capsys.readouterr().out
    assert all(text in out for text in expected)


def test_line_of_progress(monkeypatch, capsys):
    """Hours go on after a day; in a terminal the line does not wrap."""
    assert [launching.duration(seconds) for seconds in (5.9, 93_605, 400_000)] == ["00:00:05", "26:00:05", "111:06:40"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    launching.ProgressLine()("job 7: RUNNING | " + "x" * 100)
    shown = capsys.readouterr().err.removeprefix("\r\x1b[K")
    assert shown.startswith("00:00:00 job 7: RUNNING | xx") and len(shown) == 39


def test_without_slurm(finetuning, capfd, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert finetune.main(finetuning) == 1
    assert "this machine has no SLURM" in capfd.readouterr().err and not Path("run/slurm").exists()


def test_a_local_sweep_whose_members_would_share_checkpoints(finetuning, failing):
    line = failing(finetune.main, *finetuning[:-1], "-m", "common.seed=1,2")
    assert "'checkpoint.save_dir=run/${hydra:job.num}'" in line


def test_a_local_sweep_names_its_failed_member(finetuning):
    """Both through Hydra in one process; the second has no row short enough."""
    small = ["+model.encoder_layers=1", "+model.decoder_layers=1", "optimization.max_update=1", "dataset.num_workers=0",
             "task.eval_max_len=5", "checkpoint.save_dir=run/${hydra:job.num}", "dataset.max_tokens=600,5"]  # fmt: skip
    result = run_command("slt-finetune", "-m", *finetuning[:-2], *small, cwd=Path.cwd(), check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and re.match(r"slt-finetune: sweep member 1 \(.*max_tokens=5.*\) failed: ", last), (
        last
    )
    assert Path("run/0/checkpoint_last.pt").is_file() and not Path("run/1/checkpoint_last.pt").exists()


def test_local_ranks_are_processes_of_the_same_command(finetuning, monkeypatch):
    called = []
    monkeypatch.setattr(
        "slt_plugin.launch.local.run_ranks", lambda command, count: called.append((command, count)) or 3
    )
    words = [*finetuning[:-1], "launcher.local_ranks=2", "common.seed=2"]
    assert finetune.main(words) == 3
    command, count = called[0]
    assert count == 2 and command[1:3] == ["-m", "slt_plugin.cli.finetune"]
    assert command[3:] == [*finetuning[:-1], "common.seed=2"]
