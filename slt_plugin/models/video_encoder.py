"""SignHiera as the source encoder of a translation model: raw video in, one feature for each time step out."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.sign_hiera import read_file
from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.transforms import normalise
from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import set_lr_scales
from slt_plugin.modules.hiera import VARIANTS, SignHiera
from slt_plugin.modules.hiera_finetuning import freeze_all_but_last, layer_groups, layer_rates
from slt_plugin.modules.padding import lengths_to_padding_mask

logger = logging.getLogger(__name__)


class VideoEncoder(nn.Module):
    """The clips of a batch through SignHiera, the features of a row's clips one behind the other.

    That is what feature extraction stores, overlaps of neighbouring clips included.

    Args:
        hiera: the encoder; its state is part of this module's, under ``hiera.``.
        trainable_blocks: how many of its last blocks are trained; 0: frozen, -1: everything is trained. What is frozen
            runs as in evaluation (no DropPath).
    """

    def __init__(self, hiera: SignHiera, *, trainable_blocks: int):
        super().__init__()
        self.hiera = hiera
        self.out_dim = hiera.feature_dim
        self.stride = hiera.temporal_stride
        count = len(hiera.blocks)
        if not -1 <= trainable_blocks <= count:
            raise OptionError(
                f"model.signhiera_trainable_blocks={trainable_blocks}: give 0 (frozen), 1 to {count} (so many last "
                "blocks) or -1 (all of it)"
            )
        self.trainable_blocks = trainable_blocks
        freeze_all_but_last(hiera, None if trainable_blocks == -1 else trainable_blocks)

    def train(self, mode: bool = True) -> "VideoEncoder":
        super().train(mode)
        if mode and self.trainable_blocks >= 0:
            self.hiera.eval()
            for block in self.hiera.blocks[len(self.hiera.blocks) - self.trainable_blocks :]:
                block.train()
        return self

    def forward(self, frames: Tensor, clip_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """frames (B, F, 3, S, S) uint8, clip_lengths (B, N) frames -> features (B, T, C), padding mask (B, T).

        A row's clips lie one behind the other from its first frame on; lengths of 0 fill up rows with fewer clips.
        """
        rows = [[n for n in row if n] for row in clip_lengths.tolist()]
        clips = [
            # a clip: n x 3 x S x S -> 3 x n x S x S
            clip.transpose(0, 1)
            for row, lengths in zip(frames, rows, strict=True)
            for clip in row[: sum(lengths)].split(lengths)
        ]
        dtype = self.hiera.patch_embed.proj.weight.dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable_blocks != 0):
            encoded = self.hiera.encode_clips([normalise(clip).to(dtype) for clip in clips])
        features, first = [], 0
        for lengths in rows:
            features.append(torch.cat(encoded[first : first + len(lengths)]))
            first += len(lengths)
        steps = torch.tensor([len(row) for row in features], device=frames.device)
        padded = pad_sequence(features, batch_first=True)  # B x T x C
        return padded, lengths_to_padding_mask(steps, padded.size(1))


def build_video_encoder(cfg, task_cfg) -> VideoEncoder:
    """The SignHiera that ``cfg.signhiera_variant`` names, checked against the clips that the task cuts.

    Raises:
        OptionError: an unknown variant, or clips of another size than it reads.
        CheckpointError: ``cfg.signhiera_pretrained`` does not exist or is of another variant.
    """
    variant = cfg.signhiera_variant
    if variant not in VARIANTS:
        raise OptionError(
            f"model.signhiera_variant={variant}{did_you_mean(variant, VARIANTS)}; variants: {', '.join(VARIANTS)}"
        )
    if cfg.signhiera_pretrained:
        hiera = load_sign_hiera(cfg.signhiera_pretrained, variant, drop_path_rate=cfg.signhiera_drop_path)
        _warn_of_other_sampling(cfg, task_cfg, read_file(cfg.signhiera_pretrained, variant).clips)
    else:
        hiera = VARIANTS[variant](drop_path_rate=cfg.signhiera_drop_path)
    frames, size = hiera.input_size[:2]
    if (task_cfg.clip_frames, task_cfg.clip_size) != (frames, size):
        raise OptionError(
            f"model.signhiera_variant={variant} reads clips of {frames} frames of {size} pixels: set "
            f"task.clip_frames={frames} task.clip_size={size} (now {task_cfg.clip_frames} and {task_cfg.clip_size})"
        )
    hiera.gradient_checkpointing = cfg.checkpoint_activations
    if cfg.signhiera_lr_decay != 1:
        if cfg.signhiera_trainable_blocks in (0, 1):
            raise OptionError(
                f"model.signhiera_lr_decay={cfg.signhiera_lr_decay} makes no difference where at most one block is "
                "trained: leave it at 1, or set model.signhiera_trainable_blocks"
            )
        rates = layer_rates(hiera, cfg.signhiera_lr_decay)
        set_lr_scales((rates[name], parameters) for name, parameters in layer_groups(hiera))
    return VideoEncoder(hiera, trainable_blocks=cfg.signhiera_trainable_blocks)


def _warn_of_other_sampling(cfg, task_cfg, trained: Mapping[str, float]) -> None:
    """Names what of ``trained``, how the pretraining cut its videos, is other in this one."""
    other = {name: value for name, value in trained.items() if getattr(task_cfg, name) != value}
    if other:
        here, there = (
            " ".join(f"task.{name}={values[name]:g}" for name in other)
            for values in ({name: getattr(task_cfg, name) for name in other}, other)
        )
        logger.warning("%s, but model.signhiera_pretrained=%s was trained with %s: set them alike, unless you mean it",
                       here, cfg.signhiera_pretrained, there)  # fmt: skip
