"""Model ``sonar_translator``: signing -> a sentence embedding of SONAR -> text in any of 202 languages."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, register_model
from fairseq.models.transformer import TransformerDecoderBase
from omegaconf import II
from torch import Tensor, nn

from slt_plugin.checkpoints.sonar_text import SonarTextSize, build_text_decoder
from slt_plugin.models.encoders import SourceEncoderConfig, build_source_encoder
from slt_plugin.models.errors import OptionError
from slt_plugin.models.freezing import Freezing
from slt_plugin.models.parameter_groups import scale_lr
from slt_plugin.modules.padding import lengths_to_padding_mask
from slt_plugin.modules.sonar import SonarEncoder, SonarEncoderSize

logger = logging.getLogger(__name__)


@dataclass
class SonarTranslatorConfig(SourceEncoderConfig):
    """Options of ``sonar_translator``; the sizes are those of the release (DailyMoth-70h, SONAR's text decoder)."""

    embed_dim: int = field(default=1024, metadata={"help": "channels of the sentence embedding, and of all layers"})
    sonar_encoder_layers: int = field(default=24, metadata={"help": "layers over the features"})
    sonar_decoder_layers: int = field(default=24, metadata={"help": "layers that pool them into the embedding"})
    sonar_ffn_dim: int = field(default=2816, metadata={"help": "FFN width of both"})
    sonar_heads: int = field(default=16, metadata={"help": "attention heads of both"})
    sonar_head_dim: int = field(default=64, metadata={"help": "channels of each head"})
    sonar_dropout: float = field(default=0.0, metadata={"help": "dropout of both"})
    decoder_layers: int = field(default=24, metadata={"help": "text decoder layers"})
    decoder_ffn_embed_dim: int = field(default=8192, metadata={"help": "text decoder FFN width"})
    decoder_attention_heads: int = field(default=16, metadata={"help": "text decoder attention heads"})
    decoder_dropout: float = field(default=0.0, metadata={"help": "dropout of the text decoder"})
    max_encoder_positions: int = field(default=2048, metadata={"help": "longest input, in steps of the features"})
    checkpoint_activations: bool = field(default=False, metadata={"help": "recompute activations to save memory"})
    freeze: str = field(
        default="",
        metadata={"help": "parts that are not trained: source_encoder, sonar_encoder, text_decoder; comma-joined"},
    )
    freeze_updates: int = field(default=0, metadata={"help": "unfreeze after this many updates; 0 keeps them frozen"})
    lr_scales: str = field(
        default="",
        metadata={
            "help": "learning rates of parts over that of the run, e.g. 'source_encoder=0.1,text_decoder=0.01'; with "
            "optimizer adam_groups"
        },
    )
    max_target_positions: int = II("task.max_target_positions")


class SonarSentenceEncoder(FairseqEncoder):
    """Source encoder and `SonarEncoder` in a row; every decoder sees its embedding as a source of one step."""

    def __init__(self, source_encoder: nn.Module, sonar: SonarEncoder, max_steps: int):
        super().__init__(dictionary=None)
        self.source_encoder = source_encoder
        self.sonar = sonar
        self.stride = source_encoder.stride
        self.max_steps = max_steps

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        src_clips: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> dict[str, list[Tensor]]:
        """src_tokens (B, T, C) float, src_lengths (B,) steps -> ``encoder_out`` with the embeddings, 1 x B x D.

        Args:
            src_clips: raw video, see `models.encoders.SignEncoder`.
            embedding: (B, D), where it is known already: the same signing is decoded into several languages.
        """
        if embedding is None:
            dtype = self.sonar.start.dtype
            if src_clips is not None:
                x, padding_mask = self.source_encoder(src_tokens, src_clips)
            else:
                x = src_tokens.to(dtype)  # fairseq-generate --fp16 halves the model but not its inputs
                padding_mask = lengths_to_padding_mask(src_lengths, x.size(1))
                x, padding_mask = self.source_encoder(x, padding_mask)
            embedding = self.sonar(x.to(dtype), padding_mask)
        # no padding mask: the one step is never padding
        return {"encoder_out": [embedding.unsqueeze(0)], "encoder_padding_mask": []}

    def reorder_encoder_out(self, encoder_out: dict[str, list[Tensor]], new_order: Tensor) -> dict[str, list[Tensor]]:
        states = [x.index_select(1, new_order) for x in encoder_out["encoder_out"]]
        return {"encoder_out": states, "encoder_padding_mask": []}

    def max_positions(self) -> int:
        """The longest source, in source steps before the source encoder's stride."""
        return self.max_steps * self.stride


@register_model("sonar_translator", dataclass=SonarTranslatorConfig)
class SonarTranslator(Freezing, FairseqEncoderDecoderModel):
    """SONAR's ASL encoder with its text decoder (fairseq's own TransformerDecoder).

    ``net_input`` as of ``sign_to_text``; without ``prev_output_tokens`` nothing is decoded.
    """

    parts: ClassVar = {
        "source_encoder": "encoder.source_encoder",
        "sonar_encoder": "encoder.sonar",
        "text_decoder": "decoder",
    }
    never_unknown = True  # the release decodes without <unk>

    def __init__(self, cfg: SonarTranslatorConfig, encoder: SonarSentenceEncoder, decoder: TransformerDecoderBase):
        super().__init__(encoder, decoder)
        self.cfg = cfg
        self.freeze(cfg.freeze, cfg.freeze_updates)
        scale_lr(self, self.parts, cfg.lr_scales)

    @classmethod
    def build_model(cls, cfg: SonarTranslatorConfig, task) -> "SonarTranslator":
        """Builds the model; where a checkpoint is about to be loaded (``task.weights_follow``), without any values.

        Raises:
            OptionError: options that contradict each other, or a vocabulary without languages.
            SltError: transformers is not installed.
        """
        dictionary = task.target_dictionary
        if task.codec.kind != "sonar":
            raise OptionError(
                "model sonar_translator writes SONAR's vocabulary: set task.codec=sonar and task.codec_path to its "
                "sentencepiece.source.256000.model (or another SentencePiece model of that form)"
            )
        with torch.device("meta" if task.weights_follow else "cpu"):
            source_encoder = build_source_encoder(cfg, task)
            sonar = SonarEncoder(
                encoder_size(cfg, source_encoder.out_dim),
                dropout=cfg.sonar_dropout,
                gradient_checkpointing=cfg.checkpoint_activations,
            )
            decoder = build_text_decoder(
                text_size(cfg),
                dictionary,
                dropout=cfg.decoder_dropout,
                checkpoint_activations=cfg.checkpoint_activations,
            )
        encoder = SonarSentenceEncoder(source_encoder, sonar, cfg.max_encoder_positions)
        return cls(cfg, encoder, decoder)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor | None = None,
        src_clips: Tensor | None = None,
    ):
        """Returns logits (B, U, V), None without ``prev_output_tokens``, and a dict with ``embedding`` (B, D)."""
        encoder_out = self.encoder(src_tokens, src_lengths, src_clips)
        logits, extra = None, {}
        if prev_output_tokens is not None:
            logits, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out)
        extra["embedding"] = encoder_out["encoder_out"][0][0]
        return logits, extra

    def embed(self, net_input: dict[str, Tensor]) -> Tensor:
        """Sentence embeddings (B, D) of a batch's input."""
        source = {name: net_input[name] for name in ("src_tokens", "src_lengths", "src_clips") if name in net_input}
        return self.encoder(**source)["encoder_out"][0][0]

    def max_positions(self) -> tuple[int, int]:
        """Longest source (source steps) and longest target (tokens)."""
        return self.encoder.max_positions(), min(self.decoder.max_positions(), self.cfg.max_target_positions)

    # weights

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        # without the number fairseq takes the file for an old one and drops the last layer norm, strict loading or not
        state_dict.setdefault("decoder.version", torch.tensor([3.0]))
        super().upgrade_state_dict_named(state_dict, name)

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's; a model that was built without values takes the tensors themselves, memory-mapped or not."""
        if not any(parameter.is_meta for parameter in self.parameters()):
            return super().load_state_dict(state_dict, strict, model_cfg, args)
        self.upgrade_state_dict(state_dict)
        result = nn.Module.load_state_dict(self, state_dict, strict=strict, assign=True)
        self.decoder.output_projection.weight = self.decoder.embed_tokens.weight
        return result

    def half(self):
        """To fp16, but for the weights in T5's layers whose products leave its range."""
        kept = [(parameter, parameter.detach().float()) for parameter in self.encoder.sonar.fp32_weights()]
        super().half()
        for parameter, value in kept:
            parameter.data = value.to(parameter.device)
        return self


