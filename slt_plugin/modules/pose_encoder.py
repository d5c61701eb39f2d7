"""Encoder of landmark sequences: per-frame embedding, then residual temporal convolutions."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from slt_plugin.modules.padding import stride_padding_mask


class TemporalConvBlock(nn.Module):
    """Pre-norm temporal convolution with a residual path, (B, T, C) -> (B, ceil(T / stride), C).

    Padded steps are zeroed before the convolution, so a clip's features do not depend on what it is batched with.
    """

    def __init__(self, dim: int, kernel_size: int, stride: int, dropout: float):
        super().__init__()
        self.stride = stride
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, 2 * dim, kernel_size, stride=stride, padding=kernel_size // 2)
        self.gate = nn.GLU(dim=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x).masked_fill(padding_mask.unsqueeze(-1), 0.0)
        y = self.gate(self.conv(y.transpose(1, 2))).transpose(1, 2)  # B x T' x C
        # the residual path of a striding block takes every stride-th step
        return x[:, :: self.stride] + self.dropout(y), stride_padding_mask(padding_mask, self.stride)


class PoseEncoder(nn.Module):
    """Landmarks to features: (B, T, in_channels) -> (B, ceil(T / prod(strides)), dim).

    Args:
        in_channels: values of one frame (3 for each landmark: x, y, present; see ``slt_plugin.data.pose``).
        dim: width of the features.
        strides: temporal stride of each convolution block, for example (2, 1, 2, 1).
        kernel_size: odd width of each convolution, in steps.
        dropout: dropout of each block's output and of the frame embedding.
    """

    def __init__(self, *, in_channels: int, dim: int, strides: Sequence[int], kernel_size: int, dropout: float):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"pose_kernel_size must be odd, so that output steps stay aligned; got {kernel_size}")
        if any(stride < 1 for stride in strides):
            raise ValueError(f"pose_strides must be at least 1 each; got {list(strides)}")
        self.out_dim = dim
        self.stride = math.prod(strides)
        self.frame_embedding = nn.Linear(in_channels, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TemporalConvBlock(dim, kernel_size, stride, dropout) for stride in strides)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, in_channels), padding_mask (B, T) True = padding -> (B, T', dim), (B, T')."""
        x = self.dropout(self.frame_embedding(x))
        for block in self.blocks:
            x, padding_mask = block(x, padding_mask)
        return self.norm(x), padding_mask
