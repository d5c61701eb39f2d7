"""The order in which a hierarchical vision Transformer keeps its tokens: mask units, and nested groups inside them.

A *mask unit* is the smallest square of tokens that a masked autoencoder keeps or masks as a whole, and that the first
stages attend within (Hiera, arXiv 2306.00989, section 3). Pooling between stages merges neighbouring tokens of one
unit, so a unit never has to know what lies beside it.

Row-major token order puts vertical neighbours a whole image row apart: every pooling, every windowed attention and
every choice of units would be a strided reshape of a (T, H, W) grid. Here all tokens of a unit are neighbours in
memory instead, and inside the unit the tokens that the first pooling merges stand next to each other, then the groups
that the second pooling merges, and so on (the Z-order, or Morton order, of quadtrees):

     0  1 |  4  5        an 4 x 4 unit, pooled 2 x 2 twice: tokens 0-3 become one, 4-7 the next, ...;
     2  3 |  6  7        then the four new ones, again consecutive, become one
    ------+------
     8  9 | 12 13
    10 11 | 14 15

So with a unit's tokens in one axis,

* pooling is ``x.view(units, tokens // 4, 4, C).amax(2)``,
* attention inside units is ordinary attention with the units as the batch,
* global attention over a clip merges the axes units and tokens (attention does not depend on the order of tokens),
* masked and padded units are rows that are not there.

Time is never merged after the patch embedding (units and pooling have the temporal size 1), so that a time step can be
dropped without touching any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.common.errors import SltError


class ModuleShapeError(SltError):
    """Sizes that a module cannot work with: the message says which, and what was expected."""


def shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def token_grid(
    input_size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Time steps, rows and columns of tokens after the patch convolution: ``input_size / stride``.

    Raises ModuleShapeError where the convolution's kernel and padding do not give exactly that.
    """
    grid = []
    for size, k, s, p in zip(input_size, kernel, stride, padding, strict=True):
        if size % s or (size + 2 * p - k) // s + 1 != size // s:
            raise ModuleShapeError(
                f"a patch convolution with kernel {tuple(kernel)}, stride {tuple(stride)}, padding {tuple(padding)} "
                f"does not divide an input of {tuple(input_size)} into whole strides; use padding = kernel // 2, "
                "and an input_size that is a multiple of the stride"
            )
        grid.append(size // s)
    return grid


def check_stages(
    stages: Sequence[int],
    q_pool: int,
    mask_unit_attn: Sequence[bool],
    temporal_sizes: Sequence[int],
    embed_dim: int,
    num_heads: int,
) -> None:
    """Raises ModuleShapeError for options of a hierarchical encoder that contradict each other."""
    if len(mask_unit_attn) != len(stages) or min(stages, default=0) < 1:
        raise ModuleShapeError(
            f"stages {tuple(stages)} need one block each at least, and mask_unit_attn one value for each stage; "
            f"got {tuple(mask_unit_attn)}"
        )
    if not 0 <= q_pool < len(stages):
        raise ModuleShapeError(
            f"q_pool counts the stages after the first that pool: 0 to {len(stages) - 1}; got {q_pool}"
        )
    if any(size != 1 for size in temporal_sizes):
        raise ModuleShapeError(
            "mask_unit_size and q_stride must be 1 in time, so that time steps stay separate and padded ones can be "
            f"left out; got {temporal_sizes[0]} and {temporal_sizes[1]}"
        )
    if embed_dim % num_heads:
        raise ModuleShapeError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")


class Group(NamedTuple):
    """Neighbouring clips with equally many mask units in a packed batch."""

    clips: int
    units: int  # of each clip


@dataclass(frozen=True)
class UnitLayout:
    """Reorders the tokens of one time step into mask units and back.

    grid: (height, width) of a time step in tokens.
    unit: (height, width) of a mask unit in tokens; divides the grid.
    stride: (height, width) of one pooling.
    poolings: how often a unit will be pooled; ``stride`` ** ``poolings`` divides the unit.
    """

    grid: tuple[int, int]
    unit: tuple[int, int]
    stride: tuple[int, int]
    poolings: int

    def __post_init__(self) -> None:
        if any(size % part for size, part in zip(self.grid, self.unit, strict=True)):
            raise ModuleShapeError(
                f"mask units of {self.unit} tokens do not tile a time step of {self.grid} tokens; "
                "choose input_size, patch_stride and mask_unit_size so that they do"
            )
        if any(part % step**self.poolings for part, step in zip(self.unit, self.stride, strict=True)):
            raise ModuleShapeError(
                f"a mask unit of {self.unit} tokens cannot be pooled {self.poolings} times by {self.stride}; "
                "choose mask_unit_size, q_pool and q_stride so that it can"
            )

    @property
    def units(self) -> int:
        """Mask units of one time step."""
        return (self.grid[0] // self.unit[0]) * (self.grid[1] // self.unit[1])

    @property
    def tokens(self) -> int:
        """Tokens of one mask unit before any pooling."""
        return self.unit[0] * self.unit[1]

    @property
    def flat_stride(self) -> int:
        """Tokens that one pooling merges."""
        return self.stride[0] * self.stride[1]

    def unroll(self, x: Tensor) -> Tensor:
        """Grids of tokens (N, H, W, C) -> (N, units, tokens, C), units in row-major order, tokens in Z-order."""
        n, c = x.shape[0], x.shape[-1]
        rows, columns = self._factors(0, self.poolings), self._factors(1, self.poolings)
        gh, gw = self.grid[0] // self.unit[0], self.grid[1] // self.unit[1]
        # N x [gh, bh, a, .., a] x [gw, bw, b, .., b] x C: unit, coarsest group, .., finest group along each axis
        x = x.reshape(n, gh, *rows, gw, *columns, c)
        k = len(rows)
        pairs = [axis for i in range(k) for axis in (2 + i, 3 + k + i)]
        x = x.permute(0, 1, 2 + k, *pairs, 3 + 2 * k)  # N x gh x gw x [bh, bw, a, b, .., a, b] x C
        return x.reshape(n, self.units, self.tokens, c)

    def reroll(self, x: Tensor, poolings: int) -> Tensor:
        """The inverse inside each unit, after some poolings: (N, tokens left, C) -> (N, h, w, C).

        ``N`` counts units, which need not be all units of a time step: a masked autoencoder keeps a few of them.
        """
        n, _, c = x.shape
        rows, columns = self._factors(0, self.poolings - poolings), self._factors(1, self.poolings - poolings)
        k = len(rows)
        x = x.reshape(n, *(size for pair in zip(rows, columns, strict=True) for size in pair), c)
        # N x [bh, bw, a, b, .., a, b] x C -> N x [bh, a, .., a] x [bw, b, .., b] x C
        x = x.permute(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2), 2 * k + 1)
        h, w = (part // step**poolings for part, step in zip(self.unit, self.stride, strict=True))
        return x.reshape(n, h, w, c)

    def _factors(self, axis: int, poolings: int) -> list[int]:
        """How one side of a unit splits: what all poolings leave, then one factor for each pooling, coarsest first."""
        left = self.unit[axis] // self.stride[axis] ** self.poolings
        return [left] + [self.stride[axis]] * poolings


def pool(x: Tensor, stride: int) -> Tensor:
    """Max pooling of neighbouring tokens in Z-order: (N, S, ...) -> (N, S // stride, ...)."""
    n, s, *rest = x.shape
    return x.reshape(n, s // stride, stride, *rest).amax(2) if stride > 1 else x


def window_frames(steps: Sequence[int], kernel: int, stride: int, padding: int) -> Tensor:
    """Which frames the patch convolution reads for each time step of packed clips: (sum of steps, kernel), int64.

    The clips' frames stand one after another behind one frame of zeros, and clip i has ``steps[i] * stride`` of them.
    Row 0, the zeros, stands for every frame before or after the clip, as the padding of a convolution does.
    """
    rows, first = [], 1
    offsets = torch.arange(kernel) - padding
    for count in steps:
        frames = count * stride
        t = torch.arange(0, frames, stride).unsqueeze(1) + offsets  # steps x kernel
        rows.append(torch.where((t >= 0) & (t < frames), t + first, 0))
        first += frames
    return torch.cat(rows)
