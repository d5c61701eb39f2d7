"""Transformer blocks over packed mask units (Hiera, arXiv 2306.00989).

All tensors are (N, S, C): N mask units of all clips one after another, S tokens of a unit in Z-order (see
``hiera_layout``), C channels. What works on single tokens or single units (projections, norms, MLP, attention inside
units, pooling) sees one large batch, whatever the clips' lengths; only global attention looks at clips, and there each
``Group`` of equally long clips is one call. There is no padding anywhere, hence no mask.

Attention always gets tensors of rank 4: PyTorch's fused kernels (flash, memory-efficient) take no others, and compute
tensors of rank 5 with the unfused one, several times slower and with the whole score matrix in memory.
"""

from collections.abc import Iterable, Sequence

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slt_plugin.modules.hiera_layout import Group, pool, window_frames

NORM_EPS = 1e-6
# CUDA's attention kernels put the batch in a grid axis of at most 65535; 21 full clips have more mask units
LARGEST_BATCH = 32768


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, scaled by 1 / sqrt(D): (B, L, heads, D), (B, M, heads, D) twice -> (B, L, heads * D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # B x heads x tokens x D
    if q.shape[0] > LARGEST_BATCH:
        parts = zip(*(x.split(LARGEST_BATCH) for x in (q, k, v)), strict=True)
        y = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).flatten(2)


def attend_clips(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group]) -> Tensor:
    """Attention of each clip's tokens to each other: (N, S, heads, D), (N, S', heads, D) twice -> (N, S, heads * D)."""
    parts, start = [], 0
    for clips, units in groups:
        rows = slice(start, start + clips * units)
        # (clips * units) x S x heads x D -> clips x (units * S) x heads x D
        parts.append(attend(*(t[rows].reshape(clips, -1, *t.shape[2:]) for t in (q, k, v))).flatten(0, 1))
        start += clips * units
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y.view(*q.shape[:2], -1)


class PatchEmbed(nn.Module):
    """The patch convolution, one time step at a time.

    ``proj`` has the released parameters of a Conv3d. It is computed as a Conv2d over the ``kernel[0]`` frames of each
    time step, which are stacked as channels: steps of all clips then form one batch.
    """

    def __init__(self, in_chans: int, dim: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]):
        super().__init__()
        self.proj = nn.Conv3d(in_chans, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, windows: Tensor) -> Tensor:
        """Frames of each time step (N, kernel[0], in_chans, H, W) -> (N, H', W', dim)."""
        return self._convolve(windows, self.proj.padding[1:])

    def units(self, windows: Tensor) -> Tensor:
        """The same for parts of frames that have what lies around them with them: no padding is added."""
        return self._convolve(windows, (0, 0))

    def windows(self, steps: Sequence[int]) -> Tensor:
        """Which frames each time step of packed clips reads, see ``window_frames``."""
        return window_frames(steps, self.proj.kernel_size[0], self.proj.stride[0], self.proj.padding[0])

    def _convolve(self, windows: Tensor, padding: Sequence[int]) -> Tensor:
        weight = self.proj.weight.transpose(1, 2).flatten(1, 2)  # dim x (kernel[0] * in_chans) x kh x kw
        x = windows.flatten(1, 2).to(weight.dtype)
        stride = self.proj.stride[1:]
        if self.proj.kernel_size[1:] == stride and not any(padding):
            # patches that do not overlap: one matrix product, whose gradient is several times faster on a CPU
            patches = x.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))  # N x C x H' x kh x W' x kw
            return F.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3), weight.flatten(1), self.proj.bias)
        x = F.conv2d(x, weight, self.proj.bias, stride, tuple(padding))
        return x.permute(0, 2, 3, 1)


