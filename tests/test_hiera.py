"""SignHiera's errors, training options and tools for fine-tuning."""

import os
import shutil

import pytest
import torch
from torch.nn import functional as F

from slt_plugin.common.errors import SltError
from slt_plugin.modules.hiera import VARIANTS, SignHiera, interpolate_temporal_positions
from slt_plugin.modules.hiera_finetuning import freeze_all_but_last, layer_groups, layer_rates
from slt_plugin.modules.hiera_layout import Group, ModuleShapeError

INDUCTOR = pytest.mark.skipif(
    shutil.which("g++") is None or os.environ.get("SLT_SLOW") != "1",
    reason="compiles for a minute, with g++; set SLT_SLOW=1 to run it",
)
LENGTHS = (12, 4, 12, 2)


def build(**options) -> SignHiera:
    torch.manual_seed(0)
    options = {"input_size": (12, 64, 32), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), **options}
    model = SignHiera(num_classes=5, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def clips(lengths=LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, frames, 64, 32, generator=generator) for frames in lengths]


def video(*shape) -> torch.Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.encode_clips([video(3, 4, 64, 32), video(3, 4, 64, 64)]),
            r"clip 1: .*\(3, T, 64, 32\); got \(3, 4",
        ),
        (lambda m: m.encode_clips([video(1, 4, 64, 32)]), r"clip 0: expected .*got \(1, 4, 64, 32\)"),
        (lambda m: m.encode_clips([video(1, 3, 4, 64, 32)]), r"clip 0: expected .*got \(1, 3, 4, 64, 32\)"),
        (
            lambda m: m.encode_clips([video(3, 5, 64, 32)]),
            "clip 0: 5 frames; expected a multiple of 2 between 2 and 12",
        ),
        (lambda m: m.encode_clips([video(3, 0, 64, 32)]), "clip 0: 0 frames"),
        (lambda m: m.encode_clips([video(3, 14, 64, 32)]), "clip 0: 14 frames"),
        (lambda m: m.encode_clips([video(3, 4, 64, 32).to(torch.uint8)]), "normalised .* got torch.uint8"),
        (lambda m: m.extract_features(video(3, 4, 64, 32)), "expected a video batch"),
        (lambda m: m.extract_features(video(0, 3, 4, 64, 32)), "expected a video batch"),
        (lambda m: m.extract_features(video(2, 3, 5, 64, 32)), "a multiple of 2 frames; got 5"),
        (lambda m: m.extract_features(video(1, 3, 4, 64, 32), torch.tensor([0, 0])), "each of 1 clips; got .* shape"),
        (lambda m: m.extract_features(video(1, 3, 4, 64, 32), torch.tensor([0.5])), "got torch.float32"),
        (lambda m: m.extract_features(video(2, 3, 4, 64, 32), torch.tensor([3, 4])), "clip 1: 4 padding frames of 4"),
        (lambda m: m.extract_features(video(1, 3, 4, 64, 32), torch.tensor([-1])), "clip 0: -1 padding frames of 4"),
    ],
)
def test_inputs_that_do_not_fit(call, message):
    with pytest.raises(ModuleShapeError, match=message) as error:
        call(build())
    assert isinstance(error.value, SltError)


def test_no_clips_give_no_features():
    assert build().encode_clips([]) == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny_32x64"])
def test_the_small_variant_runs(name):
    model = VARIANTS[name](num_classes=3).eval()
    features, mask = model.extract_features(torch.randn(2, 3, *model.input_size), torch.tensor([0, 20]))
    assert features.shape == (2, 16, model.feature_dim) and mask.sum(1).tolist() == [0, 10]
    assert model(torch.randn(2, 3, *model.input_size)).sum(1).tolist() == pytest.approx([1, 1])


def test_a_new_model_has_the_paper_codes_initial_values():
    torch.manual_seed(0)
    state = VARIANTS["base_16x224"]().state_dict()
    for name in ("blocks.3.attn.qkv.weight", "pos_embed_spatial", "patch_embed.proj.weight"):
        assert state[name].std() == pytest.approx(0.02, rel=0.1)
    assert (state["blocks.1.norm1.weight"] == 1).all() and (state["blocks.1.norm1.bias"] == 0.02).all()
    assert state["head.projection.weight"].std() == pytest.approx(2e-5, rel=0.1)


def test_the_small_variant_starts_with_weights_that_pass_signals_on():
    torch.manual_seed(0)
    state = VARIANTS["tiny_32x64"]().state_dict()
    assert state["blocks.0.attn.qkv.weight"].std() == pytest.approx((2 / (32 + 96)) ** 0.5, rel=0.1)
    assert state["patch_embed.proj.weight"].std() == pytest.approx((3 * 2 * 8 * 8) ** -0.5, rel=0.1)
    assert (state["blocks.1.norm1.bias"] == 0).all()


def test_norms_have_the_released_epsilon():
    assert {module.eps for module in build().modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def gradients(model, seed=0):
    model.zero_grad()
    torch.manual_seed(seed)
    loss = sum((features**2).sum() for features in model.encode_clips(clips()))
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_gives_the_same_gradients_from_fewer_kept_values(drop_path_rate):
    model = build(drop_path_rate=drop_path_rate)

    def kept_values():
        count = 0

        def pack(x):
            nonlocal count
            count += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model.encode_clips(clips())
        return count

    expected, kept = gradients(model), kept_values()
    model.gradient_checkpointing = True
    again = gradients(model)
    assert set(again) == set(expected)
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12)
    assert kept_values() < kept / 2


