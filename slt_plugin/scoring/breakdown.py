"""Scores of parts of the test set: by length, signer, corpus, language or any column of the manifest."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.metrics import statistics
from slt_plugin.scoring.settings import Settings

LENGTH = "length"
LENGTH_BINS = (1, 5, 10, 20, 30, 50)  # first number of reference words of each bin
NUMBER_BINS = 4  # of equal size, where a numeric column has more different values than this
NO_VALUE = "(none)"


@dataclass(frozen=True)
class Group:
    """Sentences that share ``value`` of ``by``.

    Args:
        scores: metric -> corpus score in percent; None where the group has no sentence that the metric counts
            (``reduced_bleu`` leaves out references that are empty after its filter).
    """

    by: str
    value: str
    sentences: int
    scores: dict[str, float | None]


def breakdown(
    hypotheses: Sequence[str],
    references: Sequence[str],
    attributes: Sequence[Mapping[str, str | float | None]],
    by: Sequence[str],
    metrics: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008  frozen
) -> list[Group]:
    """Groups of every property in ``by``, however small; each sentence is in exactly one group of each.

    ``length`` is the number of words (between spaces) of the reference, in bins. Numbers are put into four bins of
    about equal size where they have more values than that. Sentences without a value are a group of their own.

    Args:
        attributes: of each sentence; for example signer, corpus and text_lang of its row in the manifest.
        by: ``length``, and keys of ``attributes``.

    Raises:
        ScoringError: as `report.score`; a property that no sentence has; attributes of another number of sentences.
    """
    found = statistics(hypotheses, references, metrics, settings)
    if len(attributes) != len(references):
        raise ScoringError(f"breakdown: attributes of {len(attributes)} sentences, but {len(references)} references")
    groups = []
    for name in by:
        if name == LENGTH:
            values = _binned([len(text.split()) for text in references], LENGTH_BINS)
        else:
            values = _values(name, attributes)
        members = defaultdict(list)
        for i, value in enumerate(values):
            members[value].append(i)
        for value in sorted(members, key=lambda value: (value[1] == NO_VALUE, value)):
            wanted, scores = set(members[value]), {}
            for metric, one in found.items():
                rows = [row for row, sentence in enumerate(one.sentences) if sentence in wanted]
                scores[metric] = one.score_of(rows) if rows else None
            groups.append(Group(name, value[1], len(wanted), scores))
    return groups


def _values(name: str, attributes: Sequence[Mapping[str, str | float | None]]) -> list[tuple[float, str]]:
    """What each sentence has of a property, as (order, text)."""
    cells = [row.get(name) for row in attributes]
    given = [cell for cell in cells if cell is not None]
    if not given:
        usable = {key for row in attributes for key, cell in row.items() if cell is not None} | {LENGTH}
        raise ScoringError(
            f"no breakdown by {name!r}: no sentence has a value{did_you_mean(name, sorted(usable)) or '.'} "
            f"Choose from {listing(sorted(usable))}"
        )
    numbers = sorted(cell for cell in given if isinstance(cell, int | float))
    if len(numbers) == len(given) and len(set(numbers)) > NUMBER_BINS:
        edges = sorted({numbers[len(numbers) * part // NUMBER_BINS] for part in range(NUMBER_BINS)})
        inside = iter(_binned(given, edges, last=numbers[-1]))
        return [(0.0, NO_VALUE) if cell is None else next(inside) for cell in cells]
    if len(numbers) == len(given):
        return [(0.0, NO_VALUE) if cell is None else (cell, f"{cell:g}") for cell in cells]
    return [(0.0, NO_VALUE if cell is None else str(cell)) for cell in cells]


def _binned(numbers: Sequence[float], edges: Sequence[float], last: float | None = None) -> list[tuple[float, str]]:
    """The bin of each number, as (first, "first to last"); ``last`` is the largest number, None for open.

    ``edges`` are whole numbers that start bins of whole numbers, or (with ``last``) where bins of any numbers start.
    """
    names = []
    for edge, after in zip(edges, [*edges[1:], None], strict=True):
        if last is not None:
            names.append(f"{edge:g} to {last:g}" if after is None else f"{edge:g} to under {after:g}")
        elif after is None:
            names.append(f"{edge} or more")
        else:
            names.append(f"{edge} to {after - 1}")
    places = [bisect_right(edges, number) - 1 for number in numbers]
    return [(edges[place], names[place]) for place in places]
