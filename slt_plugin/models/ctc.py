"""The CTC head of the sign encoder, and what it gives the decoder to attend to."""

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from slt_plugin.modules.ctc_compression import compress

POSITION_SCALE = 2.0  # beside states that still tell their times; with 1 the decoder takes longer to follow them
BLANK = 0  # what fairseq's label_smoothed_cross_entropy_with_ctc takes for it


class CTCHead(nn.Module):
    """Symbol scores for each encoder step; with ``compression`` the decoder sees one state for each symbol read.

    Then the decoder need not learn to follow the signs: its n-th symbol is the n-th state, which new positions tell.
    """

    def __init__(self, dim: int, symbols: int, *, compression: bool):
        super().__init__()
        self.projection = nn.Linear(dim, symbols)
        self.compression = compression
        self.positions = SinusoidalPositionalEmbedding(dim, padding_idx=0, init_size=256) if compression else None

    def forward(self, encoder_out: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Adds ``ctc_scores`` (T, B, V) and ``ctc_padding_mask`` (B, T) to fairseq's ``encoder_out``."""
        states, padding_mask = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        scores = self.projection(states)
        result = {**encoder_out, "ctc_scores": [scores], "ctc_padding_mask": [padding_mask]}
        if self.compression:
            symbols = scores.argmax(dim=-1).transpose(0, 1)
            compressed, padding_mask = compress(states.transpose(0, 1), padding_mask, symbols, BLANK)
            positions = self.positions((~padding_mask).long())
            result["encoder_out"] = [(compressed + POSITION_SCALE * positions).transpose(0, 1)]
            result["encoder_padding_mask"] = [padding_mask]
        return result

    @staticmethod
    def log_probs(encoder_out: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (T, B, V) in fp32 and their lengths (B,)."""
        log_probs = torch.log_softmax(encoder_out["ctc_scores"][0].float(), dim=-1)
        return log_probs, (~encoder_out["ctc_padding_mask"][0]).sum(dim=1)
