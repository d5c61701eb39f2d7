"""Losses and scores over a training, read from its logs.

fairseq writes them in two ways: ``epoch 001 | loss 4.008 | ... | num_updates 403`` (and, during an epoch,
``epoch 001:  50 / 403 loss=4.1, ..., num_updates=50``), or with common.log_format=json one JSON object a line, whose
values are text and whose names begin with the split at the end of an epoch. Before both stands the name of a logger:
``[train_inner][INFO] -`` where Hydra set up logging, ``| INFO | train_inner |`` where fairseq did.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_EPOCH_END = re.compile(r"epoch \d+ \| (?:valid on '(?P<subset>[^']*)' subset \| )?(?P<stats>\S+ \S+ \|.*)$")
_INNER = re.compile(r"epoch \d+:\s+\d+ / \d+ (?P<stats>\S+=.*)$")
_LOGGER = re.compile(r"(?:\[(?P<hydra>[^\][]+)\]\[INFO\] - |\| INFO \| (?P<plain>[^|{]+) \| )(?=\{)")
TRAIN, INNER = "train", "train_inner"


@dataclass(frozen=True)
class Curve:
    """Values of one quantity after so many updates, in order; of restarted and repeated trainings the last counts."""

    updates: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curves:
    """What a folder's logs tell.

    Attributes:
        train: quantity -> curve during training: as often as it was logged, else once an epoch.
        valid: subset -> quantity -> curve.
        logs: files that anything was read from.
    """

    train: Mapping[str, Curve] = field(default_factory=dict)
    valid: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    logs: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.train or self.valid)


def read_curves(folder: Path) -> Curves:
    """Curves of the training whose logs (``*.log``) lie in a folder; empty where there is none, or none can be read."""
    points: dict[str, dict[str, dict[int, float]]] = {}
    used = []
    try:
        # oldest first, so that the last training's points are those that stay
        times = {path: path.stat().st_mtime_ns for path in folder.glob("*.log") if path.is_file()}
    except OSError:
        return Curves()
    paths = sorted(times, key=lambda path: (times[path], path))
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # of another user: the report does without
            continue
        if _read_lines(text.splitlines(), points):
            used.append(path)
    inner, train = points.pop(INNER, {}), points.pop(TRAIN, {})
    return Curves(
        train=_curves(inner or train),
        valid={name: _curves(values) for name, values in points.items()},
        logs=tuple(used),
    )


def _read_lines(lines: Iterable[str], points: dict[str, dict[str, dict[int, float]]]) -> int:
    """Adds split -> quantity -> {updates: value}; how many lines told anything.

    A split that goes back to an earlier update is of a training begun again, from a checkpoint or anew: what the split
    told of that update and later ones is dropped.
    """
    told = 0
    for line in lines:
        found = _parse(line) if "num_updates" in line else None
        if found is None or "num_updates" not in found[1]:
            continue
        split, stats = found
        updates = int(stats.pop("num_updates"))
        told += 1
        quantities = points.setdefault(split, {})
        if any(values and next(reversed(values)) > updates for values in quantities.values()):
            for values in quantities.values():  # in order of their updates, so that the last are the ones to go
                while values and next(reversed(values)) >= updates:
                    values.popitem()
        for name, value in stats.items():
            quantities.setdefault(name, {})[updates] = value
    return told


def _parse(line: str) -> tuple[str, dict[str, float]] | None:
    """(split, values) of one line; None for anything else."""
    if match := _LOGGER.search(line):
        try:
            content = json.loads(line[match.end() :])
        except ValueError:  # cut off, perhaps with the first line of a restarted training behind it
            content = {}
        split = match["hydra"] or match["plain"]
        prefix = "" if split == INNER else f"{split}_"
        if content:
            named = {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
            return split, _numbers(named.items())
    if match := _EPOCH_END.search(line):
        pairs = (part.strip().rpartition(" ")[::2] for part in match["stats"].split(" | "))
        return match["subset"] or TRAIN, _numbers(pairs)
    if match := _INNER.search(line):
        return INNER, _numbers(part.strip().partition("=")[::2] for part in match["stats"].split(", "))
    return None


def _numbers(pairs: Iterable[tuple[str, object]]) -> dict[str, float]:
    numbers = {}
    for name, text in pairs:
        try:
            numbers[name] = float(text)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _curves(quantities: Mapping[str, Mapping[int, float]]) -> dict[str, Curve]:
    found = {}
    for name, values in quantities.items():
        if values:  # all of them were dropped where only an earlier training had the quantity
            found[name] = Curve(tuple(values), tuple(values.values()))
    return found
