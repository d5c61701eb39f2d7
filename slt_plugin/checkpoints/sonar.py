"""SONAR's released files, read strictly: the encoder of American Sign Language, text decoder and text encoder.

Tensors are memory-mapped: reading a file costs no memory before a value is used.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor, nn

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.foreign import read_torch
from slt_plugin.checkpoints.keymaps import (
    SONAR_ENCODER,
    SONAR_TEXT_DECODER,
    SONAR_TEXT_ENCODER,
    SONAR_TEXT_FAIRSEQ1,
    KeyTable,
    convert,
    fit,
)
from slt_plugin.checkpoints.recognise import looks_like
from slt_plugin.checkpoints.sonar_text import HEAD_DIM, SonarTextEncoder, SonarTextSize, build_text_decoder
from slt_plugin.modules.sonar import SonarEncoder, SonarEncoderSize
from slt_plugin.text.codec import TextCodec, build_codec

logger = logging.getLogger(__name__)

ENCODER_CONTAINERS = ("student", "model", "model_state")
# fairseq2 keeps the special rows as PAD UNK BOS EOS, fairseq as BOS PAD EOS UNK
FAIRSEQ2_SPECIALS = (2, 0, 3, 1)


class SonarPart(NamedTuple):
    """Tensors under our names, of a module of this size."""

    state: dict[str, Tensor]
    size: SonarEncoderSize | SonarTextSize


def load_sonar_encoder(path: str | Path) -> SonarEncoder:
    """SONAR's ASL encoder with the weights of ``dm_70h_ub_sonar_encoder.pth``.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    part = read_sonar_encoder(path)
    with torch.device("meta"):
        module = SonarEncoder(part.size)
    return _filled(module, part.state, SONAR_ENCODER, path)


def load_sonar_decoder(path: str | Path, spm: str | Path) -> tuple[TransformerDecoderBase, TextCodec]:
    """SONAR's text decoder with the weights of ``sonar_text_decoder.pt``, and its vocabulary.

    Args:
        spm: ``sentencepiece.source.256000.model``.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, or its vocabulary has another size.
        CodecError: the vocabulary cannot be read.
    """
    part, codec = read_sonar_decoder(path), build_codec("sonar", spm)
    _check_symbols(part, codec, path, spm)
    with torch.device("meta"):
        module = build_text_decoder(part.size, codec.dictionary)
    _filled(module, part.state, SONAR_TEXT_DECODER, path)
    module.output_projection.weight = module.embed_tokens.weight
    return module, codec


def load_sonar_text_encoder(path: str | Path, spm: str | Path) -> tuple[SonarTextEncoder, TextCodec]:
    """SONAR's text encoder, the teacher, with the weights of ``sonar_text_encoder.pt``; as ``load_sonar_decoder``."""
    part, codec = read_sonar_text_encoder(path), build_codec("sonar", spm)
    _check_symbols(part, codec, path, spm)
    with torch.device("meta"):
        module = SonarTextEncoder(part.size, codec.dictionary)
    _filled(module.transformer, part.state, SONAR_TEXT_ENCODER, path)
    return module, codec


def read_sonar_encoder(path: str | Path) -> SonarPart:
    """The tensors of the ASL encoder; errors as ``load_sonar_encoder``."""
    path = Path(path)
    content = _content(path)
    found = [content[key] for key in ENCODER_CONTAINERS if isinstance(content.get(key), Mapping)]
    if not found or not any("feature_proj" in key for key in found[0]):
        raise CheckpointError(f"{path} is no ASL encoder of SONAR; {looks_like(content)}")
    theirs = dict(found[0])
    # of the token table T5 reads the start symbol alone, id 0; untied tables go before the shared one
    tables = [theirs[key] for key in ("decoder.embed_tokens.weight", "shared.weight") if key in theirs]
    if not tables:
        raise CheckpointError(f"{path}: neither decoder.embed_tokens.weight nor shared.weight is there")
    theirs["start"] = tables[0][0].clone()  # a view would bring the whole table into every file that is written
    try:
        state = convert(theirs, SONAR_ENCODER)
        return SonarPart(state, _encoder_size(state))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_sonar_decoder(path: str | Path) -> SonarPart:
    """The tensors of the text decoder, in either layout; errors as ``load_sonar_decoder``."""
    return _read_text(Path(path), "decoder_frontend.embed.weight", SONAR_TEXT_DECODER, "text decoder")


