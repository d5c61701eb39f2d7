"""slt-report sweep: a real sweep of four tiny trainings, and folders in which something went wrong."""

import json
import math
import re
import shutil
import statistics

import pytest
import torch
from conftest import run_command

from slt_plugin.checkpoints.foreign import read_torch
from slt_plugin.cli import report
from slt_plugin.report.training_run import logged_scores

SMALL = (
    "+model.encoder_layers=1", "+model.decoder_layers=1", "+model.encoder_embed_dim=32", "+model.decoder_embed_dim=32",
    "+model.encoder_ffn_embed_dim=64", "+model.decoder_ffn_embed_dim=64", "+model.pose_dim=32",
    'model.pose_strides="2,2"', "dataset.max_tokens=600", "lr_scheduler.warmup_updates=1", "dataset.num_workers=0",
    "task.eval_max_len=12", "optimization.max_update=4", "checkpoint.save_interval_updates=2",
    "dataset.validate_interval_updates=2", "checkpoint.best_checkpoint_metric=chrf",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(pose_corpus, spm_model, tmp_path_factory):
    """Two rates with two seeds each, by Hydra's own launcher in one process."""
    folder = tmp_path_factory.mktemp("sweep")
    run_command(
        "slt-finetune", "--config-name", "fingerspelling_pose", "-m", f"task.data={pose_corpus}",
        f"task.codec_path={spm_model}", f"checkpoint.save_dir={folder}/${{hydra:job.num}}", f"hydra.sweep.dir={folder}",
        "hydra.sweep.subdir=${hydra:job.num}", *SMALL, "optimization.lr=[0.001],[0.004]", "common.seed=1,2",
    )  # fmt: skip
    return folder


@pytest.fixture
def sweep(trained, tmp_path):
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "sweep")


