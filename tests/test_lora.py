"""LoRA on a Hugging Face model: what is frozen and trained, what is saved, whose base it is, and merging."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq.models import BaseFairseqModel
from hf_helpers import FAMILIES, UNTIED, tiny_model
from torch import nn

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.models import hf_lora
from slt_plugin.models.errors import OptionError
from slt_plugin.models.hf import load_model
from slt_plugin.models.hf_lora import (
    LoraCheckpoints,
    LoraOptions,
    apply_lora,
    base_identity,
    log_parameters,
    merge_lora,
)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """``load("t5")`` -> the tiny model of the family as transformers loads it; ``load("t5", 1)``: other values."""
    from transformers import AutoModelForSeq2SeqLM

    folders = {}

    def load(family: str, seed: int = 0) -> nn.Module:
        key = (family, seed)
        if key not in folders:
            folders[key] = tiny_model(family, tmp_path_factory.mktemp(family) / "model", seed=seed)
        return AutoModelForSeq2SeqLM.from_pretrained(folders[key]).eval()

    return load


def logits(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, 7, model.config.d_model, generator=generator).to(model.dtype)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    previous = torch.tensor([[2, 5, 9, 8], [2, 6, 11, 7]])
    with torch.no_grad():
        return model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=previous, use_cache=False).logits


def attentions(model: nn.Module) -> int:
    """Self-attention of every layer, and the decoder's cross-attention."""
    decoder = getattr(model.config, "num_decoder_layers", None) or model.config.decoder_layers
    return model.config.num_hidden_layers + 2 * decoder


