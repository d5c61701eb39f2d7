"""The usual way to compute a SignHieraMAE, an oracle for tests and the benchmark: nothing left out, padding masked.

The patch convolution sees whole frames, padded units are encoded and decoded like any other and hidden from global
attention by a mask, every position is predicted, and queries, keys and values have rank 5, as in the public code.
"""

import torch
from hiera_dense import positions, run_block, token_order
from torch import Tensor, nn
from torch.nn import functional as F

from slt_plugin.modules.hiera_mae import SignHieraMAE


class DenseMAE(nn.Module):
    """Shares the parameters of an autoencoder whose units have 2 ** n tokens a side and are pooled to one."""

    def __init__(self, mae: SignHieraMAE):
        super().__init__()
        self.mae = mae

    def forward(self, video: Tensor, mask: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """loss, pred, target; ``mask`` (B, units), True = kept, padded ones too, with equally many for each clip."""
        m, e = self.mae, self.mae.encoder
        batch, _, frames, height, width = video.shape
        steps, units = frames // e.temporal_stride, e.layout.units
        kept_steps = steps - (padding // e.temporal_stride).to(video.device)
        valid = (torch.arange(steps, device=video.device) < kept_steps[:, None]).repeat_interleave(units, 1)

        grid = [size // part for size, part in zip(e.layout.grid, e.layout.unit, strict=True)]
        h, w = height // grid[0], width // grid[1]
        seen = (mask & valid).view(batch, 1, steps, *grid)
        seen = seen.repeat_interleave(e.temporal_stride, 2).repeat_interleave(h, 3).repeat_interleave(w, 4)
        x = e.patch_embed.proj(video * seen).flatten(2).transpose(1, 2) + positions(e, steps)
        levels = e.layout.unit[0].bit_length() - 1
        x = x[:, token_order(steps, *e.layout.grid, levels).to(x.device)]
        x = x.unflatten(1, (-1, steps * units)).transpose(1, 2)  # B x units x members x C
        count = int(mask[0].sum())
        x = x[mask].unflatten(0, (batch, count)).transpose(1, 2).flatten(1, 2)  # kept units only, members slowest
        keep = valid[mask].view(batch, count)

        fused: Tensor | float = 0.0
        for stage, blocks in enumerate(e.stage_blocks):
            for i in blocks:
                x = run_block(e.blocks[i], x, count, keep)
            tokens = x.unflatten(1, (-1, count)).transpose(1, 2).flatten(0, 1)  # (B * kept) x members x C
            if stage < levels:
                side = 2 ** (levels - stage)
                picture = torch.empty_like(tokens)
                picture[:, token_order(1, side, side, levels - stage).to(x.device)] = tokens
                picture = picture.unflatten(1, (1, side, side)).permute(0, 4, 1, 2, 3)
                fused = fused + m.multi_scale_fusion_heads[stage](picture).flatten(1)
            elif stage == len(e.stage_blocks) - 1:
                fused = fused + tokens[:, 0]
        y = m.mask_token.repeat(batch, steps * units, 1)
        y = y.masked_scatter(mask[..., None], m.decoder_embed(m.encoder_norm(fused)))
        y = y + m.decoder_pos_embed[:, : steps * units]
        for block in m.decoder_blocks:
            y = run_block(block, y, steps * units, valid)
        pred = m.decoder_pred(m.decoder_norm(y))

        first = (
            video[:, :, :: e.temporal_stride].unflatten(4, (-1, w)).unflatten(3, (-1, h))
        )  # B x C x T' x gh x h x gw x w
        target = first.permute(0, 2, 3, 5, 4, 6, 1).reshape(batch, steps * units, -1)
        if m.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        chosen = ~mask & valid
        return F.mse_loss(pred[chosen], target[chosen]), pred[chosen], target[chosen]
