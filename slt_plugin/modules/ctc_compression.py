"""CTC compression (Gaido et al., 2021, section 3): one encoder state for each symbol that CTC reads."""

import torch
from torch import Tensor

from slt_plugin.modules.padding import lengths_to_padding_mask


def compress(states: Tensor, padding_mask: Tensor, symbols: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Averages the states of each run of equal symbols and leaves out the blanks.

    Unlike in the paper blanks are dropped, so that state i stands for the i-th symbol. A row where everything is blank
    (before CTC has learned anything) keeps one state, the mean of all.

    Args:
        states: (B, T, C).
        padding_mask: (B, T), True = padding.
        symbols: (B, T) int64, the most likely symbol of each step.
        blank: CTC's blank.

    Returns:
        states (B, T', C) and their padding mask (B, T'); T' is the largest number of runs in a row, at least 1.
    """
    symbols = symbols.masked_fill(padding_mask, blank)
    blank_row = (symbols == blank).all(dim=1, keepdim=True)
    symbols = torch.where(blank_row & ~padding_mask, blank + 1, symbols)  # one run of what is no blank
    used = symbols != blank
    starts = used.clone()
    starts[:, 1:] &= symbols[:, 1:] != symbols[:, :-1]
    runs = starts.cumsum(dim=1) - 1  # B x T, number of the run that a used step belongs to
    counts = starts.sum(dim=1)
    numbers = torch.arange(int(counts.max()), device=states.device)
    members = (runs.unsqueeze(1) == numbers[:, None]) & used.unsqueeze(1)  # B x T' x T
    weights = members.to(states.dtype)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1)
    return weights @ states, lengths_to_padding_mask(counts, len(numbers))
