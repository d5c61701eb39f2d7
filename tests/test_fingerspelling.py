"""manifests/fingerspelling*.py: the corpus of real letter recordings and composed sentences."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import fingerspelling  # noqa: E402
import fingerspelling_synthesis as synthesis  # noqa: E402
import fingerspelling_texts as texts  # noqa: E402

from slt_plugin.data.landmarks import part_names  # noqa: E402
from slt_plugin.data.manifest import read_manifest  # noqa: E402

if importlib.util.find_spec("spoken_to_signed") is None:
    pytest.skip("needs the letter recordings: pip install 'slt-plugin[prep]'", allow_module_level=True)

SIZES = ("--train", "60", "--valid", "8", "--test", "12", "--test-unseen", "12")
NAMES = part_names(("body", "left_hand", "right_hand"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("fingerspelling")
    assert fingerspelling.main(["--out", str(out), *SIZES, "--workers", "1"]) == 0
    return out


def files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


# ---- files ----


def test_word_list_is_clean():
    words = texts.WORD_LIST.read_text(encoding="ascii").splitlines()
    assert len(words) == len(set(words)) > 1100
    assert words == sorted(words)
    assert all(re.fullmatch("[a-z]{2,9}", word) for word in words)
    assert set("".join(words)) == set("abcdefghijklmnopqrstuvwxyz")
    assert 4 < np.mean([len(word) for word in words]) < 5


def test_files_and_rows(corpus):
    assert set(files(corpus)) == {
        "corpus.json",
        *(f"{split}.tsv" for split in fingerspelling.SPLITS),
        *(f"poses/{split}-000.npy" for split in fingerspelling.SPLITS),
    }
    for split, size in zip(fingerspelling.SPLITS, (60, 8, 12, 12), strict=True):
        rows = read_manifest(corpus / f"{split}.tsv", require_text=True)
        assert len(rows) == size
        assert {(row.fps, row.sign_lang, row.text_lang, row.corpus) for row in rows} == {
            (25.0, "ase", "en", "fingerspelling")
        }
        poses = np.load(corpus / rows[0].path, mmap_mode="r")
        frame = 0
        for row in rows:  # one after another, without gap or overlap
            assert round(row.start * row.fps) == frame
            frame = round(row.end * row.fps)
            assert frame - round(row.start * row.fps) == row.num_frames
        assert frame == len(poses)


def test_stored_arrays(corpus):
    poses = np.load(corpus / "poses/train-000.npy")
    assert poses.dtype == np.float16
    assert poses.shape[1:] == (len(NAMES), 3) == (51, 3)
    assert np.isfinite(poses).all()
    assert np.abs(poses[..., :2]).max() < 4  # shoulder widths
    assert ((poses[..., 2] >= 0) & (poses[..., 2] <= 1.01)).all()
    assert (poses[poses[..., 2] == 0] == 0).all()
    missing = [name for name, seen in zip(NAMES, (poses[..., 2] > 0).any(0), strict=True) if not seen]
    assert missing == ["body.left_wrist", *NAMES[9:30]]  # these recordings have no left hand
    assert (poses[:, 30:, 2] > 0).all()
    left, right = poses[:, NAMES.index("body.left_shoulder"), 0], poses[:, NAMES.index("body.right_shoulder"), 0]
    assert (left > right).all()  # the signer's left is on the right of the image


def test_every_sentence_has_its_own_view(corpus):
    poses = np.load(corpus / "poses/train-000.npy").astype(np.float64)
    rows = read_manifest(corpus / "train.tsv")
    shoulders = [np.median(poses[round(r.start * 25) : round(r.end * 25), 3:5, :2], axis=0) for r in rows]
    assert len(np.unique(np.round(shoulders, 2), axis=0)) == len(rows)


def test_sentence_lengths(corpus):
    rows = read_manifest(corpus / "train.tsv")
    lengths = [row.num_frames for row in rows]
    assert 150 < np.mean(lengths) < 260
    assert max(lengths) < 450
    assert {len(row.text.split()) for row in rows} == {2, 3, 4}
    assert max(len(row.text.replace(" ", "")) for row in rows) <= texts.MAX_LETTERS


def test_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerspelling, "SHARD", 5)
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES, "--workers", "1"]) == 0
    rows = read_manifest(tmp_path / "train.tsv")
    assert len({row.path for row in rows}) == 12
    for path in {row.path for row in rows}:
        part = [row for row in rows if row.path == path]
        assert part[0].start == 0
        assert sum(row.num_frames for row in part) == len(np.load(tmp_path / path))


# ---- determinism, running again ----


def test_same_bytes_whatever_the_workers(corpus, tmp_path):
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES, "--workers", "2"]) == 0
    assert files(tmp_path) == files(corpus)


def test_same_bytes_in_other_processes(corpus, tmp_path):
    """As a script, under two seeds of Python's string hashes."""
    for seed in ("1", "2"):
        command = [sys.executable, ROOT / "manifests/fingerspelling.py", "--out", tmp_path / seed, *SIZES]
        subprocess.run(
            [*command, "--workers", "1"], check=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=tmp_path
        )
        assert files(tmp_path / seed) == files(corpus)


