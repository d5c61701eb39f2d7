"""The four entry points, sweeps and an extraction array on a real SLURM, through submitit.

All jobs are submitted at once by the fixtures and waited for by the tests: they share two cores. This process only
submits; the commands themselves run in the jobs.
"""

import json
import re
from pathlib import Path

import pytest
import slurm_helpers
from conftest import ROOT, run_command, write_video_corpus
from extract_helpers import write_checkpoint, write_corpus

from slt_plugin.cli import evaluate, extract, finetune, pretrain
from slt_plugin.data.manifest import read_manifest

pytestmark = pytest.mark.slurm

SECRET = "b52f9d3ae0c14e7786d5a4d3a1c0ffee00112233"  # in the environment of all jobs here
SMALL = (
    "+model.encoder_layers=1", "+model.decoder_layers=1", "+model.encoder_embed_dim=64", "+model.decoder_embed_dim=64",
    "+model.encoder_ffn_embed_dim=128", "+model.decoder_ffn_embed_dim=128", "+model.pose_dim=64",
    "dataset.num_workers=0", "dataset.max_tokens=600", "lr_scheduler.warmup_updates=2", "optimization.max_update=4",
    "checkpoint.save_interval_updates=4", "dataset.validate_interval_updates=4", "task.eval_max_len=10",
)  # fmt: skip
CPU = ("launcher=slurm_cpu", "launcher.cpus_per_task=1", "launcher.mem=2G", "launcher.time=30")
TOO_LONG = "dataset.max_tokens=5"  # no row is as short: found when the data is loaded, in the job
SECONDS = 300  # of all jobs here on two busy cores; polled, so nothing waits for longer than it has to


class Submitted:
    """What a command printed when it had submitted: its jobs, the first one first."""

    def __init__(self, status: int, out: str, *, expected: int = 0):
        assert status == expected, out
        self.out = out
        self.jobs = re.findall(r"^(?:submitted )?job (\d+) ", out, re.MULTILINE)
        slurm_helpers.submitted += self.jobs
        logs = re.search(r"logs: +(\S+)", out)
        self.folder = Path(logs[1]).parent if logs else None

    def log(self, number: int = 0, element: str = "") -> str:
        return (self.folder / f"{self.jobs[number]}{element}_0_log.out").read_text()


@pytest.fixture(scope="module")
def submit(slurm, tmp_path_factory):
    """Submits a command in this process; in its environment is a secret."""
    import contextlib
    import io

    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_API_KEY", SECRET)
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.chdir(tmp_path_factory.mktemp("work"))  # relative paths are of this folder, also in the job

    def submit(main, *words, expected: int = 0) -> Submitted:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            status = main([*map(str, words), *CPU])
        return Submitted(status, out.getvalue(), expected=expected)

    yield submit
    patch.undo()


@pytest.fixture(scope="module")
def finetuned(submit, pose_corpus, spm_model):
    Path("corpus").symlink_to(pose_corpus)
    words = ("--config-name", "fingerspelling_pose", "task.data=corpus", f"task.codec_path={spm_model}", *SMALL)

    def run(save_dir, *more, expected: int = 0) -> Submitted:
        return submit(finetune.main, *words, f"checkpoint.save_dir={save_dir}", *more, expected=expected)

    run.words = words
    return run


@pytest.fixture(scope="module")
def jobs(submit, finetuned, tmp_path_factory):
    """Everything that needs nothing of the others, queued at once; the training of one rank is first."""
    videos = write_video_corpus(tmp_path_factory.mktemp("videos") / "corpus", {"train": 12, "valid": 5})
    corpus = write_corpus(tmp_path_factory.mktemp("extraction") / "corpus")
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")
    store = tmp_path_factory.mktemp("features") / "train.store"
    extraction = (f"manifest={corpus}", f"checkpoint={checkpoint}", f"out={store}", "num_workers=0", "num_shards=2")
    return {
        "one": finetuned("one"),
        "two ranks": finetuned("two", "launcher.local_ranks=2"),
        "sweep": finetuned(
            "sweep", "-m", "dataset.max_tokens=600,5", "common.seed=1,2", "launcher.array_parallelism=2"
        ),
        "pretrain": submit(
            pretrain.main, "--config-name", "mae_tiny_cpu", f"task.data={videos}", "checkpoint.save_dir=mae",
            "optimization.max_update=2", "dataset.num_workers=0", "task.min_duration=0",
            "lr_scheduler.warmup_updates=1",
        ),
        "extract": submit(extract.main, *extraction),
        "chain": finetuned("chain", "launcher.chain=2", "optimization.max_update=300", "dataset.validate_interval=999",
                           "dataset.validate_interval_updates=0", "checkpoint.save_interval=999"),
        "extraction": extraction,
        "store": store,
    }  # fmt: skip


