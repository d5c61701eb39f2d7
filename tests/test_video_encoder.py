"""SignHiera as source encoder: features as extraction makes them, freezing, variants and mistakes."""

from types import SimpleNamespace

import pytest
import torch

from slt_plugin.data.transforms import normalise
from slt_plugin.models.errors import OptionError
from slt_plugin.models.video_encoder import VideoEncoder, build_video_encoder
from slt_plugin.modules.hiera import VARIANTS


def encoder(trainable_blocks: int = -1, drop_path: float = 0.0) -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(VARIANTS["tiny_32x64"](drop_path_rate=drop_path), trainable_blocks=trainable_blocks)


def batch(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames (B, F, 3, 64, 64) with clips of the given lengths, and the lengths (B, N)."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.zeros(len(rows), max(map(sum, rows)), 3, 64, 64, dtype=torch.uint8)
    lengths = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for b, row in enumerate(rows):
        frames[b, : sum(row)] = torch.randint(0, 256, (sum(row), 3, 64, 64), dtype=torch.uint8, generator=generator)
        lengths[b, : len(row)] = torch.tensor(row)
    return frames, lengths


def test_features_are_those_of_each_clip_alone():
    model = encoder().eval()
    rows = [[32, 32, 10], [4], [32]]
    frames, lengths = batch(rows)
    features, mask = model(frames, lengths)
    assert features.shape == (3, 37, model.out_dim) and (~mask).sum(1).tolist() == [37, 2, 16]
    for b, row in enumerate(rows):
        first = 0
        for length in row:
            clip = normalise(frames[b, first : first + length]).transpose(0, 1)
            alone, _ = model.hiera.extract_features(clip[None])
            torch.testing.assert_close(features[b, first // 2 : (first + length) // 2], alone[0], atol=1e-5, rtol=1e-4)
            first += length


@pytest.mark.parametrize(("trainable", "expected"), [(0, set()), (2, {"3", "4"}), (5, set("01234")), (-1, None)])
def test_only_the_chosen_blocks_are_trained(trainable, expected):
    model = encoder(trainable, drop_path=0.5).train()
    features, _ = model(*batch([[8], [4]]))
    trained = {name for name, p in model.hiera.named_parameters() if p.requires_grad}
    if expected is None:
        assert {"pos_embed_spatial", "patch_embed.proj.weight", "blocks.0.norm1.weight"} <= trained
    else:
        assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == expected
        assert all(name.startswith("blocks") for name in trained)
        assert [block.training for block in model.hiera.blocks] == [str(i) in expected for i in range(5)]
    assert not any(name.startswith(("norm", "head")) for name in trained)  # the classifier's
    if trained:
        features.sum().backward()
        assert {name for name, p in model.hiera.named_parameters() if p.grad is not None} == trained
    else:
        assert not features.requires_grad


def test_a_frozen_encoder_gives_the_same_features_in_training():
    frames, lengths = batch([[8, 6]])
    model = encoder(0, drop_path=0.9)
    assert torch.equal(model.train()(frames, lengths)[0], model.eval()(frames, lengths)[0])


def options(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{
        "signhiera_variant": "tiny_32x64", "signhiera_pretrained": None, "signhiera_trainable_blocks": -1,
        "signhiera_lr_decay": 1.0, "signhiera_drop_path": 0.0, "checkpoint_activations": False, **changes,
    })  # fmt: skip


CLIPS = SimpleNamespace(clip_frames=32, clip_size=64)


@pytest.mark.parametrize(
    ("change", "clips", "message"),
    [
        ({"signhiera_variant": "tiny_32x46"}, CLIPS, "did you mean 'tiny_32x64'"),
        ({"signhiera_trainable_blocks": 6}, CLIPS, "1 to 5"),
        ({"signhiera_trainable_blocks": -2}, CLIPS, "0 .frozen."),
        ({}, SimpleNamespace(clip_frames=128, clip_size=224), "set task.clip_frames=32 task.clip_size=64"),
    ],
)
def test_mistakes_are_named(change, clips, message):
    with pytest.raises(OptionError, match=message):
        build_video_encoder(options(**change), clips)


def test_another_sampling_than_that_of_the_pretraining_is_named(tmp_path, caplog):
    """Of a sign_mae and of a fine-tuned sign_to_text, whose checkpoints keep their clips in other places."""
    state = VARIANTS["tiny_32x64"](num_classes=0).state_dict()
    clips = {"clip_frames": 32, "clip_size": 64, "clip_sampling_rate": 1, "clip_target_fps": 8.0}
    task = SimpleNamespace(clip_frames=32, clip_size=64, clip_sampling_rate=1, clip_target_fps=25.0)
    for prefix, place in (("mae.encoder", "clips"), ("encoder.source_encoder.hiera", "source")):
        content = {"model": {f"{prefix}.{k}": v for k, v in state.items()}, "task_state": {place: clips}}
        torch.save(content, tmp_path / f"{place}.pt")
        caplog.clear()
        build_video_encoder(options(signhiera_pretrained=str(tmp_path / f"{place}.pt")), task)
        (line,) = [record.getMessage() for record in caplog.records if "was trained with" in record.getMessage()]
        assert line.startswith("task.clip_target_fps=25, but model.signhiera_pretrained=")
        assert "was trained with task.clip_target_fps=8:" in line and "sampling_rate" not in line
    caplog.clear()
    build_video_encoder(options(signhiera_pretrained=str(tmp_path / "clips.pt")), SimpleNamespace(**clips))
    assert "was trained with" not in caplog.text


def test_layer_decay_marks_earlier_layers_with_smaller_rates():
    model = build_video_encoder(options(signhiera_lr_decay=0.5), CLIPS)
    scales = {
        name: p.optim_overrides["optimizer"]["lr_scale"]
        for name, p in model.hiera.named_parameters()
        if p.requires_grad
    }
    by_block = [scales[f"blocks.{i}.attn.qkv.weight"] for i in range(5)]
    assert by_block == [by_block[4] * 0.5 ** (4 - i) for i in range(5)] and by_block[4] == 1
    assert scales["pos_embed_spatial"] == scales["patch_embed.proj.weight"] == 0.5**5


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_video_encoder(options(checkpoint_activations=checkpointing), CLIPS).train()
        model(*batch([[8, 4], [6]]))[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
