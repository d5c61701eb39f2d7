"""The texts of the fingerspelling corpus: vocabulary, held-out words, pseudo-words, sentences."""

import logging
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fingerspelling_synthesis import CorpusError, Language, load_language, normalise, spell

logger = logging.getLogger(__name__)

WORD_LIST = Path(__file__).with_name("words.txt")
HELD_OUT = 0.15  # of the words
MIN_WORDS = 200  # of words.txt that a language's letters must be able to spell
PSEUDO_VOCABULARY = 600
WORDS = (2, 4)  # a sentence
MAX_LETTERS = 22  # a sentence, which keeps it under about 400 frames
PSEUDO_LETTERS = (2, 9)
DOUBLE = 0.25  # of the pseudo-words get a double letter
UNIFORM = 0.1  # of a pseudo-word's letters ignore the bigrams: any two letters can meet in a new word
TRIES = 1000

Word = tuple[str, ...]  # its letters; one letter may be several characters ("sch")


@dataclass(frozen=True)
class Vocabulary:
    """One sign language's words and what its pseudo-words are drawn from.

    `follows` is (units + 1, units + 1): row = letter before (last: start of the word), cumulative probabilities of the
    letter after it (last: end of the word).
    """

    language: Language
    text_lang: str
    seen: list[Word]
    held_out: list[Word]
    units: list[str]
    follows: np.ndarray


@dataclass(frozen=True)
class Sentence:
    sign_lang: str
    text_lang: str
    words: list[Word]

    @property
    def text(self) -> str:
        return " ".join("".join(word) for word in self.words)


