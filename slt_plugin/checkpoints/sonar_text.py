"""SONAR's text side as fairseq's own Transformers: the decoder, and the encoder whose embeddings teach (Duquenne 2023).

They stand here, under the models, because the importer returns them.
"""

from dataclasses import dataclass

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoderBase, TransformerEncoderBase
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

MAX_POSITIONS = 512  # tokens, the language included
HEAD_DIM = 64


@dataclass(frozen=True)
class SonarTextSize:
    """Sizes of one of the two; the defaults are the release's."""

    layers: int = 24
    embed_dim: int = 1024
    ffn_dim: int = 8192
    heads: int = 16


class Fp32Positions(SinusoidalPositionalEmbedding):
    """fairseq's sinusoidal positions, kept in fp32 when the model is cast: half precision has 3 digits."""

    def _apply(self, fn, recurse=True):
        table = self.weights
        super()._apply(fn, recurse)
        if self.weights.dtype != table.dtype:
            self.weights = table.to(self.weights.device)
        return self


def text_config(size: SonarTextSize, *, dropout: float = 0.0, checkpoint_activations: bool = False):
    """fairseq's configuration of both: pre-norm, ReLU, embeddings times sqrt(width), tied output."""
    shared = {
        "embed_dim": size.embed_dim,
        "ffn_embed_dim": size.ffn_dim,
        "layers": size.layers,
        "attention_heads": size.heads,
        "normalize_before": True,
    }
    return TransformerConfig(
        encoder=EncDecBaseConfig(**shared),
        decoder=DecoderConfig(**shared, input_dim=size.embed_dim, output_dim=size.embed_dim),
        activation_fn="relu",
        dropout=dropout,
        max_source_positions=MAX_POSITIONS,
        max_target_positions=MAX_POSITIONS,
        share_decoder_input_output_embed=True,
        checkpoint_activations=checkpoint_activations,
    )


def build_text_decoder(
    size: SonarTextSize, dictionary: Dictionary, *, dropout: float = 0.0, checkpoint_activations: bool = False
) -> TransformerDecoderBase:
    """The decoder, which attends to the sentence embedding as to a source of length 1."""
    embed_tokens = Embedding(len(dictionary), size.embed_dim, dictionary.pad())
    config = text_config(size, dropout=dropout, checkpoint_activations=checkpoint_activations)
    decoder = TransformerDecoderBase(config, dictionary, embed_tokens)
    decoder.embed_positions = _positions(size, dictionary)
    return decoder


class SonarTextEncoder(nn.Module):
    """Text -> sentence embedding: the mean over the encoder's states of ``__language__ pieces </s>``."""

    def __init__(self, size: SonarTextSize, dictionary: Dictionary):
        super().__init__()
        embed_tokens = Embedding(len(dictionary), size.embed_dim, dictionary.pad())
        self.transformer = TransformerEncoderBase(text_config(size), dictionary, embed_tokens)
        self.transformer.embed_positions = _positions(size, dictionary)
        self.pad = dictionary.pad()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, U), padded on the right -> embeddings (B, D)."""
        padding = tokens.eq(self.pad)
        states = self.transformer(tokens, (~padding).sum(1))["encoder_out"][0].transpose(0, 1)  # B x U x D
        weights = (~padding).unsqueeze(2).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def _positions(size: SonarTextSize, dictionary: Dictionary) -> Fp32Positions:
    with torch.device("cpu"):  # values, also where the model around it is built without any (meta device)
        return Fp32Positions(size.embed_dim, dictionary.pad(), init_size=MAX_POSITIONS + dictionary.pad() + 1)