def encoder_size(cfg: SonarTranslatorConfig, feature_dim: int) -> SonarEncoderSize:
    """The sizes that the options name."""
    return SonarEncoderSize(
        feature_dim=feature_dim,
        embed_dim=cfg.embed_dim,
        ffn_dim=cfg.sonar_ffn_dim,
        head_dim=cfg.sonar_head_dim,
        heads=cfg.sonar_heads,
        encoder_layers=cfg.sonar_encoder_layers,
        decoder_layers=cfg.sonar_decoder_layers,
    )


def text_size(cfg: SonarTranslatorConfig) -> SonarTextSize:
    """The sizes that the options name."""
    return SonarTextSize(
        layers=cfg.decoder_layers,
        embed_dim=cfg.embed_dim,
        ffn_dim=cfg.decoder_ffn_embed_dim,
        heads=cfg.decoder_attention_heads,
    )


def size_options(encoder: SonarEncoderSize, text: SonarTextSize) -> dict[str, int]:
    """The options of these sizes: what `encoder_size` and `text_size` read.

    Raises:
        OptionError: sizes that no option names.
    """
    if encoder.embed_dim != text.embed_dim:
        raise OptionError(f"the encoder writes {encoder.embed_dim} channels, the text decoder reads {text.embed_dim}")
    return {
        "embed_dim": encoder.embed_dim,
        "sonar_encoder_layers": encoder.encoder_layers,
        "sonar_decoder_layers": encoder.decoder_layers,
        "sonar_ffn_dim": encoder.ffn_dim,
        "sonar_heads": encoder.heads,
        "sonar_head_dim": encoder.head_dim,
        "decoder_layers": text.layers,
        "decoder_ffn_embed_dim": text.ffn_dim,
        "decoder_attention_heads": text.heads,
    }
