"""Model ``sign_to_text``: poses, features, video to text through fairseq Transformers (from scratch, BART, mBART)."""

import logging
from dataclasses import dataclass, field, replace
from typing import ClassVar, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.models.transformer import Embedding, TransformerConfig, TransformerDecoderBase
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig
from fairseq.utils import get_available_activation_fns
from omegaconf import II
from torch import Tensor, nn

from slt_plugin.checkpoints.importer import load_pretrained_text
from slt_plugin.models.ctc import CTCHead
from slt_plugin.models.encoders import SignEncoder, SourceEncoderConfig, TextEncoder, build_source_encoder
from slt_plugin.models.errors import OptionError
from slt_plugin.models.freezing import Freezing
from slt_plugin.models.precision import Fp16Guard
from slt_plugin.modules.adapter import Adapter

logger = logging.getLogger(__name__)

MAX_CTC_SYMBOLS = 5000


@dataclass
class SignToTextConfig(SourceEncoderConfig):
    """Options of ``sign_to_text``; the defaults are the small Transformer of Tarres et al. (2023)."""

    # source side, after the source encoder
    adapter_stride: int = field(default=1, metadata={"help": "further temporal stride between source and text encoder"})
    # text side
    encoder_layers: int = field(default=6, metadata={"help": "text encoder layers"})
    encoder_embed_dim: int = field(default=256, metadata={"help": "text encoder width"})
    encoder_ffn_embed_dim: int = field(default=1024, metadata={"help": "text encoder FFN width"})
    encoder_attention_heads: int = field(default=4, metadata={"help": "text encoder attention heads"})
    decoder_layers: int = field(default=3, metadata={"help": "text decoder layers"})
    decoder_embed_dim: int = field(default=256, metadata={"help": "text decoder width"})
    decoder_ffn_embed_dim: int = field(default=1024, metadata={"help": "text decoder FFN width"})
    decoder_attention_heads: int = field(default=4, metadata={"help": "text decoder attention heads"})
    dropout: float = field(default=0.3, metadata={"help": "dropout of the text side"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout after the FFN's activation"})
    activation_fn: ChoiceEnum(get_available_activation_fns()) = field(
        default="relu", metadata={"help": "FFN activation"}
    )
    normalize_before: bool = field(default=True, metadata={"help": "LayerNorm before each block (pre-norm)"})
    learned_positions: bool = field(
        default=False,
        metadata={"help": "learned instead of sinusoidal positions; they limit the input length"},
    )
    max_encoder_positions: int = field(
        default=1024, metadata={"help": "longest text-encoder input, in steps after all temporal strides"}
    )
    max_decoder_positions: int = field(default=1024, metadata={"help": "longest output, in tokens"})
    layernorm_embedding: bool = field(default=False, metadata={"help": "LayerNorm after the embeddings"})
    encoder_layernorm_embedding: bool = field(
        default=True, metadata={"help": "with layernorm_embedding: in the text encoder too, not in the decoder alone"}
    )
    scale_embedding: bool = field(default=True, metadata={"help": "multiply embeddings by sqrt(width)"})
    share_decoder_input_output_embed: bool = field(default=True, metadata={"help": "tie the decoder's embeddings"})
    checkpoint_activations: bool = field(default=False, metadata={"help": "recompute activations to save memory"})
    # training
    ctc: bool = field(
        default=False,
        metadata={"help": "add the CTC projection; use with criterion label_smoothed_cross_entropy_with_ctc"},
    )
    ctc_compression: bool = field(
        default=False,
        metadata={"help": "with ctc: the decoder attends to one state for each symbol that CTC reads"},
    )
    text_pretrained: Optional[str] = field(
        default=None,
        metadata={"help": "fairseq model.pt or Hugging Face directory (BART, mBART) that the text side starts from"},
    )
    text_pretrained_parts: ChoiceEnum(("encoder,decoder", "encoder", "decoder")) = field(
        default="encoder,decoder", metadata={"help": "which text parts are loaded from text_pretrained"}
    )
    freeze: str = field(
        default="",
        metadata={"help": "parts that are not trained, e.g. 'source_encoder,text_decoder.layers.0-5'"},
    )
    freeze_updates: int = field(default=0, metadata={"help": "unfreeze after this many updates; 0 keeps them frozen"})
    max_target_positions: int = II("task.max_target_positions")


def transformer_config(cfg: SignToTextConfig) -> TransformerConfig:
    """fairseq's own configuration of the text encoder and decoder."""
    return TransformerConfig(
        encoder=EncDecBaseConfig(
            embed_dim=cfg.encoder_embed_dim,
            ffn_embed_dim=cfg.encoder_ffn_embed_dim,
            layers=cfg.encoder_layers,
            attention_heads=cfg.encoder_attention_heads,
            normalize_before=cfg.normalize_before,
            learned_pos=cfg.learned_positions,
        ),
        decoder=DecoderConfig(
            embed_dim=cfg.decoder_embed_dim,
            input_dim=cfg.decoder_embed_dim,
            output_dim=cfg.decoder_embed_dim,
            ffn_embed_dim=cfg.decoder_ffn_embed_dim,
            layers=cfg.decoder_layers,
            attention_heads=cfg.decoder_attention_heads,
            normalize_before=cfg.normalize_before,
            learned_pos=cfg.learned_positions,
        ),
        activation_fn=cfg.activation_fn,
        dropout=cfg.dropout,
        attention_dropout=cfg.attention_dropout,
        activation_dropout=cfg.activation_dropout,
        max_source_positions=cfg.max_encoder_positions,
        max_target_positions=cfg.max_decoder_positions,
        layernorm_embedding=cfg.layernorm_embedding,
        no_scale_embedding=not cfg.scale_embedding,
        share_decoder_input_output_embed=cfg.share_decoder_input_output_embed,
        checkpoint_activations=cfg.checkpoint_activations,
    )


def _check_ctc_vocabulary(dictionary) -> None:
    """fairseq's criterion takes index 0 for CTC's blank and one encoder step for each token."""
    if len(dictionary) > MAX_CTC_SYMBOLS:
        raise OptionError(
            f"model.ctc=true with {len(dictionary)} symbols: CTC is for vocabularies of at most {MAX_CTC_SYMBOLS}; "
            "set model.ctc=false and criterion label_smoothed_cross_entropy, or train a smaller SentencePiece model"
        )
    if dictionary.bos() != 0:
        raise OptionError("model.ctc=true needs a vocabulary whose index 0 is <s>, which fairseq takes for CTC's blank")


class SignToTextModel(Freezing, Fp16Guard, FairseqEncoderDecoderModel):
    """Sign encoder and fairseq Transformer decoder, with an optional CTC head on the encoder.

    ``net_input`` is ``src_tokens`` (B, T, C) float, ``src_lengths`` (B,) and ``prev_output_tokens`` (B, U); of raw
    video ``src_tokens`` (B, F, 3, S, S) uint8 and also ``src_clips`` (B, N).
    """

    parts: ClassVar = {
        "source_encoder": "encoder.source_encoder",
        "adapter": "encoder.adapter",
        "text_encoder": "encoder.text_encoder",
        "text_decoder": "decoder",
    }

    def __init__(self, cfg: SignToTextConfig, encoder: SignEncoder, decoder: TransformerDecoderBase):
        super().__init__(encoder, decoder)
        self.cfg = cfg
        self.freeze(cfg.freeze, cfg.freeze_updates)

    @classmethod
    def build_model(cls, cfg: SignToTextConfig, task) -> "SignToTextModel":
        """Builds the model for ``task.source_channels`` and ``task.target_dictionary``.

        Raises:
            OptionError: options that contradict each other.
            CheckpointError: ``text_pretrained`` does not exist or does not fit.
        """
        if cfg.encoder_embed_dim != cfg.decoder_embed_dim:
            raise OptionError(
                f"model.encoder_embed_dim ({cfg.encoder_embed_dim}) and model.decoder_embed_dim "
                f"({cfg.decoder_embed_dim}) must be equal"
            )
        dictionary = task.target_dictionary
        if cfg.ctc:
            _check_ctc_vocabulary(dictionary)
        elif cfg.ctc_compression:
            raise OptionError("model.ctc_compression=true needs model.ctc=true, whose symbols it goes by")
        text_config = transformer_config(cfg)
        source_encoder = build_source_encoder(cfg, task)
        adapter = Adapter(in_dim=source_encoder.out_dim, out_dim=cfg.encoder_embed_dim, stride=cfg.adapter_stride)
        encoder_norm = cfg.layernorm_embedding and cfg.encoder_layernorm_embedding
        text_encoder = TextEncoder(replace(text_config, layernorm_embedding=encoder_norm))
        # features of unit size after fairseq's embedding scale; otherwise they drown the positions at the start
        nn.init.normal_(adapter.projection.weight, std=source_encoder.out_dim**-0.5 / text_encoder.embed_scale)
        embed_tokens = Embedding(len(dictionary), cfg.decoder_embed_dim, dictionary.pad())
        decoder = TransformerDecoderBase(text_config, dictionary, embed_tokens)
        if cfg.text_pretrained:
            parts = cfg.text_pretrained_parts.split(",")
            load_pretrained_text(
                text_encoder if "encoder" in parts else None,
                decoder if "decoder" in parts else None,
                cfg.text_pretrained,
                dictionary=dictionary,
            )
        ctc_head = None
        if cfg.ctc:
            ctc_head = CTCHead(cfg.encoder_embed_dim, len(dictionary), compression=cfg.ctc_compression)
        encoder = SignEncoder(source_encoder, adapter, text_encoder, ctc_head)
        return cls(cfg, encoder, decoder)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        src_clips: Tensor | None = None,
    ):
        """Returns logits (B, U, V) and the decoder's extra dict, with ``encoder_out`` added for CTC."""
        encoder_out = self.encoder(src_tokens, src_lengths, src_clips)
        logits, extra = self.decoder(prev_output_tokens, encoder_out=encoder_out)
        extra["encoder_out"] = encoder_out
        return logits, extra

    def max_positions(self) -> tuple[int, int]:
        """Longest source (source steps) and longest target (tokens)."""
        return self.encoder.max_positions(), min(self.decoder.max_positions(), self.cfg.max_target_positions)

    def upgrade_state_dict_named(self, state_dict: dict, name: str) -> None:
        for parameter in ("weight", "bias"):  # its place in checkpoints of version 0.1
            if f"ctc_projection.{parameter}" in state_dict:
                state_dict[f"encoder.ctc_head.projection.{parameter}"] = state_dict.pop(f"ctc_projection.{parameter}")
        super().upgrade_state_dict_named(state_dict, name)

    # CTC, in the form that fairseq's label_smoothed_cross_entropy_with_ctc asks for

    def get_ctc_output(self, net_output, sample) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T', B, V) in fp32 and their lengths (B,)."""
        if self.encoder.ctc_head is None:
            raise OptionError("criterion label_smoothed_cross_entropy_with_ctc needs model.ctc=true")
        return self.encoder.ctc_head.log_probs(net_output[1]["encoder_out"])

    def get_ctc_target(self, sample) -> tuple[Tensor, Tensor]:
        """Targets (B, U) without EOS (and without the BOS of BART, which is CTC's blank), and their lengths (B,)."""
        start = 1 if sample["target"][0, 0] == self.decoder.dictionary.bos() else 0
        return sample["target"][:, start:-1], sample["target_lengths"] - start - 1


@dataclass
class TinyConfig(SignToTextConfig):
    """3+2 layers, 192 wide: trains on two CPU cores."""

    encoder_layers: int = 3
    encoder_embed_dim: int = 192
    encoder_ffn_embed_dim: int = 768
    decoder_layers: int = 2
    decoder_embed_dim: int = 192
    decoder_ffn_embed_dim: int = 768
    pose_dim: int = 192
    dropout: float = 0.1


@dataclass
class BaseConfig(SignToTextConfig):
    """6+6 layers, 512 wide: Transformer base."""

    encoder_embed_dim: int = 512
    encoder_ffn_embed_dim: int = 2048
    encoder_attention_heads: int = 8
    decoder_layers: int = 6
    decoder_embed_dim: int = 512
    decoder_ffn_embed_dim: int = 2048
    decoder_attention_heads: int = 8


@dataclass
class BartBaseConfig(SignToTextConfig):
    """The text side of BART base (Lewis et al., 2020)."""

    encoder_layers: int = 6
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    decoder_layers: int = 6
    decoder_embed_dim: int = 768
    decoder_ffn_embed_dim: int = 3072
    decoder_attention_heads: int = 12
    activation_fn: ChoiceEnum(get_available_activation_fns()) = "gelu"
    normalize_before: bool = False
    learned_positions: bool = True
    layernorm_embedding: bool = True
    scale_embedding: bool = False


@dataclass
class BartLargeConfig(BartBaseConfig):
    """The text side of BART large."""

    encoder_layers: int = 12
    encoder_embed_dim: int = 1024
    encoder_ffn_embed_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_embed_dim: int = 1024
    decoder_ffn_embed_dim: int = 4096
    decoder_attention_heads: int = 16


@dataclass
class MBartLargeConfig(BartLargeConfig):
    """The text side of mBART-cc25 (Liu et al., 2020): BART large with pre-norm and scaled embeddings."""

    normalize_before: bool = True
    scale_embedding: bool = True


PRESETS = {
    "sign_to_text": SignToTextConfig,
    "sign_to_text_tiny": TinyConfig,
    "sign_to_text_small": SignToTextConfig,
    "sign_to_text_base": BaseConfig,
    "sign_to_text_bart_base": BartBaseConfig,
    "sign_to_text_bart_large": BartLargeConfig,
    "sign_to_text_mbart_large": MBartLargeConfig,
}
# Each preset is a registered name of its own: with a dataclass model fairseq applies an architecture function after the
# defaults are merged, so `model._name=<arch>` would silently build the full-size model.
for _name, _config in PRESETS.items():
    register_model(_name, dataclass=_config)(type(f"{_config.__name__}Model", (SignToTextModel,), {}))