def train_adapters(model: nn.Module) -> None:
    """Values as after a training: at the start one of each pair is zero."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_at_nothing_are_alone_trained_and_merge_exactly(family, load):
    model = load(family)
    before, names = logits(model), list(model.state_dict())
    base = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert apply_lora(model, LoraOptions(r=2)) is model
    model.eval()
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    # query and value: a pair of matrices each
    assert len(trained) == 2 * 2 * attentions(model)
    train_adapters(model)
    single = logits(model)
    assert (single - before).abs().max() > 0.01
    after = logits(copy.deepcopy(model).double())
    merged = merge_lora(copy.deepcopy(model).double())
    torch.testing.assert_close(logits(merged), after, atol=1e-12, rtol=0)
    merge_lora(model)
    rounding = 1e-5 * float(single.abs().max())
    torch.testing.assert_close(logits(model), single, atol=rounding, rtol=0)
    assert list(model.state_dict()) == names
    changed = {name.rsplit(".", 2)[-2] for name, p in model.named_parameters() if not torch.equal(p, base[name])}
    assert changed in ({"q", "v"}, {"q_proj", "v_proj"})


def test_given_modules_rank_scale_and_biases(load):
    model = load("bart")
    options = LoraOptions(r=3, lora_alpha=6, target_modules=["fc1", "encoder_attn.k_proj"], bias="lora_only")
    apply_lora(model, options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = {name.split(".lora_")[0] for name in trained if ".lora_" in name}
    assert {name.rsplit(".", 2)[-1] for name in adapted} == {"fc1", "k_proj"}
    assert not any(".self_attn.k_proj" in name for name in adapted)
    assert len(adapted) == attentions(model)  # as many: fc1 of both stacks, and the decoder's cross-attention
    assert {name for name in trained if ".lora_" not in name} == {f"{name}.base_layer.bias" for name in adapted}
    layer = model.get_submodule(sorted(adapted)[0])
    assert layer.lora_A["default"].out_features == 3 and layer.scaling["default"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(target_modules=["q", "v"]), r"no linear layer of BartForConditionalGeneration is called q, v"),
        (LoraOptions(target_modules=["q_prj"]), r"called q_prj; did you mean 'q_proj'\? Choose from .*fc1, fc2"),
        (LoraOptions(target_modules=[]), "it is empty"),
        (LoraOptions(r=0), "r=0.*expected r of at least 1"),
        (LoraOptions(lora_dropout=1.0), "lora_dropout"),
    ],
)
def test_wrong_options(options, message, load):
    with pytest.raises(OptionError, match=message):
        apply_lora(load("bart"), options)


@pytest.mark.parametrize(
    ("family", "others"),
    [
        ("t5", "shared, encoder.embed_tokens, decoder.embed_tokens"),
        ("bart", "model.shared, model.encoder.embed_tokens"),
    ],
)
def test_an_output_projection_that_is_the_token_table_gets_no_adapter(family, others, tmp_path):
    model = load_model(tiny_model(family, tmp_path / "model"))
    message = rf"target_modules: the weight of lm_head is shared with {others}.*its token tables are tied"
    with pytest.raises(OptionError, match=message):
        apply_lora(model, LoraOptions(target_modules=["fc1" if family == "bart" else "q", "lm_head"]))
    assert not any("lora_" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("family", UNTIED)
def test_an_output_projection_of_its_own_gets_an_adapter_that_merges(family, tmp_path):
    model = load_model(tiny_model(family, tmp_path / "model")).eval().double()
    table, before = model.shared.weight.clone(), logits(model)
    apply_lora(model, LoraOptions(r=2, target_modules=["lm_head"])).eval()
    train_adapters(model)
    after = logits(model)
    assert (after - before).abs().max() > 0.01
    merge_lora(model)
    torch.testing.assert_close(logits(model), after, atol=1e-12, rtol=0)
    assert torch.equal(model.shared.weight, table)


def test_a_model_without_known_names_needs_target_modules():
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
    with pytest.raises(OptionError, match=r"ModuleDict is a model without a default here: choose .* first, second"):
        hf_lora.target_modules(model, None)


def test_without_peft_the_extra_is_named(load, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(OptionError, match=r"pip install 'slt-plugin\[hf\]'"):
        apply_lora(load("t5"), LoraOptions())


def test_identity_is_of_every_value_and_not_of_the_file(load, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    model = load("t5")
    identity = base_identity(model)
    assert identity.shape == (32,) and identity.dtype == torch.uint8
    model.save_pretrained(tmp_path / "again", max_shard_size="8KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    assert torch.equal(base_identity(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")), identity)
    assert not torch.equal(base_identity(load("t5", seed=1)), identity)
    weight = model.decoder.block[1].layer[1].EncDecAttention.o.weight
    with torch.no_grad():
        weight[-1, -1] += 1e-6
    assert not torch.equal(base_identity(model), identity)


def test_values_in_pieces_are_hashed_as_one(load, monkeypatch):
    model = load("t5")
    identity = base_identity(model)
    monkeypatch.setattr(hf_lora, "HASHED_VALUES", 7)
    assert torch.equal(base_identity(model), identity)


# what checkpoints hold


class Translator(LoraCheckpoints, BaseFairseqModel):
    """A projection, a part that is not trained, and a Hugging Face model."""

    def __init__(self, hf_model: nn.Module, options: LoraOptions | None = None):
        super().__init__()
        self.cfg = SimpleNamespace(hf_model="models/tiny")
        self.projection, self.fixed = nn.Linear(3, 4), nn.Linear(2, 2).requires_grad_(False)
        self.text = hf_model
        if options is not None:
            identity = base_identity(hf_model)
            apply_lora(hf_model, options)
            self.keep_base_out(hf_model, identity)


def test_checkpoints_hold_everything_but_the_base(load):
    torch.manual_seed(0)
    model = Translator(load("t5"), LoraOptions(r=2)).eval()
    train_adapters(model)
    state = model.state_dict()
    expected = {"lora_base", "projection.weight", "projection.bias", "fixed.weight", "fixed.bias"}
    assert {name for name in state if ".lora_" not in name} == expected
    assert sum(".lora_" in name for name in state) == 2 * 2 * attentions(model.text)
    torch.manual_seed(1)
    again = Translator(load("t5"), LoraOptions(r=2)).eval()
    assert not torch.equal(logits(again.text), logits(model.text))
    again.load_state_dict(state)
    assert torch.equal(logits(again.text), logits(model.text))
    assert torch.equal(again.fixed.weight, model.fixed.weight)
    with pytest.raises(RuntimeError, match=r"projection\.bias"):  # still strict
        again.load_state_dict({name: value for name, value in state.items() if name != "projection.bias"})


def test_trained_biases_of_the_base_are_saved(load):
    model = Translator(load("bart"), LoraOptions(r=2, bias="all"))
    biases = [name for name in model.state_dict() if name.startswith("text.") and name.endswith("bias")]
    assert "text.model.encoder.layers.0.fc1.bias" in biases
    assert "text.model.decoder.layers.1.self_attn.q_proj.base_layer.bias" in biases


def test_half_precision_and_other_bases(load):
    model = Translator(load("t5"), LoraOptions(r=2))
    state = model.to(torch.bfloat16).state_dict()
    assert state["lora_base"].dtype == torch.uint8
    Translator(load("t5"), LoraOptions(r=2)).load_state_dict(state)
    other = Translator(load("t5", seed=1), LoraOptions(r=2))
    with pytest.raises(CheckpointError, match=r"belong to a base .* checksum [0-9a-f]{16}, but models/tiny has"):
        other.load_state_dict(state)


def test_adapters_on_one_side_alone_are_refused(load):
    plain, adapted = Translator(load("t5")), Translator(load("t5"), LoraOptions(r=2))
    assert "text.encoder.block.0.layer.0.SelfAttention.q.weight" in plain.state_dict()
    plain.load_state_dict(plain.state_dict())
    with pytest.raises(CheckpointError, match=r"trained with LoRA, this model is without: set model\.use_lora=true"):
        plain.load_state_dict(adapted.state_dict())
    with pytest.raises(CheckpointError, match=r"trained without LoRA, this model is with: set model\.use_lora=false"):
        adapted.load_state_dict(plain.state_dict())


def test_parameters_are_logged(load, caplog):
    model = Translator(load("t5"), LoraOptions(r=2))
    with caplog.at_level("INFO"):
        trained, total = log_parameters(model)
    # queries and values of width 16: matrices of 2 x 16 and 16 x 2; the projection 3 x 4 + 4
    assert trained == 2 * attentions(model.text) * (2 * 16 + 16 * 2) + 16
    assert total == sum(p.numel() for p in load("t5").parameters()) + trained + 6
    assert caplog.messages == [f"trainable parameters: {trained:,} of {total:,} ({100 * trained / total:.2f} %)"]
