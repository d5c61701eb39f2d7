"""Train, resume, generate and score through the real commands, on a corpus that a small model learns in seconds."""

import json
import re

import pytest
import torch
from conftest import ROOT, run_command

from slt_plugin.data.manifest import read_manifest

SMALL = (
    "+model.encoder_layers=1", "+model.decoder_layers=1", "+model.encoder_embed_dim=64", "+model.decoder_embed_dim=64",
    "+model.encoder_ffn_embed_dim=128", "+model.decoder_ffn_embed_dim=128", "+model.pose_dim=64",
    'model.pose_strides="2,2"', "dataset.max_tokens=600", "common.log_interval=20", "lr_scheduler.warmup_updates=10",
)  # fmt: skip


def train(corpus, spm, save_dir, updates, *overrides, command="slt-finetune", cwd=ROOT):
    words = (f"task.data={corpus}", f"task.codec_path={spm}", f"checkpoint.save_dir={save_dir}",
             f"optimization.max_update={updates}", *SMALL, *overrides)  # fmt: skip
    return run_command(command, *(() if command == "slt-finetune" else ("--config-dir", STOCK_CONFIGS)),
                       "--config-name", "fingerspelling_pose", *words, cwd=cwd)  # fmt: skip


STOCK_CONFIGS = "slt_plugin/config/finetune"


@pytest.fixture(scope="module")
def trained(pose_corpus, spm_model, tmp_path_factory):
    """A model trained with the stock command from the repository's root."""
    run = tmp_path_factory.mktemp("run")
    result = train(
        pose_corpus, spm_model, run, 140, "common.user_dir=slt_plugin", "checkpoint.save_interval_updates=70",
        "dataset.validate_interval_updates=70", "optimization.lr=[0.004]", "dataset.num_workers=0",
        command="fairseq-hydra-train",
    )  # fmt: skip
    return run, result.stdout + result.stderr


def test_training_logs_scores_and_samples(trained):
    run, log = trained
    assert re.search(r"valid on 'valid' subset .* bleu \d.* chrf \d", log)
    assert "sample valid-0" in log
    assert "sample valid-2" in log
    assert "sample valid-3" not in log
    assert (run / "checkpoint_best.pt").is_file() and (run / "checkpoint_last.pt").is_file()


def test_checkpoint_loads_with_weights_only(trained):
    from slt_plugin.checkpoints import safe

    safe.install()
    state = torch.load(trained[0] / "checkpoint_best.pt", weights_only=True)
    assert state["task_state"]["codec"]["kind"] == "sentencepiece"
    assert state["cfg"]["model"]["_name"] == "sign_to_text_tiny"


def test_stock_generate_scores_every_row_from_another_folder(trained, pose_corpus, tmp_path):
    run, _ = trained
    user_dir = run_command("slt-doctor", "--user-dir").stdout.strip()
    run_command(
        "fairseq-generate", pose_corpus, "--user-dir", user_dir, "--task", "sign_to_text", "--path",
        run / "checkpoint_best.pt", "--gen-subset", "test", "--beam", "5", "--scoring", "sacrebleu", "--results-path",
        tmp_path, "--max-len-b", "20", cwd=tmp_path,
    )  # fmt: skip
    output = (tmp_path / "generate-test.txt").read_text()
    assert sum(line.startswith("D-") for line in output.splitlines()) == 13  # not a multiple of 8
    scored = run_command(
        "slt-score", tmp_path / "generate-test.txt", "--manifest", pose_corpus / "test.tsv",
        "--json", tmp_path / "m.json",
    )  # fmt: skip
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["sentences"] == 13 and metrics["metrics"]["chrf"] > 60, scored.stdout


def test_evaluate_equals_generate_and_writes_results(trained, pose_corpus, tmp_path):
    run, _ = trained
    result = run_command(
        "slt-evaluate", f"checkpoint={run}/checkpoint_best.pt", f"data={pose_corpus}", f"results={tmp_path}",
        "subset=[test,valid]", "generation.max_len_b=20", "common.cpu=true", "dataset.num_workers=0", "evidence=13",
        cwd=tmp_path,
    )  # fmt: skip
    rows = read_manifest(pose_corpus / "test.tsv")
    lines = [json.loads(line) for line in (tmp_path / "test" / "hypotheses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row.id for row in rows]
    assert [line["ref"] for line in lines] == [row.text for row in rows]
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert metrics["sentences"] == 13 and "tok:13a" in metrics["signatures"]["bleu4"]
    assert metrics["metrics"]["chrf"] > 60
    assert "BLEU-4" in result.stdout and (tmp_path / "valid" / "metrics.json").is_file()
    # hiding the stretch that a word rests on costs it more than hiding a random one of that length
    found = metrics["faithfulness"]
    assert found["words"] >= 20 and found["share"] >= found["required"] == 0.7
    assert f"{found['faithful']} of {found['words']}" in (tmp_path / "test" / "report.html").read_text()


def weights(run):
    return torch.load(run / "checkpoint_last.pt", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_no_interruption(pose_corpus, spm_model, tmp_path, workers):
    """Over the border of an epoch, with augmentation, weights, Adam's moments and scores bit for bit."""
    options = (
        f"dataset.num_workers={workers}", "task.augment_noise=0.05", "task.augment_speed=0.2", "task.eval_max_len=12",
        "checkpoint.save_interval_updates=8", "dataset.validate_interval_updates=8", "lr_scheduler._name=fixed",
        "~lr_scheduler.warmup_updates", "checkpoint.patience=5",
    )  # fmt: skip
    once, twice = tmp_path / "once", tmp_path / "twice"
    train(pose_corpus, spm_model, once, 16, *options)
    train(pose_corpus, spm_model, twice, 8, *options)
    train(pose_corpus, spm_model, twice, 16, *options)
    a, b = weights(once), weights(twice)
    assert a["optimizer_history"][-1]["num_updates"] == b["optimizer_history"][-1]["num_updates"] == 16
    assert a["extra_state"]["train_iterator"]["epoch"] > 1
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    for i, moments in a["last_optimizer_state"]["state"].items():
        for key, value in moments.items():
            other = b["last_optimizer_state"]["state"][i][key]
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other
    assert a["extra_state"]["best"] == b["extra_state"]["best"]
    assert a["extra_state"]["val_loss"] == b["extra_state"]["val_loss"]
