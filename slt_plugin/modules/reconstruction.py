"""What a masked autoencoder sees of a clip and what it makes of it, as pictures.

Only the first frame of each time step is predicted (MAE-ST, Feichtenhofer et al., 2022), so a picture stands for a time
step and is that frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.modules.hiera import SignHiera
from slt_plugin.modules.hiera_layout import ModuleShapeError, shape
from slt_plugin.modules.hiera_mae import PIXEL_NORM_EPS, MAEOutput, SignHieraMAE
from slt_plugin.modules.hiera_masking import valid_units

# of hidden units, in normalised pixels; not the mean, which the encoder gets there: many backgrounds are as grey
GREY = -1.0


class Reconstruction(NamedTuple):
    """One clip: pictures (time steps, channels, H, W) float32 of normalised pixels, padded time steps left out.

    masked: hidden units are `GREY`.
    reconstruction: hidden units are predicted, visible ones as they are.
    original: the clip itself.
    hidden: share of its units that are hidden.
    loss: mean squared error over the clip's predicted values, as in training.
    """

    masked: Tensor
    reconstruction: Tensor
    original: Tensor
    hidden: float
    loss: float


def to_patches(pictures: Tensor, encoder: SignHiera) -> Tensor:
    """Pictures (N, C, H, W) to the patches that are predicted: (N, units, positions, height x width x C)."""
    n = len(pictures)
    x = pictures.reshape(n, -1, *_tiling(encoder)).permute(0, 2, 5, 3, 6, 4, 7, 1)  # N x gh x gw x lh x lw x h x w x C
    return x.flatten(5).flatten(3, 4).flatten(1, 2)


def from_patches(patches: Tensor, encoder: SignHiera) -> Tensor:
    """The inverse of `to_patches`."""
    gh, lh, h, gw, lw, w = _tiling(encoder)
    x = patches.reshape(len(patches), gh, gw, lh, lw, h, w, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return x.reshape(len(patches), -1, gh * lh * h, gw * lw * w)


def _tiling(encoder: SignHiera) -> tuple[int, ...]:
    """How the height of a picture splits into units, positions and pixels, and then its width."""
    layout, sizes = encoder.layout, []
    for side, grid, unit, step in zip(encoder.input_size[1:], layout.grid, layout.unit, layout.stride, strict=True):
        units, positions = grid // unit, unit // step**layout.poolings
        sizes += [units, positions, side // (units * positions)]
    return tuple(sizes)


@torch.no_grad()
def reconstruct(
    mae: SignHieraMAE, video: Tensor, output: MAEOutput, padding: Tensor | None = None
) -> list[Reconstruction]:
    """Puts the predictions for a batch of clips in their places.

    With ``norm_pix_loss`` a predicted patch has no brightness and contrast of its own. It gets those of the patch that
    it is to be, the mean and deviation of its target, as in the demonstration of MAE (He et al., 2022): such a picture
    shows more than the model knows.

    Args:
        video, padding: what ``mae`` was called with.
        output: what it returned.

    Raises:
        ModuleShapeError: the output of other clips.
    """
    encoder, units = mae.encoder, mae.encoder.layout.units
    steps = encoder.kept_steps(video, padding)
    counts = torch.tensor(steps, device=output.mask.device)
    valid = valid_units(counts, video.shape[2] // encoder.temporal_stride, units)
    if output.mask.shape != valid.shape:
        raise ModuleShapeError(f"the output has a mask {shape(output.mask)}, the clips one of {shape(valid)}")
    hidden = valid & ~output.mask
    sizes = (hidden.sum(1) * mae.positions).tolist()
    if sum(sizes) != len(output.pred):
        raise ModuleShapeError(f"the output has {len(output.pred)} predicted patches, the clips {sum(sizes)}")
    clips = []
    predictions, targets = output.pred.float().split(sizes), output.target.float().split(sizes)
    for i, (pred, target) in enumerate(zip(predictions, targets, strict=True)):
        frames = video[i, :, : steps[i] * encoder.temporal_stride : encoder.temporal_stride]
        original = to_patches(frames.transpose(0, 1).float(), encoder).flatten(0, 1)  # all units x positions x values
        where = hidden[i, : steps[i] * units]
        pixels = pred.reshape(-1, mae.positions, pred.shape[-1])
        if mae.norm_pix_loss:
            hidden_patches = original[where]
            deviation = (hidden_patches.var(-1, keepdim=True) + PIXEL_NORM_EPS).sqrt()
            pixels = pixels * deviation + hidden_patches.mean(-1, keepdim=True)
        masked, filled = original.clone(), original.clone()
        masked[where], filled[where] = GREY, pixels
        pictures = [from_patches(x.unflatten(0, (-1, units)), encoder) for x in (masked, filled, original)]
        clips.append(Reconstruction(*pictures, int(where.sum()) / len(where), float((pred - target).square().mean())))
    return clips


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers 0 to count - 1, the first and the last among them."""
    return torch.linspace(0, count - 1, min(wanted, count), dtype=torch.float64).round().long().tolist()
