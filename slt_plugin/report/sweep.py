"""The trainings of a sweep side by side: which is best, and how far seeds alone move the score.

A sweep is a folder of folders: of ``slt-finetune -m`` (Hydra's multirun folder, or the checkpoints'), of an array of
``launcher=slurm`` (with a ``sweep.json`` that lists the elements) or of ``slurm/sweep.sbatch``.
"""

import json
import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.report.errors import ReportError
from slt_plugin.report.training_run import (
    COMPLETE,
    FAILED,
    HIGHER_IS_BETTER,
    NOTHING,
    UNREADABLE,
    TrainingRun,
    read_run,
)

SWEEP_FILE = "sweep.json"  # of launcher=slurm: overrides and folder of each element
LINE_FILE = "overrides.txt"  # of slurm/sweep.sbatch, in each member's folder: its line of the grid
SEED = "common.seed"
# where a member writes: different for each, and no difference between settings
FOLDERS = (
    "checkpoint.save_dir",
    "common.tensorboard_logdir",
    "common.log_file",
    "hydra.",
    "launcher",
    "wait",
    "dry_run",
)


_UNREAD = TrainingRun(Path(), NOTHING)


@dataclass(frozen=True)
class Member:
    """A training of the sweep.

    Attributes:
        origin: the folder of the array that it is an element of, whose ``overrides`` are those of the element alone;
            None: of Hydra's own sweep, whose members know all of theirs.
        settings: its overrides that not all members of its origin share, without seed and folders.
    """

    run: TrainingRun
    overrides: tuple[str, ...]
    origin: Path | None = None
    settings: tuple[str, ...] = ()
    score: float | None = None

    @property
    def seed(self) -> int | None:
        """Of the training; where nothing was trained, of the overrides."""
        given = [o.partition("=")[2] for o in self.overrides if _name(o) == SEED]
        return int(given[-1]) if self.run.seed is None and given and given[-1].isdigit() else self.run.seed

    @property
    def failed(self) -> bool:
        return self.run.state in FAILED


@dataclass(frozen=True)
class Setting:
    """Members that differ in nothing but the seed. ``mean`` and ``std`` (n - 1) are of those that are complete."""

    settings: tuple[str, ...]
    members: tuple[Member, ...]
    n: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Sweep:
    """Members, best first, those without a score last; their settings likewise; ``notes``: what to beware of."""

    metric: str
    maximize: bool
    members: tuple[Member, ...]
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Member | None:
        return next((member for member in self.members if member.score is not None and not member.failed), None)


def read_sweep(folder: Path, metric: str | None = None) -> Sweep:
    """Everything that a sweep's folder holds.

    Args:
        metric: to compare by; None: the one that the best checkpoints were chosen by.

    Raises:
        ReportError: no such folder, no training in it, or no one metric to compare by.
    """
    members = _with_settings(find_members(folder))
    if not members:
        raise ReportError(
            f"{folder} holds no training: no folder with .hydra/overrides.yaml or checkpoints (checkpoint*.pt), and no "
            f"{SWEEP_FILE}. Give the folder above those of the sweep's members"
        )
    metric, maximize = _choose_metric(members, metric)
    members = [replace(member, score=member.run.scores.get(metric)) for member in members]
    settings = _by_setting(members)
    sign = -1 if maximize else 1
    return Sweep(
        metric,
        maximize,
        tuple(sorted(members, key=lambda m: (m.score is None, sign * (m.score or 0.0)))),
        tuple(sorted(settings, key=lambda s: (s.mean is None, sign * (s.mean or 0.0)))),
        tuple(_notes(settings)),
    )


def find_members(folder: Path) -> list[Member]:
    """All trainings in and under a folder, in the order of their names; ``settings`` and ``score`` are not yet known.

    Raises:
        ReportError: the folder, or a ``sweep.json``, cannot be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder: give the one that holds the sweep's members")
    listed: dict[Path, Member] = {}  # elements of arrays by folder, not yet read
    launched, bare = [], []  # folders with .hydra; with checkpoints alone
    for path in _folders(folder):
        listed |= _listed_in(path)
        if (path / ".hydra").is_dir():
            launched.append(path)
        elif any(path.glob("checkpoint*.pt")):
            bare.append(path)
    members: dict[Path, Member] = {}
    for path in launched:
        checkpoints = _checkpoint_folder(path)
        if checkpoints is None:
            continue  # Hydra started something else there
        key = checkpoints.resolve()
        element = listed.get(key, Member(_UNREAD, _read_overrides(path / ".hydra" / "overrides.yaml")))
        if key not in members:
            members[key] = replace(element, run=read_run(checkpoints, (path,)))
        elif members[key].overrides != element.overrides:  # else started again to go on
            reason = f"{checkpoints} has the checkpoints of several members: give each its own"
            members[path.resolve()] = replace(element, run=TrainingRun(path, UNREADABLE, reason))
            members[key] = replace(members[key], run=TrainingRun(members[key].run.folder, UNREADABLE, reason))
    for path in bare:
        if path.resolve() not in members:
            members[path.resolve()] = replace(listed.get(path.resolve(), Member(_UNREAD, ())), run=read_run(path))
    for path, element in listed.items():
        members.setdefault(path, element)
    return [member for _, member in sorted(members.items(), key=lambda item: _natural(str(item[0])))]


def _folders(folder: Path) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise ReportError(f"{error.filename} cannot be read: {error.strerror}") from error

    for name, below, _ in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if name != ".hydra"]
        yield Path(name)


def _natural(name: str) -> list:
    """Sorts 10 behind 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _listed_in(folder: Path) -> dict[Path, Member]:
    """Elements by their folder: those of a ``sweep.json``, and the one that an ``overrides.txt`` tells of."""
    found = {}
    if (folder / SWEEP_FILE).is_file():
        path = folder / SWEEP_FILE
        try:
            elements = json.loads(path.read_text(encoding="utf-8"))["elements"]
            pairs = [(folder / element["folder"], tuple(map(str, element["overrides"]))) for element in elements]
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{path} is no list of a sweep's elements, as launcher=slurm writes it: {error!r}"
            raise ReportError(f"{why}. Move it away to report on the folders alone") from error
        for path, overrides in pairs:
            found[path.resolve()] = Member(TrainingRun(path, NOTHING, "not started"), overrides, folder)
    if (folder / LINE_FILE).is_file():
        overrides = tuple(shlex.split((folder / LINE_FILE).read_text(encoding="utf-8", errors="replace")))
        run = TrainingRun(folder, NOTHING, "not begun, or failed at once: see the job's output")
        found[folder.resolve()] = Member(run, overrides, folder.parent)
    return found


