"""``slt-import-checkpoint ssvp-translation``: SSVP-SLT's T5 and BART compute here what they compute there.

Written from the names and the arithmetic alone: no checkpoint of theirs of this kind is at hand.
"""

from pathlib import Path

import huggingface_hub
import pytest
import torch
from fairseq import checkpoint_utils
from hf_helpers import tiny_model
from torch import nn

import slt_plugin.tasks  # noqa: F401
from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.ssvp_translation import read_ssvp_translation
from slt_plugin.cli.import_checkpoint import main

CHANNELS = 12
PROJECTION = "encoder.feature_projection.feature_proj"


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Directories of tiny pretrained models, as the hub has them."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny_model(family, folder / family) for family in ("t5", "t5_v1_1", "bart")}


class Original:
    """A fine-tuned model as theirs: Hugging Face's with other values, behind scale * (W x + b)."""

    def __init__(self, base: Path, *, scaled: bool):
        from transformers import AutoModelForSeq2SeqLM

        torch.manual_seed(5)
        self.hf = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
        if not self.hf.config.to_dict()["tie_word_embeddings"] or "v1_1" in base.name:
            self.hf.lm_head.weight = nn.Parameter(0.5 * torch.randn(self.hf.lm_head.weight.shape))
        with torch.no_grad():
            for parameter in self.hf.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        width = self.hf.config.d_model
        self.linear = nn.Linear(CHANNELS, width)
        self.scale = torch.randn(width) if scaled else None

    def logits(self, features, lengths, previous):
        mask = (torch.arange(features.size(1)) < lengths[:, None]).long()
        embeds = self.linear(features)
        if self.scale is not None:
            embeds = self.scale * embeds
        with torch.no_grad():
            return self.hf(
                inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=previous, use_cache=False
            ).logits

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        """Their state dict; ``prefix`` is what stands before ``weight`` and ``bias`` of the projection."""
        state = {name: tensor.detach().clone() for name, tensor in self.hf.state_dict().items()}
        state |= {prefix + name: tensor.detach() for name, tensor in self.linear.state_dict().items()}
        if self.scale is not None:
            state[prefix.rstrip(".") + "_scale"] = self.scale
        return state


def write(path: Path, state: dict, key: str = "model") -> Path:
    """As their training saves it, with what else lies in such a file."""
    torch.save({key: state, "optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "epoch": 3}, path)
    return path


def imported(out: Path):
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(out)])
    return model.eval(), cfg, task


