"""SignHiera from every known checkpoint layout: the same features, or an error that says what the file looks like."""

import json
import logging
import os
import pickle
from pathlib import Path

import hiera_files
import pytest
import torch
from hiera_files import LAYOUTS, save, shorter, tiny_hiera
from safetensors.torch import save_file

from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.keymaps import SSVP_MAE, CheckpointError, convert, fit
from slt_plugin.checkpoints.recognise import geometry
from slt_plugin.checkpoints.sign_hiera import FORMAT, describe, import_sign_hiera, read_file
from slt_plugin.modules.hiera import VARIANTS

SHAPES = json.loads((Path(__file__).parent / "golden/state_dict_shapes.json").read_text())


@pytest.fixture(scope="module")
def hiera():
    return tiny_hiera()


@pytest.fixture(scope="module")
def clip():
    return torch.randn(3, 12, 64, 64, generator=torch.Generator().manual_seed(5))


def features(model, clip):
    with torch.no_grad():
        return model.eval().encode_clips([clip])[0]


def message_of(path, variant=None) -> str:
    with pytest.raises(CheckpointError) as error:
        load_sign_hiera(path, variant)
    return str(error.value)


# The same features


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_features(layout, hiera, clip, tmp_path):
    path = save(LAYOUTS[layout](hiera), tmp_path / "file.pth")
    loaded = load_sign_hiera(path, drop_path_rate=0.3)
    assert torch.equal(features(loaded, clip), features(hiera, clip))
    assert loaded.blocks[-1].drop_path.drop_prob == pytest.approx(0.3)
    written = tmp_path / "ours.pt"
    import_sign_hiera(path, written, "tiny_32x64")
    assert torch.equal(features(load_sign_hiera(written), clip), features(hiera, clip))


