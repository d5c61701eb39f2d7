"""Reconstructions of clips as pictures to look at."""

from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.data.transforms import denormalise
from slt_plugin.models.sign_mae import prepare_clips
from slt_plugin.modules.hiera_mae import SignHieraMAE
from slt_plugin.modules.reconstruction import reconstruct

PICTURE_ROWS = ("masked", "reconstruction", "original")


class ClipPictures(NamedTuple):
    """One clip.

    rows: (3, time steps, 3, S, S) uint8, in the order of `PICTURE_ROWS`.
    hidden: share of its mask units that are hidden.
    loss: mean squared error over its predicted values.
    """

    rows: Tensor
    hidden: float
    loss: float


@torch.no_grad()
def clip_pictures(mae: SignHieraMAE, net_input: dict, mask_ratio: float) -> list[ClipPictures]:
    """Pictures of each clip of a batch of task ``sign_pretraining``, on the CPU; no random number is drawn.

    Args:
        net_input: src_tokens (B, T, 3, S, S) uint8, src_lengths (B,) and mask_seeds (B,), on any device.
        mask_ratio: masked share of the mask units.

    Raises:
        ModuleShapeError: clips that the autoencoder cannot read.
    """
    device = mae.mask_token.device
    tokens, lengths, seeds = (net_input[name].to(device) for name in ("src_tokens", "src_lengths", "mask_seeds"))
    video, padding = prepare_clips(tokens, lengths)
    was_training = mae.training
    mae.eval()
    try:
        output = mae(video, padding=padding, seeds=seeds, mask_ratio=mask_ratio)
    finally:
        mae.train(was_training)
    return [
        ClipPictures(
            denormalise(torch.stack([clip.masked, clip.reconstruction, clip.original])).cpu(), clip.hidden, clip.loss
        )
        for clip in reconstruct(mae, video, output, padding)
    ]