@pytest.mark.parametrize(
    ("family", "prefix", "scaled"),
    [
        ("t5_v1_1", f"{PROJECTION}.", True),
        ("t5_v1_1", "encoder.feature_proj.", True),  # the older names
        ("t5", f"{PROJECTION}.", True),  # tied tables, scaled logits
        ("bart", f"model.{PROJECTION}.", False),
        ("bart", "model.encoder.feature_projection.", False),
    ],
)
def test_it_computes_what_the_original_computes(family, prefix, scaled, bases, tmp_path, capsys):
    original = Original(bases[family], scaled=scaled)
    path = write(tmp_path / "best_model.pth", original.state(prefix))
    out = tmp_path / "new" / "imported.pt"
    assert main(["ssvp-translation", str(path), str(out), "--base", str(bases[family])]) == 0, capsys.readouterr().err
    layout = "SSVP-SLT SignBART" if family == "bart" else "SSVP-SLT SignT5"
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: {layout}, ") and line.endswith(f"features of {CHANNELS} channels\n")

    model, cfg, task = imported(out)
    assert (task.source_channels, task.codec.kind, task.codec.lowercase) == (CHANNELS, "hf", False)
    assert cfg.model._name == "sign_to_text_hf" and not cfg.model.use_lora
    features, lengths = torch.randn(2, 9, CHANNELS), torch.tensor([9, 6])
    previous = torch.tensor([[2, 5, 7, 9], [2, 6, 4, 8]])
    expected = original.logits(features, lengths, previous)
    with torch.no_grad():
        logits = model(features, lengths, previous)[0]
    torch.testing.assert_close(logits, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert expected.std() > 0.1
    assert main(["describe", str(out)]) == 0
    described = capsys.readouterr().out
    assert "from best_model.pth" in described and f"layout: {layout}" in described


def test_the_base_is_not_needed_to_decode(bases, tmp_path):
    base = tmp_path / "base"
    tiny_model("t5_v1_1", base)
    (base / "model.safetensors").unlink()  # configuration and tokenizer are enough to import
    path = write(tmp_path / "best_model.pth", Original(bases["t5_v1_1"], scaled=True).state(f"{PROJECTION}."))
    out = tmp_path / "out.pt"
    assert main(["ssvp-translation", str(path), str(out), "--base", str(base), "--lowercase"]) == 0
    base.rename(tmp_path / "elsewhere")
    _, _, task = imported(out)
    assert task.codec.lowercase


def test_the_scale_is_folded_into_the_projection(bases, tmp_path):
    original = Original(bases["t5"], scaled=True)
    read = read_ssvp_translation(write(tmp_path / "a.pth", original.state(f"{PROJECTION}.")))
    assert torch.equal(read.weight, original.scale[:, None] * original.linear.weight.detach())
    assert torch.equal(read.bias, original.scale * original.linear.bias.detach())
    assert read.family == "t5" and read.feature_dim == CHANNELS
    assert not any("feature_proj" in name or name.startswith("projection") for name in read.state)


def test_a_decoder_table_of_its_own_is_the_one_that_counts(bases, tmp_path):
    state = Original(bases["t5_v1_1"], scaled=True).state(f"{PROJECTION}.")
    state["shared.weight"] = state["shared.weight"] + 1
    read = read_ssvp_translation(write(tmp_path / "a.pth", state)).state
    assert torch.equal(read["shared.weight"], state["decoder.embed_tokens.weight"])
    del state["decoder.embed_tokens.weight"]
    read = read_ssvp_translation(write(tmp_path / "b.pth", state)).state
    assert torch.equal(read["decoder.embed_tokens.weight"], state["shared.weight"])


def test_half_precision_becomes_single(bases, tmp_path):
    state = Original(bases["t5"], scaled=True).state(f"{PROJECTION}.")
    half = {name: tensor.half() for name, tensor in state.items()}
    read = read_ssvp_translation(write(tmp_path / "a.pth", half))
    assert {tensor.dtype for tensor in (*read.state.values(), read.weight, read.bias)} == {torch.float32}


def fails(capsys, *words) -> str:
    assert main(["ssvp-translation", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_errors_name_the_file_and_the_remedy(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    state, out = Original(bases["t5_v1_1"], scaled=True).state(f"{PROJECTION}."), tmp_path / "out.pt"
    path = write(tmp_path / "best_model.pth", state)
    base = ("--base", bases["t5_v1_1"])
    assert "nothing.pth does not exist" in fails(capsys, tmp_path / "nothing.pth", out, *base)
    assert "a t5 (SSVP-SLT SignT5), the base" in fails(capsys, path, out, "--base", bases["bart"])
    assert "hf download" in fails(capsys, path, out, "--base", "google/t5-v1_1-nowhere")
    # v1.0 is not gated
    message = fails(capsys, path, out, "--base", bases["t5"])
    assert "does not fit the model: unexpected names: " in message and "DenseReluDense.wi_0" in message
    extra = write(
        tmp_path / "extra.pth", state | {"encoder.block.0.layer.9.x": torch.ones(1), "new.weight": torch.ones(1)}
    )
    assert "unexpected names: new.weight" in fails(capsys, extra, out, *base)
    short = {name: tensor for name, tensor in state.items() if not name.startswith("decoder.block.1.")}
    assert "missing names: decoder.block.1." in fails(capsys, write(tmp_path / "short.pth", short), out, *base)
    bare = {name: tensor for name, tensor in state.items() if not name.endswith("feature_proj.bias")}
    assert "the bias of the feature projection is missing" in fails(capsys, write(tmp_path / "b.pth", bare), out, *base)
    head = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    assert "missing names: lm_head.weight" in fails(capsys, write(tmp_path / "h.pth", head), out, *base)
    text = {name: tensor for name, tensor in state.items() if "feature_proj" not in name}
    assert "it looks like a T5 text model" in fails(capsys, write(tmp_path / "text.pth", text), out, *base)
    sonar = write(tmp_path / "sonar.pth", state | {"projection_out.weight": torch.ones(2, 2)}, key="student")
    assert "it looks like SONAR's ASL encoder" in fails(capsys, sonar, out, *base)
    assert not out.exists()
    out.write_bytes(b"mine")
    assert "exists already" in fails(capsys, path, out, *base)
    assert out.read_bytes() == b"mine"


def test_code_is_never_run(tmp_path):
    path = tmp_path / "best_model.pth"
    torch.save({"model": nn.Linear(2, 2)}, path)
    with pytest.raises(CheckpointError, match="weights and plain values"):
        read_ssvp_translation(path)
