"""Foreign checkpoints: converted weights give the same numbers, and whatever does not fit is an error."""

import argparse
import json
import logging
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerConfig, TransformerDecoderBase, TransformerEncoderBase
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from slt_plugin.checkpoints.importer import load_pretrained_text, read_foreign
from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.models.encoders import TextEncoder

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'slt-plugin[hf]'")

WORDS, WIDTH, HEADS, POSITIONS = 36, 16, 4, 20  # 36 words and fairseq's 4 specials
KINDS = ("bart", "mbart")


def words_dictionary(words: int = WORDS) -> Dictionary:
    dictionary = Dictionary()
    for index in range(words):
        dictionary.add_symbol(f"word{index}")
    return dictionary


def text_modules(kind: str, *, words=WORDS, heads=HEADS, positions=POSITIONS, activation="gelu", layers=2):
    """fairseq's encoder (with a token table) and decoder as BART or mBART has them, with random weights."""
    pre_norm = kind == "mbart"
    sizes = {"embed_dim": WIDTH, "ffn_embed_dim": 24, "layers": layers, "attention_heads": heads}
    cfg = TransformerConfig(
        encoder=EncDecBaseConfig(**sizes, normalize_before=pre_norm, learned_pos=True),
        decoder=DecoderConfig(**sizes, normalize_before=pre_norm, learned_pos=True, input_dim=WIDTH, output_dim=WIDTH),
        activation_fn=activation,
        dropout=0.0,
        max_source_positions=positions,
        max_target_positions=positions,
        layernorm_embedding=True,
        no_scale_embedding=not pre_norm,
        share_decoder_input_output_embed=True,
    )
    dictionary = words_dictionary(words)
    table = nn.Embedding(len(dictionary), WIDTH, padding_idx=1)
    return TransformerEncoderBase(cfg, dictionary, table).eval(), TransformerDecoderBase(cfg, dictionary, table).eval()


