"""``slt-import-checkpoint``: a Tarres model computes what the original computes; a SignHiera keeps its origin."""

import hashlib
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import run_command
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerDecoder
from fairseq.modules import PositionalEmbedding, TransformerEncoderLayer
from hiera_files import hiera_mae, save, shorter, ssvp_mae, tiny_hiera
from torch import nn

import slt_plugin.tasks
from slt_plugin.cli.import_checkpoint import main
from slt_plugin.data.manifest import Row, write_manifest

CHANNELS, WIDTH = 12, 16
OPTIONS = {
    "_name": "sign2text_transformer",
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (
        ("embed_dim", WIDTH), ("ffn_embed_dim", 24), ("attention_heads", 4), ("normalize_before", True)
    )},
    "encoder_layers": 2,
    "decoder_layers": 1,
    "decoder_output_dim": WIDTH,
    "layernorm_embedding": True,
    "share_decoder_input_output_embed": True,
    "no_scale_embedding": False,
    "dropout": 0.3,
    "attention_dropout": 0.3,
    "activation_dropout": 0.3,
    "activation_fn": "relu",
    "max_source_positions": 64,
    "max_target_positions": 64,
    "feats_type": "i3d",
}  # fmt: skip


class Sign2Text(nn.Module):
    """What their repository describes: projection, scale, sinusoidal positions, pre-norm layers; fairseq's decoder."""

    def __init__(self, options: dict, dictionary: Dictionary):
        super().__init__()
        cfg = Namespace(**options)
        self.encoder = nn.Module()
        self.encoder.feat_proj = nn.Linear(CHANNELS, WIDTH)
        self.encoder.embed_positions = PositionalEmbedding(cfg.max_source_positions, WIDTH, 1)
        self.encoder.transformer_layers = nn.ModuleList(
            [TransformerEncoderLayer(cfg) for _ in range(cfg.encoder_layers)]
        )
        self.encoder.layer_norm = nn.LayerNorm(WIDTH)
        self.decoder = TransformerDecoder(cfg, dictionary, nn.Embedding(len(dictionary), WIDTH, 1))

    def forward(self, features, padding, previous):
        x = self.encoder.feat_proj(features).transpose(0, 1) * math.sqrt(WIDTH)
        x = x + self.encoder.embed_positions(padding.int()).transpose(0, 1)
        for layer in self.encoder.transformer_layers:
            x = layer(x, padding)
        encoded = {"encoder_out": [self.encoder.layer_norm(x)], "encoder_padding_mask": [padding]}
        return self.decoder(previous, encoder_out=encoded)[0]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """(model, dictionary file): a dictionary in another order than the SentencePiece model's."""
    folder = tmp_path_factory.mktemp("vocab")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world how are you", "what a day", "they go there"] * 5),
        model_prefix=str(folder / "lower"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    spm = folder / "lower.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    dictionary = Dictionary()
    for index in reversed(range(3, len(processor))):
        dictionary.add_symbol(processor.id_to_piece(index))
    dictionary.save(str(folder / "lower.txt"))
    return spm, dictionary


@pytest.fixture(scope="module")
def original(vocabulary, tmp_path_factory):
    """(module, checkpoint path)"""
    torch.manual_seed(3)
    module = Sign2Text(OPTIONS, vocabulary[1]).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    path = tmp_path_factory.mktemp("tarres") / "checkpoint.best_reduced_sacrebleu_3.5401.pt"
    write(path, module)
    return module, path


def write(path: Path, module: nn.Module, model_options=OPTIONS, **extra_tensors) -> Path:
    state = module.state_dict() | {
        "encoder.embed_positions._float_tensor": torch.zeros(1),
        "decoder.embed_positions._float_tensor": torch.zeros(1),
    }
    task = {"_name": "sign_to_text", "pre_tokenizer": "moses", "max_source_positions": 64, "max_target_positions": 64}
    counts = np.array([3, 2, 1, 0])  # their task logs BLEU counts as arrays, which lie in the meters
    content = {
        "args": None,
        "cfg": {"task": task, "model": model_options, "common": {"seed": 1}},
        "model": state | extra_tensors,
        "extra_state": {"metrics": [(0, "valid", "_bleu_counts", counts)]},
        "task_state": {},
    }
    torch.save(content, path)
    return path


def test_the_imported_model_computes_the_same(vocabulary, original, tmp_path, capsys):
    module, path = original
    spm, dictionary = vocabulary
    out = tmp_path / "new" / "imported.pt"
    assert main(["tarres", str(path), str(out), "--spm", str(spm)]) == 0
    assert f"{len(dictionary)} symbols (order of {spm.with_suffix('.txt')}), features of 12" in capsys.readouterr().out

    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(out)])
    assert task.target_dictionary.symbols == dictionary.symbols
    assert task.codec.lowercase
    assert task.source_channels == CHANNELS
    features = torch.randn(2, 9, CHANNELS)
    lengths = torch.tensor([9, 6])
    padding = torch.arange(9) >= lengths[:, None]
    previous = torch.tensor([[2, 5, 7, 9], [2, 6, 4, 8]])
    with torch.no_grad():
        expected = module(features, padding, previous)
        logits = model.eval()(features, lengths, previous)[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.slow
def test_fairseq_generate_decodes_it(vocabulary, original, tmp_path):
    _, path = original
    out = tmp_path / "imported.pt"
    assert main(["tarres", str(path), str(out), "--spm", str(vocabulary[0])]) == 0
    rng = np.random.default_rng(0)
    rows = []
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", rng.normal(size=(8 + index, CHANNELS)).astype(np.float32))
        rows.append(Row(f"clip{index}", f"{index}.npy", "what a day"))
    write_manifest(tmp_path / "test.tsv", rows)
    words = ["--user-dir", Path(slt_plugin.__file__).parent, "--task", "sign_to_text", "--path", out]
    result = run_command("fairseq-generate", tmp_path, *words, "--gen-subset", "test", "--beam", "2", "--cpu")
    assert [line.split("\t")[0] for line in result.stdout.splitlines() if line.startswith("D-")]
    assert sum(line.startswith("T-") and line.endswith("\twhat a day") for line in result.stdout.splitlines()) == 3


def test_a_dictionary_given_by_hand(vocabulary, original, tmp_path):
    spm, dictionary = vocabulary
    elsewhere = tmp_path / "their.dict"
    dictionary.save(str(elsewhere))
    alone = tmp_path / "alone.model"
    alone.write_bytes(spm.read_bytes())
    outs = [tmp_path / "a.pt", tmp_path / "b.pt"]
    assert main(["tarres", str(original[1]), str(outs[0]), "--spm", str(alone), "--dict", str(elsewhere)]) == 0
    assert main(["tarres", str(original[1]), str(outs[1]), "--spm", str(alone)]) == 0  # the model's own order
    with_dictionary, without = (
        checkpoint_utils.load_model_ensemble_and_task([str(out)])[2].target_dictionary.symbols for out in outs
    )
    assert with_dictionary == dictionary.symbols
    assert without == dictionary.symbols[:4] + dictionary.symbols[:3:-1]


def fails(capsys, *words) -> str:
    assert main(["tarres", *map(str, words)]) == 1
    return capsys.readouterr().err


def test_errors_name_the_file_and_the_remedy(vocabulary, original, tmp_path, capsys):
    spm, _ = vocabulary
    module, path = original
    out = tmp_path / "out.pt"
    assert "nothing.pt does not exist" in fails(capsys, tmp_path / "nothing.pt", out, "--spm", spm)
    assert "--spm" in fails(capsys, path, out, "--spm", tmp_path / "no.model")
    conv = write(tmp_path / "conv.pt", module, **{"encoder.subsample.conv_layers.0.bias": torch.ones(2)})
    assert "unexpected names: encoder.subsample.conv_layers.0.bias (1 in all)" in fails(capsys, conv, out, "--spm", spm)
    other = write(tmp_path / "other.pt", module, {"arch": "transformer"})
    assert "lacks encoder_layers, encoder_embed_dim" in fails(capsys, other, out, "--spm", spm)
    mixed = write(tmp_path / "mixed.pt", module, OPTIONS | {"decoder_normalize_before": False})
    assert "decoder_normalize_before differ" in fails(capsys, mixed, out, "--spm", spm)
    deep = write(tmp_path / "deep.pt", module, OPTIONS | {"encoder_layers": 3})
    assert "missing names: encoder.text_encoder.layers.2." in fails(capsys, deep, out, "--spm", spm)
    (tmp_path / "short.txt").write_text("".join(f"{symbol} 1\n" for symbol in vocabulary[1].symbols[4:-1]))
    message = fails(capsys, path, out, "--spm", spm, "--dict", tmp_path / "short.txt")
    assert f"it has {len(vocabulary[1])} symbols, the vocabulary" in message
    assert not out.exists()
    out.write_bytes(b"mine")
    assert "exists already" in fails(capsys, path, out, "--spm", spm)
    assert out.read_bytes() == b"mine"


# SignHiera


def test_sign_hiera_is_imported_and_described(tmp_path, capsys):
    path = save(hiera_mae(shorter(tiny_hiera(), 4)), tmp_path / "mae_hiera_base_16x224.pth")
    out = tmp_path / "new" / "signhiera.pt"
    assert main(["sign-hiera", str(path), str(out), "--variant", "tiny_32x64", "--source", "https://x.org/m.pth"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out}: SignHiera tiny_32x64, {len(state_of(out))} tensors, {parameters(out):,} parameters"
    assert lines[1:] == [
        "  source: https://x.org/m.pth",
        f"  sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}",
        "  licence: CC BY-NC 4.0",
        "  layout: public Hiera video MAE",
        "  note: temporal positions interpolated linearly from 4 to 16 time steps",
        "  note: pretrained with q_pool 2, used with q_pool 3: the last stage was trained without pooling",
        "  note: licence assumed from the file name, release hiera_mae_k400: LICENSE.models of facebookresearch/hiera",
    ]
    assert main(["describe", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def state_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def parameters(path: Path) -> int:
    return sum(tensor.numel() for tensor in state_of(path).values())


def test_a_stated_licence_and_a_foreign_file(tmp_path, capsys):
    path = save(ssvp_mae(tiny_hiera()), tmp_path / "mine.pth")
    assert main(["describe", str(path)]) == 0
    assert f"  source: {path}\n" in capsys.readouterr().out
    assert main(["sign-hiera", str(path), str(tmp_path / "a.pt"), "--licence", "CC BY-SA 4.0"]) == 0
    assert "  licence: CC BY-SA 4.0\n" in capsys.readouterr().out


def test_what_is_no_sign_hiera(original, tmp_path, capsys):
    for words in (["sign-hiera", str(original[1]), str(tmp_path / "a.pt")], ["describe", str(original[1])]):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith(
            f"slt-import-checkpoint: {original[1]}: no SignHiera: it looks like a translation model"
        )
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "a.pt").exists()
