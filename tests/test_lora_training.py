"""LoRA through fairseq's own training: small checkpoints, resume, decoding on the base, and ``merge-lora``."""

import logging
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from hf_helpers import tiny_model
from hf_training import train_hf, whole_batch, write_corpus

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.cli.import_checkpoint import main
from slt_plugin.common.errors import SltError

LORA = ("model.use_lora=true", "model.lora_config.r=2", "optimization.max_update=20")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model("t5", tmp_path_factory.mktemp("base") / "t5")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), "t5")


@pytest.fixture(scope="module")
def trained(base, corpus, tmp_path_factory) -> Path:
    """The folder of a training of 20 updates, whose adapters have become large."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train_hf(corpus, base, run, *LORA, "optimization.lr=[0.05]")
    return run


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def ready(path: Path, corpus: Path, **overrides):
    """(model, task) of a checkpoint, as what decodes builds them."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(corpus), **overrides})
    return model.eval(), task


def probabilities(model, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.get_normalized_probs(model(**batch["net_input"]), log_probs=False)


def texts(model, task, batch: dict) -> list[str]:
    generator = task.build_generator([model], Namespace(beam=2, max_len_a=0, max_len_b=10))
    return [task.codec.decode(best[0]["tokens"]) for best in task.inference_step(generator, [model], batch)]


def test_a_checkpoint_holds_adapters_and_projection_and_names_its_base(base, trained):
    state = load(trained / "checkpoint_last.pt")
    others = {name for name in state["model"] if ".lora_" not in name}
    assert others == {"encoder.adapter.projection.weight", "encoder.adapter.projection.bias", "lora_base"}
    adapters = sum(tensor.numel() for name, tensor in state["model"].items() if ".lora_" in name)
    assert adapters == 2 * 5 * (2 * 16 + 16 * 2)  # queries and values of 1 + 2 * 2 attentions
    assert state["cfg"]["model"]["hf_model"] == str(base)
    assert state["cfg"]["model"]["hf_config"]
    moments = state["last_optimizer_state"]["state"]
    assert sum(m["exp_avg"].numel() for m in moments.values()) == adapters + 6 * 16 + 16  # Adam has no more either


def test_what_is_trained_is_logged(base, corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="slt_plugin.models.hf_lora"):
        train_hf(corpus, base, tmp_path / "run", *LORA, "optimization.max_update=1", "model.freeze_encoder=true")
    [line] = [line for line in caplog.messages if line.startswith("trainable parameters")]
    trained = 2 * 4 * (2 * 16 + 16 * 2) + 6 * 16 + 16  # without the adapters of the encoder's one attention
    assert line.startswith(f"trainable parameters: {trained:,} of ")
    names = load(tmp_path / "run" / "checkpoint_last.pt")["model"]
    assert any(name.startswith("hf.encoder.") for name in names)  # frozen, but not of the base: saved


@pytest.mark.parametrize("words", [(), ("common.bf16=true", "model.checkpoint_activations=true")], ids=["fp32", "bf16"])
def test_resume_equals_no_interruption(base, corpus, tmp_path, words):
    words = (*words, "checkpoint.save_interval_updates=7", "dataset.validate_interval_updates=7")
    train_hf(corpus, base, tmp_path / "once" / "run", *LORA, *words)
    (tmp_path / "twice" / "run").mkdir(parents=True)
    [half] = (tmp_path / "once" / "run").glob("checkpoint_*_7.pt")
    shutil.copy(half, tmp_path / "twice" / "run" / "checkpoint_last.pt")
    train_hf(corpus, base, tmp_path / "twice" / "run", *LORA, *words)
    once, twice = (load(tmp_path / name / "run" / "checkpoint_last.pt") for name in ("once", "twice"))
    assert once["optimizer_history"][-1]["num_updates"] == twice["optimizer_history"][-1]["num_updates"] == 20
    assert once["model"].keys() == twice["model"].keys()
    for name, value in once["model"].items():
        assert torch.equal(value, twice["model"][name]), name
    start = load(half)["model"]
    assert all((value != start[name]).any() for name, value in once["model"].items() if ".lora_" in name)


def test_recomputing_changes_nothing(base, corpus, tmp_path):
    """Gradient checkpointing: the same numbers, dropout included."""
    words = (*LORA, "optimization.max_update=3")
    train_hf(corpus, base, tmp_path / "a" / "run", *words)
    train_hf(corpus, base, tmp_path / "b" / "run", *words, "model.checkpoint_activations=true")
    kept, recomputed = (load(tmp_path / name / "run" / "checkpoint_last.pt")["model"] for name in "ab")
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value, atol=1e-6, rtol=1e-4)


