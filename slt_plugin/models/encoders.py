"""From a source tensor to fairseq's ``encoder_out``: source encoder -> adapter -> text encoder.

One contract for every source, so that every decoder goes with every encoder: a source encoder takes (B, T, C) and a
padding mask (B, T), True = padding, and returns (B, T', out_dim) with its padding mask (B, T'), where T' is T divided
by its ``stride``. The encoder of raw video takes frames (B, F, 3, S, S) and, instead of the mask, lengths of clips.
"""

from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models import FairseqEncoder
from fairseq.models.transformer import TransformerConfig, TransformerEncoderBase
from torch import Tensor, nn

from slt_plugin.models.ctc import CTCHead
from slt_plugin.models.errors import OptionError
from slt_plugin.models.video_encoder import build_video_encoder
from slt_plugin.modules.adapter import Adapter
from slt_plugin.modules.padding import lengths_to_padding_mask
from slt_plugin.modules.pose_encoder import PoseEncoder

SOURCE_ENCODERS = ("pose", "none", "signhiera")


@dataclass
class SourceEncoderConfig(FairseqDataclass):
    """Options of the source encoder, which every model of this project begins with."""

    source_encoder: ChoiceEnum(SOURCE_ENCODERS) = field(
        default="none",
        metadata={
            "help": "what reads the source before the adapter: 'pose' (temporal convolutions), 'signhiera' (raw "
            "video) or 'none'"
        },
    )
    pose_dim: int = field(default=256, metadata={"help": "width of the pose encoder"})
    pose_strides: str = field(default="2,1,2", metadata={"help": "temporal stride of each pose encoder block"})
    pose_kernel_size: int = field(default=5, metadata={"help": "odd width of its convolutions, in steps"})
    source_dropout: float = field(default=0.1, metadata={"help": "dropout of the source encoder"})
    signhiera_variant: str = field(default="base_128x224", metadata={"help": "size of the SignHiera"})
    signhiera_pretrained: Optional[str] = field(
        default=None, metadata={"help": "checkpoint that the SignHiera starts from"}
    )
    signhiera_trainable_blocks: int = field(
        default=0,
        metadata={"help": "how many of its last blocks are trained; 0: it is frozen, -1: all of it is trained"},
    )
    signhiera_lr_decay: float = field(
        default=1.0,
        metadata={
            "help": "learning rate of each block of the SignHiera over that of the next; with optimizer adam_groups"
        },
    )
    signhiera_drop_path: float = field(default=0.0, metadata={"help": "DropPath rate of its trained blocks"})


class IdentityEncoder(nn.Module):
    """No source encoder: pre-extracted features (or raw landmarks) go straight to the adapter."""

    stride = 1

    def __init__(self, out_dim: int):
        super().__init__()
        self.out_dim = out_dim

    def forward(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        return x, padding_mask


def parse_strides(strides: str) -> list[int]:
    """'2,1,2' -> [2, 1, 2]. Raises OptionError that names the option."""
    try:
        return [int(s) for s in strides.split(",")]
    except ValueError as error:
        raise OptionError(
            f"model.pose_strides: expected integers joined by commas such as '2,1,2', got {strides!r}"
        ) from error


def build_source_encoder(cfg, task) -> nn.Module:
    """The source encoder that ``cfg.source_encoder`` names, for the sources of ``task``.

    Raises:
        OptionError: an encoder of video for other sources, or the other way round.
    """
    reads_video = cfg.source_encoder == "signhiera"
    if reads_video != (task.cfg.source == "video"):
        raise OptionError(
            f"model.source_encoder={cfg.source_encoder} does not go with task.source={task.cfg.source}: raw video is "
            "read by signhiera, and by nothing else"
        )
    if reads_video:
        return build_video_encoder(cfg, task.cfg)
    channels = task.source_channels
    if cfg.source_encoder == "none":
        return IdentityEncoder(channels)
    return PoseEncoder(
        in_channels=channels,
        dim=cfg.pose_dim,
        strides=parse_strides(cfg.pose_strides),
        kernel_size=cfg.pose_kernel_size,
        dropout=cfg.source_dropout,
    )


class TextEncoder(TransformerEncoderBase):
    """fairseq's Transformer encoder fed with embeddings instead of token ids; it has no token table of its own."""

    def __init__(self, cfg: TransformerConfig):
        # the base class wants a token table only to learn the padding index and the width
        super().__init__(cfg, dictionary=None, embed_tokens=nn.Embedding(2, cfg.encoder.embed_dim, padding_idx=1))
        del self.embed_tokens

    def forward(self, embeddings: Tensor, padding_mask: Tensor) -> dict[str, list[Tensor]]:
        """embeddings (B, T, C), padding_mask (B, T) -> encoder_out with T x B x C and B x T, True = padding."""
        # fairseq derives positions and mask from token ids: stand in ids that are padding where the mask is
        token_ids = torch.where(padding_mask, self.padding_idx, self.padding_idx + 1)
        return self.forward_scriptable(token_ids, token_embeddings=embeddings)


class SignEncoder(FairseqEncoder):
    """Source encoder, adapter, text encoder and, where there is one, the CTC head in a row.

    ``stride``: source steps per step of the text encoder, the product of all temporal strides.
    """

    def __init__(
        self, source_encoder: nn.Module, adapter: Adapter, text_encoder: TextEncoder, ctc_head: CTCHead | None = None
    ):
        super().__init__(dictionary=None)
        self.source_encoder = source_encoder
        self.adapter = adapter
        self.text_encoder = text_encoder
        self.ctc_head = ctc_head
        self.stride = source_encoder.stride * adapter.stride

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, src_clips: Tensor | None = None
    ) -> dict[str, list[Tensor]]:
        """src_tokens (B, T, C) float, src_lengths (B,) steps -> fairseq's ``encoder_out`` (T' x B x D).

        Raw video: src_tokens (B, F, 3, S, S) uint8, src_clips (B, N) frames of each row's clips.
        """
        if src_clips is not None:
            x, padding_mask = self.source_encoder(src_tokens, src_clips)
        else:
            # fairseq-generate --fp16 halves the model but not its inputs
            x = src_tokens.to(self.adapter.projection.weight.dtype)
            padding_mask = lengths_to_padding_mask(src_lengths, x.size(1))
            x, padding_mask = self.source_encoder(x, padding_mask)
        x, padding_mask = self.adapter(x, padding_mask)
        encoder_out = self.text_encoder(x, padding_mask)
        return encoder_out if self.ctc_head is None else self.ctc_head(encoder_out)

    def reorder_encoder_out(self, encoder_out, new_order):
        return self.text_encoder.reorder_encoder_out(encoder_out, new_order)

    def max_positions(self) -> int:
        """The longest source, in source steps before any temporal stride."""
        return self.text_encoder.max_positions() * self.stride