class ClassifierHead(nn.Module):
    """Pooled features to class scores, (B, C) -> (B, num_classes): logits in training, probabilities in evaluation.

    That is what the released classifiers return, so a training loss takes the scores as logits.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x)
        return x if self.training else x.softmax(-1)


class UnitAttention(nn.Module):
    """Multi-head attention, inside each mask unit or over the whole clip, with optionally pooled queries.

    Args:
        dim: channels of the input.
        dim_out: channels of queries, keys, values and output.
        num_heads: divides dim_out.
        q_stride: neighbouring queries that are merged by their maximum; 1 merges none.
        local: attend inside mask units only.
    """

    def __init__(self, *, dim: int, dim_out: int, num_heads: int, q_stride: int, local: bool):
        super().__init__()
        self.num_heads = num_heads
        self.q_stride = q_stride
        self.local = local
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, S, dim) -> queries (N, S // q_stride, heads, D), keys and values (N, S, heads, D)."""
        n, s, _ = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.num_heads, -1).unbind(2)
        return pool(q, self.q_stride), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, groups: Sequence[Group]) -> Tensor:
        """What ``heads`` gives -> (N, S // q_stride, dim_out), before the output projection ``proj``."""
        return attend(q, k, v) if self.local else attend_clips(q, k, v, groups)


class HieraBlock(nn.Module):
    """Pre-norm Transformer block that may pool its tokens and widen its channels, (N, S, dim) -> (N, S', dim_out).

    Where the width changes, the residual path is projected from the normalised input and max-pooled like the queries.
    Stochastic depth drops a branch for a whole clip, as in an unpacked batch.
    """

    def __init__(
        self, *, dim: int, dim_out: int, num_heads: int, mlp_ratio: float, drop_path: float, q_stride: int, local: bool
    ):
        super().__init__()
        self.q_stride = q_stride
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = UnitAttention(dim=dim, dim_out=dim_out, num_heads=num_heads, q_stride=q_stride, local=local)
        self.norm2 = nn.LayerNorm(dim_out, eps=NORM_EPS)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """``groups`` says which of the N units belong to one clip."""
        x, q, k, v = self.before_attention(x)
        y = self.attn.attend(q, k, v, groups)
        return self.after_attention(x, y, self.drop_scale(x, groups), self.drop_scale(x, groups))

    def before_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The residual path (N, S', dim_out), queries, keys and values."""
        y = self.norm1(x)
        if self.proj is not None:
            x = pool(self.proj(y), self.q_stride).to(x.dtype)  # under autocast the residual path keeps its precision
        return x, *self.attn.heads(y)

    def after_attention(self, x: Tensor, y: Tensor, scale1: Tensor | None, scale2: Tensor | None) -> Tensor:
        """Output projection and MLP, each added to the residual path: (N, S', dim_out)."""
        y = self.attn.proj(y)
        x = x + (y if scale1 is None else y * scale1)
        y = self.mlp(self.norm2(x))
        return x + (y if scale2 is None else y * scale2)

    def drop_scale(self, x: Tensor, groups: Sequence[Group]) -> Tensor | None:
        """Stochastic depth of one branch: one draw a clip, 0 or 1 / (1 - rate), for each of its units (N, 1, 1)."""
        if not self.training or self.drop_path.drop_prob == 0.0:
            return None
        draws = self.drop_path(x.new_ones(sum(group.clips for group in groups), 1, 1))
        parts = draws.split([group.clips for group in groups])
        scale = [part.repeat_interleave(group.units, 0) for part, group in zip(parts, groups, strict=True)]
        return torch.cat(scale)

    def compile(self, backend: str = "inductor") -> None:
        """``torch.compile`` of what surrounds attention, in place, for changing numbers of units.

        Attention stays out: its fused kernel gains nothing, and each new combination of clip lengths would be compiled.
        """
        for name in ("before_attention", "after_attention"):
            piece = torch.compile(getattr(self, name), dynamic=True, fullgraph=True, backend=backend)
            setattr(self, name, piece)


def run_blocks(blocks: Iterable[HieraBlock], x: Tensor, groups: Sequence[Group], *, recompute: bool) -> Tensor:
    """Packed mask units (N, S, C) through blocks in a row.

    Args:
        recompute: recompute each block in the backward pass instead of keeping its activations.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, groups, use_reentrant=False)
        else:
            x = block(x, groups)
    return x