def run(capsys, *words) -> tuple[int, str, str]:
    status = report.main(["sweep", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def run_json(capsys, *words) -> tuple[int, dict]:
    status, out, _ = run(capsys, *words, "--json")
    return status, json.loads(out)


def best_of_log(folder) -> float:
    return float(re.findall(r"best_chrf ([\d.]+)", (folder / "train.log").read_text())[-1])


def edit(path, change):
    """A checkpoint with ``change(state)`` done to it."""
    state = read_torch(path)
    change(state)
    torch.save(state, path)


def test_scores_seeds_and_settings_are_those_of_the_logs(trained, capsys):
    status, found = run_json(capsys, trained)
    assert status == 0 and found["metric"] == "chrf" and found["maximize"] and len(found["members"]) == 4
    scores = {str(trained / str(i)): best_of_log(trained / str(i)) for i in range(4)}
    assert len(set(scores.values())) > 2  # else the order below shows nothing
    assert {m["folder"]: m["score"] for m in found["members"]} == scores
    ordered = [m["score"] for m in found["members"]]
    assert ordered == sorted(ordered, reverse=True) and found["best"]["folder"] == found["members"][0]["folder"]
    assert {(m["updates"], m["max_update"], m["state"]) for m in found["members"]} == {(4, 4, "finished")}
    settings = {tuple(s["settings"]): s for s in found["settings"]}
    assert set(settings) == {("optimization.lr=[0.001]",), ("optimization.lr=[0.004]",)}
    for first, rate in ((0, "[0.001]"), (2, "[0.004]")):
        folders = [str(trained / str(i)) for i in (first, first + 1)]
        setting = settings[(f"optimization.lr={rate}",)]
        assert sorted(setting["members"]) == folders and setting["n"] == 2
        assert setting["mean"] == pytest.approx(statistics.fmean(scores[f] for f in folders))
        assert setting["std"] == pytest.approx(abs(scores[folders[0]] - scores[folders[1]]) / math.sqrt(2))
    assert sorted(m["seed"] for m in found["members"]) == [1, 1, 2, 2] and found["notes"] == []


def test_table_and_the_command_it_names(trained, pose_corpus, capsys):
    status, out, _ = run(capsys, trained)
    lines = out.splitlines()
    assert status == 0 and lines[0] == "4 members, validation chrf (higher is better)"
    best = max(range(4), key=lambda i: best_of_log(trained / str(i)))
    rows = [line for line in lines if "finished" in line]
    assert len(rows) == 4 and rows[0].endswith(f"  {best}") and "4 of 4" in rows[0]
    assert lines[-1] == (
        f"  slt-evaluate checkpoint={trained}/{best}/checkpoint_best.pt data={pose_corpus} subset=test "
        f"results={trained}/{best}/results"
    )


def test_another_metric_comes_from_the_log_at_the_best_checkpoints_update(trained, capsys):
    status, found = run_json(capsys, trained, "--metric", "loss")
    assert status == 0 and not found["maximize"]
    for member in found["members"]:
        folder = trained / member["folder"].rsplit("/", 1)[1]
        updates = read_torch(folder / "checkpoint_best.pt")["optimizer_history"][-1]["num_updates"]
        (line,) = re.findall(rf"valid on .*num_updates {updates}\b.*", (folder / "train.log").read_text())
        assert f"| loss {member['score']:g} |" in line
    assert [m["score"] for m in found["members"]] == sorted(m["score"] for m in found["members"])
    status, _, err = run(capsys, trained, "--metric", "blue")
    assert status == 1 and "did you mean 'bleu'" in err and "chrf" in err


def test_logs_in_json(tmp_path):
    (tmp_path / "train.log").write_text(
        '[x][valid][INFO] - {"epoch": 1, "valid_chrf": "7.5", "valid_loss": "nan", "valid_num_updates": "40"}\n'
        '[x][valid][INFO] - {"epoch": 2, "valid_chrf": "9.5", "valid_num_updates": "80"}\n'
        '[x][valid][INFO] - {"epoch": 3, "valid_chrf": "8.5", "valid_num_updates": "1'
    )
    assert logged_scores([tmp_path], "valid", 80) == {"chrf": 9.5, "num_updates": 80}
    assert logged_scores([tmp_path], "valid", 40) == {"chrf": 7.5, "num_updates": 40}
    assert logged_scores([tmp_path], "test", 40) == {}


def truncate(folder):
    path = folder / "checkpoint_last.pt"
    content = path.read_bytes()
    path.unlink()  # a hard link: the other names keep their file
    path.write_bytes(content[:-2000])


def remove_checkpoints(folder):
    for path in folder.glob("checkpoint*.pt"):
        path.unlink()


def spoil_best(folder):
    (folder / "checkpoint_best.pt").unlink()
    (folder / "checkpoint_best.pt").write_bytes(b"x" * 500)


@pytest.mark.parametrize(
    ("damage", "state", "reason"),
    [
        (truncate, "unreadable", "checkpoint_last.pt cannot be read"),
        (spoil_best, "unreadable", "checkpoint_best.pt cannot be read"),
        (remove_checkpoints, "nothing trained", "no checkpoint"),
    ],
)
def test_failed_members_are_named_and_set_the_exit_status(sweep, capsys, damage, state, reason):
    damage(sweep / "1")
    status, found = run_json(capsys, sweep)
    member = next(m for m in found["members"] if m["folder"] == str(sweep / "1"))
    assert status == 1 and member["state"] == state and reason in member["reason"] and member["score"] is None
    setting = next(s for s in found["settings"] if "0.001" in s["settings"][0])
    assert setting["n"] == 1 and setting["std"] is None and len(setting["members"]) == 2
    status, out, _ = run(capsys, sweep)
    assert status == 1 and f"{state}: {sweep / '1'}: " in out and "1 of 4 members failed" in out and "1 of 2" in out


def test_stopped_early_and_unfinished(sweep, capsys):
    def patience(state):
        state["cfg"]["optimization"]["max_update"] = 100
        state["cfg"]["checkpoint"]["patience"] = 3
        state["extra_state"]["early_stopping"] = {"best": 1.0, "num_runs": 3}

    def longer(state):
        state["cfg"]["optimization"]["max_update"] = 100

    edit(sweep / "0" / "checkpoint_last.pt", patience)
    edit(sweep / "1" / "checkpoint_last.pt", longer)
    status, found = run_json(capsys, sweep)
    states = {m["folder"]: (m["state"], m["updates"], m["max_update"]) for m in found["members"]}
    assert status == 0  # it may still be running
    assert states[str(sweep / "0")] == ("stopped early", 4, 100)
    assert states[str(sweep / "1")] == ("unfinished", 4, 100)
    setting = next(s for s in found["settings"] if "0.001" in s["settings"][0])
    assert (setting["n"], setting["mean"]) == (1, best_of_log(sweep / "0"))


def test_elements_of_an_array_that_never_started(sweep, capsys):
    """As launcher=slurm leaves it: every element's folder and overrides in sweep.json."""
    rates = ["[0.001]", "[0.001]", "[0.004]", "[0.004]", "[0.004]", "[0.009]"]
    overrides = [[f"optimization.lr={rate}", f"common.seed={i}"] for i, rate in enumerate(rates)]
    elements = [{"index": i, "overrides": words, "folder": str(i)} for i, words in enumerate(overrides)]
    (sweep / "sweep.json").write_text(json.dumps({"elements": elements}))
    status, found = run_json(capsys, sweep)
    missing = [m for m in found["members"] if m["state"] == "nothing trained"]
    assert status == 1 and len(found["members"]) == 6
    assert [(m["folder"], m["reason"]) for m in missing] == [(str(sweep / str(i)), "not started") for i in (4, 5)]
    assert all(m["overrides"] == overrides[int(m["folder"][-1])] for m in found["members"])
    numbers = {s["settings"][0]: (s["n"], len(s["members"])) for s in found["settings"]}
    assert numbers == {
        "optimization.lr=[0.001]": (2, 2), "optimization.lr=[0.004]": (2, 3), "optimization.lr=[0.009]": (0, 1),
    }  # fmt: skip
    (sweep / "sweep.json").write_text("{}")
    status, _, err = run(capsys, sweep)
    assert status == 1 and "sweep.json is no list of a sweep's elements" in err


def test_members_of_the_plain_array_file(sweep, capsys):
    """As slurm/sweep.sbatch leaves it: the line of the grid in each folder; the last one ended before Hydra began."""
    for i in range(4):
        (sweep / str(i) / "overrides.txt").write_text(f"optimization.lr='[{i // 2}]' common.seed={i}\n")
    (sweep / "10").mkdir()
    (sweep / "10" / "overrides.txt").write_text("optimization.lr=[0] common.seed=9\n")
    status, found = run_json(capsys, sweep)
    numbers = {tuple(s["settings"]): (s["n"], len(s["members"])) for s in found["settings"]}
    assert status == 1 and numbers == {("optimization.lr=[0]",): (2, 3), ("optimization.lr=[1]",): (2, 2)}
    (failed,) = [m for m in found["members"] if m["score"] is None]
    assert (
        failed["folder"] == str(sweep / "10")
        and failed["seed"] == 9
        and "not begun, or failed at once" in failed["reason"]
    )


def test_two_sweeps_under_one_folder_are_not_mixed(sweep, tmp_path, capsys):
    for name in ("a", "b"):
        shutil.copytree(sweep, tmp_path / "both" / name)
        elements = [{"overrides": [f"common.seed={i}"], "folder": str(i)} for i in range(4)]
        (tmp_path / "both" / name / "sweep.json").write_text(json.dumps({"elements": elements}))
    status, found = run_json(capsys, tmp_path / "both")
    assert status == 0 and [s["n"] for s in found["settings"]] == [4, 4]
    assert all(len({m.split("/")[-2] for m in s["members"]}) == 1 for s in found["settings"])


def test_hydras_folders_apart_from_the_checkpoints(sweep, tmp_path, capsys):
    """checkpoint.save_dir and hydra.sweep.dir may differ: the configuration says where the checkpoints are."""
    hydra = tmp_path / "multirun"
    for i in range(4):
        (hydra / str(i)).mkdir(parents=True)
        (sweep / str(i) / ".hydra").rename(hydra / str(i) / ".hydra")
        (sweep / str(i) / "train.log").rename(hydra / str(i) / "train.log")
        config = hydra / str(i) / ".hydra" / "config.yaml"
        text = config.read_text()
        assert "${hydra:job.num}" in text
        config.write_text(re.sub(r"save_dir: .*", f"save_dir: {sweep}/${{hydra:job.num}}", text))
    status, found = run_json(capsys, hydra, "--metric", "loss")
    assert status == 0 and {m["folder"] for m in found["members"]} == {str(sweep / str(i)) for i in range(4)}
    assert len(found["settings"]) == 2 and all(m["score"] for m in found["members"])
    status, found = run_json(capsys, sweep)  # the other half: scores without overrides
    assert len(found["members"]) == 4 and all(s["n"] == 1 for s in found["settings"])
    assert sorted(s["settings"][0] for s in found["settings"]) == ["(0)", "(1)", "(2)", "(3)"]


def test_members_that_shared_a_folder_are_refused(sweep, capsys):
    """``-m`` with one checkpoint.save_dir for all: the second training goes on from the first one's checkpoint."""
    for i in range(2):
        remove_checkpoints(sweep / str(i))
        config = sweep / str(i) / ".hydra" / "config.yaml"
        config.write_text(re.sub(r"save_dir: .*", "save_dir: one/for/all", config.read_text()))
    status, found = run_json(capsys, sweep)
    broken = [m for m in found["members"] if m["state"] == "unreadable"]
    assert status == 1 and len(found["members"]) == 4 and len(broken) == 2
    assert all("checkpoints of several members: give each its own" in m["reason"] for m in broken)


def test_seeds_that_come_twice_are_noted(sweep, capsys):
    shutil.copytree(sweep / "0", sweep / "9")
    status, out, _ = run(capsys, sweep)
    assert status == 0 and "optimization.lr=[0.001]: seed 1 more than once" in out


def test_different_metrics_are_not_compared(sweep, capsys):
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        edit(sweep / "3" / name, lambda state: state["cfg"]["checkpoint"].update(best_checkpoint_metric="bleu"))
    status, _, err = run(capsys, sweep)
    assert status == 1 and "chrf (highest, 3 members), bleu (highest, 1 members). Give --metric NAME" in err
    status, found = run_json(capsys, sweep, "--metric", "chrf")
    assert status == 0 and all(m["score"] is not None for m in found["members"])


def test_nothing_to_report(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    status, _, err = run(capsys, tmp_path)
    assert status == 1 and "holds no training" in err
    status, _, err = run(capsys, tmp_path / "none")
    assert status == 1 and "is no folder" in err