def read_words(path: Path) -> list[str]:
    """Words of a UTF-8 file, one a line.

    Raises:
        CorpusError: names every line that is not one word of letters (the first five).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"--words {path}: {error}. Expected a UTF-8 text file, one word a line") from error
    words = [unicodedata.normalize("NFC", line.strip()) for line in lines]
    bad = [f"line {i}: {word!r}" for i, word in enumerate(words, 1) if word and not word.isalpha()]
    if bad:
        raise CorpusError(f"--words {path}: expected one word of letters a line, got {'; '.join(bad[:5])}")
    return [word for word in words if word]


def build_vocabularies(sign_langs: list[str], words_file: Path | None, seed: int) -> list[Vocabulary]:
    """Words that each language can spell, 15 % of them held out by seed, the same ones in every language."""
    rng = np.random.default_rng((seed, 0))
    languages = [load_language(lang) for lang in sign_langs]
    written = read_words(words_file or WORD_LIST)
    spelled, text_langs = [], []
    for language in languages:
        words = dict.fromkeys(normalise(word, language.text_lang) for word in written)
        found = [tuple(units) for units in (spell(word, language.letters) for word in words) if units]
        if words_file:
            if len(found) < len(words):
                message = "%s: %d of %d words of %s need letters that have no recording and are left out"
                logger.warning(message, language.sign_lang, len(words) - len(found), len(words), words_file)
            text_langs.append(language.text_lang)
        elif len(found) < MIN_WORDS:
            message = "%s: its letters spell %d words of words.txt, so pseudo-words are used; real ones: --words FILE"
            logger.warning(message, language.sign_lang, len(found))
            found = _random_words(sorted(language.letters), rng)
            text_langs.append(language.text_lang)
        else:
            text_langs.append("en")
        spelled.append(found)

    everything = sorted({"".join(word) for words in spelled for word in words})
    held_out = set(rng.permutation(everything)[: round(HELD_OUT * len(everything))].tolist())
    vocabularies = []
    for language, text_lang, words in zip(languages, text_langs, spelled, strict=True):
        seen = [word for word in words if "".join(word) not in held_out]
        unseen = [word for word in words if "".join(word) in held_out]
        if not seen or not unseen:
            raise CorpusError(
                f"{language.sign_lang}: only {len(words)} words can be spelled, too few to hold some out; "
                f"give --words FILE with more of the letters {' '.join(language.letters)}"
            )
        units = sorted(language.letters)
        vocabularies.append(Vocabulary(language, text_lang, seen, unseen, units, _bigrams(seen, units)))
    return vocabularies


def compose(
    sizes: dict[str, int], vocabularies: list[Vocabulary], pseudo: float, seed: int
) -> dict[str, list[Sentence]]:
    """Sentences of every split, languages in turn; no text comes twice, in one split or in two.

    `pseudo` is the fraction of training sentences that consist of pseudo-words, which are never held-out words.

    Raises:
        CorpusError: the words do not give that many different sentences.
    """
    texts: set[str] = set()
    forbidden = {"".join(word) for vocabulary in vocabularies for word in vocabulary.held_out}
    composed = {}
    for number, (split, size) in enumerate(sizes.items(), start=1):
        rng = np.random.default_rng((seed, number))
        composed[split] = []
        for i in range(size):
            vocabulary = vocabularies[i % len(vocabularies)]
            use_pseudo = split == "train" and rng.random() < pseudo
            for words in _draws(vocabulary, split, use_pseudo, forbidden, rng):
                sentence = Sentence(vocabulary.language.sign_lang, vocabulary.text_lang, words)
                if sentence.text not in texts and sum(map(len, words)) <= MAX_LETTERS:
                    break
            else:
                raise CorpusError(
                    f"{split}: no new sentence found after {i} of {size}; ask for fewer (--{split.replace('_', '-')}) "
                    f"or give more words (--words FILE)"
                )
            texts.add(sentence.text)
            composed[split].append(sentence)
    return composed


def _draws(
    vocabulary: Vocabulary, split: str, pseudo: bool, forbidden: set[str], rng: np.random.Generator
) -> Iterator[list[Word]]:
    words = vocabulary.held_out if split == "test_unseen" else vocabulary.seen
    for _ in range(TRIES):
        count = rng.integers(WORDS[0], WORDS[1] + 1)
        if pseudo:
            yield [_pseudo_word(vocabulary, forbidden, rng) for _ in range(count)]
        else:
            yield [words[k] for k in rng.integers(len(words), size=count)]


def _pseudo_word(vocabulary: Vocabulary, forbidden: set[str], rng: np.random.Generator) -> Word:
    units, end = vocabulary.units, len(vocabulary.units)
    while True:
        word, at = [], end
        while True:
            at = int(np.searchsorted(vocabulary.follows[at], rng.random()))
            if at >= end:
                break
            word.append(units[at])
        if word and rng.random() < DOUBLE:
            k = int(rng.integers(len(word)))
            word.insert(k, word[k])
        triple = any(a == b == c for a, b, c in zip(word, word[1:], word[2:], strict=False))
        if PSEUDO_LETTERS[0] <= len(word) <= PSEUDO_LETTERS[1] and not triple and "".join(word) not in forbidden:
            return tuple(word)


def _bigrams(words: list[Word], units: list[str]) -> np.ndarray:
    place = {unit: i for i, unit in enumerate(units)}
    end = len(units)
    counts = np.zeros((end + 1, end + 1))
    for word in words:
        path = [end, *(place[unit] for unit in word), end]
        np.add.at(counts, (path[:-1], path[1:]), 1)
    counts[counts.sum(1) == 0] = 1  # a letter that no seen word has
    counts[end, end] = 0
    uniform = np.append(np.full(end, 1 / end), 0.0)
    return np.cumsum((1 - UNIFORM) * counts / counts.sum(1, keepdims=True) + UNIFORM * uniform, axis=1)


def _random_words(units: list[str], rng: np.random.Generator) -> list[Word]:
    words: dict[Word, None] = {}
    while len(words) < PSEUDO_VOCABULARY:
        words[tuple(rng.choice(units, size=rng.integers(3, 8)).tolist())] = None
    return list(words)
