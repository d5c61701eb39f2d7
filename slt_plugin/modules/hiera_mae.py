"""SignHieraMAE: the masked autoencoder that SSVP-SLT (Rust et al., 2024) pretrains its SignHiera with.

As in MAE-ST (Feichtenhofer et al., 2022) and Hiera (arXiv 2306.00989): most mask units of a clip are hidden, the
encoder sees what is left, and a small decoder predicts the pixels of the hidden ones. What contributes nothing to the
loss is not computed: padded time steps are left out everywhere, masked units before the encoder (patches included),
kept ones from the prediction.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from slt_plugin.modules.hiera import INIT_STD, SignHiera, signhiera_base_128x224, signhiera_tiny_32x64
from slt_plugin.modules.hiera_blocks import NORM_EPS, HieraBlock, run_blocks
from slt_plugin.modules.hiera_layout import Group, ModuleShapeError, UnitLayout, shape
from slt_plugin.modules.hiera_masking import PixelUnits, sample_masks, valid_units

PIXEL_NORM_EPS = 1e-6  # added to a patch's variance
# the parts of an autoencoder that are not its encoder, by the first part of their public names
DECODER_PARTS = (
    "encoder_norm",
    "multi_scale_fusion_heads",
    "mask_token",
    "decoder_embed",
    "decoder_pos_embed",
    "decoder_blocks",
    "decoder_norm",
    "decoder_pred",
)


class MAEOutput(NamedTuple):
    """What an autoencoder makes of a batch of clips.

    loss: mean squared error over all predicted values, a float32 scalar.
    pred, target: (P, values of a patch), P = masked, non-padded positions of all clips, clip by clip.
    mask: (B, time steps * units) bool, True = kept; padded units are neither kept nor predicted.
    pooled: (B, feature_dim), mean of the kept tokens after the encoder's last block.
    """

    loss: Tensor
    pred: Tensor
    target: Tensor
    mask: Tensor
    pooled: Tensor


class _Encoded(NamedTuple):
    """Kept units behind the encoder, packed: clips with many time steps first.

    fused: (kept units, positions, feature_dim), the sum of all scales.
    pooled: (B, feature_dim), in the order of the batch.
    kept: rows of the kept units among all units of the packed clips.
    """

    fused: Tensor
    pooled: Tensor
    kept: Tensor


class _Packing:
    """Where the units of a batch stand when the clips are packed, their padding left out.

    mask, valid: (B, max_steps * units), True = kept and no padding, True = no padding.
    order: the packed clips' numbers in the batch, those with many steps and kept units first.
    units: of one time step.
    """

    def __init__(self, mask: Tensor, valid: Tensor, steps: list[int], units: int):
        self.mask, self.valid, self.units = mask, valid, units
        counts = mask.sum(1).tolist()
        self.order = sorted(range(len(steps)), key=lambda i: (-steps[i], -counts[i]))
        self.steps = [steps[i] for i in self.order]
        self.kept_groups = _groups([counts[i] for i in self.order])
        self.groups = _groups([n * units for n in self.steps])
        starts = [0, *itertools.accumulate(n * units for n in self.steps)]
        offsets = torch.empty(len(steps), dtype=torch.int64)
        offsets[self.order] = torch.tensor(starts[:-1])
        self.offsets = offsets.to(mask.device)  # of each clip of the batch, in units
        self.size = starts[-1]

    def places(self) -> Tensor:
        """Where each clip of the batch stands among the packed ones: (B,) int64."""
        return torch.tensor(self.order, device=self.mask.device).argsort()

    def in_clips(self) -> Tensor:
        """The number of each packed unit in its clip: (size,) int64."""
        return torch.cat([torch.arange(n * self.units, device=self.mask.device) for n in self.steps])

    def rows(self, chosen: Tensor) -> Tensor:
        """Packed rows of the units that ``chosen`` (B, max_steps * units) marks, clip by clip as in the batch."""
        clip, unit = chosen.nonzero(as_tuple=True)
        return self.offsets[clip] + unit


def _groups(sizes: list[int]) -> list[Group]:
    return [Group(len(list(same)), size) for size, same in itertools.groupby(sizes)]


class SignHieraMAE(nn.Module):
    """A decoder around a SignHiera that has neither norm nor head.

    The state dict has the public code's names, the encoder's below ``encoder.``; ``load_state_dict`` takes them without
    that prefix as well.

    Args:
        encoder: a SignHiera with ``num_classes=0``. Its weights stay as they are.
        decoder_embed_dim, decoder_depth, decoder_num_heads: size of the decoder.
        norm_pix_loss: predict the pixels of each patch divided by their own mean and deviation (MAE, He et al., 2022,
            section 4.1), not as they are.

    Raises:
        ModuleShapeError: an encoder with norm and head, or sizes that do not fit together.
    """

    def __init__(
        self,
        encoder: SignHiera,
        *,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 8,
        norm_pix_loss: bool = True,
    ):
        super().__init__()
        if any(True for _ in encoder.head.parameters()):
            raise ModuleShapeError("expected a SignHiera without norm and head: build it with num_classes=0")
        if decoder_embed_dim % decoder_num_heads or decoder_depth < 1:
            raise ModuleShapeError(
                f"decoder_embed_dim={decoder_embed_dim} must be a multiple of decoder_num_heads={decoder_num_heads}, "
                f"and decoder_depth={decoder_depth} at least 1"
            )
        self.encoder = encoder
        self.norm_pix_loss = norm_pix_loss
        layout, dim = encoder.layout, encoder.feature_dim
        self.encoder_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        # one scale before each pooling, and the last stage as it is
        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage in range(layout.poolings):
            size = tuple(step ** (layout.poolings - stage) for step in layout.stride)
            width = encoder.blocks[encoder.stage_blocks[stage][-1]].mlp.fc2.out_features
            self.multi_scale_fusion_heads.append(nn.Conv3d(width, dim, (1, *size), (1, *size)))

        self.positions = layout.tokens // layout.flat_stride**layout.poolings  # left of a unit after all poolings
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_embed = nn.Linear(dim, decoder_embed_dim)
        count = encoder.max_steps * layout.units * self.positions
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, count, decoder_embed_dim))
        self.decoder_blocks = nn.ModuleList(
            HieraBlock(
                dim=decoder_embed_dim,
                dim_out=decoder_embed_dim,
                num_heads=decoder_num_heads,
                mlp_ratio=4.0,
                drop_path=0.0,
                q_stride=1,
                local=False,
            )
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=NORM_EPS)
        height, width = encoder.input_size[1:]
        values = encoder.in_chans * height * width // (layout.units * self.positions)
        self.decoder_pred = nn.Linear(decoder_embed_dim, values)
        self._initialise(part for name, part in self.named_children() if name != "encoder")
        trunc_normal_(self.mask_token, std=INIT_STD)
        trunc_normal_(self.decoder_pos_embed, std=INIT_STD)
        self.register_load_state_dict_pre_hook(_accept_public_names)

    def reset_encoder(self) -> None:
        """Initial weights for training from scratch as in MAE (He et al., 2022, appendix A): Xavier, biases of zero."""
        self._initialise([self.encoder])

    @staticmethod
    def _initialise(parts) -> None:
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, nn.Linear | nn.Conv3d):
                # a convolution like the Linear that it is on its patches
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        video: Tensor,
        *,
        mask_ratio: float = 0.9,
        mask: Tensor | None = None,
        padding: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> MAEOutput:
        """Reconstructs the masked units of padded clips.

        Args:
            video: (B, in_chans, T, H, W), T at most the encoder's.
            mask_ratio: masked share of the units, where ``mask`` is not given.
            mask: (B, time steps * units) bool, True = kept.
            padding: (B,) integers, how many frames at each clip's end are padding; None: no padding.
            seeds: (B,) int64 of the clips' masks, see ``sample_masks``; None: drawn from torch's generator.

        Raises:
            ModuleShapeError: shapes that do not fit, a clip with a single mask unit, or a mask that keeps or hides all
                units of a clip.
        """
        pixels, packing = self._pack(video, mask_ratio, mask, padding, seeds)
        encoded = self._encode(pixels, packing)
        pred_rows = packing.rows(packing.valid & ~packing.mask)
        pred = self._decode(encoded, packing, pred_rows)
        target = pixels.targets(pred_rows // packing.units, pred_rows % packing.units).float()
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + PIXEL_NORM_EPS).sqrt()
        pred, target = pred.flatten(0, 1).float(), target.flatten(0, 1)
        return MAEOutput(F.mse_loss(pred, target), pred, target, packing.mask, encoded.pooled)

    def encode(
        self,
        video: Tensor,
        *,
        mask_ratio: float = 0.9,
        mask: Tensor | None = None,
        padding: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """``MAEOutput.pooled`` alone, without the decoder: (B, feature_dim). Arguments and errors as ``forward``."""
        return self._encode(*self._pack(video, mask_ratio, mask, padding, seeds)).pooled

    def _pack(
        self, video: Tensor, mask_ratio: float, mask: Tensor | None, padding: Tensor | None, seeds: Tensor | None
    ) -> tuple[PixelUnits, _Packing]:
        encoder, units = self.encoder, self.encoder.layout.units
        steps = encoder.kept_steps(video, padding)
        max_steps = video.shape[2] // encoder.temporal_stride
        clips = [video[i, :, : n * encoder.temporal_stride] for i, n in enumerate(steps)]
        for i, count in enumerate(steps):
            encoder.check_clip(i, clips[i])
            if count * units < 2:
                raise ModuleShapeError(
                    f"clip {i} has a single mask unit (one time step): of two or more one can be hidden; leave out "
                    "clips this short"
                )
        counts = torch.tensor(steps, device=video.device)
        if mask is None:
            if seeds is None:
                seeds = torch.randint(torch.iinfo(torch.int64).max, (len(video),), device=video.device)
            mask = sample_masks(seeds, counts, max_steps=encoder.max_steps, units=units, mask_ratio=mask_ratio)[
                :, : max_steps * units
            ]
        elif mask.shape != (len(video), max_steps * units) or mask.dtype != torch.bool:
            raise ModuleShapeError(
                f"expected a mask of bool and shape ({len(video)}, {max_steps * units}), True = kept; got {mask.dtype} "
                f"of shape {shape(mask)}"
            )
        valid = valid_units(counts, max_steps, units)
        packing = _Packing(mask & valid, valid, steps, units)
        if min(group.units for group in packing.kept_groups) == 0 or (valid & ~mask).sum(1).eq(0).any():
            raise ModuleShapeError("a mask keeps or hides all units of a clip: hide some of them")
        return PixelUnits(encoder, [clips[i] for i in packing.order]), packing

    def _encode(self, pixels: PixelUnits, packing: _Packing) -> _Encoded:
        encoder = self.encoder
        is_kept = torch.zeros(packing.size, dtype=torch.bool, device=packing.mask.device)
        is_kept[packing.rows(packing.mask)] = True
        kept = is_kept.nonzero()[:, 0]  # packed order
        units = kept % packing.units
        x = pixels.embed(
            is_kept.view(-1, packing.units), kept // packing.units, units, packing.in_clips()[kept] // packing.units
        )
        fused = None
        for stage, blocks in enumerate(encoder.stage_blocks):
            x = encoder.run_blocks(x, packing.kept_groups, blocks)
            last = stage == len(encoder.stage_blocks) - 1
            if stage < encoder.layout.poolings or last:
                scale = x if last else self._fuse(stage, x)
                fused = scale if fused is None else fused + scale
        means = x.mean(1).split([group.clips * group.units for group in packing.kept_groups])
        pooled = torch.cat(
            [
                part.unflatten(0, (group.clips, -1)).mean(1)
                for part, group in zip(means, packing.kept_groups, strict=True)
            ]
        )
        in_batch = torch.empty_like(pooled)
        in_batch[packing.order] = pooled
        return _Encoded(fused, in_batch, kept)

    def _fuse(self, stage: int, x: Tensor) -> Tensor:
        """The scale of one stage at the last one's resolution: (K, tokens, C) -> (K, positions, feature_dim).

        A convolution over the tokens that the poolings to come would merge; these are neighbours in Z-order.
        """
        head, layout = self.multi_scale_fusion_heads[stage], self.encoder.layout
        size = head.kernel_size[1:]
        order = UnitLayout(size, size, layout.stride, layout.poolings - stage)
        weight = order.unroll(head.weight[:, :, 0].permute(0, 2, 3, 1))  # D x 1 x tokens x C
        return F.linear(x.unflatten(1, (self.positions, -1)).flatten(2), weight.flatten(1), head.bias)

    def _decode(self, encoded: _Encoded, packing: _Packing, rows: Tensor) -> Tensor:
        """Predictions for some of the packed units: (P, positions, values)."""
        x = self.decoder_embed(self.encoder_norm(encoded.fused))
        tokens = self.mask_token.to(x.dtype).expand(packing.size, self.positions, -1).clone()
        tokens = tokens.index_copy(0, encoded.kept, x) + self._decoder_positions()[packing.in_clips()]
        tokens = run_blocks(self.decoder_blocks, tokens, packing.groups, recompute=self.encoder.gradient_checkpointing)
        return self.decoder_pred(self.decoder_norm(tokens[rows]))

    def _decoder_positions(self) -> Tensor:
        """The table, unit by unit: (all steps * units, positions, D). It is stored row by row of whole time steps."""
        layout = self.encoder.layout
        grid = [size // part for size, part in zip(layout.grid, layout.unit, strict=True)]
        left = [part // step**layout.poolings for part, step in zip(layout.unit, layout.stride, strict=True)]
        table = self.decoder_pos_embed.view(self.encoder.max_steps, grid[0], left[0], grid[1], left[1], -1)
        return table.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.positions, table.shape[-1])


def _accept_public_names(module: nn.Module, state: dict, prefix: str, *_) -> None:
    """Puts ``encoder.`` before the names of the encoder's tensors, where a state dict has them without it."""
    own = [name for name in state if name.startswith(prefix)]
    if any(name.startswith(f"{prefix}encoder.") for name in own):
        return
    for name in own:
        rest = name.removeprefix(prefix)
        if rest.split(".")[0] not in DECODER_PARTS:
            state[f"{prefix}encoder.{rest}"] = state.pop(name)


def mae_base_128x224(*, drop_path_rate: float = 0.0, norm_pix_loss: bool = True) -> SignHieraMAE:
    """The paper's: SignHiera base and a decoder of 8 layers of 512."""
    model = SignHieraMAE(
        signhiera_base_128x224(drop_path_rate=drop_path_rate, num_classes=0), norm_pix_loss=norm_pix_loss
    )
    model.reset_encoder()
    return model


def mae_tiny_32x64(*, drop_path_rate: float = 0.0, norm_pix_loss: bool = True) -> SignHieraMAE:
    """A small one of our own for CPU work; a mask unit is a whole time step there."""
    model = SignHieraMAE(
        signhiera_tiny_32x64(drop_path_rate=drop_path_rate, num_classes=0),
        decoder_embed_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
        norm_pix_loss=norm_pix_loss,
    )
    model.reset_encoder()
    return model


VARIANTS: dict[str, Callable[..., SignHieraMAE]] = {
    "base_128x224": mae_base_128x224,
    "tiny_32x64": mae_tiny_32x64,
}
