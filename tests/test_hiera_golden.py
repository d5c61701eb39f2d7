"""SignHiera equals the values that the public reference implementation computes (../shared/golden/README.md)."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from slt_plugin.modules.hiera import VARIANTS, SignHiera, signhiera_base_128x224

GOLDEN = Path(__file__).parent / "golden"
SHARED = ROOT.parent / "shared" / "golden"
# a part that always travels with the tests, and all of it where the shared folder is at hand
SMALL = [GOLDEN / "sign_hiera_qpool3_clips_0_2.safetensors", SHARED / "sign_hiera_qpool3.safetensors"]
FULL_SIZE = SHARED / "sign_hiera_base_128x224_shared.safetensors"
SLOW = pytest.mark.skipif(os.environ.get("SLT_SLOW") != "1", reason="half a minute; set SLT_SLOW=1 to run it")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=SMALL, ids=["two clips", "all clips"])
def small(request):
    if not request.param.is_file():
        pytest.skip(f"{request.param} is not here")
    values = load_file(request.param)
    options = json.loads((GOLDEN / "sign_hiera_meta.json").read_text(encoding="utf-8"))["kwargs"]
    model = SignHiera(**options, q_pool=3, num_classes=values["logits"].shape[1]).eval()
    model.load_state_dict({name[6:]: value for name, value in values.items() if name.startswith("param.")})
    return model, values


@torch.no_grad()
@pytest.mark.parametrize("case", "abc")
def test_features(small, case):
    model, values = small
    features, mask = model.extract_features(values["video"].float(), values[f"padding.{case}"])
    assert mask.sum(1).tolist() == (values[f"padding.{case}"] // 2).tolist()
    torch.testing.assert_close(features[~mask], values[f"features.{case}"], **TOLERANCE)
    assert not features[mask].any()


@torch.no_grad()
def test_class_scores(small):
    model, values = small
    torch.testing.assert_close(model(values["video"].float()), values["logits"], **TOLERANCE)
    scores = model.train()(values["video"].float())
    torch.testing.assert_close(scores.softmax(-1), values["logits"], **TOLERANCE)
    assert (scores < 0).any()  # in training these are logits


@pytest.mark.parametrize("variant", ["base_16x224", "base_128x224"])
def test_parameter_names_and_shapes(variant):
    expected = json.loads((GOLDEN / "state_dict_shapes.json").read_text(encoding="utf-8"))[f"hiera_{variant}"]
    with torch.device("meta"):
        state = VARIANTS[variant]().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize(
    ("variant", "millions", "blocks", "feature_dim"),
    [("base_128x224", 51.1, 24, 768), ("large_128x224", 213.1, 48, 1152), ("tiny_32x64", 1.3, 5, 256)],
)
def test_sizes_of_the_variants(variant, millions, blocks, feature_dim):
    with torch.device("meta"):
        model = VARIANTS[variant](drop_path_rate=0.1, num_classes=400)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (len(model.blocks), model.feature_dim, model.temporal_stride) == (blocks, feature_dim, 2)
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


def formula_weight(name: str, shape: torch.Size) -> torch.Tensor:
    n = math.prod(shape)
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(name)) % 1000
    v = torch.sin(torch.arange(n, dtype=torch.float64) * 12.9898 + seed * 0.137) * 43758.5453
    v = torch.remainder(v, 1.0) * 2 - 1
    if name.endswith(("norm1.weight", "norm2.weight", "encoder_norm.weight")) or name == "norm.weight":
        v = 1 + 0.1 * v
    elif len(shape) > 1:
        v = v * (1.7 / (n / shape[0]) ** 0.5)
    else:
        v = 0.05 * v
    return v.reshape(shape).float()


def formula_video() -> torch.Tensor:
    i = torch.arange(3 * 128 * 224 * 224, dtype=torch.float32)  # float32: integers above 2 ** 24 round, as they must
    video = torch.remainder(torch.sin(i.double() * 12.9898) * 43758.5453, 1.0) * 4 - 2
    t, x = torch.arange(128, dtype=torch.float32), torch.arange(224, dtype=torch.float32)
    waves = torch.sin(t * 0.2).reshape(1, 1, 128, 1, 1) * torch.sin(x * 0.05).reshape(1, 1, 1, 1, 224) * 2
    return video.float().reshape(1, 3, 128, 224, 224) + waves


@torch.no_grad()
@pytest.mark.skipif(not FULL_SIZE.is_file(), reason=f"{FULL_SIZE} is not here")
@pytest.mark.parametrize("padding", [101, pytest.param(64, marks=SLOW)])
def test_full_size_features(padding):
    with torch.device("meta"):
        model = signhiera_base_128x224().eval()
    model.load_state_dict({k: formula_weight(k, v.shape) for k, v in model.state_dict().items()}, assign=True)
    features, mask = model.extract_features(formula_video(), torch.tensor([padding]))
    torch.testing.assert_close(features[~mask], load_file(FULL_SIZE)[f"features.pad{padding}"], **TOLERANCE)
