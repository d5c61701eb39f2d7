"""The bridge from source features to the text encoder's width."""

from torch import Tensor, nn

from slt_plugin.modules.padding import stride_padding_mask


class Adapter(nn.Module):
    """Projects features to the text encoder's width, optionally shortening time: (B, T, in) -> (B, ceil(T / s), out).

    With ``stride`` 1 it is one linear layer, as in Tarres et al. (2023) and SSVP-SLT (Rust et al., 2024, section 3).
    With a larger stride a gated convolution of width 2 * stride + 1 comes before it.
    """

    def __init__(self, *, in_dim: int, out_dim: int, stride: int = 1):
        super().__init__()
        if stride < 1:
            raise ValueError(f"adapter_stride must be at least 1; got {stride}")
        self.stride = stride
        self.conv = nn.Conv1d(in_dim, 2 * in_dim, 2 * stride + 1, stride=stride, padding=stride) if stride > 1 else None
        self.gate = nn.GLU(dim=1)
        self.projection = nn.Linear(in_dim, out_dim)

    def forward(self, x: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, in_dim), padding_mask (B, T) True = padding -> (B, T', out_dim), (B, T')."""
        if self.conv is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
            x = self.gate(self.conv(x.transpose(1, 2))).transpose(1, 2)  # B x T' x in_dim
            padding_mask = stride_padding_mask(padding_mask, self.stride)
        return self.projection(x), padding_mask