def test_old_zip_less_files_and_safetensors(hiera, clip, tmp_path):
    torch.save(LAYOUTS["ssvp_mae"](hiera), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(dict(hiera.state_dict()), tmp_path / "model.safetensors")
    for name in ("old.pth", "model.safetensors"):
        assert torch.equal(features(load_sign_hiera(tmp_path / name), clip), features(hiera, clip))


def test_the_head_is_kept_where_there_is_one(hiera, tmp_path):
    loaded = load_sign_hiera(save(LAYOUTS["hiera_classifier"](hiera), tmp_path / "c.pth"))
    assert torch.equal(loaded.head.projection.weight, hiera.head.projection.weight)  # 5 classes, as in the file
    file = read_file(save(LAYOUTS["hiera_mae"](hiera), tmp_path / "m.pth"))
    assert file.kept == ("norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias")


def test_the_full_sizes_fit():
    """Names and shapes of the released models, without their values."""
    for name, shapes in SHAPES.items():
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        state = convert(tensors, SSVP_MAE)
        variant = f"base_{name.split('_')[-1]}"
        with torch.device("meta"):
            model = VARIANTS[variant]()
        assert geometry(state) == geometry(model.state_dict())
        assert geometry(state).stages == (2, 3, 16, 3)
        assert len(fit(state, model.state_dict(), SSVP_MAE)[0]) == (298 if name.startswith("mae") else 302)


# Other lengths


def test_temporal_positions_are_interpolated(tmp_path, clip, caplog):
    model = shorter(tiny_hiera(), 4)
    path = save(hiera_files.hiera_mae(model), tmp_path / "short.pth")
    with caplog.at_level(logging.WARNING):
        loaded = load_sign_hiera(path, "tiny_32x64")
    # each old position covers four new ones and stands in the middle between the second and the third of them
    expected = [0, 0, 0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875, 2.125, 2.375, 2.625, 2.875, 3, 3]
    channels = torch.arange(32) / 10
    torch.testing.assert_close(loaded.pos_embed_temporal[0], torch.tensor(expected)[:, None] + channels)
    assert "interpolated linearly from 4 to 16 time steps" in caplog.text
    assert "pretrained with q_pool 2, used with q_pool 3" in caplog.text
    file = import_sign_hiera(path, tmp_path / "ours.pt", "tiny_32x64")
    assert file.provenance.notes == file.notes and len(file.notes) == 2
    assert import_sign_hiera(tmp_path / "ours.pt", tmp_path / "copy.pt").provenance == file.provenance
    assert describe(tmp_path / "copy.pt").notes == file.notes
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = load_sign_hiera(tmp_path / "ours.pt")
    assert torch.equal(again.pos_embed_temporal, loaded.pos_embed_temporal)
    assert caplog.text == ""  # nothing is interpolated now
    with caplog.at_level(logging.INFO):
        load_sign_hiera(tmp_path / "ours.pt")
    assert "from 4 to 16 time steps" in caplog.text  # but still told


def test_another_length_needs_a_variant(tmp_path):
    path = save(hiera_files.hiera_mae(shorter(tiny_hiera(), 4)), tmp_path / "short.pth")
    message = message_of(path)
    assert message.startswith(f"{path}: no variant has width 32, 1+1+2+1 blocks, 4 time steps of 64 positions")
    assert message.endswith("name the variant to stretch its temporal positions to: tiny_32x64")


# Our own file


def test_provenance_travels(hiera, tmp_path):
    path = save(LAYOUTS["ssvp_clip"](hiera), tmp_path / "clip.pth")
    file = import_sign_hiera(path, tmp_path / "a.pt", licence="CC BY 4.0", source="https://x.org/clip.pth")
    assert file.provenance == describe(tmp_path / "a.pt")
    assert (file.provenance.source, file.provenance.licence) == ("https://x.org/clip.pth", "CC BY 4.0")
    assert file.provenance.project == "SSVP-SLT CLIP"
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"format", "variant", "model", "provenance"}
    assert (content["format"], content["variant"]) == (FORMAT, "tiny_32x64")
    assert not any(name.startswith(("norm.", "head.")) for name in content["model"])  # nothing that is not the file's
    again = import_sign_hiera(tmp_path / "a.pt", tmp_path / "b.pt")
    assert again.provenance == file.provenance  # the origin stays the origin
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_the_same_input_gives_the_same_bytes(hiera, tmp_path):
    path = save(LAYOUTS["ssvp_mae"](hiera), tmp_path / "x.pth")
    for name in ("a.pt", "other.pt"):
        torch.manual_seed(len(name))
        import_sign_hiera(path, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    assert (tmp_path / "a.pt").stat().st_size < path.stat().st_size  # decoder and optimizer stay behind


def test_only_the_weights_are_written(hiera, tmp_path):
    """Tensors of a file may be views of one large storage, which PyTorch would save whole with each of them."""
    storage = torch.zeros(3_000_000)
    state, start = {}, 0
    for name, tensor in hiera.state_dict().items():
        state[name] = storage[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
        start += tensor.numel()
    path = save(state, tmp_path / "views.pth")
    import_sign_hiera(path, tmp_path / "ours.pt")
    assert path.stat().st_size > 12_000_000
    assert (tmp_path / "ours.pt").stat().st_size < 4 * start + 100_000


def test_an_existing_file_is_not_overwritten(hiera, tmp_path):
    path = save(LAYOUTS["bare"](hiera), tmp_path / "x.pth")
    (tmp_path / "out.pt").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=r"out\.pt exists already"):
        import_sign_hiera(path, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "tiny_32x46"}, "unknown SignHiera variant 'tiny_32x46'; did you mean 'tiny_32x64'?; known: base"),
        ({"variant": None}, "not its variant: import it again"),
        ({"variant": "base_128x224"}, "the variant base_128x224 has width 96, 2+3+16+3 blocks, 64 time steps"),
        ({"provenance": {"source": "x"}}, "a provenance without source and sha256"),
        ({"provenance": "x"}, "it has a provenance that is none: expected source, sha256, licence"),
        ({"model": {"blocks.0.norm1.weight": torch.ones(2)}}, "no separable video position embeddings"),
    ],
)
def test_a_changed_file_of_ours(hiera, tmp_path, change, message):
    import_sign_hiera(save(LAYOUTS["bare"](hiera), tmp_path / "x.pth"), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert message in message_of(save(content | change, tmp_path / "b.pt"))


# What is not taken


def test_a_missing_file_is_never_replaced_by_initial_weights(tmp_path):
    assert message_of(tmp_path / "no.pth") == f"{tmp_path}/no.pth does not exist: give the checkpoint file"
    assert "is a folder: give the file" in message_of(tmp_path)


def changed(hiera, layout, **changes):
    """A checkpoint of the layout whose tensors are changed; None removes one."""
    content = LAYOUTS[layout](hiera)
    key = next(k for k in ("clip", "model", "model_state") if k in content)
    prefix = {"clip": "visual.transformer."}.get(key, "")
    state = content[key] | {prefix + name.replace("__", "."): tensor for name, tensor in changes.items()}
    return content | {key: {name: tensor for name, tensor in state.items() if tensor is not None}}


@pytest.mark.parametrize("layout", ["ssvp_mae", "ssvp_clip", "hiera_mae", "hiera_classifier"])
def test_every_name_must_be_known(hiera, tmp_path, layout):
    extra = changed(hiera, layout, blocks__0__attn__bias_k=torch.ones(2), extra=torch.ones(2))
    message = message_of(save(extra, tmp_path / "x.pth"))
    assert "unexpected names: " in message
    assert "blocks.0.attn.bias_k" in message and "extra (2 in all)" in message
    lacking = changed(hiera, layout, blocks__4__mlp__fc1__bias=None)
    assert "missing names: blocks.4.mlp.fc1.bias (1 in all)" in message_of(save(lacking, tmp_path / "y.pth"))
    odd = changed(hiera, layout, blocks__1__proj__weight=torch.ones(64, 33))
    assert "blocks.1.proj.weight is (64, 33) in the file and (64, 32)" in message_of(save(odd, tmp_path / "z.pth"))
    values = torch.full((32,), float("nan"))
    broken = changed(hiera, layout, blocks__0__norm1__bias=values)
    assert "blocks.0.norm1.bias hold values that are not finite" in message_of(save(broken, tmp_path / "n.pth"))


def test_a_classifier_must_have_its_head(hiera, tmp_path):
    state = {k: v for k, v in hiera.state_dict().items() if k != "norm.bias"}
    message = message_of(save({"model_state": state}, tmp_path / "x.pth"))
    assert "public Hiera video classifier checkpoint does not fit the model: missing names: norm.bias" in message


def test_another_size_is_named(hiera, tmp_path):
    message = message_of(save(LAYOUTS["ssvp_mae"](hiera), tmp_path / "x.pth"), "base_128x224")
    assert "the file has width 32, 1+1+2+1 blocks, 16 time steps of 64 positions, patches of 2x8x8; the" in message
    wide = {
        "pos_embed_spatial": torch.zeros(1, 3136, 112),
        "pos_embed_temporal": torch.zeros(1, 8, 112),
        "patch_embed.proj.weight": torch.zeros(112, 3, 3, 7, 7),
        "blocks.0.norm1.weight": torch.zeros(112),
        "head.projection.weight": torch.zeros(400, 896),
    }
    message = message_of(save({"model_state": wide}, tmp_path / "plus.pth"))
    assert "no variant has width 112, 1 blocks, 8 time steps of 3136 positions, patches of 3x7x7; known" in message


def named(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2, 2) for name in names}


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        ({"student": named("encoder.feature_proj.weight", "projection_out.weight")}, "SONAR's ASL encoder"),
        ({"model": named("encoder.feature_proj.weight", "encoder.block.0.x")}, "a translation model of SSVP-SLT"),
        ({"model": named("decoder_frontend.embed.weight", "decoder.layers.0.ffn.x")}, "SONAR's text decoder"),
        ({"model": named("encoder_frontend.embed.weight", "encoder.layers.0.ffn.x")}, "SONAR's text encoder"),
        ({"state_dict": named("layers.0.encoder_attn.k_proj.weight")}, "a bare Transformer encoder or decoder"),
        ({"model": named("encoder.layers.0.self_attn.k_proj.weight")}, "a text model of the BART family"),
        (named("model.decoder.layers.0.self_attn.k_proj.weight"), "a text model of the BART family"),
        (named("encoder.block.0.layer.0.SelfAttention.q.weight"), "a T5 text model"),
        ({"model": named("encoder.adapter.projection.weight", "decoder.x")}, "a sign_to_text checkpoint without"),
        ({"model": named("encoder.feat_proj.weight", "decoder.x")}, "a translation model of Tarres et al."),
        ({"optimizer": {"state": {}}, "epoch": 3}, "the state of an optimizer without a model (keys: op"),
        ({"state": {}, "param_groups": []}, "the state of an optimizer without a model"),
        (named("hiera.encoder.stages.0.layers.0.attn.qkv.weight"), "an image Hiera under Hugging Face's names"),
        (named("visual.conv1.weight"), "an image CLIP"),
        ({"model": named("cls_token", "blocks.0.attn.qkv.weight")}, "a ViT"),
        ({"model_state": named("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")}, "a ViT"),
        ({"state_dict": named("module.Conv3d_1a_7x7.conv3d.weight", "other")}, "an I3D network"),
        ({"state_dict": named("backbone.layer1.0.conv1.weight")}, "a ResNet"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_what_it_looks_like(tmp_path, content, looks):
    path = save(content, tmp_path / "wrong.pth")
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert f"t looks like {looks}" in message


def test_an_image_hiera_is_told(hiera, tmp_path):
    state = {k: v for k, v in hiera.state_dict().items() if not k.startswith("pos_embed")}
    state |= {"pos_embed": torch.ones(1, 64, 32), "patch_embed.proj.weight": torch.ones(32, 3, 7, 7)}
    message = message_of(save({"model_state": state}, tmp_path / "image.pth"))
    assert "It looks like an image Hiera or ViT (patch convolution (32, 3, 7, 7) in two dimensions)" in message


def test_files_without_a_known_shape(hiera, tmp_path):
    wrapped = {"model": {f"module.{name}": tensor for name, tensor in hiera.state_dict().items()}}
    message = message_of(save(wrapped, tmp_path / "ddp.pth"))
    assert "all its names begin with 'module.'; without that, it looks like a video Hiera of width 32" in message
    message = message_of(save(named("a", "b"), tmp_path / "x.pth"))
    assert "its names are unknown: a, b. Expected a checkpoint of SSVP-SLT CLIP, sign_to_text or sonar_" in message
    assert "it holds no named tensors (keys: epoch)" in message_of(save({"epoch": 1}, tmp_path / "y.pth"))
    mixed = {"model": {"blocks.0.x": torch.ones(2), "step": 3}}
    assert "its 'model' is no dict of tensors" in message_of(save(mixed, tmp_path / "z.pth"))
    assert "holds a list" in message_of(save([1], tmp_path / "list.pth"))
    (tmp_path / "half.pth").write_bytes(save(LAYOUTS["bare"](hiera), tmp_path / "w.pth").read_bytes()[:-3000])
    assert "half.pth cannot be read as a PyTorch file" in message_of(tmp_path / "half.pth")


class Malicious:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "raw"])
def test_a_malicious_pickle_does_not_run(hiera, tmp_path, form):
    proof, path = tmp_path / "it_ran", tmp_path / "evil.pth"
    content = LAYOUTS["ssvp_mae"](hiera) | {"cfg": Malicious(f"touch {proof}")}
    if form == "raw":
        path.write_bytes(pickle.dumps(content["cfg"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = message_of(path)
    assert "evil.pth cannot be read as a PyTorch file of weights and plain values" in message
    with pytest.raises(CheckpointError):
        import_sign_hiera(path, tmp_path / "out.pt")
    assert not proof.exists()
    assert not (tmp_path / "out.pt").exists()
    function, arguments = Malicious(f"touch {proof}").__reduce__()
    function(*arguments)
    assert proof.exists()  # what unpickling would have done
