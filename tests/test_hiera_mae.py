"""The masked autoencoder equals the public reference's values and the dense computation, and loads public names."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mae_dense import DenseMAE
from safetensors.torch import load_file
from torch import nn

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.sign_mae import load_sign_mae
from slt_plugin.modules.hiera import SignHiera, signhiera_tiny_32x64
from slt_plugin.modules.hiera_layout import Group, ModuleShapeError
from slt_plugin.modules.hiera_mae import SignHieraMAE, mae_base_128x224, mae_tiny_32x64

GOLDEN = Path(__file__).parent / "golden"
# predictions and labels thinned out to every 96th value, and all of them where the shared folder is at hand
FILES = [
    GOLDEN / "sign_hiera_mae_qpool3_every_96th.safetensors",
    ROOT.parent / "shared" / "golden" / "sign_hiera_mae_qpool3.safetensors",
]
META = json.loads((GOLDEN / "sign_hiera_meta.json").read_text(encoding="utf-8"))
GRADIENTS = {"grad_blocks0_qkv": "blocks.0.attn.qkv.weight", "grad_patch": "patch_embed.proj.weight"}


def small_mae(*, norm_pix_loss: bool = True, **options) -> SignHieraMAE:
    encoder = SignHiera(**{**META["kwargs"], "q_pool": 3, **options}, num_classes=0)
    return SignHieraMAE(encoder, **META["mae"], norm_pix_loss=norm_pix_loss)


def random_weights(mae: SignHieraMAE, seed: int = 0) -> SignHieraMAE:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in mae.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return mae


@pytest.fixture(params=FILES, ids=["every 96th value", "all values"])
def golden(request):
    if not request.param.is_file():
        pytest.skip(f"{request.param} is not here")
    values = load_file(request.param)
    mae = small_mae()
    mae.load_state_dict({name[6:]: value for name, value in values.items() if name.startswith("param.")})
    return mae, values


@pytest.mark.parametrize("case", "ab")
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recomputed activations"])
def test_golden_values(golden, case, recompute):
    mae, values = golden
    mae.encoder.gradient_checkpointing = recompute
    mask, padding = values[f"mask.{case}"], values.get(f"padding.{case}")
    output = mae(values["video"].float(), mask=mask, padding=padding)
    every = output.pred.shape[1] // values[f"pred.{case}"].shape[1]
    tolerance = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(output.loss, values[f"loss.{case}"], **tolerance)
    torch.testing.assert_close(output.pred[:, ::every], values[f"pred.{case}"], **tolerance)
    torch.testing.assert_close(output.target[:, ::every], values[f"label.{case}"], **tolerance)
    assert torch.equal(
        output.mask, mask if padding is None else mask & (torch.arange(64) // 4 < 16 - padding[:, None] // 2)
    )
    output.loss.backward()
    parameters = dict(mae.encoder.named_parameters())
    for name, parameter in GRADIENTS.items():
        gradient, wanted = parameters[parameter].grad, values[f"{name}.{case}"]
        # these gradients are about 1e-6: compared with their own size
        assert (gradient - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_equals_the_dense_computation(norm_pix_loss):
    mae = random_weights(small_mae(norm_pix_loss=norm_pix_loss)).double()
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(5, 3, 32, 64, 64, generator=generator, dtype=torch.float64)
    padding = torch.tensor([20, 0, 7, 31 - 4, 20])
    mask = torch.zeros(5, 64, dtype=torch.bool)
    for row in mask:  # equally many, some of them in the padding, as the dense computation needs
        row[0] = True
        row[1 + torch.randperm(63, generator=generator)[:9]] = True
    ours, (loss, pred, target) = mae(video, mask=mask, padding=padding), DenseMAE(mae)(video, mask, padding)
    for a, b in ((ours.loss, loss.float()), (ours.pred, pred.float()), (ours.target, target.float())):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    names, parameters = zip(*mae.named_parameters(), strict=True)
    wanted = torch.autograd.grad(loss, parameters)
    for name, a, b in zip(names, torch.autograd.grad(ours.loss, parameters), wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-12, name


def test_norm_pix_loss_is_a_switch():
    video, mask = torch.randn(1, 3, 32, 64, 64) * 3 + 1, torch.arange(64)[None] % 5 == 0
    plain = small_mae(norm_pix_loss=False)(video, mask=mask).target
    normed = small_mae(norm_pix_loss=True)(video, mask=mask).target
    assert torch.equal(plain[0], video[0, :, 0, :32, 32:].permute(1, 2, 0).flatten())  # unit 1
    expected = (plain - plain.mean(1, keepdim=True)) / plain.std(1, keepdim=True)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clips_do_not_see_each_other():
    """Neither other clips nor the place in the batch change a clip's result, also where masks keep unequal numbers."""
    mae = random_weights(small_mae()).eval()
    video, padding = torch.randn(4, 3, 32, 64, 64), torch.tensor([2, 20, 0, 9])
    mask = torch.rand(4, 64, generator=torch.Generator().manual_seed(3)) < torch.tensor([[0.1], [0.5], [0.3], [0.1]])
    mask[:, 0] = True
    together = mae(video, mask=mask, padding=padding)
    alone = [mae(video[i : i + 1], mask=mask[i : i + 1], padding=padding[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together.pred, torch.cat([part.pred for part in alone]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.pooled, torch.cat([part.pooled for part in alone]), rtol=1e-4, atol=1e-5)
    assert torch.equal(together.target, torch.cat([part.target for part in alone]))
    shorter = mae(video[1:2, :, :12], mask=mask[1:2, :24])  # without the padding
    torch.testing.assert_close(shorter.pred, alone[1].pred, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pooled_features():
    mae = random_weights(mae_tiny_32x64()).eval()
    video, seeds = torch.randn(2, 3, 32, 64, 64), torch.tensor([5, 6])
    output = mae(video, seeds=seeds, mask_ratio=0.75)
    assert torch.equal(mae.encode(video, seeds=seeds, mask_ratio=0.75), output.pooled)
    # with kept steps alone (a unit is a whole step here), the encoder itself gives their features; what it sees of
    # other steps differs, but patches two frames deep do not reach into them
    kept = output.mask[0].nonzero()[:, 0]
    x = mae.encoder.embed(
        torch.cat([torch.zeros(1, 3, 64, 64), video[0].transpose(0, 1)]), 1 + kept[:, None] * 2 + torch.arange(2), kept
    )
    x = mae.encoder.run_blocks(x, [Group(1, len(kept))], range(len(mae.encoder.blocks)))
    torch.testing.assert_close(x.mean((0, 1)), output.pooled[0], rtol=1e-4, atol=1e-5)


def test_seeds_decide_the_mask_and_nothing_else_does():
    mae = mae_tiny_32x64()
    video = torch.randn(3, 3, 32, 64, 64)
    for seed in range(30):  # a padded clip keeps its first step, whether or not another clip of its batch is longer
        seeds, padding = torch.tensor([seed, seed]), torch.tensor([12, 0])
        padded = mae(video[:2], seeds=seeds, padding=padding).mask[0]
        assert torch.equal(mae(video[:1, :, :20], seeds=seeds[:1]).mask[0], padded[:10])
    masks = mae(video, seeds=torch.tensor([1, 2, 3]), mask_ratio=0.5).mask
    torch.manual_seed(99)
    again = mae(video.flip(0), seeds=torch.tensor([3, 2, 1]), mask_ratio=0.5).mask
    assert torch.equal(masks, again.flip(0)) and not torch.equal(masks[0], masks[1])
    torch.manual_seed(7)
    drawn = mae(video).mask
    torch.manual_seed(7)
    assert torch.equal(drawn, mae(video).mask)


def test_names_and_shapes_of_the_released_autoencoder():
    expected = json.loads((GOLDEN / "state_dict_shapes.json").read_text(encoding="utf-8"))["mae_hiera_base_128x224"]
    with torch.device("meta"):
        mae = mae_base_128x224()
    state = {name.removeprefix("encoder."): list(value.shape) for name, value in mae.state_dict().items()}
    assert state == expected
    assert sum(p.numel() for p in mae.parameters()) / 1e6 == pytest.approx(87.8, abs=0.05)


def test_public_names_load_wherever_the_autoencoder_stands():
    mae, other = random_weights(mae_tiny_32x64()), mae_tiny_32x64()
    own = mae.state_dict()
    public = {name.removeprefix("encoder."): value for name, value in own.items()}
    assert "blocks.0.norm1.weight" in public and "encoder_norm.weight" in public
    for state in (own, public):
        wrapped = nn.ModuleDict({"mae": random_weights(mae_tiny_32x64(), seed=1)})
        wrapped.load_state_dict({f"mae.{name}": value for name, value in state.items()})
        other.load_state_dict(state)
        for loaded in (wrapped["mae"], other):
            assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(RuntimeError, match=r"head\.projection"):
        other.load_state_dict(public | {"head.projection.weight": torch.ones(3)})


def test_an_autoencoder_of_two_poolings():
    """Of each unit four positions are left; the table of decoder positions is stored row by row of a time step."""
    mae = random_weights(small_mae(q_pool=2))
    output = mae(torch.randn(2, 3, 32, 64, 64), seeds=torch.tensor([1, 2]))
    assert output.pred.shape == (2 * (64 - 6) * 4, 3 * 16 * 16)
    assert [tuple(head.weight.shape[1:]) for head in mae.multi_scale_fusion_heads] == [(16, 1, 4, 4), (32, 1, 2, 2)]
    table = torch.arange(16 * 4 * 4.0).view(1, -1, 1)
    mae.decoder_pos_embed = nn.Parameter(table.expand_as(mae.decoder_pos_embed).clone())
    # second time step, unit 1 (top right of 2 x 2), position 2 (its bottom left): row 1, column 2 of 4 x 4
    assert mae._decoder_positions()[4 + 1, 2, 0] == 16 + 1 * 4 + 2


def test_bf16():
    mae = random_weights(mae_tiny_32x64())
    video, seeds = torch.randn(2, 3, 32, 64, 64), torch.tensor([1, 2])
    full = mae(video, seeds=seeds, mask_ratio=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mae(video, seeds=seeds, mask_ratio=0.5)
    half = mae.bfloat16()(video, seeds=seeds, mask_ratio=0.5)
    for output in (cast, half):
        assert output.loss.dtype == torch.float32
        assert torch.equal(output.target, full.target)  # the pixels are not rounded
        assert output.loss.item() == pytest.approx(full.loss.item(), rel=0.02)
    half.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mae.parameters())


def test_everything_learns():
    mae = mae_tiny_32x64(drop_path_rate=0.1)
    mae(torch.randn(2, 3, 32, 64, 64)).loss.backward()
    assert [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_bad_input():
    mae = mae_tiny_32x64()
    video = torch.randn(2, 3, 32, 64, 64)
    with pytest.raises(ModuleShapeError, match="num_classes=0"):
        SignHieraMAE(signhiera_tiny_32x64())
    with pytest.raises(ModuleShapeError, match="decoder_num_heads=3"):
        SignHieraMAE(mae.encoder, decoder_embed_dim=32, decoder_num_heads=3)
    with pytest.raises(ModuleShapeError, match=r"clip 1 has a single mask unit"):
        mae(video, padding=torch.tensor([0, 30]))
    with pytest.raises(ModuleShapeError, match=r"shape \(2, 16\)"):
        mae(video, mask=torch.ones(2, 15, dtype=torch.bool))
    for mask in (torch.ones(2, 16, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)):
        with pytest.raises(ModuleShapeError, match="keeps or hides all"):
            mae(video, mask=mask)
    with pytest.raises(ModuleShapeError, match="height, width"):
        mae(video[..., :32])
    with pytest.raises(ModuleShapeError, match="34 frames"):
        mae(torch.randn(1, 3, 34, 64, 64))


@pytest.mark.parametrize(
    ("container", "prefix"), [("model", "mae."), ("clip", "visual.transformer."), ("model", ""), ("", "")]
)
def test_whole_autoencoders_of_known_layouts(tmp_path, container, prefix):
    mae, other = random_weights(mae_tiny_32x64()), mae_tiny_32x64()
    own = mae.state_dict()
    strip = "" if prefix == "mae." else "encoder."
    state = {prefix + name.removeprefix(strip): value for name, value in own.items()}
    if prefix:
        state["text.proj.0.weight"] = torch.ones(2, 2)
    torch.save({container: state} if container else state, tmp_path / "file.pt")
    load_sign_mae(tmp_path / "file.pt", other)
    assert all(torch.equal(value, own[name]) for name, value in other.state_dict().items())
    encoder = load_sign_hiera(tmp_path / "file.pt", "tiny_32x64")  # the same file, as slt-extract takes it
    assert torch.equal(encoder.blocks[0].attn.qkv.weight, mae.encoder.blocks[0].attn.qkv.weight)


def test_autoencoders_that_do_not_fit(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"model": signhiera_tiny_32x64().state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"file.pt: no masked autoencoder.*pretrained_decoder=false"):
        load_sign_mae(path, mae_tiny_32x64())
    torch.save({"model": small_mae().state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"does not fit the model: shapes: mask_token.*model\.variant"):
        load_sign_mae(path, mae_tiny_32x64())
    state = mae_tiny_32x64().state_dict()
    state["mask_token"][0, 0, 0] = float("nan")
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match="mask_token hold values that are not finite"):
        load_sign_mae(path, mae_tiny_32x64())
