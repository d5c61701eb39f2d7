"""SignHiera: the video encoder of SSVP-SLT (Rust et al., 2024), a Hiera (arXiv 2306.00989) that computes no padding.

A clip shorter than the encoder's window is padded at its end, and the released models treat the padded time steps as
absent: their pixels are zero before the patch convolution, they are masked as keys of global attention, and their
features are thrown away. Mask-unit attention, pooling, norms and MLPs never look beyond one time step. So nothing that
is kept depends on a padded step, and leaving the steps out is exact, not an approximation; a half-empty clip then
costs half of a full one in most layers and a quarter in global attention.

The state dict has the names and shapes of the public Hiera code, so released weights load unchanged.
"""

from collections.abc import Callable, Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from slt_plugin.modules.hiera_blocks import NORM_EPS, ClassifierHead, HieraBlock, PatchEmbed, run_blocks
from slt_plugin.modules.hiera_layout import (
    Group,
    ModuleShapeError,
    UnitLayout,
    check_stages,
    shape,
    token_grid,
)
from slt_plugin.modules.padding import lengths_to_padding_mask

INIT_STD = (
    0.02  # of weights and position embeddings; the paper's code also gives Linear and LayerNorm biases this value
)
HEAD_INIT_SCALE = 0.001
# Without gradients the blocks that attend inside mask units run on a few time steps at once, so that their tokens stay
# in a processor's caches (measured: 1.5 times as fast as all 64 steps of a clip) and the widest activations stay small.
# In values of the first block's input; one time step of the base model has 301,056.
VALUES_AT_ONCE = {"cpu": 2**21}
VALUES_AT_ONCE_ACCELERATOR = 2**26


