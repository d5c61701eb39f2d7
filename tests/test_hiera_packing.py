"""The packed SignHiera against the dense, masked way of computing the same (hiera_dense.py), and what packing saves."""

import pytest
import torch
from hiera_dense import DenseHiera
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from slt_plugin.modules import hiera
from slt_plugin.modules.hiera import SignHiera

SMALL = {"input_size": (12, 64, 32), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "num_classes": 5}
CONFIGS = {
    "released": {},
    "two poolings": {"q_pool": 2},
    "no pooling, global from the second stage": {
        "q_pool": 0,
        "mask_unit_attn": (True, False, False, False),
        "input_size": (12, 32, 32),
    },
    "all global": {"mask_unit_attn": (False,) * 4},
    "all local": {"mask_unit_attn": (True,) * 4},
    "two stages, two heads": {"stages": (2, 1), "q_pool": 1, "mask_unit_attn": (True, False), "num_heads": 2},
    "units of 4 tokens a side": {"mask_unit_size": (1, 4, 4), "q_pool": 2},
    "one table of positions": {"sep_pos_embed": False},
    "large patches": {"patch_kernel": (3, 11, 11), "patch_stride": (2, 8, 8), "patch_padding": (1, 5, 5),
                      "input_size": (12, 64, 128)},
    "patches that do not overlap": {"patch_kernel": (2, 4, 8), "patch_stride": (2, 4, 8), "patch_padding": (0, 0, 0),
                                    "input_size": (12, 32, 128)},
    "patches of four frames": {"patch_kernel": (5, 7, 7), "patch_stride": (4, 4, 4), "patch_padding": (2, 3, 3)},
}  # fmt: skip


def build(seed=0, dtype=torch.float32, **options) -> SignHiera:
    torch.manual_seed(seed)
    model = SignHiera(**{**SMALL, **options}).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # larger than at the start of training: attention is not flat
            parameter.add_(torch.randn_like(parameter) * (0.3 if name.startswith("pos") else 0.15))
    return model


def batch(model, padding, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(len(padding), 3, *model.input_size, generator=generator, dtype=torch.float64).to(dtype)
    return video, torch.tensor(padding)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padding", [(0, 0), (3, 0, 11, 7, 4), (8, 8)], ids=str)
def test_equals_the_dense_masked_computation_in_double_precision(name, padding):
    model = build(dtype=torch.float64, **CONFIGS[name])
    if model.temporal_stride == 4:
        padding = tuple(min(p, 8) for p in padding)
    video, padding = batch(model, padding, dtype=torch.float64)
    features, mask = model.extract_features(video, padding)
    expected, expected_mask = DenseHiera(model).extract_features(video, padding)
    assert torch.equal(mask, expected_mask)
    assert features.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-11, atol=1e-11)


def test_gradients_equal_those_of_the_dense_masked_computation():
    model = build(dtype=torch.float64)
    video, padding = batch(model, (5, 0, 10, 5), dtype=torch.float64)
    weight = torch.randn(4, 6, model.feature_dim, dtype=torch.float64)

    def gradients(encoder):
        model.zero_grad()
        (encoder.extract_features(video, padding)[0] * weight).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    ours, dense = gradients(model), gradients(DenseHiera(model))
    assert set(ours) == set(dense) == {n for n, _ in model.named_parameters() if not n.startswith(("norm.", "head."))}
    for name, gradient in ours.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, dense[name], rtol=1e-9, atol=1e-11)


def test_the_order_and_the_company_of_clips_do_not_matter():
    model = build()
    video, _ = batch(model, (0,) * 5)
    clips = [video[i, :, :frames] for i, frames in enumerate((4, 12, 2, 12, 6))]
    alone = [model.encode_clips([clip])[0] for clip in clips]
    assert [len(x) for x in alone] == [2, 6, 1, 6, 3]
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 3)):
        for i, features in zip(order, model.encode_clips([clips[i] for i in order]), strict=True):
            torch.testing.assert_close(features, alone[i], rtol=1e-5, atol=1e-5)


