"""Padding masks: one convention everywhere, True = padding."""

import torch
from torch import Tensor


def lengths_to_padding_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Lengths (B,) to a padding mask (B, max_length), True = padding."""
    return torch.arange(max_length, device=lengths.device).unsqueeze(0) >= lengths.unsqueeze(1)


def stride_padding_mask(padding_mask: Tensor, stride: int) -> Tensor:
    """The padding mask after a temporal layer of the given stride: (B, T) -> (B, ceil(T / stride)).

    An output step is kept when the input step that it starts at is kept, so n kept steps give ceil(n / stride).
    """
    return padding_mask[:, ::stride]