def hugging_face_model(kind: str, seed: int = 0, **changes):
    """A tiny BART or mBART whose every parameter is random, LayerNorms and biases too."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": WORDS + 4,
        "d_model": WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": POSITIONS,
        "scale_embedding": kind == "mbart",
    }
    config_class, model_class = {
        "bart": (transformers.BartConfig, transformers.BartForConditionalGeneration),
        "mbart": (transformers.MBartConfig, transformers.MBartForConditionalGeneration),
    }[kind]
    model = model_class(config_class(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """(kind, model, directory)"""
    model = hugging_face_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


@pytest.fixture
def bart_folder(tmp_path):
    hugging_face_model("bart").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def fairseq_file(path: Path, kind="bart", metadata="args") -> tuple[Path, dict]:
    """Writes a fairseq release: model.pt with all names that old releases have, dict.txt beside it."""
    encoder, decoder = text_modules(kind)
    for module in (encoder, decoder):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    del state["decoder.output_projection.weight"]  # as in the BART release
    state["decoder.version"] = torch.tensor([2.0])
    options = {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "activation_fn": "gelu"}
    options |= {"no_scale_embedding": kind == "bart", "arch": "bart_large"}
    content = {"model": state, "extra_state": {"val_loss": 1.0}, "optimizer_history": [{"num_updates": 3}]}
    if metadata == "args":
        content["args"] = argparse.Namespace(**options)
    else:
        sections = {"model": options | {"mask": "${task.mask}"}, "task": {"mask": 0.3, "data": "???"}}
        content |= {"args": None, "cfg": OmegaConf.create(sections) if metadata == "omegaconf" else sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    words_dictionary().save(str(path.parent / "dict.txt"))
    return path, state


# The same numbers


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded", "bare"])
def test_converted_weights_give_the_same_numbers(saved, form, tmp_path):
    kind, model, folder = saved
    if form != "safetensors":
        shutil.copy(folder / "config.json", tmp_path)
        weights = load_file(folder / "model.safetensors")
        if form == "bin":  # .bin files repeat the tied tensors
            torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
            assert "lm_head.weight" in model.state_dict()
        elif form == "bare":  # saved from BartModel: no "model." prefix
            bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
            save_file({n: t for n, t in bare.items() if n != "final_logits_bias"}, tmp_path / "model.safetensors")
        else:
            model.save_pretrained(tmp_path, max_shard_size="8KB")
            assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        folder = tmp_path
    encoder, decoder = text_modules(kind)
    report = load_pretrained_text(encoder, decoder, folder)
    assert report.missing == ("encoder.text_encoder.version", "decoder.version")
    assert report.loaded == len(encoder.state_dict()) + len(decoder.state_dict()) - 2

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, WORDS + 4, (3, 11), generator=generator)
    tokens[1, 7:], tokens[2, 4:] = 1, 1  # padding
    target = torch.randint(4, WORDS + 4, (3, 6), generator=generator)
    target[:, 0] = 2
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=(tokens != 1).long(), decoder_input_ids=target)
        embedded = nn.functional.embedding(tokens, model.get_input_embeddings().weight)
        out = encoder(tokens, token_embeddings=embedded)
        logits = decoder(target, encoder_out=out)[0]
    real = tokens != 1
    encoded = out["encoder_out"][0].transpose(0, 1)
    torch.testing.assert_close(encoded[real], expected.encoder_last_hidden_state[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    assert expected.logits.std() > 0.1


def test_an_encoder_without_a_token_table(saved):
    kind, _, folder = saved
    whole, _ = text_modules(kind)
    load_pretrained_text(whole, None, folder)
    bare = TextEncoder(whole.cfg).eval()
    load_pretrained_text(bare, None, folder)
    embedded = torch.randn(2, 5, WIDTH)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    tokens = torch.where(padding, 1, 7)
    with torch.no_grad():
        expected = whole(tokens, token_embeddings=embedded)["encoder_out"][0]
        assert torch.equal(bare(embedded, padding)["encoder_out"][0], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metadata", ["args", "cfg", "omegaconf"])
def test_a_fairseq_release(tmp_path, kind, metadata):
    path, state = fairseq_file(tmp_path / "model.pt", kind, metadata)
    encoder, decoder = text_modules(kind)
    load_pretrained_text(encoder, decoder, path, dictionary=words_dictionary())
    for prefix, module in (("encoder.", encoder), ("decoder.", decoder)):
        for name, tensor in module.state_dict().items():
            if name not in ("version", "output_projection.weight"):
                assert torch.equal(tensor, state[prefix + name]), name
    assert torch.equal(decoder.output_projection.weight, state["decoder.embed_tokens.weight"])
    assert decoder.output_projection.weight is decoder.embed_tokens.weight  # still one parameter
    assert decoder.version.item() == 3


def test_only_the_parts_that_are_given_change(saved):
    kind, _, folder = saved
    _, decoder = text_modules(kind)
    report = load_pretrained_text(None, decoder, folder)
    assert report.loaded == len(decoder.state_dict()) - 1
    assert report.missing == ("decoder.version",)


# What does not fit


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt does not exist: give a fairseq \.pt"):
        read_foreign(str(tmp_path / "nothing.pt"))


def test_kinds_of_files(saved, tmp_path):
    _, model, folder = saved
    state, kind, metadata = read_foreign(folder)
    assert (kind, metadata["d_model"]) == ("huggingface", WIDTH)
    assert torch.equal(state["model.shared.weight"], model.get_input_embeddings().weight)
    state, kind, metadata = read_foreign(folder / "model.safetensors")
    assert (kind, metadata) == ("tensors", {})
    assert "model.shared.weight" in state
    path, _ = fairseq_file(tmp_path / "model.pt")
    state, kind, metadata = read_foreign(path)
    assert (kind, metadata["arch"]) == ("fairseq", "bart_large")
    assert "decoder.embed_tokens.weight" in state
    path, _ = fairseq_file(tmp_path / "model.pt", metadata="omegaconf")
    assert read_foreign(path).metadata.items() >= {"arch": "bart_large", "mask": 0.3}.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "it is empty"),
        ({"epoch": 3}, "'epoch' is no tensor"),
        ({"model": {"w": torch.ones(1)}}, "neither args nor cfg.model"),
        ({"model": {"w": torch.ones(1)}, "other": Path("/")}, "Weights only load failed"),
    ],
)
def test_files_of_another_kind(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=rf"x\.pt.* .*{message}"):
        read_foreign(tmp_path / "x.pt")


def test_damaged_files(tmp_path, bart_folder):
    for name in ("model.safetensors", "config.json"):
        content = (bart_folder / name).read_bytes()
        (bart_folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read"):
            read_foreign(bart_folder)
        (bart_folder / name).write_bytes(content)
    (bart_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        read_foreign(bart_folder)
    path, _ = fairseq_file(tmp_path / "release" / "model.pt")
    with pytest.raises(CheckpointError, match=r"no config\.json: give .*model\.pt"):
        read_foreign(path.parent)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read as a PyTorch file"):
        read_foreign(path)


def test_a_missing_shard(tmp_path):
    hugging_face_model("bart").save_pretrained(tmp_path, max_shard_size="8KB")
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="download it again"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("numpy_module", ["numpy._core", "numpy.core"])
def test_arrays_among_the_metrics_of_forks(tmp_path, numpy_module):
    path, state = fairseq_file(tmp_path / "new.pt")
    content = torch.load(path, weights_only=True)
    content["extra_state"]["metrics"] = [
        np.array([1, 2]),
        np.array([0.5], dtype=np.float32),
        np.float64(3),
        np.int64(4),
    ]
    torch.save(content, path)
    old = tmp_path / "old.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"numpy._core", numpy_module.encode())
            target.writestr(name, data)
    assert torch.equal(read_foreign(old).state["decoder.embed_tokens.weight"], state["decoder.embed_tokens.weight"])
    with pytest.raises(Exception, match="numpy"):  # our own files never hold arrays: the permission ends with the call
        torch.load(old, weights_only=True)


def test_weights_without_a_configuration_are_refused(bart_folder):
    with pytest.raises(CheckpointError, match=r"do not tell heads and activation: give the fairseq model\.pt"):
        load_pretrained_text(*text_modules("bart"), bart_folder / "model.safetensors")


def test_options_that_the_shapes_do_not_show(bart_folder, tmp_path):
    wrong = text_modules("bart", heads=2, activation="relu")
    remedy = r"set model\.encoder_attention_heads=4 \(now 2\), model\.activation_fn=gelu \(encoder\), "
    with pytest.raises(CheckpointError, match=remedy):
        load_pretrained_text(*wrong, bart_folder)
    path, _ = fairseq_file(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=remedy):
        load_pretrained_text(*wrong, path)
    edit_config(bart_folder, scale_embedding=True)
    with pytest.raises(CheckpointError, match=r"set model\.scale_embedding=true \(encoder\), .* \(decoder\)"):
        load_pretrained_text(*text_modules("bart"), bart_folder)
    edit_config(bart_folder, activation_function="quick_gelu")
    with pytest.raises(CheckpointError, match=r"activation_function 'quick_gelu'; known: gelu, "):
        load_pretrained_text(*text_modules("bart"), bart_folder)
    edit_config(bart_folder, model_type="t5")
    with pytest.raises(CheckpointError, match="model_type 't5'; expected bart or mbart"):
        load_pretrained_text(*text_modules("bart"), bart_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": 50}, r"has 40 rows in the file, 54 in the model: build the codec from the vocabulary that ships"),
        (
            {"positions": 30},
            r"decoder\.embed_positions\.weight has 22 rows in the file, 32 in the model: set model\.max",
        ),
        ({"layers": 3}, r"missing names: encoder\.text_encoder\.layers\.2\.self_attn\.k_proj\.weight, .* in all\)"),
        ({"layers": 1}, r"unexpected names: decoder\.layers\.1\."),
    ],
)
def test_other_sizes(bart_folder, changes, message):
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained_text(*text_modules("bart", **changes), bart_folder)
    assert str(error.value).startswith(f"{bart_folder}: the Hugging Face BART or mBART checkpoint does not fit")


def test_pre_norm_and_post_norm_do_not_fit_each_other(bart_folder):
    edit_config(bart_folder, scale_embedding=True)
    with pytest.raises(CheckpointError, match=r"missing names: .*text_encoder\.layer_norm\.weight"):
        load_pretrained_text(*text_modules("mbart"), bart_folder)


def test_what_may_be_missing_is_listed_by_the_caller(bart_folder):
    encoder, decoder = text_modules("bart", layers=3)
    before = encoder.layers[2].fc1.weight.clone()
    third = (r".+\.layers\.2\..+",)
    report = load_pretrained_text(encoder, decoder, bart_folder, allow_missing=third)
    assert "encoder.text_encoder.layers.2.fc1.weight" in report.missing
    assert torch.equal(encoder.layers[2].fc1.weight, before)


# The order of the vocabulary


def test_order_of_a_fairseq_vocabulary(tmp_path, caplog):
    path, _ = fairseq_file(tmp_path / "model.pt")
    swapped = words_dictionary()
    swapped.symbols[9], swapped.symbols[12] = swapped.symbols[12], swapped.symbols[9]
    with pytest.raises(CheckpointError, match=r"symbol 9 is 'word8' in the codec and 'word5' in the file"):
        load_pretrained_text(*text_modules("bart"), path, dictionary=swapped)
    words_dictionary(30).save(str(tmp_path / "dict.txt"))  # the codec has <mask> and languages behind it
    load_pretrained_text(*text_modules("bart"), path, dictionary=words_dictionary())
    with pytest.raises(CheckpointError, match="symbol 29 is None in the codec"):
        load_pretrained_text(*text_modules("bart"), path, dictionary=words_dictionary(25))
    assert not caplog.records
    (tmp_path / "dict.txt").unlink()
    with caplog.at_level(logging.WARNING):
        load_pretrained_text(*text_modules("bart"), path, dictionary=words_dictionary())
    assert "no vocabulary to compare with" in caplog.text


@pytest.mark.parametrize("form", ["unigram", "bpe", "vocab.json"])
def test_order_of_a_hugging_face_vocabulary(bart_folder, form, caplog):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"word{i}" for i in range(WORDS - 1)), "en_XX"]
    dictionary = words_dictionary(WORDS - 1)
    dictionary.add_symbol("[en_XX]")  # fairseq's spelling of mBART's languages
    if form == "vocab.json":
        (bart_folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    else:
        base = tokens[:-1]
        vocabulary = [[t, 0.0] for t in base] if form == "unigram" else {t: i for i, t in enumerate(base)}
        added = [{"id": len(base), "content": "en_XX"}, {"id": 0, "content": "<s>"}]
        content = {"model": {"vocab": vocabulary}, "added_tokens": added}
        (bart_folder / "tokenizer.json").write_text(json.dumps(content))
    load_pretrained_text(*text_modules("bart"), bart_folder, dictionary=dictionary)
    assert not caplog.records
    dictionary.symbols[-1] = "[de_DE]"
    with pytest.raises(CheckpointError, match=r"symbol 39 is '\[de_DE\]' in the codec and 'en_XX' in the file"):
        load_pretrained_text(*text_modules("bart"), bart_folder, dictionary=dictionary)


def test_gpt2_numbers_cannot_be_compared(bart_folder, caplog):
    (bart_folder / "vocab.json").write_text(json.dumps({"<s>": 0, "\u0120the": 4}))
    numbers = Dictionary()
    for index in range(WORDS):
        numbers.add_symbol(str(1000 + index))
    with caplog.at_level(logging.WARNING):
        load_pretrained_text(*text_modules("bart"), bart_folder, dictionary=numbers)
    assert "no vocabulary to compare with" in caplog.text
