"""Parameter names of foreign projects and the names they have here: one table per project.

Our names (the model ``sign_to_text``): ``encoder.source_encoder.*``, ``encoder.adapter.*``,
``encoder.text_encoder.*`` (a fairseq Transformer encoder, as a rule without a token table), ``decoder.*`` (a fairseq
Transformer decoder). A SignHiera has its own names without a prefix, which are those of the public Hiera code.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slt_plugin.checkpoints.errors import CheckpointError

__all__ = ["CheckpointError", "KeyTable", "convert", "fit", "matches"]

LISTED_KEYS = 10  # names shown in an error before "and N more"


@dataclass(frozen=True)
class KeyTable:
    """How the parameter names of one foreign project become ours. All patterns match whole names.

    renames: (pattern, replacement) pairs; the first pattern that matches decides.
    ignored: foreign names that are dropped.
    zeros: foreign names that are dropped if every value is 0, and are an error otherwise.
    tied: (name, source) pairs of our names: where the file has no ``name``, it is the same tensor as ``source``.
    optional: our names that the target model may lack.
    missing: our names that the file may lack; the model keeps its own value.
    """

    name: str
    renames: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


# ``version`` is 3 in every fairseq Transformer that normalises after the last layer, and modules built by this fairseq
# carry it already; older releases saved 1 or 2 for the same layout. ``_float_tensor`` held a device, not a value.
_BOOKKEEPING = (r"(encoder|decoder)\.version", r"(encoder|decoder)\.embed_positions\._float_tensor")
_OUR_VERSIONS = (r"encoder\.text_encoder\.version", r"decoder\.version")
_TIED_OUTPUT = (("decoder.output_projection.weight", "decoder.embed_tokens.weight"),)
_TOKEN_TABLE = "encoder.text_encoder.embed_tokens.weight"

# fairseq BART and mBART (model.pt of examples/bart and examples/mbart)
FAIRSEQ_TEXT = KeyTable(
    name="fairseq BART or mBART",
    renames=(
        (r"decoder\.embed_out", "decoder.output_projection.weight"),  # releases before 2020
        (r"encoder\.(.+)", r"encoder.text_encoder.\1"),
        (r"(decoder\..+)", r"\1"),
    ),
    ignored=(*_BOOKKEEPING, r"classification_heads\..+"),
    tied=_TIED_OUTPUT,
    optional=(re.escape(_TOKEN_TABLE),),
    missing=_OUR_VERSIONS,
)

# transformers BartForConditionalGeneration, MBartForConditionalGeneration and their bare models (no "model." prefix).
# The names inside encoder and decoder are fairseq's, and both position tables begin with the same two unused rows.
# One token table serves encoder, decoder and output; files repeat it under up to four names.
HUGGING_FACE_TEXT = KeyTable(
    name="Hugging Face BART or mBART",
    renames=(
        (r"(?:model\.)?(?:shared|encoder\.embed_tokens|decoder\.embed_tokens)\.weight", "decoder.embed_tokens.weight"),
        (r"lm_head\.weight", "decoder.output_projection.weight"),
        (r"(?:model\.)?encoder\.(.+)", r"encoder.text_encoder.\1"),
        (r"(?:model\.)?(decoder\..+)", r"\1"),
    ),
    zeros=(r"final_logits_bias",),  # fairseq's output projection has no bias
    tied=(*_TIED_OUTPUT, (_TOKEN_TABLE, "decoder.embed_tokens.weight")),
    optional=(re.escape(_TOKEN_TABLE),),
    missing=_OUR_VERSIONS,
)

# Tarres et al. 2023 (arXiv 2304.06371), model ``sign2text_transformer`` of the fairseq fork
# imatge-upc/slt_how2sign_wicv2023: I3D features -> Linear -> fairseq encoder layers with sinusoidal positions.
TARRES = KeyTable(
    name="Tarres et al. sign2text_transformer",
    renames=(
        (r"encoder\.feat_proj\.(weight|bias)", r"encoder.adapter.projection.\1"),
        (r"encoder\.transformer_layers\.(.+)", r"encoder.text_encoder.layers.\1"),
        (r"encoder\.layer_norm\.(.+)", r"encoder.text_encoder.layer_norm.\1"),
        (r"(decoder\..+)", r"\1"),
    ),
    ignored=_BOOKKEEPING,
    tied=_TIED_OUTPUT,
    missing=_OUR_VERSIONS,
)

# SignHiera. Names as in the public Hiera code; a masked autoencoder has a decoder and no norm and head, and features
# need neither of the two.
_HIERA = (
    r"(pos_embed_(?:spatial|temporal)|patch_embed\.proj\.(?:weight|bias)"
    r"|blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]|proj)\.(?:weight|bias))"
)
_HIERA_HEAD = r"((?:norm|head\.projection)\.(?:weight|bias))"
_HIERA_RENAMES = ((_HIERA, r"\1"), (_HIERA_HEAD, r"\1"))
_MAE_PARTS = r"(?:mask_token|encoder_norm|multi_scale_fusion|decoder).*"

# Masked autoencoders of facebookresearch/ssvp_slt, saved by pretraining/main_pretraining.py ("model"), and the
# DailyMoth-70h release, which is one of them
SSVP_MAE = KeyTable(
    name="SSVP-SLT MAE or DailyMoth SignHiera",
    renames=_HIERA_RENAMES,
    ignored=(_MAE_PARTS,),
    missing=(_HIERA_HEAD,),
)

# facebookresearch/ssvp_slt, saved by pretraining_clip/main_pretraining_clip.py ("clip"): the vision tower's
# ``transformer`` is the whole autoencoder, then a projection, a text tower and the scale of the logits
SSVP_CLIP = KeyTable(
    name="SSVP-SLT CLIP",
    renames=tuple((rf"visual\.transformer\.{pattern}", name) for pattern, name in _HIERA_RENAMES),
    ignored=(rf"visual\.transformer\.{_MAE_PARTS}", r"visual\.proj\..+", r"text\..+", r"logit_(?:scale|bias)"),
    missing=(_HIERA_HEAD,),
)

# facebookresearch/hiera, 16x224 video models ("model_state", or bare names on Hugging Face)
HIERA_MAE = KeyTable(
    name="public Hiera video MAE",
    renames=_HIERA_RENAMES,
    ignored=(_MAE_PARTS,),
    missing=(_HIERA_HEAD,),
)
HIERA_CLASSIFIER = KeyTable(name="public Hiera video classifier", renames=_HIERA_RENAMES)

# Our own: what ``slt-import-checkpoint sign-hiera`` writes, and a translation model that reads video
SIGN_HIERA = KeyTable(name="slt_plugin SignHiera", renames=_HIERA_RENAMES, missing=(_HIERA_HEAD,))
SIGN_TO_TEXT = KeyTable(
    name="sign_to_text or sonar_translator on video",
    renames=tuple((rf"encoder\.source_encoder\.hiera\.{pattern}", name) for pattern, name in _HIERA_RENAMES),
    ignored=(r"encoder\.(?:adapter|text_encoder|ctc_head|sonar)\..+", r"decoder\..+"),
    missing=(_HIERA_HEAD,),
)
# sign_mae, and sign_clip with its text tower
SIGN_MAE = KeyTable(
    name="sign_mae or sign_clip",
    renames=tuple((rf"mae\.encoder\.{pattern}", name) for pattern, name in _HIERA_RENAMES),
    ignored=(rf"mae\.{_MAE_PARTS}", r"(?!mae\.).+"),
    missing=(_HIERA_HEAD,),
)

# SONAR's encoder of American Sign Language (dm_70h_ub_sonar_encoder.pth): Hugging Face's T5 around a projection
# whose own name changed once. Of T5's token tables ``checkpoints.sonar`` reads one row.
_T5_TABLES = (r"shared\.weight", r"(?:encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight")
SONAR_ENCODER = KeyTable(
    name="SONAR ASL encoder",
    renames=(
        (r"encoder\.(?:feature_projection\.)?feature_proj\.(weight|bias)", r"feature_projection.linear.\1"),
        (r"encoder\.(?:feature_projection\.)?feature_proj_scale", "feature_projection.scale"),
        (r"((?:encoder|decoder)\.(?:block\.\d+\.layer\..+|final_layer_norm\.weight))", r"\1"),
        (r"(start|projection_out\.weight)", r"\1"),
    ),
    # an early T5 had it, and no version of Hugging Face's reads it
    ignored=(*_T5_TABLES, r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"),
)

# Translation models of facebookresearch/ssvp_slt (translation/main_translation.py saves them, "model"): Hugging Face's
# T5 or BART (names of transformers 4.32) whose encoder begins with a projection of the features. T5's is multiplied by
# a scale for each output channel. The encoder's token table is not read: features take its place.
_SSVP_PROJECTION = r"encoder\.(?:feature_projection\.)?feature_proj"
SSVP_T5 = KeyTable(
    name="SSVP-SLT SignT5",
    renames=(
        (rf"{_SSVP_PROJECTION}\.(weight|bias)", r"projection.\1"),
        (rf"{_SSVP_PROJECTION}_scale", "projection.scale"),
        (r"(shared\.weight|lm_head\.weight|decoder\.embed_tokens\.weight)", r"\1"),
        (r"((?:encoder|decoder)\.(?:block\.\d+\.layer\..+|final_layer_norm\.weight))", r"\1"),
    ),
    ignored=(
        r"encoder\.embed_tokens\.weight",
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    tied=(("decoder.embed_tokens.weight", "shared.weight"), ("shared.weight", "decoder.embed_tokens.weight")),
    optional=(r"shared\.weight",),
    missing=(r"encoder\.embed_tokens\.weight",),
)
SSVP_BART = KeyTable(
    name="SSVP-SLT SignBART",
    renames=(
        (r"model\.encoder\.feature_projection\.(?:feature_proj\.)?(weight|bias)", r"projection.\1"),
        (r"(model\.shared\.weight|lm_head\.weight|final_logits_bias|model\.decoder\..+)", r"\1"),
        (r"(model\.encoder\.(?:layers\.\d+|embed_positions|layernorm_embedding)\..+)", r"\1"),
    ),
    ignored=(r"model\.encoder\.embed_tokens\.weight",),
    tied=(
        ("model.decoder.embed_tokens.weight", "model.shared.weight"),
        ("model.shared.weight", "model.decoder.embed_tokens.weight"),
        ("lm_head.weight", "model.decoder.embed_tokens.weight"),
    ),
    missing=(r"model\.encoder\.embed_tokens\.weight", "final_logits_bias"),
)

# SONAR's text encoder and decoder, in fairseq2's names and as bare modules of fairseq 1
_FAIRSEQ2_LAYER = (  # \1 is the number of the layer
    (r"self_attn\.output_proj\.(.+)", r"self_attn.out_proj.\2"),
    (r"((?:self_attn\.[qkv]_proj|self_attn_layer_norm)\..+)", r"\2"),
    (r"encoder_decoder_attn\.output_proj\.(.+)", r"encoder_attn.out_proj.\2"),
    (r"encoder_decoder_attn(\.[qkv]_proj\..+|_layer_norm\..+)", r"encoder_attn\2"),
    (r"ffn\.inner_proj\.(.+)", r"fc1.\2"),
    (r"ffn\.output_proj\.(.+)", r"fc2.\2"),
    (r"ffn_layer_norm\.(.+)", r"final_layer_norm.\2"),
)


def _fairseq2_layers(part: str) -> tuple[tuple[str, str], ...]:
    return tuple((rf"{part}\.layers\.(\d+)\.{theirs}", rf"layers.\1.{ours}") for theirs, ours in _FAIRSEQ2_LAYER)


SONAR_TEXT_DECODER = KeyTable(
    name="SONAR text decoder (fairseq2)",
    renames=(
        (r"decoder_frontend\.embed\.weight", "embed_tokens.weight"),
        (r"final_proj\.weight", "output_projection.weight"),
        (r"decoder\.(layer_norm\..+)", r"\1"),
        *_fairseq2_layers("decoder"),
    ),
    tied=(("output_projection.weight", "embed_tokens.weight"),),
    missing=("version",),
)
SONAR_TEXT_ENCODER = KeyTable(
    name="SONAR text encoder (fairseq2)",
    renames=(
        (r"encoder_frontend\.embed\.weight", "embed_tokens.weight"),
        (r"(?:encoder\.)?(layer_norm\..+)", r"\1"),
        *_fairseq2_layers("encoder"),
    ),
    missing=("version",),
)
SONAR_TEXT_FAIRSEQ1 = KeyTable(
    name="SONAR text model (fairseq 1)",
    renames=((r"(embed_tokens\.weight|output_projection\.weight|layers\.\d+\..+|layer_norm\..+)", r"\1"),),
    ignored=("version", r"embed_positions\..+"),
    missing=("version",),
)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def convert(state: Mapping[str, Tensor], table: KeyTable) -> dict[str, Tensor]:
    """Renames a foreign state dict by its table, drops what the table ignores and fills in tied tensors.

    Raises:
        CheckpointError: names without a rule, values that may not be dropped, or two different tensors for one name.
    """
    converted: dict[str, Tensor] = {}
    problems: list[str] = []
    unexpected: list[str] = []
    for key, value in state.items():
        if matches(key, table.ignored):
            continue
        if matches(key, table.zeros):
            if torch.count_nonzero(value):
                problems.append(f"{key} is not zero, and this model has no such parameter")
            continue
        name = _rename(key, table)
        if name is None:
            unexpected.append(key)
        elif name in converted and not torch.equal(converted[name], value):
            problems.append(f"{key} differs from another tensor of the file that also becomes {name}")
        else:
            converted[name] = value
    if unexpected:
        problems.insert(0, f"unexpected names: {_shortened(unexpected)}")
    if problems:
        raise CheckpointError(f"not a {table.name} checkpoint: " + "; ".join(problems))
    for name, source in table.tied:
        if name not in converted and source in converted:
            converted[name] = converted[source]
    return converted


def fit(
    state: Mapping[str, Tensor], model: Mapping[str, Tensor], table: KeyTable, allow_missing: Iterable[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Checks a converted state dict against the state dict of the model that it is meant for.

    Args:
        state: from ``convert``, restricted to the parts that are loaded.
        model: the target's state dict, under our full names.
        allow_missing: further patterns of names that the file may lack.

    Returns:
        (the tensors to load, the names that the file lacks and the model keeps).

    Raises:
        CheckpointError: unexpected names, missing names and different shapes, all in one message.
    """
    allowed = (*table.missing, *allow_missing)
    unexpected = [name for name in state if name not in model and not matches(name, table.optional)]
    missing = [name for name in model if name not in state]
    forbidden = [name for name in missing if not matches(name, allowed)]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(value.shape)} in the model"
        for name, value in model.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{label}: {_shortened(names)}"
        for label, names in (("unexpected names", unexpected), ("missing names", forbidden), ("shapes", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"the {table.name} checkpoint does not fit the model: " + "; ".join(problems))
    return {name: value for name, value in state.items() if name in model}, missing


def _rename(key: str, table: KeyTable) -> str | None:
    for pattern, replacement in table.renames:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def _shortened(names: list[str]) -> str:
    more = len(names) - LISTED_KEYS
    return f"{', '.join(names[:LISTED_KEYS])}{f' and {more} more' if more > 0 else ''} ({len(names)} in all)"