class SignHiera(nn.Module):
    """Hierarchical video Transformer.

    Args:
        input_size: frames, height, width of a full clip.
        in_chans: colour channels.
        embed_dim, num_heads: width and attention heads of the first stage; both double with each stage.
        stages: blocks of each stage.
        q_pool: stages, from the second on, whose first block pools its tokens by ``q_stride``.
        q_stride: pooling in time, height, width; time must be 1.
        mask_unit_size: tokens of a mask unit in time, height, width; time must be 1.
        mask_unit_attn: for each stage, attention inside mask units only. A stage's first block still attends as the
            stage before did.
        patch_kernel, patch_stride, patch_padding: the patch convolution in time, height, width.
        mlp_ratio: hidden width of the MLPs relative to their block's.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        sep_pos_embed: position embeddings are a spatial plus a temporal table, not one table of all positions.
        num_classes: outputs of the classifier head; 0: neither final norm nor head, features only (a masked autoencoder
            has its own norm).

    Attributes:
        feature_dim: channels of the features.
        temporal_stride: frames of one time step.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ModuleShapeError: sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        input_size: Sequence[int],
        in_chans: int = 3,
        embed_dim: int,
        num_heads: int,
        stages: Sequence[int],
        q_pool: int = 3,
        q_stride: Sequence[int] = (1, 2, 2),
        mask_unit_size: Sequence[int] = (1, 8, 8),
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        patch_kernel: Sequence[int] = (3, 7, 7),
        patch_stride: Sequence[int] = (2, 4, 4),
        patch_padding: Sequence[int] = (1, 3, 3),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        sep_pos_embed: bool = True,
        num_classes: int = 400,
    ):
        super().__init__()
        check_stages(stages, q_pool, mask_unit_attn, (mask_unit_size[0], q_stride[0]), embed_dim, num_heads)
        self.input_size = tuple(input_size)
        self.in_chans = in_chans
        self.temporal_stride = patch_stride[0]
        self.gradient_checkpointing = False
        self.max_steps, *grid = token_grid(input_size, patch_kernel, patch_stride, patch_padding)
        self.layout = UnitLayout(tuple(grid), tuple(mask_unit_size[1:]), tuple(q_stride[1:]), q_pool)

        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_kernel, patch_stride, patch_padding)
        self.sep_pos_embed = sep_pos_embed
        positions = grid[0] * grid[1]
        if sep_pos_embed:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, positions, embed_dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.max_steps, embed_dim))
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, self.max_steps * positions, embed_dim))

        self.blocks = nn.ModuleList()
        self.stage_blocks: list[range] = []  # block numbers of each stage
        depth = sum(stages)
        dim = embed_dim
        for stage, count in enumerate(stages):
            first = len(self.blocks)
            self.stage_blocks.append(range(first, first + count))
            for i in self.stage_blocks[-1]:
                opens = i == first and stage > 0
                dim_out = embed_dim * 2**stage
                self.blocks.append(
                    HieraBlock(
                        dim=dim,
                        dim_out=dim_out,
                        num_heads=num_heads * 2**stage,
                        mlp_ratio=mlp_ratio,
                        drop_path=drop_path_rate * i / max(1, depth - 1),
                        q_stride=self.layout.flat_stride if opens and stage <= q_pool else 1,
                        local=mask_unit_attn[stage - 1 if opens else stage],
                    )
                )
                dim = dim_out
        self.feature_dim = dim
        is_global = [not block.attn.local for block in self.blocks]
        self.num_local_blocks = (*is_global, True).index(True)  # the leading blocks, which never look beyond a unit
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS) if num_classes else nn.Identity()
        self.head = ClassifierHead(dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal weights, Linear and LayerNorm biases of 0.02, a head near zero, as in the paper's code."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("pos_embed"):
                trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                trunc_normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear | nn.LayerNorm):
                nn.init.constant_(module.bias, INIT_STD)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(HEAD_INIT_SCALE)

    # ---- pieces, which the masked autoencoder uses too

    def positions(self, steps: Tensor, units: Tensor) -> Tensor:
        """Position embeddings of mask units, given by time step and number in it: (*shape, tokens, embed_dim).

        ``steps`` and ``units`` are int64 of shapes that broadcast to ``shape``.
        """
        h, w = self.layout.grid
        if not self.sep_pos_embed:
            return self.layout.unroll(self.pos_embed.view(self.max_steps, h, w, -1))[steps, units]
        spatial = self.layout.unroll(self.pos_embed_spatial.view(1, h, w, -1))[0]  # units x tokens x C
        return spatial[units] + self.pos_embed_temporal[0][steps].unsqueeze(-2)

    def embed(self, frames: Tensor, windows: Tensor, steps: Tensor) -> Tensor:
        """Tokens of some time steps, with positions: (N * units, tokens, embed_dim).

        Args:
            frames: (F, in_chans, H, W), row 0 zeros.
            windows: (N, kernel) int64, the rows of ``frames`` that each time step reads.
            steps: (N,) int64, each step's number in its clip.
        """
        x = self.layout.unroll(self.patch_embed(frames[windows]))  # N x units x tokens x C
        units = torch.arange(self.layout.units, device=steps.device)
        return (x + self.positions(steps[:, None], units)).flatten(0, 1)

    def run_blocks(self, x: Tensor, groups: Sequence[Group], blocks: range) -> Tensor:
        """Some of the blocks over packed mask units (N, tokens, C)."""
        return run_blocks([self.blocks[i] for i in blocks], x, groups, recompute=self.gradient_checkpointing)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """``torch.compile`` of every block, in place; state-dict names stay, and new clip lengths compile nothing new.

        The blocks are variants of one function (by width, pooling, attention), more than Dynamo compiles of one
        function by default before it gives up; so its process-wide limit is raised.
        """
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(self.blocks))
        for block in self.blocks:
            block.compile(backend)

    # ---- whole clips

    def encode_clips(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Features of clips of any lengths: each (in_chans, T, H, W) -> (T // temporal_stride, feature_dim).

        A feature is the mean over a time step's positions after the last block, before any norm.

        Raises:
            ModuleShapeError: a clip with other channels, height or width than the model's, with no frames, more than
                the model's or not a multiple of ``temporal_stride``.
        """
        if not clips:
            return []
        for i, clip in enumerate(clips):
            self.check_clip(i, clip)
        order = sorted(range(len(clips)), key=lambda i: -clips[i].shape[1])
        lengths = [clips[i].shape[1] // self.temporal_stride for i in order]
        groups = [Group(lengths.count(n), n * self.layout.units) for n in sorted(set(lengths), reverse=True)]

        first = clips[0]
        zeros = first.new_zeros(1, self.in_chans, *self.input_size[1:])
        frames = torch.cat([zeros, *(clips[i].transpose(0, 1) for i in order)])  # (1 + all frames) x in_chans x H x W
        windows = self.patch_embed.windows(lengths).to(first.device)
        steps = torch.cat([torch.arange(n) for n in lengths]).to(first.device)

        x = self._run_local(frames, windows, steps, groups)
        x = self.run_blocks(x, groups, range(self.num_local_blocks, len(self.blocks)))
        x = x.reshape(len(steps), -1, self.feature_dim).mean(1)  # (steps * units) x tokens x C -> steps x C
        features: list[Tensor] = [x] * len(clips)
        for i, part in zip(order, x.split(lengths), strict=True):
            features[i] = part
        return features

    def extract_features(self, video: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of padded clips.

        Args:
            video: (B, in_chans, T, H, W).
            padding: (B,) integers, how many frames at each clip's end are padding; None: no padding. Time steps are
                whole: ``padding // temporal_stride`` steps are dropped.

        Returns:
            features (B, T', feature_dim), zero where padded, and the padding mask (B, T'), True = padding.

        Raises:
            ModuleShapeError: shapes that do not fit, or padding that leaves no time step.
        """
        kept = self.kept_steps(video, padding)
        stride = self.temporal_stride
        features = self.encode_clips([clip[:, : n * stride] for clip, n in zip(video, kept, strict=True)])
        steps = video.shape[2] // stride
        padded = [F.pad(x, (0, 0, 0, steps - len(x))) for x in features]
        lengths = torch.tensor(kept, device=video.device)
        return torch.stack(padded), lengths_to_padding_mask(lengths, steps)

    def forward(self, video: Tensor) -> Tensor:
        """Class scores of clips without padding: (B, in_chans, T, H, W) -> (B, num_classes); see ClassifierHead."""
        features, _ = self.extract_features(video)
        return self.head(self.norm(features.mean(1)))

    def _run_local(self, frames: Tensor, windows: Tensor, steps: Tensor, groups: Sequence[Group]) -> Tensor:
        """Embedding and the leading blocks that look at single mask units, a few time steps at once where possible."""
        local = range(self.num_local_blocks)
        modules = [self.patch_embed, *(self.blocks[i] for i in local)]
        learns = any(p.requires_grad for module in modules for p in module.parameters())
        learns |= any(p.requires_grad for p in self.parameters(recurse=False))  # positions
        stochastic = self.training and any(self.blocks[i].drop_path.drop_prob for i in local)  # one draw a whole clip
        with torch.set_grad_enabled(torch.is_grad_enabled() and (learns or frames.requires_grad)):
            if torch.is_grad_enabled() or stochastic:
                return self.run_blocks(self.embed(frames, windows, steps), groups, local)
            values = VALUES_AT_ONCE.get(frames.device.type, VALUES_AT_ONCE_ACCELERATOR)
            at_once = max(1, values // (self.layout.units * self.layout.tokens * self.patch_embed.proj.out_channels))
            parts = []
            for start in range(0, len(steps), at_once):
                rows = slice(start, start + at_once)
                x = self.embed(frames, windows[rows], steps[rows])
                parts.append(self.run_blocks(x, [Group(1, len(x))], local))  # local blocks do not look at clips
            return torch.cat(parts)

    def kept_steps(self, video: Tensor, padding: Tensor | None) -> list[int]:
        if video.ndim != 5 or len(video) == 0:
            raise ModuleShapeError(f"expected a video batch (B, channels, frames, height, width); got {shape(video)}")
        steps, rest = divmod(video.shape[2], self.temporal_stride)
        if rest:
            raise ModuleShapeError(f"expected a multiple of {self.temporal_stride} frames; got {video.shape[2]}")
        if padding is None:
            return [steps] * len(video)
        if padding.shape != (len(video),) or padding.is_floating_point():
            raise ModuleShapeError(
                f"expected one whole number of padding frames for each of {len(video)} clips; "
                f"got {padding.dtype} of shape {shape(padding)}"
            )
        padded = padding.tolist()  # the only wait for the device
        kept = [steps - frames // self.temporal_stride for frames in padded]
        for i, (frames, n) in enumerate(zip(padded, kept, strict=True)):
            if not 0 < n <= steps:
                raise ModuleShapeError(
                    f"clip {i}: {frames} padding frames of {video.shape[2]}; expected 0 to "
                    f"{video.shape[2] - 1}, so that a time step of {self.temporal_stride} frames is left"
                )
        return kept

    def check_clip(self, i: int, clip: Tensor) -> None:
        frames, *size = self.input_size
        if clip.ndim != 4 or clip.shape[0] != self.in_chans or list(clip.shape[2:]) != size:
            raise ModuleShapeError(
                f"clip {i}: expected (channels, frames, height, width) = "
                f"({self.in_chans}, T, {size[0]}, {size[1]}); got {shape(clip)}"
            )
        if not clip.is_floating_point():
            raise ModuleShapeError(f"clip {i}: expected normalised frames of a floating type; got {clip.dtype}")
        if not 0 < clip.shape[1] <= frames or clip.shape[1] % self.temporal_stride:
            raise ModuleShapeError(
                f"clip {i}: {clip.shape[1]} frames; expected a multiple of {self.temporal_stride} "
                f"between {self.temporal_stride} and {frames}"
            )


def interpolate_temporal_positions(positions: Tensor, steps: int) -> Tensor:
    """Stretches a temporal position table to another number of time steps: (1, t, C) -> (1, steps, C).

    Linear in time, end points as in ``torch.nn.functional.interpolate(align_corners=False)``: a position stands for an
    interval of its clip, so from 8 to 64 steps each old interval covers eight new ones. Used to start a 128-frame
    encoder from public 16-frame weights. The same number of steps gives the table back unchanged.
    """
    if positions.ndim != 3 or positions.shape[0] != 1 or steps < 1:
        raise ModuleShapeError(
            f"expected a table (1, steps, channels) and at least 1 step; got {shape(positions)}, {steps}"
        )
    table = positions.double().transpose(1, 2)  # 1 x C x t
    return F.interpolate(table, size=steps, mode="linear").transpose(1, 2).to(positions.dtype)


def signhiera_base_16x224(*, drop_path_rate: float = 0.0, num_classes: int = 400) -> SignHiera:
    """Hiera-B for 16 frames, the size of the public Kinetics-400 weights."""
    return SignHiera(
        input_size=(16, 224, 224),
        embed_dim=96,
        num_heads=1,
        stages=(2, 3, 16, 3),
        drop_path_rate=drop_path_rate,
        num_classes=num_classes,
    )


def signhiera_base_128x224(*, drop_path_rate: float = 0.0, num_classes: int = 400) -> SignHiera:
    """Hiera-B for 128 frames: the released SSVP-SLT and SONAR encoders."""
    return SignHiera(
        input_size=(128, 224, 224),
        embed_dim=96,
        num_heads=1,
        stages=(2, 3, 16, 3),
        drop_path_rate=drop_path_rate,
        num_classes=num_classes,
    )


def signhiera_large_128x224(*, drop_path_rate: float = 0.0, num_classes: int = 400) -> SignHiera:
    """Hiera-L (arXiv 2306.00989, model table) for 128 frames. No released weights of this size are known to us."""
    return SignHiera(
        input_size=(128, 224, 224),
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        drop_path_rate=drop_path_rate,
        num_classes=num_classes,
    )


def signhiera_tiny_32x64(*, drop_path_rate: float = 0.0, num_classes: int = 400) -> SignHiera:
    """A small one of our own for CPU work: 32 frames of 64 x 64 pixels, one mask unit a time step, 8-pixel patches."""
    model = SignHiera(
        input_size=(32, 64, 64),
        embed_dim=32,
        num_heads=1,
        stages=(1, 1, 2, 1),
        patch_kernel=(2, 8, 8),
        patch_stride=(2, 8, 8),
        patch_padding=(0, 0, 0),
        drop_path_rate=drop_path_rate,
        num_classes=num_classes,
    )
    # made to be trained from scratch: with the paper's weights of 0.02, layers this narrow pass on next to nothing
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.zeros_(module.bias)
    return model


VARIANTS: dict[str, Callable[..., SignHiera]] = {
    "base_16x224": signhiera_base_16x224,
    "base_128x224": signhiera_base_128x224,
    "large_128x224": signhiera_large_128x224,
    "tiny_32x64": signhiera_tiny_32x64,
}