def ended(submitted: Submitted) -> dict[str, tuple[str, int]]:
    """Job or element -> its state and exit status, when all have ended."""
    found = {}
    for job in submitted.jobs:
        slurm_helpers.wait_for(job, timeout=SECONDS)
        for record in slurm_helpers.records(job):
            name = f"{job}_{record['ArrayTaskId']}" if "ArrayTaskId" in record else job
            found[name] = (record["JobState"], int(record["ExitCode"].split(":")[0]))
    return found


def assert_completed(submitted: Submitted) -> None:
    states = ended(submitted)
    assert set(states.values()) == {("COMPLETED", 0)}, [slurm_helpers.explain(job) for job in submitted.jobs]


def test_a_chain(jobs):
    """The second job goes on where the first was ended; as it completes, the third is cancelled."""
    chain = jobs["chain"]
    first, second, third = chain.jobs
    slurm_helpers.wait_until(lambda: "begin training epoch" in slurm_helpers.log(first), SECONDS, job=first)
    slurm_helpers.call("scancel", "--signal=USR2", first)
    slurm_helpers.wait_for(first, "FAILED", timeout=SECONDS)
    assert slurm_helpers.exit_code(first) == 75 and slurm_helpers.record(first)["Requeue"] == "0"
    assert "the next job goes on from here" in chain.log()
    slurm_helpers.wait_for(second, "COMPLETED", timeout=SECONDS)
    assert "Loaded checkpoint chain/checkpoint_last.pt" in chain.log(1) and "done training" in chain.log(1)
    slurm_helpers.wait_for(third, "CANCELLED", timeout=SECONDS)
    assert not (chain.folder / f"{third}_0_log.out").exists()


def test_finetuning(jobs):
    assert_completed(jobs["one"])
    assert Path("one/checkpoint_last.pt").is_file() and "done training" in jobs["one"].log()
    job = slurm_helpers.record(jobs["one"].jobs[0])
    assert job["JobName"] == "slt-finetune-fingerspelling_pose" and job["Requeue"] == "1"
    assert job["WorkDir"] == str(Path.cwd())


def test_pretraining(jobs):
    assert_completed(jobs["pretrain"])
    assert Path("mae/checkpoint_last.pt").is_file()


def test_two_ranks(jobs):
    assert_completed(jobs["two ranks"])
    log = jobs["two ranks"].log()
    assert "training on 2 devices" in log and "done training" in log
    assert (jobs["two ranks"].folder / f"{jobs['two ranks'].jobs[0]}_1_log.out").is_file()


def test_a_sweep_is_one_array_and_a_failed_member_is_failed(jobs):
    sweep = jobs["sweep"]
    assert len(sweep.jobs) == 1 and "an array of 4, 2 at once" in sweep.out
    job = sweep.jobs[0]
    text = (sweep.folder / f"{job}_submission.sh").read_text()
    assert "--array=0-3%2" in text
    states = ended(sweep)
    spans = [(each["StartTime"], each["EndTime"]) for each in slurm_helpers.records(job)]
    together = [sum(start <= now < end for start, end in spans) for now, _ in spans]
    assert max(together) == 2, spans
    assert states == {
        f"{job}_0": ("COMPLETED", 0), f"{job}_1": ("COMPLETED", 0),
        f"{job}_2": ("FAILED", 1), f"{job}_3": ("FAILED", 1),
    }, slurm_helpers.explain(job)  # fmt: skip
    listed = json.loads(Path("sweep/sweep.json").read_text())
    assert listed["job"] == job and [e["index"] for e in listed["elements"]] == [0, 1, 2, 3]
    assert listed["elements"][1]["overrides"] == ["dataset.max_tokens=600", "common.seed=2"]
    made = [Path("sweep", element["folder"], "checkpoint_last.pt").is_file() for element in listed["elements"]]
    assert made == [True, True, False, False]
    last = sweep.log(element="_2").strip().splitlines()
    assert any(line.startswith("slt-finetune: ") and "max_tokens" in line for line in last[-3:]), last[-5:]


