"""Masks of the autoencoder, and patch embedding of kept units alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_plugin.modules.hiera import SignHiera, signhiera_tiny_32x64
from slt_plugin.modules.hiera_layout import ModuleShapeError
from slt_plugin.modules.hiera_masking import PixelUnits, random_keys, sample_masks

SIZES = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), "num_classes": 0}


def splitmix64(seed: int, column: int) -> int:
    """The mixing of Steele et al. (2014) in Python's whole numbers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    return mix((mix(seed % 2**64) + column * 0x9E3779B97F4A7C15) % 2**64) % 2**63


def test_random_keys():
    seeds = [0, 1, 2**62 + 12345, -7]
    keys = random_keys(torch.tensor(seeds), 5)
    assert keys.tolist() == [[splitmix64(seed, i) for i in range(1, 6)] for seed in seeds]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    extra=st.integers(0, 3),
    units=st.integers(2, 9),
    ratio=st.floats(0.02, 0.98),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_mask_invariants(steps, extra, units, ratio, seed):
    max_steps = max(steps) + extra
    seeds = torch.tensor([seed] * len(steps)) + torch.arange(len(steps))
    counts = torch.tensor(steps)
    mask = sample_masks(seeds, counts, max_steps=max_steps, units=units, mask_ratio=ratio)
    assert mask.shape == (len(steps), max_steps * units)
    for i, count in enumerate(steps):
        valid = count * units
        assert not mask[i, valid:].any()  # padding is never kept
        assert mask[i].sum() == min(max(1, int(valid * (1 - ratio))), valid - 1)
        if count < max_steps:
            assert mask[i, :units].any()
        alone = sample_masks(seeds[i : i + 1], counts[i : i + 1], max_steps=max_steps, units=units, mask_ratio=ratio)
        assert torch.equal(alone[0], mask[i])  # neither the batch nor the place in it matters


def test_masks_are_uniform_and_differ():
    seeds = torch.arange(20_000)
    mask = sample_masks(seeds, torch.full((20_000,), 4), max_steps=4, units=9, mask_ratio=0.75)
    assert mask.sum(1).unique().tolist() == [9]
    share = mask.double().mean(0)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    together = (mask[:, :, None] & mask[:, None]).double().mean(0)  # pairs: 9 * 8 / (36 * 35)
    off = ~torch.eye(36, dtype=torch.bool)
    assert (together[off] - 72 / 1260).abs().max() < 6 * (72 / 1260 / 20_000) ** 0.5
    assert len({tuple(row) for row in mask[:200].tolist()}) > 195


def test_the_first_step_of_padded_clips_alone_is_kept():
    seeds = torch.arange(2000)
    options = {"units": 2, "mask_ratio": 0.9}
    padded = sample_masks(seeds, torch.full((2000,), 10), max_steps=11, **options)
    full = sample_masks(seeds, torch.full((2000,), 10), max_steps=10, **options)
    assert padded[:, :2].any(1).all() and not full[:, :2].any(1).all()
    seen = full[:, :2].any(1)
    assert torch.equal(padded[seen, :20], full[seen])


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_ratios_without_meaning(ratio):
    with pytest.raises(ModuleShapeError, match="mask_ratio"):
        sample_masks(torch.zeros(1, dtype=torch.int64), torch.tensor([3]), max_steps=3, units=4, mask_ratio=ratio)


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: SignHiera(input_size=(8, 64, 96), **SIZES),
        lambda: SignHiera(input_size=(8, 64, 64), sep_pos_embed=False, **SIZES),
        lambda: signhiera_tiny_32x64(num_classes=0),
    ],
    ids=["overlapping patches", "one table of positions", "patches side by side"],
)
def test_embedding_of_kept_units_equals_the_dense_one(encoder):
    torch.manual_seed(0)
    encoder = encoder().double()
    units, stride = encoder.layout.units, encoder.temporal_stride
    clips = [torch.randn(3, frames, *encoder.input_size[1:], dtype=torch.float64) for frames in (8, 4)]
    kept = torch.rand(6, units) < 0.5
    kept[0, 0], kept[5, units - 1] = True, True
    steps, numbers = kept.nonzero(as_tuple=True)
    clip_steps = torch.cat([torch.arange(4), torch.arange(2)])[steps]
    sparse = PixelUnits(encoder, clips).embed(kept, steps, numbers, clip_steps)

    dense, at = [], 0
    rows, columns = (size // part for size, part in zip(encoder.layout.grid, encoder.layout.unit, strict=True))
    for clip in clips:
        count = clip.shape[1] // stride
        seen = kept[at : at + count].view(count, rows, columns).repeat_interleave(stride, 0)
        seen = seen.repeat_interleave(clip.shape[2] // rows, 1).repeat_interleave(clip.shape[3] // columns, 2)
        y = encoder.patch_embed.proj((clip * seen)[None])[0].permute(1, 2, 3, 0)  # T' x H' x W' x C
        where = encoder.positions(torch.arange(count)[:, None], torch.arange(units))
        dense.append(encoder.layout.unroll(y) + where)
        at += count
    dense = torch.cat(dense)[kept]
    torch.testing.assert_close(sparse, dense, rtol=1e-12, atol=1e-12)

    weights = torch.randn_like(dense)
    wanted = list(encoder.patch_embed.parameters()) + list(encoder.parameters(recurse=False))
    for a, b in zip(
        torch.autograd.grad((sparse * weights).sum(), wanted),
        torch.autograd.grad((dense * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_targets_are_the_pixels_of_the_first_frame():
    encoder = SignHiera(input_size=(8, 64, 96), q_pool=2, **SIZES)  # 2 x 2 positions are left of a unit
    clip = torch.randn(3, 8, 64, 96)
    steps, units = (part.flatten() for part in torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij"))
    targets = PixelUnits(encoder, [clip]).targets(steps, units)
    assert targets.shape == (24, 4, 16 * 16 * 3)
    for step, unit, values in zip(steps.tolist(), units.tolist(), targets, strict=True):
        top, left = unit // 3 * 32, unit % 3 * 32
        for position in range(4):
            y, x = top + position // 2 * 16, left + position % 2 * 16
            patch = clip[:, 2 * step, y : y + 16, x : x + 16].permute(1, 2, 0)
            assert torch.equal(values[position], patch.flatten())
