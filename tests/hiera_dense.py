"""The usual way to compute a SignHiera, an oracle for tests and the benchmark: nothing left out, padding masked.

Every step of every clip is computed, in one batch, over tokens in a layout of its own (the members of a pooling vary
slowest, mask units fastest). Queries, keys and values have rank 5 (batch, heads, windows, tokens, channels), as in the
public implementations, and a mask hides padded keys from global attention.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slt_plugin.modules.hiera import SignHiera


def token_order(steps: int, height: int, width: int, levels: int) -> Tensor:
    """Row-major token numbers in the order [member of the 1st 2 x 2 group, of the 2nd, .., step, unit], flat."""
    order = torch.arange(steps * height * width).view(1, steps, height, width)
    for _ in range(levels):
        order = torch.stack([order[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1).flatten(0, 1)
    return order.flatten()


def pool(x: Tensor, stride: int) -> Tensor:
    """(B, N, C) -> (B, N // stride, C)."""
    return x.view(len(x), stride, -1, x.shape[-1]).amax(1)


def positions(e: SignHiera, steps: int) -> Tensor:
    """(1, steps * height * width, C), row-major."""
    if not e.sep_pos_embed:
        return e.pos_embed[:, : steps * e.layout.grid[0] * e.layout.grid[1]]
    spatial, temporal = e.pos_embed_spatial, e.pos_embed_temporal[:, :steps]
    return spatial.repeat(1, steps, 1) + temporal.repeat_interleave(spatial.shape[1], 1)


class DenseHiera(nn.Module):
    """Shares the parameters of a SignHiera that pools 2 x 2 and has mask units of 2 ** n tokens a side."""

    def __init__(self, encoder: SignHiera):
        super().__init__()
        self.encoder = encoder

    def extract_features(self, video: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As SignHiera's; video (B, C, T, H, W) is computed in full."""
        e = self.encoder
        steps, stride = video.shape[2] // e.temporal_stride, e.temporal_stride
        padding = torch.zeros(len(video), dtype=torch.int64) if padding is None else padding
        masked = bool(padding.any())
        kept = steps - (padding // stride).to(video.device)
        keep = torch.arange(steps, device=video.device) < kept[:, None]  # B x T'
        video = video * keep.repeat_interleave(stride, 1)[:, None, :, None, None]
        x = e.patch_embed.proj(video).flatten(2).transpose(1, 2)  # B x (T' * H' * W') x C, row-major
        x = x + positions(e, steps)
        unit = e.layout.unit[0]
        x = x[:, token_order(steps, *e.layout.grid, unit.bit_length() - 1).to(x.device)]
        kept_units = keep.repeat_interleave(e.layout.units, 1) if masked else None
        for block in e.blocks:
            x = run_block(block, x, steps * e.layout.units, kept_units)
        members = x.shape[1] // (steps * e.layout.units)
        features = x.view(len(x), members, steps, e.layout.units, -1).mean((1, 3))
        return features * keep[..., None], ~keep


def run_block(block: nn.Module, x: Tensor, units: int, keep: Tensor | None) -> Tensor:
    """``keep`` (B, units): True = its tokens are seen by global attention; None: all are."""
    y = block.norm1(x)
    if block.proj is not None:
        x = pool(block.proj(y), block.q_stride)
    x = x + attention(block.attn, y, units, keep)
    return x + block.mlp(block.norm2(x))


def attention(attn: nn.Module, x: Tensor, units: int, keep: Tensor | None) -> Tensor:
    batch, tokens, _ = x.shape
    windows = units if attn.local else 1
    qkv = attn.qkv(x).view(batch, tokens // windows, windows, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(3, 0, 4, 2, 1, 5)  # each B x heads x windows x tokens of a window x D
    q = q.unflatten(3, (attn.q_stride, -1)).amax(3)
    mask = None
    if keep is not None and not attn.local:
        mask = keep[:, None].expand(batch, tokens // units, units).reshape(batch, 1, 1, 1, tokens)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    y = y.permute(0, 3, 2, 1, 4)  # B x tokens of a window x windows x heads x D
    return attn.proj(y.reshape(batch, -1, y.shape[3] * y.shape[4]))