def read_sonar_text_encoder(path: str | Path) -> SonarPart:
    """The tensors of the text encoder, in either layout; errors as ``load_sonar_text_encoder``."""
    return _read_text(Path(path), "encoder_frontend.embed.weight", SONAR_TEXT_ENCODER, "text encoder")


def _read_text(path: Path, fairseq2_embedding: str, table: KeyTable, what: str) -> SonarPart:
    content = _content(path)
    fairseq2, fairseq1 = content.get("model"), content.get("state_dict")
    decodes = table is SONAR_TEXT_DECODER
    try:
        if isinstance(fairseq2, Mapping) and fairseq2_embedding in fairseq2:
            state = convert(fairseq2, table)
            order = [*FAIRSEQ2_SPECIALS, *range(len(FAIRSEQ2_SPECIALS), len(state["embed_tokens.weight"]))]
            _check_tied(state)
            state["embed_tokens.weight"] = state["embed_tokens.weight"][order]
        elif isinstance(fairseq1, Mapping) and any("encoder_attn" in key for key in fairseq1) == decodes:
            state = convert(fairseq1, SONAR_TEXT_FAIRSEQ1)
            _check_tied(state)
        else:
            raise CheckpointError(f"no {what} of SONAR; {looks_like(content)}")
        if "embed_tokens.weight" not in state:
            raise CheckpointError("embed_tokens.weight is missing")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if decodes:
        state["output_projection.weight"] = state["embed_tokens.weight"]
    # without it fairseq takes the file for an old one and drops the last layer norm, and strict loading still succeeds
    state["version"] = torch.tensor([3.0])
    return SonarPart(state, _text_size(state, path))


def _check_tied(state: Mapping[str, Tensor]) -> None:
    output, table = state.get("output_projection.weight"), state.get("embed_tokens.weight")
    if output is not None and table is not None and not torch.equal(output, table):
        raise CheckpointError("the output projection differs from the embeddings, with which SONAR's is tied")


def _content(path: Path) -> dict:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: scripts/download_pretrained.py fetches SONAR's files")
    return read_torch(path, mmap=True)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for name in state if (m := re.match(pattern, name))), default=-1)


def _encoder_size(state: Mapping[str, Tensor]) -> SonarEncoderSize:
    first = "encoder.block.0.layer"
    try:
        embed_dim, feature_dim = state["feature_projection.linear.weight"].shape
        buckets, heads = state[f"{first}.0.SelfAttention.relative_attention_bias.weight"].shape
        inner = state[f"{first}.0.SelfAttention.q.weight"].shape[0]
        ffn_dim = state[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]} is missing") from error
    return SonarEncoderSize(
        feature_dim=feature_dim,
        embed_dim=embed_dim,
        ffn_dim=ffn_dim,
        head_dim=inner // heads,
        heads=heads,
        encoder_layers=_count(state, r"encoder\.block\.(\d+)\."),
        decoder_layers=_count(state, r"decoder\.block\.(\d+)\."),
        position_buckets=buckets,
    )


def _text_size(state: Mapping[str, Tensor], path: Path) -> SonarTextSize:
    embed_dim = state["embed_tokens.weight"].shape[1]
    if embed_dim % HEAD_DIM or "layers.0.fc1.weight" not in state:
        raise CheckpointError(
            f"{path}: {embed_dim} channels in heads of {HEAD_DIM}, or no layers: no text model of SONAR"
        )
    return SonarTextSize(
        layers=_count(state, r"layers\.(\d+)\."),
        embed_dim=embed_dim,
        ffn_dim=state["layers.0.fc1.weight"].shape[0],
        heads=embed_dim // HEAD_DIM,
    )


def _check_symbols(part: SonarPart, codec: TextCodec, path: str | Path, spm: str | Path) -> None:
    rows = len(part.state["embed_tokens.weight"])
    if rows != len(codec.dictionary):
        raise CheckpointError(
            f"{path} has {rows} symbols, the vocabulary of {spm} {len(codec.dictionary)}: give its own"
        )


def _filled(module: nn.Module, state: Mapping[str, Tensor], table: KeyTable, path: str | Path) -> nn.Module:
    """``module``, built without values, with the tensors of ``state`` for its parameters."""
    try:
        fitting, _ = fit(state, module.state_dict(), table)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # mirrors of the release hold half precision, in which not all of the modules run as they are
    fitting = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in fitting.items()}
    module.load_state_dict(fitting, strict=True, assign=True)
    logger.info("loaded %d tensors of %s (%s)", len(fitting), path, table.name)
    return module.eval()
