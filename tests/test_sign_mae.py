"""Model sign_mae: what it starts from, and options that are refused."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.models.errors import OptionError
from slt_plugin.models.sign_mae import SignMAE, SignMAEConfig
from slt_plugin.modules.hiera import signhiera_tiny_32x64
from slt_plugin.modules.hiera_mae import mae_tiny_32x64


def build(**options) -> SignMAE:
    cfg = OmegaConf.merge(OmegaConf.structured(SignMAEConfig), {"variant": "tiny_32x64", **options})
    return SignMAE.build_model(cfg, SimpleNamespace(cfg=SimpleNamespace(clip_frames=32, clip_size=64)))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def test_encoder_and_decoder_start_from_a_checkpoint(tmp_path):
    theirs = mae_tiny_32x64()
    path = tmp_path / "mae.pt"
    torch.save({"model": {f"mae.{name}": value for name, value in theirs.state_dict().items()}}, path)
    encoder_alone = build(pretrained=str(path)).mae
    assert same(encoder_alone.encoder, theirs.encoder)
    assert not torch.equal(encoder_alone.decoder_pred.weight, theirs.decoder_pred.weight)
    assert same(build(pretrained=str(path), pretrained_decoder=True).mae, theirs)

    classifier = signhiera_tiny_32x64(num_classes=5)  # its norm and head have no place in an autoencoder
    torch.save({"model_state": classifier.state_dict()}, path)
    started = build(pretrained=str(path)).mae
    assert torch.equal(started.encoder.blocks[2].mlp.fc1.weight, classifier.blocks[2].mlp.fc1.weight)
    with pytest.raises(CheckpointError, match="no masked autoencoder with its decoder"):
        build(pretrained=str(path), pretrained_decoder=True)


def test_options_reach_the_model():
    model = build(drop_path=0.1, norm_pix_loss=False, checkpoint_activations=True)
    assert model.mae.encoder.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
    assert not model.mae.norm_pix_loss and model.mae.encoder.gradient_checkpointing


def test_the_loss_is_summed_over_predicted_patches():
    model = build(mask_ratio=0.75).eval()
    clips = torch.randint(0, 256, (3, 32, 3, 64, 64), dtype=torch.uint8)
    lengths, seeds = torch.tensor([32, 20, 8]), torch.tensor([1, 2, 3])
    output = model(clips, lengths, seeds)
    assert output["sample_size"] == (16 - 4) + (10 - 2) + (4 - 1)
    alone = [model(clips[i : i + 1, : lengths[i]], lengths[i : i + 1], seeds[i : i + 1]) for i in range(3)]
    total = sum(part["losses"]["mae"].item() for part in alone)
    assert output["losses"]["mae"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "tiny_32x46"}, r"model\.variant=tiny_32x46.*tiny_32x64"),
        ({"variant": "base_128x224"}, r"task\.clip_frames=128 task\.clip_size=224 \(now 32 and 64\)"),
        ({"mask_ratio": 1.0}, r"model\.mask_ratio=1\.0"),
        ({"pretrained_decoder": True}, r"needs model\.pretrained"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        build(**options)
