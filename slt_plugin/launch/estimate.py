"""What a job will do and cost, as far as its options say: what they do not say is called unknown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest
from slt_plugin.launch.profile import Profile


@dataclass(frozen=True)
class Amount:
    """A number that is known exactly, or at most, or not at all (None); ``why`` says where it comes from."""

    number: float | None
    why: str
    at_most: bool = False

    def __str__(self) -> str:
        if self.number is None:
            return f"unknown ({self.why})"
        return f"{'at most ' if self.at_most else ''}{_figure(self.number)} ({self.why})"


def training_estimate(cfg: Mapping, profile: Profile, *, ranks: int, elements: int = 1) -> list[str]:
    """Lines on a training.

    Args:
        cfg: the composed configuration.
        ranks: processes that train together.
        elements: of a sweep, all alike long.
    """
    rows = rows_of_an_epoch(cfg)
    update = clips_of_an_update(cfg, ranks)
    updates = updates_of(cfg, rows, update)
    clips = clips_of_a_training(cfg, rows, update, updates)
    unit = clip_name(cfg)
    lines = [f"ranks: {ranks}", f"{unit} an update: {update}"]
    tokens = cfg["dataset"].get("max_tokens")
    if update.number is None and tokens:
        steps = tokens * _first(cfg["optimization"]["update_freq"]) * ranks
        frequency = cfg["optimization"]["update_freq"][0]
        lines.append(
            f"source steps an update: at most {steps:,} (dataset.max_tokens {tokens:,} x update_freq {frequency} x "
            f"{ranks} ranks, with padding)"
        )
    lines += [f"rows an epoch: {rows}", f"updates: {updates}", f"epochs: {epochs_of(cfg, rows, update, updates)}"]
    patience = cfg["checkpoint"].get("patience", -1)
    if patience > 0:
        lines.append(f"it ends earlier after {patience} validations without a better one (checkpoint.patience)")
    return [*lines, *cost_lines(clips, unit, profile, elements=elements)]


def clip_name(cfg: Mapping) -> str:
    """What ``launcher.clips_per_second`` counts in this training."""
    return "clips" if _repeated(cfg) is not None else "sentences"


def _repeated(cfg: Mapping) -> int | None:
    """Clips of a row; None: the task has no such thing, a row is a sentence."""
    return cfg["task"].get("repeat_aug") if cfg["task"].get("_name") == "sign_pretraining" else None


def _first(update_freq: Sequence[int]) -> int:
    return int(update_freq[0])


def rows_of_an_epoch(cfg: Mapping) -> Amount:
    """Rows of the manifests, each as often as an epoch sees it."""
    task, subset = cfg["task"], str(cfg["dataset"]["train_subset"])
    names = [name.strip() for name in subset.split(",")]
    ratios = [float(part) for part in str(task.get("train_ratios") or "").split(",") if part.strip()]
    if len(ratios) != len(names):
        ratios = [1.0] * len(names)
    total = 0.0
    for name, ratio in zip(names, ratios, strict=True):
        path = Path(str(task.get("data"))) / f"{name}.tsv"
        try:
            total += ratio * len(read_manifest(path))
        except (DataError, OSError):
            return Amount(None, f"{path} cannot be read here")
    left_out = [name for name in ("min_duration", "max_duration") if task.get(name)]
    why = f"{subset} of {task.get('data')}"
    if left_out:
        why += f", before {' and '.join(f'task.{name}' for name in left_out)}"
    return Amount(round(total), why, at_most=bool(left_out))


def clips_of_an_update(cfg: Mapping, ranks: int) -> Amount:
    """Clips (of a translation: sentences) of one update over all ranks and accumulated batches."""
    task, dataset, frequencies = cfg["task"], cfg["dataset"], cfg["optimization"]["update_freq"]
    copies = _repeated(cfg)
    if copies is not None and task.get("clips_per_update"):
        return Amount(task["clips_per_update"], "task.clips_per_update")
    size = dataset.get("batch_size")
    if not size:
        return Amount(None, "dataset.max_tokens fills the batches")
    frequency = _first(frequencies)
    why = f"dataset.batch_size {size} x update_freq {frequency} x {ranks} ranks"
    if copies not in (None, 1):
        why += f" x task.repeat_aug {copies}"
    if len(set(frequencies)) > 1:
        why += "; of the first epoch: optimization.update_freq changes"
    return Amount(size * frequency * ranks * (copies or 1), why, at_most=bool(dataset.get("max_tokens")))


def updates_of(cfg: Mapping, rows: Amount, update: Amount) -> Amount:
    """Updates of the whole training."""
    optimization, copies = cfg["optimization"], _repeated(cfg) or 1
    limit, epochs = optimization.get("max_update") or 0, optimization.get("max_epoch") or 0
    counted = None
    known = rows.number is not None and update.number is not None
    if epochs and known and not update.at_most and len(set(optimization["update_freq"])) == 1:
        counted = epochs * max(1, math.ceil(rows.number * copies / update.number))
    if counted is not None and (not limit or counted <= limit):
        return Amount(counted, f"optimization.max_epoch {epochs}", at_most=rows.at_most)
    if limit:
        return Amount(limit, "optimization.max_update", at_most=bool(epochs) and counted is None)
    if epochs:
        return Amount(None, f"optimization.max_epoch {epochs}, of batches whose number is not known before")
    return Amount(None, "neither optimization.max_update nor max_epoch ends it")


def clips_of_a_training(cfg: Mapping, rows: Amount, update: Amount, updates: Amount) -> Amount:
    """All clips (sentences) that are trained on."""
    found = []
    if update.number is not None and updates.number is not None:
        found.append(Amount(update.number * updates.number, "", update.at_most or updates.at_most))
    epochs = cfg["optimization"].get("max_epoch") or 0
    if epochs and rows.number is not None:
        limited = bool(cfg["optimization"].get("max_update"))
        found.append(Amount(epochs * rows.number * (_repeated(cfg) or 1), "", rows.at_most or limited))
    if not found:
        return Amount(None, f"{clip_name(cfg)} of the training are not known")
    return min(found, key=lambda amount: amount.number)


def epochs_of(cfg: Mapping, rows: Amount, update: Amount, updates: Amount) -> Amount:
    """How often the data is seen."""
    if None in (rows.number, update.number, updates.number) or not rows.number:
        epochs = cfg["optimization"].get("max_epoch") or 0
        if epochs:
            return Amount(epochs, "optimization.max_epoch", at_most=bool(cfg["optimization"].get("max_update")))
        return Amount(None, "clips an update, rows or updates are not known")
    seen = updates.number * update.number / (rows.number * (_repeated(cfg) or 1))
    return Amount(round(seen, 2), "updates x clips an update / rows", at_most=update.at_most or updates.at_most)


def cost_lines(clips: Amount, unit: str, profile: Profile, *, elements: int = 1, jobs: int | None = None) -> list[str]:
    """GPU-hours and cost: from the measured rate, and what the time limit allows.

    Args:
        clips: of each element.
        elements: so many times.
        jobs: of an array whose jobs share the clips; None: one for each element.
    """
    jobs = elements if jobs is None else jobs
    hours_name = "GPU-hours" if profile.gpus or profile.is_local else "process-hours"
    each = f" for each of {elements}" if elements > 1 else ""
    lines = [f"{unit} in all{each}: {_known(clips)}"]
    if clips.number is None:
        lines.append(f"{hours_name}: unknown ({clips.why})")
    elif profile.clips_per_second is None:
        lines.append(f"{hours_name}: unknown (launcher.clips_per_second, measured, of one process, is not given)")
    else:
        hours = elements * clips.number / profile.clips_per_second / 3600
        why = f"{unit} / {profile.clips_per_second:g} a second{f' x {elements} elements' if elements > 1 else ''}"
        lines.append(f"{hours_name}: {Amount(hours, why, clips.at_most)}{_price(hours, profile)}")
    if not profile.is_local:
        limit = jobs * profile.world_size * profile.minutes / 60
        asked = f"{f'{jobs} jobs x ' if jobs > 1 else ''}{profile.world_size} x {profile.minutes / 60:g} h"
        again = ", each time it is queued again" if profile.requeues else ""
        lines.append(f"the time limit allows {_figure(limit)} {hours_name} ({asked}){again}{_price(limit, profile)}")
    return lines


def _known(amount: Amount) -> str:
    if amount.number is None:
        return f"unknown ({amount.why})"
    return f"{'at most ' if amount.at_most else ''}{_figure(amount.number)}"


def _price(hours: float, profile: Profile) -> str:
    if profile.price_per_gpu_hour is None:
        return ""
    return f", {hours * profile.price_per_gpu_hour:,.2f} at {profile.price_per_gpu_hour:g} an hour"


def _figure(number: float) -> str:
    if float(number).is_integer():
        return f"{int(number):,}"
    return f"{number:,.2f}" if number >= 0.1 else f"{number:.2g}"
