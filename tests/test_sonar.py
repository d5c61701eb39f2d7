"""SONAR's encoder, vocabulary and text models: against Hugging Face's T5, in every layout of the release, full size."""

import pytest
import torch
from codec_helpers import REAL, train_spm
from fairseq.models.transformer import TransformerEncoderBase
from sonar_helpers import (
    DIM,
    FEATURES,
    SPM,
    as_fairseq1,
    as_fairseq2,
    make_fake_release,
    sonar_codec,
    student_state,
    t5_model,
    text_decoder,
    text_encoder,
)
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.importer import load_sonar_decoder, load_sonar_encoder, load_sonar_text_encoder
from slt_plugin.checkpoints.sonar_text import SonarTextSize, build_text_decoder
from slt_plugin.modules.sonar import SonarEncoder, SonarEncoderSize
from slt_plugin.text.codec import build_codec
from slt_plugin.text.errors import CodecError
from slt_plugin.text.languages import NLLB_200


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_fake_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def codec(release):
    return sonar_codec(release)


def batch():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 9, FEATURES, generator=generator)
    lengths = torch.tensor([9, 4, 1])
    return features, torch.arange(9) >= lengths[:, None]


def reference_embedding(model, state, features, padding_mask):
    """What the release computes, with Hugging Face's whole T5."""
    prefix = "encoder.feature_projection.feature_proj"
    x = state[f"{prefix}_scale"] * (features @ state[f"{prefix}.weight"].T + state[f"{prefix}.bias"])
    output = model(
        inputs_embeds=x,
        attention_mask=(~padding_mask).long(),
        decoder_input_ids=torch.zeros(len(x), 1, dtype=torch.long),
    )
    return output.last_hidden_state[:, 0] @ state["projection_out.weight"].T


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("container", ["student", "model", "model_state"])
def test_encoder_equals_hugging_face(tmp_path, container, old_names):
    model = t5_model()
    path = tmp_path / "encoder.pth"
    torch.save({container: student_state(model, old_names=old_names), "args": None}, path)
    encoder = load_sonar_encoder(path)
    features, padding_mask = batch()
    with torch.no_grad():
        expected = reference_embedding(model, student_state(model), features, padding_mask)
        assert torch.allclose(encoder(features, padding_mask), expected, atol=1e-5)
        alone = torch.cat(
            [encoder(features[i : i + 1, :n], padding_mask[i : i + 1, :n]) for i, n in enumerate((9, 4, 1))]
        )
    assert torch.allclose(alone, expected, atol=1e-5), "padding changes the embedding"


def test_start_symbol_of_tied_tables(tmp_path):
    state = student_state(t5_model())
    untied = state.pop("decoder.embed_tokens.weight")
    torch.save({"student": state}, tmp_path / "tied.pth")
    start = load_sonar_encoder(tmp_path / "tied.pth").start
    assert torch.equal(start, state["shared.weight"][0])
    assert not torch.equal(start, untied[0])


def test_encoder_names_and_shapes_of_the_release():
    with torch.device("meta"):
        ours = SonarEncoder(SonarEncoderSize())
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    # google/t5-v1_1-large has 783,150,080 parameters; ours has not its token table and output, 32128 x 1024 each
    added = ("feature_projection", "projection_out", "start")
    t5 = sum(p.numel() for name, p in ours.named_parameters() if not name.startswith(added))
    assert t5 + 2 * 32128 * 1024 == 783_150_080
    assert shapes["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] == (2816, 1024)
    assert shapes["decoder.block.23.layer.2.DenseReluDense.wo.weight"] == (1024, 2816)
    assert shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 16)
    assert shapes["feature_projection.linear.weight"] == (1024, 768)
    assert shapes["feature_projection.scale"] == (1024,)
    assert shapes["projection_out.weight"] == (1024, 1024)
    assert "projection_out.bias" not in shapes
    assert len(shapes) == 5 + 2 + 24 * 9 + 24 * 14 + 2


@pytest.mark.parametrize("layout", ["fairseq2", "fairseq1"])
def test_text_decoder_in_both_layouts(tmp_path, codec, release, layout):
    original = text_decoder(codec)
    torch.save(as_fairseq2(original, "decoder") if layout == "fairseq2" else as_fairseq1(original), tmp_path / "d.pt")
    loaded, _ = load_sonar_decoder(tmp_path / "d.pt", release / SPM)
    tokens = torch.tensor([[2, 70, 5, 6, 3], [2, 71, 7, 2, 1]])
    source = {"encoder_out": [torch.randn(1, 2, DIM)], "encoder_padding_mask": []}
    with torch.no_grad():
        assert torch.equal(loaded(tokens, source)[0], original(tokens, source)[0])
    assert loaded.layer_norm is not None
    assert loaded.output_projection.weight is loaded.embed_tokens.weight


@pytest.mark.parametrize("layout", ["fairseq2", "fairseq1"])
def test_text_encoder_in_both_layouts(tmp_path, codec, release, layout):
    original = text_encoder(codec)
    content = (
        as_fairseq2(original.transformer, "encoder") if layout == "fairseq2" else as_fairseq1(original.transformer)
    )
    torch.save(content, tmp_path / "e.pt")
    loaded, _ = load_sonar_text_encoder(tmp_path / "e.pt", release / SPM)
    tokens = torch.tensor([[70, 5, 6, 3, 2], [71, 7, 2, 1, 1]])
    with torch.no_grad():
        expected = original(tokens)
        assert torch.equal(loaded(tokens), expected)
        # the mean over the tokens that are there, by fairseq's own encoder
        states = TransformerEncoderBase.forward(loaded.transformer, tokens, torch.tensor([5, 3]))["encoder_out"][0]
        assert torch.allclose(expected[1], states[:3, 1].mean(dim=0), atol=1e-6)
        assert torch.allclose(loaded(tokens[1:, :3])[0], expected[1], atol=1e-6), "padding changes the embedding"


