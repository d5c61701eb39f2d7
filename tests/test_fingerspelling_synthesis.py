"""manifests/fingerspelling_synthesis.py: letters read from the recordings, and the sentences made of them."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "manifests"))

import fingerspelling_synthesis as synthesis

from slt_plugin.data.landmarks import part_names

if importlib.util.find_spec("spoken_to_signed") is None:
    pytest.skip("needs the letter recordings: pip install 'slt-plugin[prep]'", allow_module_level=True)

NAMES = part_names(("body", "left_hand", "right_hand"))
WRIST = NAMES.index("right_hand.wrist")


@pytest.fixture(scope="module")
def ase():
    return synthesis.load_language("ase")


def render(language, text, seed=0):
    words = [synthesis.spell(word, language.letters) for word in text.split()]
    return synthesis.render(language, words, np.random.default_rng(seed)).astype(np.float64)


def letters_of(language, count):
    return list(language.letters)[:count]


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
