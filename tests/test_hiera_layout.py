"""The order of tokens, pooling in it, and which frames a time step reads."""

import pytest
import torch
from torch.nn import functional as F

from slt_plugin.modules.hiera import PatchEmbed
from slt_plugin.modules.hiera_layout import ModuleShapeError, UnitLayout, check_stages, pool, token_grid, window_frames

LAYOUTS = [
    UnitLayout((16, 24), (8, 8), (2, 2), 3),
    UnitLayout((16, 24), (8, 8), (2, 2), 2),
    UnitLayout((16, 24), (8, 8), (2, 2), 0),
    UnitLayout((6, 12), (6, 4), (3, 2), 1),
    UnitLayout((4, 8), (4, 8), (1, 2), 2),
]


def test_tokens_of_a_unit_stand_in_z_order():
    grid = torch.arange(16).view(1, 4, 4, 1)
    z_order = UnitLayout((4, 4), (4, 4), (2, 2), 2).unroll(grid).flatten().tolist()
    assert z_order == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_each_unit_holds_its_own_window_of_the_grid(layout):
    grid = torch.arange(3 * layout.grid[0] * layout.grid[1]).view(3, *layout.grid, 1)
    units = layout.unroll(grid)
    assert units.shape == (3, layout.units, layout.tokens, 1)
    (h, w), columns = layout.unit, layout.grid[1] // layout.unit[1]
    for u in range(layout.units):
        top, left = u // columns * h, u % columns * w
        window = grid[:, top : top + h, left : left + w]
        assert torch.equal(units[:, u].sort(1).values.flatten(), window.flatten())
        assert torch.equal(layout.reroll(units[:, u], 0), window)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pooling_in_this_order_is_max_pooling_of_the_grid(layout):
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(2, *layout.grid, 5, generator=generator)
    pooled, units = grid.permute(0, 3, 1, 2), layout.unroll(grid).flatten(0, 1)
    columns = layout.grid[1] // layout.unit[1]
    for i in range(1, layout.poolings + 1):
        pooled = F.max_pool2d(pooled, layout.stride)
        units = pool(units, layout.flat_stride)
        windows = layout.reroll(units, i).unflatten(0, (2, -1, columns))  # 2 x rows x columns x h x w x C
        assert torch.equal(windows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3), pooled)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (5, 2, 2), (1, 1, 0), (3, 1, 1)])
def test_steps_of_packed_clips_are_convolved_as_clips_of_their_own(kernel, stride, padding):
    torch.manual_seed(0)
    embed = PatchEmbed(3, 4, (kernel, 3, 3), (stride, 2, 2), (padding, 1, 1)).double()
    clips = [torch.randn(3, stride * steps, 8, 6, dtype=torch.float64) for steps in (4, 1, 3)]
    frames = torch.cat([torch.zeros(1, 3, 8, 6, dtype=torch.float64), *(clip.transpose(0, 1) for clip in clips)])
    windows = window_frames([4, 1, 3], kernel, stride, padding)
    assert windows.shape == (8, kernel)
    expected = [embed.proj(clip).permute(1, 2, 3, 0) for clip in clips]  # steps x H' x W' x C
    torch.testing.assert_close(embed(frames[windows]), torch.cat(expected))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UnitLayout((56, 50), (8, 8), (2, 2), 3), r"units of \(8, 8\) tokens do not tile .* \(56, 50\)"),
        (lambda: UnitLayout((12, 12), (6, 6), (2, 2), 2), r"\(6, 6\) tokens cannot be pooled 2 times by \(2, 2\)"),
        (lambda: token_grid((16, 64, 64), (3, 7, 7), (2, 4, 4), (1, 0, 3)), "does not divide an input"),
        (lambda: token_grid((15, 64, 64), (3, 7, 7), (2, 4, 4), (1, 3, 3)), "does not divide an input"),
        (lambda: check_stages((2, 0), 1, (True, False), (1, 1), 96, 1), "one block each"),
        (lambda: check_stages((2, 2), 1, (True,), (1, 1), 96, 1), "one value for each stage"),
        (lambda: check_stages((2, 2), 2, (True, True), (1, 1), 96, 1), "q_pool .* 0 to 1; got 2"),
        (lambda: check_stages((2, 2), 1, (True, True), (2, 1), 96, 1), "must be 1 in time.* got 2 and 1"),
        (lambda: check_stages((2, 2), 1, (True, True), (1, 1), 96, 5), "embed_dim 96 is not a multiple"),
    ],
)
def test_sizes_that_do_not_fit(call, message):
    with pytest.raises(ModuleShapeError, match=message):
        call()