def test_text_decoder_of_the_release_on_the_meta_device(codec):
    with torch.device("meta"):
        decoder = build_text_decoder(SonarTextSize(), codec.dictionary)
    rows = len(codec.dictionary)
    assert decoder.embed_scale == 32
    assert decoder.max_positions() == 512
    assert sum(p.numel() for p in decoder.parameters()) + (256206 - rows) * 1024 == 866_902_016  # 0.87 B
    assert tuple(decoder.layers[23].fc1.weight.shape) == (8192, 1024)


def test_an_untied_output_is_refused_in_both_layouts(tmp_path, codec, release):
    for content in (as_fairseq1(text_decoder(codec)), as_fairseq2(text_decoder(codec), "decoder")):
        name = "output_projection.weight" if "state_dict" in content else "final_proj.weight"
        state = next(iter(content.values()))
        state[name] = state.get(name, state.get("embed_tokens.weight")) + 1
        torch.save(content, tmp_path / "untied.pt")
        with pytest.raises(CheckpointError, match="the output projection differs from the embeddings"):
            load_sonar_decoder(tmp_path / "untied.pt", release / SPM)


def test_half_precision_files_are_loaded_in_fp32(tmp_path, codec, release):
    content = as_fairseq2(text_encoder(codec).transformer, "encoder")
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    loaded, _ = load_sonar_text_encoder(tmp_path / "half.pt", release / SPM)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_wrong_files_are_told_what_they_look_like(tmp_path, release):
    with pytest.raises(CheckpointError, match=r"no text decoder of SONAR; it looks like SONAR's text encoder"):
        load_sonar_decoder(release / "sonar_text_encoder.pt", release / SPM)
    with pytest.raises(CheckpointError, match=r"no ASL encoder of SONAR; it looks like a video Hiera"):
        load_sonar_encoder(release / "dm_70h_ub_signhiera.pth")
    with pytest.raises(CheckpointError, match=r"none.pt does not exist: scripts/download_pretrained.py"):
        load_sonar_encoder(tmp_path / "none.pt")
    content = torch.load(release / "sonar_text_decoder.pt", weights_only=True)
    content["model"]["decoder_frontend.embed.weight"] = content["model"]["decoder_frontend.embed.weight"][:-1]
    content["model"].pop("final_proj.weight")
    torch.save(content, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"has \d+ symbols, the vocabulary of .* give its own"):
        load_sonar_decoder(tmp_path / "short.pt", release / SPM)
    del content["model"]["decoder.layers.1.ffn.inner_proj.bias"]
    torch.save({"model": content["model"] | {"extra": torch.ones(1)}}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match="unexpected names: extra"):
        load_sonar_decoder(tmp_path / "wrong.pt", release / SPM)


# vocabulary


def test_languages_are_those_of_nllb():
    assert list(NLLB_200) == FAIRSEQ_LANGUAGE_CODES


def test_ids_of_the_release():
    """Its 256,000 pieces without their three specials stand behind fairseq's four, then the languages."""
    first = 4 + 256_000 - 3
    named = {"eng_Latn": 256047, "fra_Latn": 256057, "deu_Latn": 256042, "zho_Hans": 256200}
    assert {code: first + NLLB_200.index(code) for code in named} == named
    assert first + len(NLLB_200) + 3 == 256206


def test_vocabulary_of_a_small_model(codec):
    dictionary = codec.dictionary
    pieces = len(dictionary) - 4 - 202 - 3
    assert dictionary.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert codec.language_id("eng_Latn") == 4 + pieces + NLLB_200.index("eng_Latn")
    assert dictionary.symbols[codec.language_id("zho_Hans")] == "__zho_Hans__"
    assert dictionary.symbols[-3:] == ["<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>"]
    ids = codec.encode("hello world")
    assert codec.decode(ids) == "hello world"
    assert codec.decode([codec.language_id("fra_Latn"), *ids.tolist(), len(dictionary) - 1]) == "hello world"
    assert "⁇" in codec.decode(codec.encode("hello 漢 world"))


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("eng_latn", "eng_Latn"),
        ("fra", "fra_Latn"),
        ("deu_latin", "deu_Latn"),
        ("en", "eng_Latn"),
        ("es", "spa_Latn"),
        ("pt_Latn", "por_Latn"),
        ("zho_CN", "zho_Hans"),
        ("english", "eng_Latn"),
        ("GER", "deu_Latn"),
    ],
)
def test_near_misses_of_language_codes(codec, given, near):
    with pytest.raises(CodecError, match=rf"did you mean '{near}'\?"):
        codec.language_id(given)


def test_a_vocabulary_of_another_form_is_refused(tmp_path):
    train_spm(tmp_path / "t5.model", vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    build_codec("sonar", tmp_path / "t5.model")  # three specials in front: only their order differs
    train_spm(tmp_path / "other.model", vocab_size=60, bos_id=-1, eos_id=-1)
    with pytest.raises(CodecError, match=r"control and unknown pieces at \[0\], SONAR's .* at \[0, 1, 2\]"):
        build_codec("sonar", tmp_path / "other.model")


@pytest.mark.skipif(not (REAL / SPM).is_file(), reason=f"no {SPM} in {REAL}")
def test_ids_of_the_real_vocabulary():
    codec = build_codec("sonar", REAL / SPM)
    expected = {"eng_Latn": 256047, "fra_Latn": 256057, "deu_Latn": 256042, "zho_Hans": 256200}
    assert {code: codec.language_id(code) for code in expected} == expected
    assert len(codec.dictionary) == 256206
