"""SONAR's encoder of American Sign Language: features of a sentence -> one embedding (Duquenne et al., 2023).

The layers are those of T5 v1.1 (Hugging Face); what is SONAR's own is the projection of the features before them, the
decoder that reads one start symbol and so pools the sentence, and the projection behind it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from slt_plugin.common.errors import SltError

# the weights whose products leave the range of fp16 in T5; its layers take them in fp32 among fp16 ones
OVERFLOWING = "DenseReluDense.wo.weight"
OUT_STD = 1e-4  # start of the last projection: embeddings have components of about 5e-3


@dataclass(frozen=True)
class SonarEncoderSize:
    """Sizes of a `SonarEncoder`; the defaults are those of the release (T5 v1.1 large).

    feature_dim: channels of the features. embed_dim: of the sentence embedding, as wide as the layers.
    """

    feature_dim: int = 768
    embed_dim: int = 1024
    ffn_dim: int = 2816
    head_dim: int = 64
    heads: int = 16
    encoder_layers: int = 24
    decoder_layers: int = 24
    position_buckets: int = 32
    max_distance: int = 128

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class ScaledProjection(nn.Module):
    """scale * (W x + b): features (B, T, F) -> (B, T, D), each output channel with a scale of its own."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.scale = nn.Parameter(torch.ones(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


class SonarEncoder(nn.Module):
    """Features of a signed sentence -> its embedding in the space of SONAR.

    Neither an embedding scale nor absolute positions are used; distances enter attention as T5's buckets. The start
    symbol of the pooling decoder is the one row that it needs of a token table, so it is a parameter.

    Raises:
        SltError: transformers is not installed.
    """

    def __init__(self, size: SonarEncoderSize, *, dropout: float = 0.0, gradient_checkpointing: bool = False):
        super().__init__()
        self.size = size
        self.feature_projection = ScaledProjection(size.feature_dim, size.embed_dim)
        self.encoder = _stack(size, dropout, decoder=False)
        self.start = nn.Parameter(torch.empty(size.embed_dim).normal_())
        self.decoder = _stack(size, dropout, decoder=True)
        self.projection_out = nn.Linear(size.embed_dim, size.embed_dim, bias=False)
        nn.init.normal_(self.projection_out.weight, std=OUT_STD)
        if gradient_checkpointing:
            for stack in (self.encoder, self.decoder):
                stack.gradient_checkpointing_enable()

    def forward(self, features: Tensor, padding_mask: Tensor) -> Tensor:
        """features (B, T, F), padding_mask (B, T) True = padding -> embeddings (B, D)."""
        keep = (~padding_mask).long()  # Hugging Face masks count the other way round
        states = self.encoder(inputs_embeds=self.feature_projection(features), attention_mask=keep).last_hidden_state
        pooled = self.decoder(
            inputs_embeds=self.start.expand(len(states), 1, -1),  # B x 1 x D
            encoder_hidden_states=states,
            encoder_attention_mask=keep,
            use_cache=False,
        ).last_hidden_state
        return self.projection_out(pooled[:, 0])

    def fp32_weights(self) -> list[nn.Parameter]:
        """The weights that stay fp32 when the rest is cast to fp16."""
        return [p for name, p in self.named_parameters() if name.endswith(OVERFLOWING)]


def _stack(size: SonarEncoderSize, dropout: float, *, decoder: bool) -> nn.Module:
    """One half of a T5, without its token table."""
    try:
        from transformers import T5Config
        from transformers.models.t5.modeling_t5 import T5Stack
    except ImportError as error:
        raise SltError(f"SONAR's encoder needs transformers ({error}): pip install 'slt-plugin[hf]'") from error
    config = T5Config(
        vocab_size=1,
        eos_token_id=None,
        d_model=size.embed_dim,
        d_kv=size.head_dim,
        d_ff=size.ffn_dim,
        num_heads=size.heads,
        num_layers=size.decoder_layers if decoder else size.encoder_layers,
        relative_attention_num_buckets=size.position_buckets,
        relative_attention_max_distance=size.max_distance,
        dropout_rate=dropout,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        is_decoder=decoder,
        use_cache=False,
    )
    stack = T5Stack(config)
    stack.embed_tokens = nn.Identity()  # without values; transformers looks for it
    return stack