def test_merged_it_computes_the_same_without_adapters_and_base(base, trained, corpus, tmp_path, capsys):
    moved, out = tmp_path / "moved", tmp_path / "new" / "merged.pt"
    checkpoint = trained / "checkpoint_last.pt"
    model, task = ready(checkpoint, corpus)
    batch = whole_batch(task)
    shutil.copytree(base, moved)
    assert main(["merge-lora", str(checkpoint), str(out), "--base", str(moved)]) == 0, capsys.readouterr().err
    assert f"{out}: 640 parameters of adapters folded into {moved}" in capsys.readouterr().out
    shutil.rmtree(moved)
    merged, merged_task = ready(out, corpus)
    expected, computed = probabilities(model, batch), probabilities(merged, batch)
    torch.testing.assert_close(computed, expected, atol=1e-6, rtol=0)
    assert texts(merged, merged_task, batch) == texts(model, task, batch)
    assert not any("lora" in name for name in merged.state_dict())
    with torch.no_grad():  # the adapters do something
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
    assert (probabilities(model, batch) - expected).abs().max() > 0.01
    assert main(["describe", str(out)]) == 0
    assert "note: adapters folded into the base" in capsys.readouterr().out


def test_another_base_is_refused(base, trained, corpus, tmp_path):
    other = tiny_model("t5", tmp_path / "other", seed=3)
    checkpoint = trained / "checkpoint_last.pt"
    with pytest.raises(
        CheckpointError, match=rf"belong to a base .*, but {other} has .*merge-lora CHECKPOINT OUT --base"
    ):
        ready(checkpoint, corpus, hf_model=str(other))
    (tmp_path / "run").mkdir()
    shutil.copy(checkpoint, tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(CheckpointError, match=rf"but {other} has"):
        train_hf(corpus, other, tmp_path / "run", *LORA, "optimization.max_update=21")
    with pytest.raises(
        SltError, match=rf"{tmp_path}/nowhere does not exist.*if it was moved, .*merge-lora .*--base PATH"
    ):
        ready(checkpoint, corpus, hf_model=f"{tmp_path}/nowhere")


def test_a_base_given_relative_to_the_working_directory_is_found_from_elsewhere(base, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(base.parent)
    train_hf(corpus, base.name, tmp_path / "run", *LORA, "optimization.max_update=1")
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert load(checkpoint)["cfg"]["model"]["hf_model"] == str(base)
    monkeypatch.chdir(tmp_path)
    ready(checkpoint, corpus)


def test_full_and_lora_do_not_resume_from_each_other(base, trained, corpus, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "checkpoint_last.pt", tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(CheckpointError, match="trained with LoRA, this model is without"):
        train_hf(corpus, base, tmp_path / "run", "optimization.max_update=21")


def fails(capsys, *words) -> str:
    assert main(["merge-lora", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_what_cannot_be_merged(base, trained, corpus, tmp_path, capsys):
    checkpoint, out = trained / "checkpoint_last.pt", tmp_path / "out.pt"
    assert "nothing.pt does not exist" in fails(capsys, tmp_path / "nothing.pt", out)
    train_hf(corpus, base, tmp_path / "full" / "run", "optimization.max_update=1")
    full = tmp_path / "full" / "run" / "checkpoint_last.pt"
    assert "holds a sign_to_text_hf that was trained without LoRA" in fails(capsys, full, out)
    other = tiny_model("t5", tmp_path / "other", seed=3)
    assert f"but {other} has" in fails(capsys, checkpoint, out, "--base", other)
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "bare.pt")
    assert "it has no cfg.model" in fails(capsys, tmp_path / "bare.pt", out)
    assert not out.exists()
    out.write_bytes(b"mine")
    assert "exists already" in fails(capsys, checkpoint, out)