def test_stochastic_depth_drops_whole_clips():
    model = build(drop_path_rate=0.5)
    block = model.blocks[-1].train()
    groups = [Group(40, 3), Group(60, 1)]
    torch.manual_seed(0)
    scale = block.drop_scale(torch.ones(180, 1, 8), groups).flatten()
    assert set(scale.tolist()) == {0.0, 2.0}
    long, short = scale[:120].view(40, 3), scale[120:]
    assert torch.equal(long, long[:, :1].expand(40, 3))  # all units of a clip share the draw
    assert 0.3 < (short > 0).float().mean() < 0.7 and 0.3 < (long > 0).float().mean() < 0.7
    assert block.eval().drop_scale(torch.ones(180, 1, 8), groups) is None


def test_dropped_branches_leave_the_residual_path():
    block = build().blocks[-2]
    x, y = torch.randn(2, 6, 4, 32).unbind(0)
    drop, keep = torch.zeros(6, 1, 1), torch.ones(6, 1, 1)
    assert torch.equal(block.after_attention(x, y, drop, drop), x)
    plain = block.after_attention(x, y, None, None)
    assert torch.equal(block.after_attention(x, y, keep, keep), plain)
    first, second = block.after_attention(x, y, keep, drop), block.after_attention(x, y, drop, keep)
    assert not torch.equal(first, x) and not torch.equal(second, x) and not torch.equal(first, plain)


def test_stochastic_depth_acts_in_training_only():
    model = build(drop_path_rate=0.5)
    assert model.blocks[0].drop_path.drop_prob == 0 and model.blocks[4].drop_path.drop_prob == 0.5
    first, second = model.encode_clips(clips()), model.encode_clips(clips())
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(model.encode_clips(clips()), model.encode_clips(clips()), strict=True))


def test_layer_groups_hold_every_parameter_once_in_order():
    model = build()
    groups = layer_groups(model)
    assert [name for name, _ in groups] == ["embeddings", *(f"blocks.{i}" for i in range(5)), "head"]
    flat = [id(p) for _, parameters in groups for p in parameters]
    assert len(flat) == len(set(flat)) and set(flat) == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in groups[0][1]} == {
        "pos_embed_spatial",
        "pos_embed_temporal",
        "patch_embed",
    }


def test_layer_rates_fall_towards_the_input():
    rates = layer_rates(build(), 0.5)
    assert rates == {"embeddings": 1 / 32, **{f"blocks.{i}": 0.5 ** (4 - i) for i in range(5)}, "head": 1.0}
    with pytest.raises(ModuleShapeError, match=r"at most 1; got 1\.5"):
        layer_rates(build(), 1.5)


@pytest.mark.parametrize(
    ("blocks", "first"), [(0, None), (1, "blocks.4"), (2, "blocks.3"), (5, "blocks.0"), (None, "")]
)
def test_only_the_last_blocks_learn(blocks, first):
    model = build()
    freeze_all_but_last(model, blocks)
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    names = [name for name, _ in model.named_parameters() if not name.startswith(("norm.", "head."))]
    if first is None:
        assert learning == []
        assert not any(x.requires_grad for x in model.encode_clips(clips()))
        return
    assert learning == names[next(i for i, name in enumerate(names) if name.startswith(first)) :]
    everything = gradients(build())
    some = gradients(model)
    assert sorted(some) == sorted(learning)
    for name, gradient in some.items():
        torch.testing.assert_close(gradient, everything[name])


@pytest.mark.parametrize("blocks", [-1, 6])
def test_numbers_of_blocks_that_do_not_exist(blocks):
    with pytest.raises(ModuleShapeError, match=f"last {blocks} blocks of an encoder with 5; expected 0 to 5"):
        freeze_all_but_last(build(), blocks)


def test_temporal_positions_stretch_linearly():
    positions = torch.arange(8.0).view(1, 8, 1).repeat(1, 1, 3) * torch.tensor([1.0, -2.0, 0.0])
    long = interpolate_temporal_positions(positions, 64)
    assert long.shape == (1, 64, 3)
    expected = ((torch.arange(64) + 0.5) / 8 - 0.5).clamp(0, 7)
    torch.testing.assert_close(long[0, :, 0], expected)
    torch.testing.assert_close(long[0, :, 1], -2 * expected)
    assert torch.equal(interpolate_temporal_positions(positions, 8), positions)
    assert interpolate_temporal_positions(positions.half(), 3).dtype == torch.float16
    torch.testing.assert_close(
        interpolate_temporal_positions(torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0)), 5),
        F.interpolate(torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0)).mT, size=5, mode="linear").mT,
    )
    with pytest.raises(ModuleShapeError, match=r"table \(1, steps, channels\)"):
        interpolate_temporal_positions(positions[0], 64)


@torch.no_grad()
@torch._dynamo.config.patch(recompile_limit=1)  # compile_blocks raises it; put back afterwards
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=INDUCTOR)])
def test_compiled_blocks_give_the_same_and_settle(backend):
    model = build(stages=(1, 1), q_pool=1, mask_unit_attn=(False, False)).eval()
    names = list(model.state_dict())
    batches = [clips(lengths) for lengths in ((12, 4, 2), (6,), (12, 12), (10, 8, 6, 2), (4, 4, 12), (8,))]
    expected = [model.encode_clips(batch) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_blocks(backend)
    assert list(model.state_dict()) == names
    graphs = []
    for batch, features in zip(batches, expected, strict=True):
        for ours, eager in zip(model.encode_clips(batch), features, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 4 <= graphs[1] == graphs[-1] <= 6  # before and after attention, two widths; one or several lengths
