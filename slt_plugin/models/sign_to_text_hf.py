"""Model ``sign_to_text_hf``: poses, features, video to text through a pretrained Hugging Face seq2seq model."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.models import FairseqEncoderDecoderModel, register_model
from omegaconf import II, MISSING
from torch import Tensor, nn

from slt_plugin.models.encoders import SignEncoder, SourceEncoderConfig, build_source_encoder
from slt_plugin.models.errors import OptionError
from slt_plugin.models.freezing import Freezing
from slt_plugin.models.hf import build_model, describe, load_model
from slt_plugin.models.hf_decoder import HFDecoder, HFTextEncoder
from slt_plugin.models.hf_families import family_of
from slt_plugin.models.hf_lora import MERGE, LoraCheckpoints, LoraOptions, apply_lora, base_identity, log_parameters
from slt_plugin.models.precision import Fp16Guard
from slt_plugin.modules.adapter import Adapter
from slt_plugin.text.errors import HubError
from slt_plugin.text.hub import resolve

logger = logging.getLogger(__name__)

UNLIMITED = 100_000  # positions of a model without a table of them


@dataclass
class SignToTextHFConfig(SourceEncoderConfig):
    """Options of ``sign_to_text_hf``."""

    hf_model: str = field(
        default=MISSING, metadata={"help": "pretrained seq2seq model: its id on the Hugging Face hub, or a directory"}
    )
    hf_config: Optional[str] = field(
        default=None,
        metadata={"help": "its configuration; leave it null: it is filled in, so that a checkpoint needs no hub"},
    )
    adapter_stride: int = field(default=1, metadata={"help": "further temporal stride between source and text encoder"})
    dropout: Optional[float] = field(default=None, metadata={"help": "of the pretrained model; null: its own"})
    freeze_encoder: bool = field(default=False, metadata={"help": "do not train the pretrained encoder"})
    freeze_decoder: bool = field(
        default=False, metadata={"help": "do not train the pretrained decoder, its token table and output projection"}
    )
    use_lora: bool = field(
        default=False, metadata={"help": "train adapters in the pretrained model, not its own weights"}
    )
    lora_config: LoraOptions = field(default_factory=LoraOptions)
    freeze: str = field(
        default="",
        metadata={"help": "parts that are not trained, e.g. 'source_encoder,text_decoder.layers.0-5'"},
    )
    freeze_updates: int = field(
        default=0, metadata={"help": "unfreeze what freeze names after this many updates; 0 keeps it frozen"}
    )
    max_encoder_positions: int = field(
        default=1024, metadata={"help": "longest text-encoder input, in steps after all temporal strides"}
    )
    checkpoint_activations: bool = field(default=False, metadata={"help": "recompute activations to save memory"})
    max_target_positions: int = II("task.max_target_positions")


class TiedNames:
    """Mixin of models with parameters that have several names: a checkpoint holds each once, under the first."""

    def aliases(self) -> dict[str, str]:
        """Further name -> first name of a parameter."""
        first: dict[int, str] = {}
        found = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if id(parameter) in first:
                found[name] = first[id(parameter)]
            first.setdefault(id(parameter), name)
        return found

    def state_dict(self, *args, **kwargs):
        """As torch's, each parameter once."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in self.aliases():
            state.pop(prefix + name, None)
        return state

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's, with the names that a checkpoint leaves out."""
        names = {name: first for name, first in self.aliases().items() if first in state_dict}
        state_dict = {**state_dict, **{name: state_dict[first] for name, first in names.items()}}
        return super().load_state_dict(state_dict, strict, model_cfg, args)


