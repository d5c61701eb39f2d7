"""Model ``sign_mae``: masked-autoencoder pretraining of a SignHiera, with fairseq's criterion ``model``."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor, nn

from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.keymaps import CheckpointError, KeyTable, fit
from slt_plugin.checkpoints.sign_mae import load_sign_mae
from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.transforms import normalise
from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import no_weight_decay
from slt_plugin.modules.hiera_mae import VARIANTS, MAEOutput, SignHieraMAE

logger = logging.getLogger(__name__)

# in names of position embeddings: of SignHiera; BERT, CLIP; T5, MPNet; BART
POSITIONS = ("pos_embed", "position_embedding", "relative_attention_bias", "embed_positions")


@dataclass
class SignMAEConfig(FairseqDataclass):
    """Options of the autoencoder, in ``sign_mae`` and ``sign_clip``."""

    variant: str = field(default="base_128x224", metadata={"help": "size of the autoencoder"})
    mask_ratio: float = field(default=0.9, metadata={"help": "masked share of a clip's mask units"})
    norm_pix_loss: bool = field(
        default=True, metadata={"help": "predict each patch's pixels divided by their own mean and deviation"}
    )
    drop_path: float = field(default=0.0, metadata={"help": "DropPath rate of the encoder's last block"})
    pretrained: Optional[str] = field(
        default=None, metadata={"help": "checkpoint that the encoder starts from: any that slt-extract takes"}
    )
    pretrained_decoder: bool = field(
        default=False, metadata={"help": "take the decoder from there too, which has to fit exactly"}
    )
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "recompute each block in the backward pass: less memory, a third more time"}
    )


def build_mae(cfg: SignMAEConfig, task_cfg) -> SignHieraMAE:
    """The autoencoder that ``cfg.variant`` names, checked against the clips that the task cuts.

    Raises:
        OptionError: an unknown variant, clips of another size than it reads, a mask ratio outside (0, 1).
        CheckpointError: ``cfg.pretrained`` does not exist or does not fit.
    """
    if cfg.variant not in VARIANTS:
        raise OptionError(
            f"model.variant={cfg.variant}{did_you_mean(cfg.variant, VARIANTS)}; variants: {', '.join(VARIANTS)}"
        )
    if not 0 < cfg.mask_ratio < 1:
        raise OptionError(f"model.mask_ratio={cfg.mask_ratio}: give a share above 0 and below 1, such as 0.9")
    if cfg.pretrained_decoder and not cfg.pretrained:
        raise OptionError("model.pretrained_decoder=true needs model.pretrained, a checkpoint of an autoencoder")
    mae = VARIANTS[cfg.variant](drop_path_rate=cfg.drop_path, norm_pix_loss=cfg.norm_pix_loss)
    frames, size = mae.encoder.input_size[:2]
    if (task_cfg.clip_frames, task_cfg.clip_size) != (frames, size):
        raise OptionError(
            f"model.variant={cfg.variant} reads clips of {frames} frames of {size} pixels: set "
            f"task.clip_frames={frames} task.clip_size={size} (now {task_cfg.clip_frames} and {task_cfg.clip_size})"
        )
    if cfg.pretrained_decoder:
        load_sign_mae(cfg.pretrained, mae)
    elif cfg.pretrained:
        encoder = load_sign_hiera(cfg.pretrained, cfg.variant)
        own = mae.encoder.state_dict()
        mae.encoder.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in own})
        logger.info("%s: the encoder's weights are loaded, the decoder starts afresh", Path(cfg.pretrained).name)
    mae.encoder.gradient_checkpointing = cfg.checkpoint_activations
    no_weight_decay(undecayed(mae))
    return mae


def undecayed(module: nn.Module) -> list[nn.Parameter]:
    """What MAE's recipe excludes from weight decay: biases and norms, position embeddings, the mask token.

    Relative positions count as position embeddings, those of text towers as well as the autoencoder's own.
    """
    return [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim == 1 or name.endswith("mask_token") or any(part in name for part in POSITIONS)
    ]


def check_state(model: nn.Module, state: Mapping[str, Tensor], options: str) -> None:
    """Raises CheckpointError where a state dict is not of such a model; ``options`` are those that would differ."""
    try:
        fit(state, model.state_dict(), KeyTable(name=type(model).__name__, renames=()))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Give {options} as in its training, or another checkpoint.save_dir to start afresh"
        ) from error


def prepare_clips(src_tokens: Tensor, src_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of the task as the autoencoder takes it.

    Args:
        src_tokens: (B, T, 3, S, S) uint8, zeros behind each clip.
        src_lengths: (B,) frames of each clip.

    Returns:
        video (B, 3, T, S, S) float32, normalised, and padding (B,) frames.
    """
    # the pixels stay in float32 whatever the model's precision: they are the targets too
    return normalise(src_tokens).transpose(1, 2), src_tokens.shape[1] - src_lengths


@register_model("sign_mae", dataclass=SignMAEConfig)
class SignMAE(BaseFairseqModel):
    """SignHieraMAE with the interface of fairseq's criterion ``model``."""

    def __init__(self, cfg: SignMAEConfig, mae: SignHieraMAE):
        super().__init__()
        self.cfg = cfg
        self.mae = mae

    @classmethod
    def build_model(cls, cfg: SignMAEConfig, task) -> "SignMAE":
        return cls(cfg, build_mae(cfg, task.cfg))

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """See fairseq; raises CheckpointError where it is strict and the tensors are those of another model."""
        if strict:
            check_state(self, state_dict, "model.variant")
        return super().load_state_dict(state_dict, strict, model_cfg, args)

    def reconstruct(self, src_tokens: Tensor, src_lengths: Tensor, mask_seeds: Tensor) -> MAEOutput:
        """See `SignHieraMAE.forward`; arguments as `forward`.

        Raises:
            ModuleShapeError
        """
        video, padding = prepare_clips(src_tokens, src_lengths)
        return self.mae(video, padding=padding, seeds=mask_seeds, mask_ratio=self.cfg.mask_ratio)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, mask_seeds: Tensor) -> dict:
        """The loss summed over predicted patches, and their number as ``sample_size``.

        So fairseq's sum over accumulated batches and ranks, divided by the sum of sample sizes, is the mean over all
        predicted patches of an update, however it was cut.

        Args:
            src_tokens: (B, T, 3, S, S) uint8.
            src_lengths: (B,) frames of each clip.
            mask_seeds: (B,) int64, one for each clip's mask.
        """
        output = self.reconstruct(src_tokens, src_lengths, mask_seeds)
        patches = len(output.pred)
        return {"losses": {"mae": output.loss * patches}, "sample_size": patches}
