import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.text.codec import build_codec

SCRIPT = Path(__file__).parents[1] / "scripts/train_sentencepiece.py"
sys.path.insert(0, str(SCRIPT.parent))
import train_sentencepiece  # noqa: E402

TEXTS = [f"Hello World number {i}, the cat sat on a mat" for i in range(40)] + ["Über Zebra é 漢 Quiz"]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "train.tsv"
    write_manifest(path, [Row(id=f"r{i}", path=f"{i}.npy", text=text) for i, text in enumerate(TEXTS)])
    return path


def run(manifest, *options, out=None):
    return train_sentencepiece.main([str(manifest), "--out", str(out or manifest.parent / "spm"), *options])


def load(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "word"])
def test_size_layout_and_one_line_of_output(manifest, capsys, model_type):
    assert run(manifest, "--model-type", model_type, "--vocab-size", "42") == 0
    processor = load(manifest.parent / "spm.model")
    assert len(processor) == 42
    assert [processor.id_to_piece(index) for index in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert f"{model_type}, 42 symbols from {len(TEXTS)} texts" in output
    codec = build_codec("sentencepiece", manifest.parent / "spm.model")
    assert codec.dictionary.symbols == [processor.id_to_piece(index) for index in range(42)]
    assert codec.encode(TEXTS[0]).tolist() == [*processor.encode(TEXTS[0]), 2]


def test_char_keeps_every_character_and_never_gives_the_blank(manifest, capsys):
    assert run(manifest, "--model-type", "char") == 0
    codec = build_codec("sentencepiece", manifest.parent / "spm.model")
    characters = set("".join(TEXTS).replace(" ", "▁"))
    assert set(codec.dictionary.symbols[4:]) == characters
    for text in TEXTS:
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        assert codec.dictionary.bos() == 0
        assert 0 not in ids
        assert codec.dictionary.unk() not in ids
    assert re.search(r", 0 of \d+ unknown", capsys.readouterr().out)


def test_coverage_below_one_leaves_rare_characters_out(manifest, capsys):
    assert run(manifest, "--model-type", "char", "--character-coverage", "0.99") == 0
    assert "漢" not in build_codec("sentencepiece", manifest.parent / "spm.model").dictionary
    unknown = int(re.search(r", (\d+) of \d+ unknown", capsys.readouterr().out)[1])
    assert unknown > 0


def test_lowercase(manifest):
    assert run(manifest, "--model-type", "char", "--lowercase") == 0
    codec = build_codec("sentencepiece", manifest.parent / "spm.model", lowercase=True)
    assert not any(symbol != symbol.lower() for symbol in codec.dictionary.symbols)
    assert codec.decode(codec.encode(TEXTS[-1])) == TEXTS[-1].lower()


def test_same_input_gives_the_same_bytes(manifest):
    for model_type in ("unigram", "bpe"):
        models = []
        for name in ("one", "two"):
            out = manifest.parent / "new" / "folder" / name
            assert run(manifest, "--model-type", model_type, "--vocab-size", "42", out=out) == 0
            models.append(out.with_name(f"{name}.model").read_bytes())
        assert models[0] == models[1]


def test_vocab_file_is_the_one_of_sentencepiece(manifest):
    assert run(manifest, "--vocab-size", "42", out=manifest.parent / "v1.0") == 0
    files = sorted(path.name for path in manifest.parent.iterdir())
    assert files == ["train.tsv", "v1.0.model", "v1.0.vocab"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(manifest.parent / "own"),
        vocab_size=42,
        character_coverage=1.0,
        num_threads=train_sentencepiece.THREADS,
        minloglevel=2,
        **train_sentencepiece.SPECIALS,
    )
    assert (manifest.parent / "v1.0.vocab").read_text() == (manifest.parent / "own.vocab").read_text()


def test_several_manifests_are_one_text(manifest, tmp_path):
    other = tmp_path / "other.tsv"
    write_manifest(other, [Row(id="x", path="x.npy", text="ß")])
    assert (
        train_sentencepiece.main([str(manifest), str(other), "--model-type", "char", "--out", str(tmp_path / "m")]) == 0
    )
    assert "ß" in build_codec("sentencepiece", tmp_path / "m.model").dictionary


def test_very_long_texts_are_not_left_out(tmp_path):
    path = tmp_path / "long.tsv"
    write_manifest(path, [Row(id="a", path="a.npy", text="cat " * 3000 + "Q"), Row(id="b", path="b.npy", text="dog")])
    assert run(path, "--model-type", "char") == 0
    assert "Q" in build_codec("sentencepiece", tmp_path / "spm.model").dictionary


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "word"])
def test_too_large_a_vocabulary_names_the_largest_possible(manifest, capsys, model_type):
    assert run(manifest, "--model-type", model_type, "--vocab-size", "9000") == 1
    message = capsys.readouterr().err
    largest = re.search(r"--vocab-size 9000 is too large .* largest possible is (\d+)", message)[1]
    assert not (manifest.parent / "spm.model").exists()
    assert run(manifest, "--model-type", model_type, "--vocab-size", str(int(largest) + 1)) == 1
    assert run(manifest, "--model-type", model_type, "--vocab-size", largest) == 0


def test_too_small_a_vocabulary_names_the_smallest_possible(manifest, capsys):
    assert run(manifest, "--model-type", "bpe", "--vocab-size", "12") == 1
    smallest = re.search(r"too small: .* need (\d+)", capsys.readouterr().err)[1]
    assert run(manifest, "--model-type", "bpe", "--vocab-size", str(int(smallest) - 1)) == 1
    assert run(manifest, "--model-type", "bpe", "--vocab-size", smallest) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--vocab-size is needed"),
        (["--model-type", "char", "--vocab-size", "50"], "not allowed for char"),
        (["--vocab-size", "4"], "above 4"),
        (["--model-type", "char", "--character-coverage", "1.5"], "is a share"),
        (["--model-type", "char", "--out", "spm.model"], "without .model"),
        (["--model-type", "chars"], "invalid choice"),
    ],
)
def test_wrong_options(manifest, capsys, options, message):
    with pytest.raises(SystemExit):
        run(manifest, *options)
    assert message in capsys.readouterr().err


def test_bad_manifests(tmp_path, capsys):
    assert run(tmp_path / "nope.tsv", "--model-type", "char") == 1
    assert "nope.tsv" in capsys.readouterr().err
    path = tmp_path / "empty_cell.tsv"
    write_manifest(path, [Row(id="a", path="a.npy", text="cat"), Row(id="b", path="b.npy")])
    assert run(path, "--model-type", "char") == 1
    message = capsys.readouterr().err
    assert "empty_cell.tsv" in message
    assert "text" in message
    assert not (tmp_path / "spm.model").exists()


def test_failed_write_leaves_no_half_file(manifest, capsys, monkeypatch):
    assert run(manifest, "--model-type", "char") == 0
    before = (manifest.parent / "spm.model").read_bytes()

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert run(manifest, "--vocab-size", "42") == 1
    assert "No space left" in capsys.readouterr().err
    assert (manifest.parent / "spm.model").read_bytes() == before
    assert not list(manifest.parent.glob("*.tmp"))


def test_as_a_command(manifest, tmp_path):
    command = [sys.executable, str(SCRIPT), str(manifest), "--model-type", "char", "--out", "spm"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("spm.model: char, ")
    assert (tmp_path / "spm.vocab").is_file()