@register_model("sign_to_text_hf", dataclass=SignToTextHFConfig)
class SignToTextHF(LoraCheckpoints, TiedNames, Freezing, Fp16Guard, FairseqEncoderDecoderModel):
    """Sign encoder and adapter -> encoder and decoder of a Hugging Face seq2seq model.

    ``net_input`` as of ``sign_to_text``. ``start_id`` is the token that decoding begins with, None where each row's
    language stands there (mBART-cc25).
    """

    decodes_prefix_languages = True  # the vocabularies of mBART-50, M2M-100 and NLLB

    def __init__(self, cfg: SignToTextHFConfig, encoder: SignEncoder, decoder: HFDecoder, hf: nn.Module):
        super().__init__(encoder, decoder)
        self.cfg = cfg
        self.hf = hf
        self.start_id: int | None = None
        self.overflows_in_fp16 = family_of(hf.config).overflows_in_fp16
        self.parts = {
            "source_encoder": "encoder.source_encoder",
            "adapter": "encoder.adapter",
            "text_encoder": self._name_of(hf.get_encoder()),
            "text_decoder": self._name_of(hf.get_decoder()),
            "output_projection": self._name_of(hf.get_output_embeddings()),
        }
        # the encoder's token table is the decoder's; fed with embeddings it does not use it
        self.borrowed = {"text_encoder": self._name_of(hf.get_input_embeddings())}

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, child in self.named_modules() if child is module)

    @classmethod
    def build_model(cls, cfg: SignToTextHFConfig, task) -> "SignToTextHF":
        """Builds the model around the pretrained one; where a checkpoint follows (``task.weights_follow``), without
        its values, which takes neither the hub nor its directory; but adapters need their base.

        Raises:
            OptionError: options that contradict each other, or a model or vocabulary that cannot be used.
            CheckpointError: weights that do not load.
            HubError: the model is not on this machine and cannot be downloaded.
        """
        hf = cls._pretrained(cfg, task.weights_follow)
        start_id = start_of(hf, task.codec)
        cfg.hf_config = describe(hf)
        identity = base_identity(hf) if cfg.use_lora else None
        scale = 1.0 if task.weights_follow else embedding_scale(hf)
        if cfg.use_lora:
            hf = apply_lora(hf, cfg.lora_config)
        if cfg.checkpoint_activations:
            hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        source_encoder = build_source_encoder(cfg, task)
        adapter = Adapter(in_dim=source_encoder.out_dim, out_dim=hf.config.hidden_size, stride=cfg.adapter_stride)
        # features of unit size become inputs of the size of the embeddings that the encoder was trained on
        nn.init.normal_(adapter.projection.weight, std=scale * source_encoder.out_dim**-0.5)
        nn.init.zeros_(adapter.projection.bias)
        limit = positions_of(hf)
        encoder = SignEncoder(source_encoder, adapter, HFTextEncoder(hf, min(cfg.max_encoder_positions, limit)))
        model = cls(cfg, encoder, HFDecoder(hf, task.target_dictionary, limit), hf)
        model.start_id = start_id
        if identity is not None:
            model.keep_base_out(hf, identity)  # before more is frozen, which is saved
        model.freeze(frozen_parts(cfg), cfg.freeze_updates)
        log_parameters(model)
        return model

    @staticmethod
    def _pretrained(cfg: SignToTextHFConfig, weights_follow: bool) -> nn.Module:
        if weights_follow and cfg.hf_config and not cfg.use_lora:
            return build_model(cfg.hf_config, dropout=cfg.dropout)
        try:
            folder = resolve(cfg.hf_model)
        except HubError as error:
            if not weights_follow or not cfg.use_lora:
                raise
            raise HubError(f"{error}. The checkpoint has adapters for this model: if it was moved, {MERGE}") from error
        if Path(cfg.hf_model).expanduser() == folder:  # a directory, not an id
            cfg.hf_model = str(folder.absolute())  # adapters look for it from wherever they are decoded
        return load_model(folder, dropout=cfg.dropout)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        src_clips: Tensor | None = None,
    ):
        """Returns logits (B, U, rows of the pretrained model's table) and the decoder's extra dict."""
        encoder_out = self.encoder(src_tokens, src_lengths, src_clips)
        return self.decoder(prev_output_tokens, encoder_out=encoder_out)

    def max_positions(self) -> tuple[int, int]:
        """Longest source (source steps) and longest target (tokens)."""
        return self.encoder.max_positions(), min(self.decoder.max_positions(), self.cfg.max_target_positions)


def frozen_parts(cfg: SignToTextHFConfig) -> str:
    """``freeze`` with what freeze_encoder and freeze_decoder stand for.

    Raises:
        OptionError: freeze_updates would thaw what these freeze.
    """
    parts = [cfg.freeze] if cfg.freeze else []
    parts += ["text_encoder"] if cfg.freeze_encoder else []
    parts += ["text_decoder", "output_projection"] if cfg.freeze_decoder else []
    if cfg.freeze_updates > 0 and (cfg.freeze_encoder or cfg.freeze_decoder):
        raise OptionError(
            "model.freeze_updates does not go with model.freeze_encoder and model.freeze_decoder, which freeze for "
            "good: name the parts in model.freeze (text_encoder, text_decoder) instead"
        )
    return ",".join(parts)


def start_of(hf: nn.Module, codec) -> int | None:
    """The token that decoding begins with; None: the row's language.

    Raises:
        OptionError: a vocabulary that is not the model's, or a model that does not say how it begins.
    """
    name, config, size = type(hf).__name__, hf.config, len(codec.dictionary)
    rows = hf.get_input_embeddings().num_embeddings
    if codec.kind != "hf" or size > rows:
        raise OptionError(
            f"the vocabulary (task.codec={codec.kind}, {size} symbols) is not that of {name}, whose table has {rows} "
            "rows: set task.codec=hf and task.codec_path to the value of model.hf_model"
        )
    ids = {"pad": codec.dictionary.pad(), "eos": codec.dictionary.eos()}
    for symbol, index in ids.items():
        theirs = getattr(config, f"{symbol}_token_id", None)
        if theirs is not None and theirs != index and index not in (theirs if isinstance(theirs, list) else ()):
            raise OptionError(
                f"the vocabulary has its {symbol} symbol at {index}, {name} at {theirs}: set task.codec_path to the "
                "value of model.hf_model"
            )
    if codec.languages and not codec.language_is_prefix:
        return None
    for option in ("decoder_start_token_id", "bos_token_id"):  # as generate() looks for it
        start = getattr(config, option, None)
        if start is not None:
            return int(start)
    raise OptionError(
        f"the configuration of {name} has neither decoder_start_token_id nor bos_token_id: add the first to the "
        "config.json of model.hf_model"
    )


def embedding_scale(hf: nn.Module) -> float:
    """The standard deviation of what the pretrained encoder's layers are fed with: token embeddings, scaled."""
    table = hf.get_input_embeddings().weight.detach()
    size = float(table.std()) * (hf.config.hidden_size**0.5 if getattr(hf.config, "scale_embedding", False) else 1.0)
    return size if size > 0 else 1.0


def positions_of(hf: nn.Module) -> int:
    """The longest sequence that its tables of positions allow."""
    if not family_of(hf.config).limited_positions:
        return UNLIMITED
    return hf.config.max_position_embeddings
