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
WRIST = NAMES.index("right_hand.wrist")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("fingerspelling")
    assert fingerspelling.main(["--out", str(out), *SIZES, "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def ase():
    return synthesis.load_language("ase")


def files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def render(language, text, seed=0):
    words = [synthesis.spell(word, language.letters) for word in text.split()]
    return synthesis.render(language, words, np.random.default_rng(seed)).astype(np.float64)


def letters_of(language, count):
    return list(language.letters)[:count]


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


# ---- what the landmarks show ----


def test_text_is_what_is_spelled(ase):
    """The bank frames a sentence plays are those of its letters, in order, with rests between the words."""
    words = [list("jazz"), list("book")]
    track = synthesis._Track(ase, 2.0, np.random.default_rng(0))
    track.rest((5, 5))
    for word in words:
        synthesis._spell_word(track, [ase.letters[unit] for unit in word], track.rng)
        track.rest((5, 5))
    low, high, mix, _ = track.frames()
    owner = {frame: text for text, letter in ase.letters.items() for frame in range(letter.first, letter.last + 1)}
    owner[0] = " "
    # what is played, not moved through; a doubled letter starts again at its first frame
    shown = [int(frame) for frame, to, part in zip(low, high, mix, strict=True) if to - frame <= 1 and part < 0.5]
    spelled = []
    for before, frame in zip([None, *shown], shown, strict=False):
        text = owner.get(frame)
        if text and (not spelled or spelled[-1] != text or (frame < before and text != " ")):
            spelled.append(text)
    assert "".join(spelled).strip() == "jazz book"


def test_rests_lower_the_hand(ase):
    pose = render(ase, "bead chain", seed=3)
    height = pose[:, WRIST, 1] - pose[:, NAMES.index("body.right_shoulder"), 1]
    down = height > 0.95 * height.max()
    runs = np.flatnonzero(np.diff(np.concatenate([[0], down, [0]])))
    starts, ends = runs[::2], runs[1::2]
    assert len(starts) == 3  # before, between, after
    assert starts[0] == 0
    assert ends[-1] == len(pose)
    assert min(ends - starts) >= 3
    assert height[~down].min() < 0.3


@pytest.mark.parametrize("letter", ["l", "s"])
def test_double_letters_bounce(ase, letter):
    def held(text, seed):
        pose = render(ase, text, seed)
        return pose[pose[:, WRIST, 1] - pose[:, NAMES.index("body.nose"), 1] < 0.9]

    singles, doubles = ([held(text, seed) for seed in range(12)] for text in (letter, letter * 2))
    assert np.mean([len(pose) for pose in doubles]) > np.mean([len(pose) for pose in singles]) + 8
    slides = [pose[-4:, WRIST, 0].mean() - pose[:4, WRIST, 0].mean() for pose in doubles]
    assert np.mean(slides) < -0.15  # away from the body, which is on the right of the hand
    assert abs(np.mean([pose[-4:, WRIST, 0].mean() - pose[:4, WRIST, 0].mean() for pose in singles])) < 0.05


def test_letters_are_trimmed_and_motions_kept(ase):
    lengths = {text: letter.last - letter.first + 1 for text, letter in ase.letters.items()}
    assert len(lengths) == 26
    for text, letter in ase.letters.items():
        height = ase.bank[letter.first : letter.last + 1, NAMES.index("body.right_wrist"), 1]
        assert 14 <= lengths[text] <= 26
        if text not in "jz":
            assert np.ptp(height) < 0.35, text
    height = ase.bank[ase.letters["j"].first : ase.letters["j"].last + 1, WRIST, 1]
    assert np.ptp(height) > 0.3  # the drawn hook
    assert ase.letters["z"].first == ase.letters["z"].start  # it starts in the air


def test_trim_ignores_bad_frames():
    hold = [0.01, 0.0] * 5
    assert synthesis.trim(np.array([0.9, 0.5, 0.2, *hold, 0.3, 0.7]), 1.0) == (3, 12)
    assert synthesis.trim(np.array(hold), 1.0) == (0, 9)
    # one bad frame at the start does not hide the rise; a dip that comes back is neither rise nor sinking
    assert synthesis.trim(np.array([0.5, 0.9, 0.5, 0.2, *hold]), 1.0)[0] == 4
    assert synthesis.trim(np.array([*hold, 0.3, 0.0, 0.0]), 1.0)[1] == 12
    assert synthesis.trim(np.array([0.0, 0.0, 0.3, *hold]), 1.0)[0] == 0


def test_sentences_vary(ase):
    poses = [render(ase, "good day", seed) for seed in range(20)]
    widths = [np.linalg.norm(np.median(p[:, 3] - p[:, 4], axis=0)[:2]) for p in poses]
    assert max(widths) / min(widths) > 1.15  # scale and viewpoint
    lengths = [len(pose) for pose in poses]
    assert max(lengths) / min(lengths) > 1.25  # speed
    rest = poses[0][:3, 30:, :2]
    assert 0.0005 < np.diff(rest, axis=0).std() < 0.03  # landmark noise
    assert np.array_equal(render(ase, "good day", 5), poses[5])


def test_rotation_is_one():
    rotation = synthesis._rotation(0.3, -0.2, 0.1)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(synthesis._rotation(np.pi / 2, 0, 0) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


# ---- other languages ----


def test_every_language_loads():
    index = synthesis.read_index(synthesis.lexicon_folder())
    assert len(index) == 20
    for lang in index:
        language = synthesis.load_language(lang)
        assert np.isfinite(language.bank).all()
        assert language.reach.sum() > 21
        units = letters_of(language, 6)
        pose = synthesis.render(language, [units[:3], units[3:]], np.random.default_rng(0))
        assert np.isfinite(pose).all()
        assert (pose[:, 9:, 2] > 0).any(1).mean() > 0.6, lang  # trackers lose lowered hands


def test_left_handed_recordings_bounce_to_the_left():
    language = synthesis.load_language("ise")
    assert {letter.side for letter in language.letters.values()} == {"left"}
    assert language.reach[NAMES.index("left_hand.wrist")] == 1
    assert language.reach[NAMES.index("right_hand.wrist")] == 0
    assert synthesis.spell("mamma", language.letters) == ["m", "a", "mm", "a"]  # recorded double letters are used


def test_letters_of_several_characters():
    sgg = synthesis.load_language("sgg")
    assert synthesis.spell("schöne", sgg.letters) == ["sch", "ö", "n", "e"]
    assert synthesis.spell("ça", sgg.letters) is None
    assert synthesis.normalise("ISIRİK", "tr") == "ısırik"
    assert synthesis.normalise("A\u0308ẞ", "de") == "äß"


def test_recordings_far_too_long_are_left_out(caplog):
    assert "ο" not in synthesis.load_language("gss").letters
    assert "letter 'ο' is left out" in caplog.text


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
    path.write_text("\n".join(f"{a}{b}ü{c}" for a in "bdgt" for b in "aeio" for c in "nmrls") + "\nça\n", "utf-8")
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