def _read_overrides(path: Path) -> tuple[str, ...]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return ()
    return tuple(map(str, content)) if isinstance(content, list) else ()


def _checkpoint_folder(path: Path) -> Path | None:
    """Where the training that Hydra started in ``path`` keeps its checkpoints; None: it was no training."""
    if any(path.glob("checkpoint*.pt")):
        return path
    try:
        config = OmegaConf.load(path / ".hydra" / "config.yaml")
        written = OmegaConf.to_container(config)["checkpoint"]["save_dir"]
    except FileNotFoundError:
        return path  # it failed before Hydra wrote what it is
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError):
        return path
    except (KeyError, TypeError):
        return None
    return _resolved(path, str(written), config)


def _resolved(path: Path, written: str, config) -> Path:
    """``checkpoint.save_dir`` as the training saw it: ``${hydra:job.num}`` filled in, from where it was started."""
    try:
        hydra = OmegaConf.load(path / ".hydra" / "hydra.yaml").hydra
        filled = re.sub(r"\$\{hydra:([\w.]+)\}", lambda match: str(OmegaConf.select(hydra, match[1])), written)
        config.checkpoint.save_dir = filled
        start = Path(str(OmegaConf.select(hydra, "runtime.cwd") or "."))
        found = start / str(config.checkpoint.save_dir)
        # the same folder then is the same folder now: the sweep may have been moved or copied
        return path if found == Path(str(OmegaConf.select(hydra, "runtime.output_dir"))) else found
    except (OSError, yaml.YAMLError, OmegaConfBaseException, AttributeError, ValueError):
        return path


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _with_settings(members: Sequence[Member]) -> list[Member]:
    shared: dict[Path | None, set[str]] = {}
    for member in members:
        if member.overrides:
            shared[member.origin] = shared.get(member.origin, set(member.overrides)) & set(member.overrides)
    found = []
    for member in members:
        own = [o for o in member.overrides if not (_name(o) == SEED or _name(o).startswith(FOLDERS))]
        settings = tuple(o for o in own if o not in shared[member.origin])
        # of a folder without .hydra nobody knows the overrides: it stands alone
        found.append(replace(member, settings=settings if member.overrides else (f"({member.run.folder.name})",)))
    return found


def _choose_metric(members: Sequence[Member], metric: str | None) -> tuple[str, bool]:
    chosen = Counter((m.run.metric, m.run.maximize) for m in members if m.run.metric)
    if metric is None:
        if len(chosen) > 1:
            ways = ", ".join(f"{name} ({'high' if up else 'low'}est, {n} members)" for (name, up), n in chosen.items())
            raise ReportError(f"the best checkpoints were chosen in different ways: {ways}. Give --metric NAME")
        return next(iter(chosen), ("bleu", True))
    known = sorted({name for member in members for name in member.run.scores})
    if metric not in known and known:
        raise ReportError(
            f"--metric {metric}: neither checkpoints nor logs hold it{did_you_mean(metric, known)}; "
            f"there are: {listing(known, 30)}"
        )
    directions = {up for name, up in chosen if name == metric}
    return metric, directions.pop() if len(directions) == 1 else bool(HIGHER_IS_BETTER.search(metric.lower()))


def _by_setting(members: Sequence[Member]) -> list[Setting]:
    groups: dict[tuple, list[Member]] = {}
    for member in members:
        groups.setdefault((member.origin, *sorted(member.settings)), []).append(member)
    found = []
    for group in groups.values():
        scores = [m.score for m in group if m.score is not None and m.run.state in COMPLETE]
        mean = statistics.fmean(scores) if scores else None
        std = statistics.stdev(scores) if len(scores) > 1 else None
        found.append(Setting(group[0].settings, tuple(group), len(scores), mean, std))
    return found


def _notes(settings: Iterable[Setting]) -> list[str]:
    notes = []
    for setting in settings:
        seeds = Counter(member.seed for member in setting.members if member.seed is not None)
        if twice := [str(seed) for seed, count in seeds.items() if count > 1]:
            label = " ".join(setting.settings) or "all members"
            notes.append(
                f"{label}: seed {listing(twice)} more than once: the deviation over seeds comes out too small."
            )
    return notes