def test_waiting_for_a_failed_job(finetuned, jobs, capfd):
    """The command's status is that of the job, and its last line says what the job said last."""
    assert finetuned("waited", TOO_LONG, "wait=true", expected=1).jobs
    lines = capfd.readouterr().err.strip().splitlines()
    assert re.match(r"job \d+: FAILED, exit status 1: slt-finetune: .*max_tokens", lines[-1]), lines[-5:]


def test_waiting_for_an_evaluation(jobs, submit, pose_corpus, capfd):
    assert_completed(jobs["one"])
    words = ("checkpoint=one/checkpoint_last.pt", "data=corpus", "results=results", "generation.max_len_b=5",
             "generation.beam=1", "dataset.num_workers=0", "common.cpu=true", "evidence=0", "launcher.local_ranks=2",
             "wait=true")  # fmt: skip
    submitted = submit(evaluate.main, *words)
    found = json.loads(Path("results/test/metrics.json").read_text())
    assert (found["rows"], found["sentences"], found["speed"]["ranks"]) == (13, 13, 2)
    assert capfd.readouterr().err.strip().splitlines()[-1] == f"job {submitted.jobs[0]}: COMPLETED"


def test_an_extraction_array_and_its_merge(jobs, submit):
    assert_completed(jobs["extract"])
    array, merge = jobs["extract"].jobs
    assert "--array=0-1" in (jobs["extract"].folder / f"{array}_submission.sh").read_text()
    manifest = jobs["store"].with_suffix(".tsv")
    assert len(read_manifest(manifest)) == 8
    assert "gres/gpu" not in slurm_helpers.record(merge).get("TRES", "")
    manifest.unlink()
    again = submit(extract.main, *jobs["extraction"], "shard=1", "wait=true")  # one element, and the merge
    assert len(again.jobs) == 2 and len(read_manifest(manifest)) == 8


def test_stock_hydra_sweep_with_a_failed_member(jobs, finetuned):
    """Without the callback SLURM would show the failed member as COMPLETED."""
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=1",
                "hydra.launcher.mem_gb=2", "hydra.launcher.array_parallelism=2", "hydra.launcher.max_num_timeout=5",
                "+hydra.launcher.additional_parameters.requeue=true", "hydra.sweep.dir=stock")  # fmt: skip
    words = [word for word in finetuned.words if not word.startswith("dataset.max_tokens")]
    result = run_command(
        "fairseq-hydra-train", "-m", "--config-dir", ROOT / "slt_plugin/config/finetune", *words,
        f"common.user_dir={ROOT / 'slt_plugin'}", "dataset.max_tokens=600,5",
        "checkpoint.save_dir=stock/${dataset.max_tokens}", *launcher, cwd=Path.cwd(), check=False,
    )  # fmt: skip
    assert result.returncode != 0
    job = next(path.name for path in Path("stock/.submitit").glob("*_0")).split("_")[0]
    slurm_helpers.submitted.append(job)
    slurm_helpers.wait_for(job)
    states = slurm_helpers.states(job)
    assert states == {"0": "COMPLETED", "1": "FAILED"}, slurm_helpers.explain(job)
    assert Path("stock/600/checkpoint_last.pt").is_file()
    error = Path(f"stock/.submitit/{job}_1/{job}_1_0_log.err").read_text()
    assert "sweep member 1 (" in error and "dataset.max_tokens=5" in error and "failed: DataError" in error


def test_sbatch_refuses(submit, finetuned, capfd):
    assert finetuned("refused", "launcher.partition=nowhere", expected=1).out == ""
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "sbatch refused the job: " in lines[0] and "invalid partition" in lines[0], lines
    assert not list(Path("refused").rglob("*.pkl")) and not list(Path("refused").rglob("*.sh"))


def test_no_secret_is_written(jobs, submit):
    """WANDB_API_KEY was in the environment of every submission here."""
    for submitted in (jobs["one"], jobs["sweep"], jobs["extract"], jobs["two ranks"], jobs["pretrain"]):
        ended(submitted)
        files = [path for path in submitted.folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} >= {".sh", ".pkl", ".out"}
        assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
        for job in submitted.jobs:
            assert SECRET not in slurm_helpers.call("scontrol", "show", "job", job)
    written = [path for path in Path.cwd().rglob("*") if path.is_file() and "corpus" not in path.parts]
    assert len(written) > 20 and [path for path in written if SECRET.encode() in path.read_bytes()] == []