def test_frames_of_padded_steps_do_not_matter():
    model = build()
    video, padding = batch(model, (4, 5))
    features, mask = model.extract_features(video, padding)
    video[:, :, 8:] = torch.inf
    changed, _ = model.extract_features(video, padding)
    assert torch.equal(features, changed)
    assert mask.sum(1).tolist() == [2, 2] and not features[mask].any()


@pytest.mark.parametrize("learning", [False, True])
def test_a_few_steps_at_once_give_the_same(monkeypatch, learning):
    model = build(dtype=torch.float64)
    video, padding = batch(model, (5, 0, 10), dtype=torch.float64)
    with torch.set_grad_enabled(learning):
        whole = model.extract_features(video, padding)[0]
        calls = []
        embed = model.embed
        monkeypatch.setattr(model, "embed", lambda *a: calls.append(len(a[2])) or embed(*a))
        monkeypatch.setitem(hiera.VALUES_AT_ONCE, "cpu", 3 * 2 * 64 * 8)  # steps x units x tokens x channels
        assert torch.allclose(model.extract_features(video, padding)[0], whole, rtol=1e-12, atol=1e-12)
    assert calls == ([11] if learning else [3, 3, 3, 2])


def test_no_attention_call_has_rank_5_or_a_mask(monkeypatch):
    calls = []
    attention = F.scaled_dot_product_attention

    def traced(q, k, v, attn_mask=None, **options):
        assert not options
        calls.append((q.ndim, k.ndim, v.ndim, attn_mask))
        return attention(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", traced)
    model = build()
    model.extract_features(*batch(model, (5, 0, 10, 5)))
    # blocks 0-2 attend inside units (the first of stage 3 still does); 3 and 4 once for each of the lengths 6, 4, 1
    assert calls == [(4, 4, 4, None)] * (3 + 2 * 3)
    calls.clear()
    with torch.no_grad():
        DenseHiera(model).extract_features(*batch(model, (5, 0)))
    assert calls[0][0] == 5 and calls[-1][3] is not None  # the trace sees what it is there to see


def test_large_numbers_of_units_are_split(monkeypatch):
    from slt_plugin.modules import hiera_blocks

    model = build(dtype=torch.float64)
    video, padding = batch(model, (5, 0), dtype=torch.float64)
    expected = model.extract_features(video, padding)[0]
    monkeypatch.setattr(hiera_blocks, "LARGEST_BATCH", 3)
    assert torch.equal(model.extract_features(video, padding)[0], expected)


@torch.no_grad()
def test_cost_falls_at_least_in_proportion_to_the_padding():
    model = build()

    def flops(encoder, padding):
        with FlopCounterMode(display=False) as counter:
            encoder.extract_features(*batch(model, padding))
        return counter.get_total_flops()

    full = flops(model, (0, 0))
    assert full > 1e6
    assert flops(model, (6, 6)) <= 0.5 * full
    assert flops(model, (0, 6)) <= 0.75 * full
    assert flops(model, (9, 3)) <= 0.5 * full + full / 12  # 2 and 5 of 6 steps: 7/12 and less for global attention
    assert flops(DenseHiera(model), (6, 6)) >= full  # the counter sees the dense computation


@torch.no_grad()
def test_bfloat16_autocast_is_near():
    model = build()
    video, padding = batch(model, (5, 0, 10))
    features, mask = model.extract_features(video, padding)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model.extract_features(video, padding)
    assert rounded.dtype == torch.float32  # the residual path stays in single precision
    error = (rounded - features)[~mask].norm() / features[~mask].norm()
    assert 1e-4 < error < 0.02  # bfloat16 keeps 8 bits: 0.4 % a rounding


def test_half_precision_weights_take_single_precision_frames():
    model = build()
    video, padding = batch(model, (5, 0))
    expected = model.extract_features(video, padding)[0]
    features = model.bfloat16().extract_features(video, padding)[0]
    assert features.dtype == torch.bfloat16
    assert (features.float() - expected).norm() < 0.05 * expected.norm()