def test_seed_changes_everything(corpus, tmp_path):
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES, "--seed", "2", "--workers", "1"]) == 0
    ours, other = files(tmp_path), files(corpus)
    assert ours.keys() == other.keys()
    assert all(ours[name] != other[name] for name in ours)


def test_running_again_is_free_and_repairs(corpus, capsys):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    hashes = files(corpus)
    assert fingerspelling.main(["--out", str(corpus), *SIZES]) == 0
    assert "complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    (corpus / "valid.tsv").unlink()  # as after an interruption: only this split is made again
    (corpus / "poses/test-000.npy").unlink()
    assert fingerspelling.main(["--out", str(corpus), *SIZES, "--workers", "1"]) == 0
    assert files(corpus) == hashes
    assert before[corpus / "train.tsv"] == (corpus / "train.tsv").stat().st_mtime_ns
    assert before[corpus / "test.tsv"] != (corpus / "test.tsv").stat().st_mtime_ns


def test_other_options_are_refused(corpus, capsys):
    hashes = files(corpus)
    assert fingerspelling.main(["--out", str(corpus), *SIZES, "--seed", "3"]) == 1
    error = capsys.readouterr().err
    assert "seed: 1 there, 3 now" in error
    assert "--overwrite" in error
    assert files(corpus) == hashes


def test_overwrite_leaves_other_files(tmp_path):
    (tmp_path / "poses").mkdir()
    keep = [tmp_path / "notes.txt", tmp_path / "poses/mine.npy"]
    old = [tmp_path / "train.tsv", tmp_path / "poses/train-007.npy"]
    for path in keep + old:
        path.write_text("x")
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES]) == 1  # files of unknown origin
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES, "--workers", "1", "--overwrite"]) == 0
    assert all(path.read_text() == "x" for path in keep)
    assert not old[1].exists()
    assert len(read_manifest(old[0])) == 60


@pytest.mark.parametrize("content", ["{broken", "[]"])
def test_unreadable_record(tmp_path, capsys, content):
    (tmp_path / "corpus.json").write_text(content)
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES]) == 1
    assert "--overwrite" in capsys.readouterr().err


# ---- words and sentences ----


def compose(langs=("ase",), pseudo=0.5, sizes=(3000, 200, 300, 300), words=None, seed=1):
    vocabularies = texts.build_vocabularies(list(langs), words, seed)
    return vocabularies, texts.compose(dict(zip(fingerspelling.SPLITS, sizes, strict=True)), vocabularies, pseudo, seed)


def test_splits():
    (vocabulary,), splits = compose()
    seen, held_out = ({"".join(word) for word in words} for words in (vocabulary.seen, vocabulary.held_out))
    assert not seen & held_out
    assert len(held_out) == round(0.15 * (len(seen) + len(held_out)))
    sentences = {split: [sentence.text for sentence in items] for split, items in splits.items()}
    everything = [text for items in sentences.values() for text in items]
    assert len(everything) == len(set(everything)) == 3800
    words = {split: {word for text in items for word in text.split()} for split, items in sentences.items()}
    assert words["test_unseen"] <= held_out
    assert words["valid"] | words["test"] <= seen
    assert not words["train"] & held_out
    invented = sum(bool(set(text.split()) - seen) for text in sentences["train"])
    assert 0.45 < invented / 3000 < 0.55


