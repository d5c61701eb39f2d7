"""Position tables that are a formula's, of Pegasus and Marian: computed where the file lacks them, never trained."""

import pytest
import torch
from forked_training import load
from hf_helpers import FAMILIES, tiny_model
from hf_training import hf_model, hf_task, train_hf, whole_batch, write_corpus
from safetensors.torch import load_file, save_file
from test_hf_pitfalls import write_marian

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.models.hf import build_model, describe, load_model


def make(family, folder):
    """A model's directory as the hub has it."""
    if family != "marian":
        return tiny_model(family, folder)
    folder.mkdir()
    write_marian(folder)
    state = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in state.items() if "embed_positions" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["pegasus", "marian"])
def test_sinusoids_that_the_file_lacks_are_computed(family, tmp_path):
    folder = make(family, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    assert not any("embed_positions" in name for name in state)
    hf = load_model(folder)
    for stack in (hf.get_encoder(), hf.get_decoder()):
        table = stack.embed_positions
        assert table.weight.shape == (64, 16) and not table.weight.requires_grad
        assert torch.equal(table.weight, table.create_weight())
        assert table.weight[3, 0] == torch.tensor(3.0).sin()
    assert not build_model(describe(hf)).get_encoder().embed_positions.weight.requires_grad

    name = "model.encoder.layers.0.fc1.weight"  # other weights are still missed
    del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f": 1 weights .* would stay random: {name}"):
        load_model(folder)


def test_sinusoids_of_the_file_are_kept(tmp_path):
    folder = tiny_model("pegasus", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["model.encoder.embed_positions.weight"] = torch.full((64, 16), 0.5)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert (load_model(folder).get_encoder().embed_positions.weight == 0.5).all()


@pytest.mark.parametrize("family", [*FAMILIES, "marian"])
def test_every_parameter_that_is_trained_gets_a_gradient(family, tmp_path):
    folder = make(family, tmp_path / "model")
    task = hf_task(write_corpus(tmp_path / "corpus", family), folder)
    model, batch = hf_model(task, folder), whole_batch(task)
    logits, _ = model(**batch["net_input"])
    logits.logsumexp(-1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_weight_decay_in_half_precision_leaves_sinusoids_alone(tmp_path):
    folder = tiny_model("pegasus", tmp_path / "model")
    expected = load_model(folder).get_encoder().embed_positions.weight
    corpus = write_corpus(tmp_path / "corpus", "pegasus")
    words = ("common.bf16=true", "optimizer.weight_decay=1.0", "optimization.max_update=20")
    train_hf(corpus, folder, tmp_path / "run", *words)
    saved = load(tmp_path / "run" / "checkpoint_last.pt")["model"]
    for stack in ("encoder", "decoder"):
        table = saved[f"hf.model.{stack}.embed_positions.weight"]
        torch.testing.assert_close(table.float(), expected.detach(), atol=0, rtol=2**-8)  # rounded to bf16
