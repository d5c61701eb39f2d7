"""Which mask units of a clip a masked autoencoder sees, and patch embedding of these units alone.

A mask unit is masked or kept as a whole (Hiera, arXiv 2306.00989, section 3); units are numbered through a clip, time
step by time step. Padded time steps hold no units: they are neither kept nor predicted.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from slt_plugin.modules.hiera import SignHiera
from slt_plugin.modules.hiera_layout import ModuleShapeError, UnitLayout

_LARGEST = torch.iinfo(torch.int64).max


def random_keys(seeds: Tensor, count: int) -> Tensor:
    """Random non-negative whole numbers (B, count) that depend on (seed, column) alone; seeds (B,) int64.

    A generator would give other masks on another device, rank or place in a batch. This is SplitMix64 (Steele et al.,
    2014) with the column as counter: the same everywhere, and computed for all at once.
    """
    column = torch.arange(1, count + 1, device=seeds.device)
    x = _mix(seeds)[:, None] + column * -0x61C8864680B583EB  # 64-bit numbers as int64; products wrap around
    return _mix(x) & _LARGEST


def _mix(x: Tensor) -> Tensor:
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ _shift_right(x, shift)) * factor
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical: int64 shifts copies of the sign in


def valid_units(steps: Tensor, max_steps: int, units: int) -> Tensor:
    """Units of the first ``steps`` (B,) of ``max_steps`` time steps: (B, max_steps * units), True = not padded."""
    return torch.arange(max_steps * units, device=steps.device) < (steps * units)[:, None]


def sample_masks(seeds: Tensor, steps: Tensor, *, max_steps: int, units: int, mask_ratio: float) -> Tensor:
    """Random masks: (B, max_steps * units), True = kept.

    Of the V units of a clip that are no padding, ``int(V * (1 - mask_ratio))`` are kept, but at least one, and at least
    one is masked. A clip with padding keeps at least one unit of its first time step (SSVP-SLT, Rust et al., 2024).

    Args:
        seeds: (B,) int64; a clip's mask depends on its seed, its steps and the ratio alone.
        steps: (B,) time steps that are no padding.
        max_steps: time steps of a full clip.
        units: mask units of one time step.

    Raises:
        ModuleShapeError: a ratio outside (0, 1).
    """
    if not 0 < mask_ratio < 1:
        raise ModuleShapeError(f"mask_ratio={mask_ratio}: give the masked share of the units, above 0 and below 1")
    valid = valid_units(steps, max_steps, units)
    keys = random_keys(seeds, max_steps * units).masked_fill(~valid, _LARGEST)
    rank = keys.argsort(dim=1, stable=True).argsort(dim=1)
    count = valid.sum(1)
    kept = (count.double() * (1 - mask_ratio)).long().clamp(min=1).minimum(count - 1)[:, None]
    mask = rank < kept
    # where the beginning is masked altogether: one of its units in exchange for the last one drawn
    hidden = (steps < max_steps) & ~mask[:, :units].any(1)
    first = F.one_hot(rank[:, :units].argmin(1), mask.shape[1]).bool()
    return torch.where(hidden[:, None], (rank < kept - 1) | first, mask)


class PixelUnits:
    """The pixels of packed clips, cut into mask units.

    Args:
        encoder: whose mask units and patch convolution they are for.
        clips: list of (in_chans, T, H, W), T a multiple of the temporal stride.
    """

    def __init__(self, encoder: SignHiera, clips: list[Tensor]):
        self.encoder = encoder
        conv, layout = encoder.patch_embed.proj, encoder.layout
        self.stride = conv.stride[1:]
        self.grid = tuple(size // part for size, part in zip(layout.grid, layout.unit, strict=True))
        self.unit = tuple(part * step for part, step in zip(layout.unit, self.stride, strict=True))  # in pixels
        self.before = conv.padding[1:]
        # the last patch of a unit may read pixels behind it
        self.after = tuple(
            max(0, k - s - p) for k, s, p in zip(conv.kernel_size[1:], self.stride, self.before, strict=True)
        )
        first = clips[0]
        height, width = encoder.input_size[1:]
        lengths = [clip.shape[1] for clip in clips]
        padded = (height + self.before[0] + self.after[0], width + self.before[1] + self.after[1])
        # row 0 is zeros: what the patch convolution finds before and after a clip
        self.frames = first.new_zeros(1 + sum(lengths), encoder.in_chans, *padded)
        inner = self._inner(self.frames)
        at = 1
        for clip, length in zip(clips, lengths, strict=True):
            inner[at : at + length] = clip.transpose(0, 1)
            at += length
        self.windows = encoder.patch_embed.windows([n // encoder.temporal_stride for n in lengths]).to(first.device)

    def _inner(self, padded: Tensor) -> Tensor:
        (top, left), (height, width) = self.before, self.encoder.input_size[1:]
        return padded[..., top : top + height, left : left + width]

    def _cut(self, x: Tensor) -> Tensor:
        """Padded pictures (F, C, H, W) to overlapping views of their units: (F, gh, gw, C, h, w)."""
        (h, w), before, after = self.unit, self.before, self.after
        views = x.unfold(2, h + before[0] + after[0], h).unfold(3, w + before[1] + after[1], w)
        return views.permute(0, 2, 3, 1, 4, 5)

    def embed(self, kept: Tensor, steps: Tensor, units: Tensor, clip_steps: Tensor) -> Tensor:
        """Tokens of the kept units alone, with positions: (K, tokens, embed_dim).

        Masked pixels are zeros for the convolution, whose patches overlap into neighbouring units and time steps.

        Args:
            kept: (packed time steps, units of a step) bool.
            steps, units: (K,) int64, where ``kept`` is True.
            clip_steps: (K,) int64, the number of each step in its clip.
        """
        frames = self.windows[steps]  # K x kernel
        row, column = (part[:, None] for part in (units // self.grid[1], units % self.grid[1]))
        x = self._cut(self.frames)[frames, row, column]  # K x kernel x C x h x w
        if kept.all():
            visible = None
        else:
            seen = self.frames.new_zeros(1 + len(kept), 1, *self.frames.shape[2:], dtype=torch.bool)
            pixels = kept.view(-1, 1, *self.grid).repeat_interleave(self.unit[0], 2).repeat_interleave(self.unit[1], 3)
            self._inner(seen)[1:] = pixels
            of_frame = torch.where(frames > 0, (frames - 1) // self.encoder.temporal_stride + 1, 0)
            visible = self._cut(seen)[of_frame, row, column]
        x = self.encoder.patch_embed.units(x if visible is None else x * visible)  # K x uh x uw x D
        return self._in_z_order(x) + self.encoder.positions(clip_steps, units)

    def _in_z_order(self, x: Tensor) -> Tensor:
        layout = self.encoder.layout
        return UnitLayout(layout.unit, layout.unit, layout.stride, layout.poolings).unroll(x)[:, 0]

    def targets(self, steps: Tensor, units: Tensor) -> Tensor:
        """Pixels of masked units, in the first frame of their time step: (P, positions, values).

        Positions are those that are left of a unit after all poolings, in row-major order; values are height x width x
        channels of each.
        """
        frames = 1 + steps * self.encoder.temporal_stride
        (h, w), channels = self.unit, self.encoder.in_chans
        pictures = self._inner(self.frames).unflatten(3, (-1, w)).unflatten(2, (-1, h))  # F x C x gh x h x gw x w
        pictures = pictures.permute(0, 2, 4, 1, 3, 5)[frames, units // self.grid[1], units % self.grid[1]]
        shrink = (step**self.encoder.layout.poolings for step in self.encoder.layout.stride)
        left = [part // by for part, by in zip(self.encoder.layout.unit, shrink, strict=True)]
        patches = pictures.reshape(len(steps), channels, left[0], h // left[0], left[1], w // left[1])
        return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
