"""The stretch of signing that each word of a translation rests on, and whether that holds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from slt_plugin.report.occlusion import Occlusion, Stretch, Timeline, hide_by_holding, hide_by_mean
from slt_plugin.report.words import split_words, words_of_tokens

PLACES_A_WORD = 4  # stretches that are tried for each word, on average
MAX_PLACES = 96
SHORTEST, LONGEST = 1 / 16, 1 / 3  # of the row
FEWEST_STEPS = 4  # of a source, that something is left beside a stretch
RANDOM_STRETCHES = 8
REQUIRED = 0.7
METHOD = (
    "A word's stretch is the one whose hiding costs the word the most probability, out of stretches as long as a word "
    "takes on average, but 1/16 to 1/3 of the row (hidden: replaced by the mean of the rest). Checked in another way: "
    "with each stretch held at the moment before it, its word must lose more than over "
    f"{RANDOM_STRETCHES} random stretches of the same length on average."
)


class WordEvidence(NamedTuple):
    """start, end: seconds from the row's start; drop: nats of log probability lost where that stretch is hidden."""

    word: str
    start: float
    end: float
    drop: float


class Check(NamedTuple):
    """Of one word: nats lost where its stretch is held still, and on average where a random one is."""

    drop: float
    random_drop: float

    @property
    def faithful(self) -> bool:
        return self.drop > self.random_drop


class Explanation(NamedTuple):
    words: list[WordEvidence]
    checks: list[Check]  # of each word; [] where none were asked for


def explain(
    models: Sequence,
    sample: dict,
    tokens: Tensor,
    decode: Callable[[Sequence[int]], str],
    timeline: Timeline,
    *,
    rng: np.random.Generator | None = None,
    max_steps: int = 12_000,
) -> Explanation:
    """Evidence for the words of one hypothesis of one row.

    Args:
        models, sample, tokens, timeline, max_steps: see `Occlusion`.
        decode: token numbers to text, ``codec.decode``.
        rng: draws the random stretches of the checks; None: no checks.

    Raises:
        ValueError: a source of fewer than FEWEST_STEPS steps.
    """
    if len(timeline.times.unique()) < FEWEST_STEPS:
        raise ValueError(f"{len(timeline.times)} source steps: at least {FEWEST_STEPS} are needed")
    numbers = tokens.tolist()
    words = split_words(decode(numbers))
    if not words:
        return Explanation([], [])
    occlusion = Occlusion(models, sample, tokens, words_of_tokens(numbers, decode), timeline, max_steps)
    places = _places(timeline, len(words))
    drops = occlusion.drops(places, hide_by_mean)  # places x words
    best = drops.argmax(0).tolist()
    evidence = [
        WordEvidence(word, *_within(places[place], timeline.seconds), float(drops[place, number]))
        for number, (word, place) in enumerate(zip(words, best, strict=True))
    ]
    if rng is None:
        return Explanation(evidence, [])
    return Explanation(evidence, _check(occlusion, [places[place] for place in best], len(words), rng))


def _within(stretch: Stretch, seconds: float) -> Stretch:
    return max(stretch[0], 0.0), min(stretch[1], seconds)


def _step(timeline: Timeline) -> float:
    return timeline.seconds / len(timeline.times.unique())


def _steps_of_a_stretch(timeline: Timeline, words: int) -> int:
    steps = len(timeline.times.unique())
    return max(1, min(round(steps * min(max(1 / words, SHORTEST), LONGEST)), steps - 1))


def _stretch(first: int, length: int, step: float) -> Stretch:
    """From the middle before step ``first`` to that after the last: so many steps, however times are rounded."""
    return (first - 0.5) * step, (first + length - 0.5) * step


def _places(timeline: Timeline, words: int) -> list[Stretch]:
    """Overlapping stretches of equal length over the whole row."""
    length, steps = _steps_of_a_stretch(timeline, words), len(timeline.times.unique())
    count = min(max(2, round(PLACES_A_WORD * steps / length)), MAX_PLACES)
    starts = np.unique(np.linspace(0, steps - length, count).round().astype(int)).tolist()
    return [_stretch(start, length, _step(timeline)) for start in starts]


def _check(occlusion: Occlusion, chosen: Sequence[Stretch], words: int, rng: np.random.Generator) -> list[Check]:
    timeline = occlusion.timeline
    length, steps = _steps_of_a_stretch(timeline, words), len(timeline.times.unique())
    starts = rng.integers(0, steps - length, RANDOM_STRETCHES, endpoint=True).tolist()
    random = [_stretch(start, length, _step(timeline)) for start in starts]
    drops = occlusion.drops([*chosen, *random], hide_by_holding)
    own, others = torch.diagonal(drops[: len(chosen)]), drops[len(chosen) :].mean(0)
    return [Check(float(drop), float(mean)) for drop, mean in zip(own, others, strict=True)]


def faithfulness(checks: Sequence[Check]) -> dict | None:
    """What the report says of the stretches of all words; None where there are no words."""
    if not checks:
        return None
    faithful = sum(check.faithful for check in checks)
    return {
        "words": len(checks),
        "faithful": faithful,
        "share": faithful / len(checks),
        "required": REQUIRED,
        "method": METHOD,
    }
