"""The key tables: every foreign name has a rule, nothing is dropped or missing in silence."""

import json
from pathlib import Path

import pytest
import torch

from slt_plugin.checkpoints.keymaps import (
    FAIRSEQ_TEXT,
    HIERA_CLASSIFIER,
    HIERA_MAE,
    HUGGING_FACE_TEXT,
    SIGN_TO_TEXT,
    SSVP_CLIP,
    SSVP_MAE,
    TARRES,
    CheckpointError,
    convert,
    fit,
)

ATTENTION = [f"{p}_proj.{w}" for p in ("k", "v", "q", "out") for w in ("weight", "bias")]


def layer_names(decoder: bool) -> list[str]:
    names = [f"self_attn.{name}" for name in ATTENTION]
    norms = ["self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"]
    if decoder:
        names += [f"encoder_attn.{name}" for name in ATTENTION]
        norms.append("encoder_attn_layer_norm")
    return names + [f"{norm}.{w}" for norm in norms for w in ("weight", "bias")]


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), float(index + 1)) for index, name in enumerate(names)}


def test_fairseq_text_names():
    names = [
        *("encoder.version", "decoder.version", "encoder.embed_positions._float_tensor"),
        *("classification_heads.mnli.dense.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        *("encoder.embed_positions.weight", "encoder.layernorm_embedding.bias", "encoder.layer_norm.weight"),
        *(f"encoder.layers.0.{name}" for name in layer_names(decoder=False)),
        *(f"decoder.layers.11.{name}" for name in layer_names(decoder=True)),
    ]
    converted = convert(tensors(*names), FAIRSEQ_TEXT)
    assert set(converted) == {
        *("encoder.text_encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        *("encoder.text_encoder.embed_positions.weight", "encoder.text_encoder.layernorm_embedding.bias"),
        *("encoder.text_encoder.layer_norm.weight", "decoder.output_projection.weight"),
        *(f"encoder.text_encoder.layers.0.{name}" for name in layer_names(decoder=False)),
        *(f"decoder.layers.11.{name}" for name in layer_names(decoder=True)),
    }
    assert converted["decoder.output_projection.weight"] is converted["decoder.embed_tokens.weight"]


def test_an_untied_output_stays_untied():
    converted = convert(tensors("decoder.embed_tokens.weight", "decoder.embed_out"), FAIRSEQ_TEXT)
    assert not torch.equal(converted["decoder.output_projection.weight"], converted["decoder.embed_tokens.weight"])


@pytest.mark.parametrize("prefix", ["", "model."])
def test_hugging_face_names(prefix):
    state = tensors(
        f"{prefix}shared.weight",
        f"{prefix}encoder.layers.3.fc1.bias",
        f"{prefix}encoder.embed_positions.weight",
        f"{prefix}decoder.layers.3.encoder_attn.k_proj.weight",
        f"{prefix}decoder.layernorm_embedding.weight",
    )
    table = state[f"{prefix}shared.weight"]
    # .bin files repeat the token table, .safetensors files do not
    repeated = {f"{prefix}encoder.embed_tokens.weight": table, f"{prefix}decoder.embed_tokens.weight": table}
    bias = {"lm_head.weight": table, "final_logits_bias": torch.zeros(1, 2)}
    converted = convert(state, HUGGING_FACE_TEXT)
    assert convert(state | repeated | bias, HUGGING_FACE_TEXT).keys() == converted.keys()
    assert set(converted) == {
        *("encoder.text_encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        *("decoder.output_projection.weight", "encoder.text_encoder.layers.3.fc1.bias"),
        *("encoder.text_encoder.embed_positions.weight", "decoder.layers.3.encoder_attn.k_proj.weight"),
        "decoder.layernorm_embedding.weight",
    }
    for name in ("encoder.text_encoder.embed_tokens.weight", "decoder.output_projection.weight"):
        assert converted[name] is table


def test_values_that_may_not_be_dropped():
    state = tensors("model.shared.weight", "lm_head.weight") | {"final_logits_bias": torch.tensor([[0.0, 1e-3]])}
    with pytest.raises(CheckpointError, match="final_logits_bias is not zero"):
        convert(state, HUGGING_FACE_TEXT)
    state = tensors("model.shared.weight", "model.decoder.embed_tokens.weight")  # they differ: not one token table
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens\.weight differs from another tensor"):
        convert(state, HUGGING_FACE_TEXT)


def test_tarres_names():
    converted = convert(
        tensors(
            *("encoder.feat_proj.weight", "encoder.feat_proj.bias", "encoder.embed_positions._float_tensor"),
            *(f"encoder.transformer_layers.5.{name}" for name in layer_names(decoder=False)),
            *("encoder.layer_norm.weight", "decoder.version", "decoder.embed_positions._float_tensor"),
            *("decoder.embed_tokens.weight", "decoder.layernorm_embedding.weight", "decoder.layer_norm.bias"),
            *(f"decoder.layers.2.{name}" for name in layer_names(decoder=True)),
            "decoder.output_projection.weight",
        ),
        TARRES,
    )
    assert set(converted) == {
        *("encoder.adapter.projection.weight", "encoder.adapter.projection.bias"),
        *(f"encoder.text_encoder.layers.5.{name}" for name in layer_names(decoder=False)),
        *("encoder.text_encoder.layer_norm.weight", "decoder.embed_tokens.weight"),
        *("decoder.layernorm_embedding.weight", "decoder.layer_norm.bias", "decoder.output_projection.weight"),
        *(f"decoder.layers.2.{name}" for name in layer_names(decoder=True)),
    }


def test_names_without_a_rule_are_counted_and_listed():
    state = tensors("encoder.feat_proj.weight", *(f"encoder.subsample.conv_layers.{i}.weight" for i in range(13)))
    with pytest.raises(CheckpointError) as error:
        convert(state, TARRES)
    message = str(error.value)
    assert message.startswith("not a Tarres et al. sign2text_transformer checkpoint: unexpected names: encoder.subsamp")
    assert "conv_layers.9.weight and 3 more (13 in all)" in message
    assert "conv_layers.10" not in message


def test_fit_reports_everything_at_once():
    state = tensors("decoder.fc1.weight", "decoder.extra", "encoder.text_encoder.embed_tokens.weight")
    model = {
        "decoder.fc1.weight": torch.zeros(2, 4),
        "decoder.fc2.weight": torch.zeros(1),
        "decoder.layernorm_embedding.weight": torch.zeros(1),
        "decoder.version": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as error:
        fit(state, model, FAIRSEQ_TEXT, allow_missing=(r"decoder\.fc2\..+",))
    message = str(error.value)
    assert "unexpected names: decoder.extra (1 in all)" in message
    assert "missing names: decoder.layernorm_embedding.weight (1 in all)" in message
    assert "decoder.fc1.weight is (2, 3) in the file and (2, 4) in the model" in message


def test_fit_returns_what_is_loaded_and_what_is_kept():
    state = tensors("decoder.fc1.weight", "encoder.text_encoder.embed_tokens.weight")
    model = {"decoder.fc1.weight": torch.zeros(2, 3), "decoder.fc2.bias": torch.zeros(1), "decoder.version": 0}
    loaded, kept = fit(state, model, FAIRSEQ_TEXT, allow_missing=(r"decoder\.fc2\..+",))
    assert list(loaded) == ["decoder.fc1.weight"]
    assert kept == ["decoder.fc2.bias", "decoder.version"]


# SignHiera: the names of the released models, from the golden list


SHAPES = json.loads((Path(__file__).parent / "golden/state_dict_shapes.json").read_text())


@pytest.mark.parametrize("frames", [16, 128])
def test_released_hiera_names(frames):
    encoder = set(SHAPES[f"hiera_base_{frames}x224"])
    autoencoder = SHAPES[f"mae_hiera_base_{frames}x224"]
    head = {"norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}
    assert set(convert(tensors(*encoder), HIERA_CLASSIFIER)) == encoder
    for table in (SSVP_MAE, HIERA_MAE):
        assert set(convert(tensors(*autoencoder), table)) == encoder - head
    tower = [f"visual.transformer.{name}" for name in autoencoder]
    others = ("visual.proj.0.weight", "text.transformer.shared.weight", "text.proj.2.weight", "logit_scale")
    assert set(convert(tensors(*tower, *others), SSVP_CLIP)) == encoder - head
    ours = [f"encoder.source_encoder.hiera.{name}" for name in encoder]
    others = (
        "encoder.adapter.projection.weight",
        "encoder.text_encoder.layer_norm.bias",
        "decoder.embed_tokens.weight",
    )
    assert set(convert(tensors(*ours, *others), SIGN_TO_TEXT)) == encoder


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (SSVP_MAE, "blocks.0.attn.qkv.extra"),
        (SSVP_MAE, "visual.transformer.blocks.0.norm1.weight"),
        (SSVP_MAE, "pos_embed"),
        (SSVP_CLIP, "blocks.0.norm1.weight"),
        (SSVP_CLIP, "visual.transformer.pos_embed"),
        (SSVP_CLIP, "visual.other.weight"),
        (HIERA_CLASSIFIER, "decoder_embed.weight"),
        (HIERA_MAE, "head.fc.weight"),
        (SIGN_TO_TEXT, "encoder.source_encoder.layers.0.weight"),
        (SIGN_TO_TEXT, "encoder.source_encoder.hiera.pos_embed"),
    ],
)
def test_hiera_names_without_a_rule(table, name):
    with pytest.raises(CheckpointError, match=rf"not a {table.name} checkpoint: unexpected names: {name} \(1 in all\)"):
        convert(tensors(name), table)