def test_pseudo_words():
    (vocabulary,), splits = compose(pseudo=1.0)
    words = ["".join(word) for sentence in splits["train"] for word in sentence.words]
    assert all(2 <= len(word) <= 9 for word in words)
    assert not set(words) & {"".join(word) for word in vocabulary.held_out}
    doubled = np.mean([bool(re.search(r"(.)\1", word)) for word in words])
    assert 0.25 < doubled < 0.5
    assert not any(re.search(r"(.)\1\1", word) for word in words)
    # letter sequences are English-like: "th" far above "ht", "q" mostly before "u"
    text = " ".join(words)
    assert text.count("th") > 2 * text.count("tq")
    assert text.count("qu") > 10 * text.count("qz")
    assert set(text) == set("abcdefghijklmnopqrstuvwxyz ")
    _, without = compose(pseudo=0.0)
    assert {word for s in without["train"] for word in s.words} <= set(vocabulary.seen)


def test_too_few_words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    with pytest.raises(synthesis.CorpusError, match=r"test_unseen: no new sentence found after 3 .*--test-unseen"):
        compose(words=path, sizes=(50, 5, 5, 50))


# ---- other languages ----


def test_several_languages(tmp_path):
    assert fingerspelling.main(["--out", str(tmp_path), *SIZES, "--workers", "1", "--sign-langs", "ase,gss,ise"]) == 0
    rows = read_manifest(tmp_path / "train.tsv")
    assert {(row.sign_lang, row.text_lang) for row in rows} == {("ase", "en"), ("gss", "el"), ("ise", "en")}
    assert re.fullmatch("[α-ω ]+", " ".join(row.text for row in rows if row.sign_lang == "gss"))
    assert json.loads((tmp_path / "corpus.json").read_text())["sign_langs"] == ["ase", "gss", "ise"]


def test_held_out_words_are_held_out_in_every_language():
    vocabularies, splits = compose(langs=("ase", "gsg"), sizes=(600, 50, 100, 100))
    words = {s: {"".join(word) for sentence in items for word in sentence.words} for s, items in splits.items()}
    assert not words["test_unseen"] & (words["train"] | words["valid"] | words["test"])
    assert {sentence.sign_lang for sentence in splits["test_unseen"]} == {"ase", "gsg"}
    assert len(vocabularies) == 2


def test_own_words(tmp_path):
    path = tmp_path / "wörter.txt"
    path.write_text("\n".join(f"{a}{b}ü{c}" for a in "bdgt" for b in "aeio" for c in "nmrls") + "\nc\u0327a\n", "utf-8")
    (vocabulary,), splits = compose(langs=("gsg",), words=path, pseudo=0.0, sizes=(50, 5, 5, 5))
    assert vocabulary.text_lang == "de"
    assert len(vocabulary.seen) + len(vocabulary.held_out) == 80  # without ça
    assert all("ü" in sentence.text for sentence in splits["train"])


# ---- errors ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sign-langs", "ase,xyz"], "'xyz'; available: ase, asq, bzs"),
        (["--words", "/nowhere/words.txt"], "--words /nowhere/words.txt: cannot be read"),
    ],
)
def test_clear_errors(tmp_path, capsys, options, message):
    out = tmp_path / "new"
    assert fingerspelling.main(["--out", str(out), *SIZES, *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [["--train", "0"], ["--pseudo-words", "1.5"], ["--seed", "-1"], ["--workers", "x"], []]
)
def test_bad_options(tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stop:
        fingerspelling.main([*(["--out", str(tmp_path / "new")] if options else []), *options])
    assert stop.value.code == 2
    assert (options[0] if options else "--out") in capsys.readouterr().err


def test_bad_word_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("fine\ntwo words\n\nit's\n")
    with pytest.raises(synthesis.CorpusError, match=r"line 2: 'two words'; line 4: \"it's\""):
        texts.read_words(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(synthesis.CorpusError, match="UTF-8"):
        texts.read_words(path)


def test_missing_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fingerspelling.main(["--out", str(tmp_path / "new")]) == 1
    assert "pip install 'slt-plugin[prep]'" in capsys.readouterr().err
