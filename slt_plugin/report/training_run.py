"""One training as its folder shows it: how far it came, and how good its best checkpoint was at validation."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slt_plugin.checkpoints.foreign import read_torch
from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.checkpoints.safe import EARLY_STOPPING

FINISHED, STOPPED, UNFINISHED = "finished", "stopped early", "unfinished"
NOTHING, UNREADABLE = "nothing trained", "unreadable"
COMPLETE, FAILED = (FINISHED, STOPPED), (NOTHING, UNREADABLE)
BEST, LAST = "checkpoint_best.pt", "checkpoint_last.pt"
# of those that a checkpoint was not chosen by, so that its configuration does not say
HIGHER_IS_BETTER = re.compile(r"bleu|chrf|acc|recall|r@|_r\d+$")


@dataclass(frozen=True)
class TrainingRun:
    """A folder of checkpoints.

    Attributes:
        state: FINISHED, STOPPED, UNFINISHED, NOTHING or UNREADABLE.
        reason: why it is no more than that; "" where all is well.
        metric: that the best checkpoint was chosen by, "" where nothing is known of it.
        scores: of the best checkpoint's validation: ``metric``, and others that a log holds.
        updates: done; max_update: to do, 0 without a limit.
        data: the training's ``task.data``.
    """

    folder: Path
    state: str
    reason: str = ""
    metric: str = ""
    maximize: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)
    updates: int = 0
    max_update: int = 0
    seed: int | None = None
    data: str | None = None


def read_run(folder: Path, logs: Iterable[Path] = ()) -> TrainingRun:
    """The training in a folder; what is wrong with it is part of the answer, nothing is raised for it.

    Args:
        logs: further folders where its log may lie (Hydra's).
    """
    last = _newest(folder)
    if last is None:
        return TrainingRun(folder, NOTHING, "no checkpoint (yet): its log says why")
    try:
        state, config, updates = _read(last)
    except CheckpointError as error:
        return TrainingRun(folder, UNREADABLE, str(error))
    optimization, checkpoint = config["optimization"], config["checkpoint"]
    known = {
        "metric": str(checkpoint["best_checkpoint_metric"]),
        "maximize": bool(checkpoint["maximize_best_checkpoint_metric"]),
        "updates": updates,
        "max_update": int(optimization["max_update"]),
        "seed": config["common"]["seed"],
        "data": config["task"].get("data"),
    }
    if updates == 0:
        return TrainingRun(folder, NOTHING, f"{last.name} has 0 updates", **known)
    if not (folder / BEST).is_file():
        why = f"no {BEST}: it was never validated, or best checkpoints are switched off"
        return TrainingRun(folder, _progress(state, config, updates), why, **known)
    try:
        best, _, best_updates = _read(folder / BEST)
    except CheckpointError as error:
        return TrainingRun(folder, UNREADABLE, str(error), **known)
    subset = str(config["dataset"]["valid_subset"]).split(",")[0]  # the one that best checkpoints are chosen by
    logged = logged_scores(dict.fromkeys((folder, *logs)), subset, best_updates)
    score = _score(best, known["metric"])
    reason = "" if score else f"{BEST} has no {known['metric']}"
    return TrainingRun(folder, _progress(state, config, updates), reason, scores={**logged, **score}, **known)


def _newest(folder: Path) -> Path | None:
    if (folder / LAST).is_file():
        return folder / LAST
    others = [path for path in folder.glob("checkpoint*.pt") if path.is_file()]
    return max(others, key=lambda path: path.stat().st_mtime_ns, default=None)


def _read(path: Path) -> tuple[dict, Mapping, int]:
    """Content, configuration and updates of a training's checkpoint; its tensors stay on disk.

    Raises:
        CheckpointError: it cannot be read, or is none of a training with Hydra.
    """
    state = read_torch(path, mmap=True)
    try:
        config, updates = state["cfg"], int(state["optimizer_history"][-1]["num_updates"])
        for group in ("optimization", "checkpoint", "common", "dataset", "task"):
            config[group]
        state["extra_state"]["train_iterator"]
    except (KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a training that can go on: {error!r} is missing") from error
    return state, config, updates


def _progress(state: Mapping, config: Mapping, updates: int) -> str:
    optimization, extra = config["optimization"], state["extra_state"]
    if 0 < optimization["max_update"] <= updates:
        return FINISHED
    if 0 < optimization["max_epoch"] < extra["train_iterator"]["epoch"]:
        return FINISHED
    if 0 < optimization["stop_time_hours"] < extra.get("previous_training_time", 0) / 3600:
        return FINISHED
    if 0 < config["checkpoint"]["patience"] <= extra.get(EARLY_STOPPING, {}).get("num_runs", 0):
        return STOPPED
    return UNFINISHED


def _score(state: Mapping, metric: str) -> dict[str, float]:
    """The score that a checkpoint was chosen by. (Its meters are no use: fairseq goes on adding to them.)"""
    best = state["extra_state"].get("best")
    return {} if best is None or not math.isfinite(best) else {metric: float(best)}


def logged_scores(folders: Iterable[Path], subset: str, updates: int) -> dict[str, float]:
    """What the validation at so many updates wrote into the logs (``*.log``) of the folders, the last one counting.

    Args:
        subset: name of the split, e.g. "valid".
    """
    found: dict[str, float] = {}
    line_of = re.compile(rf"valid on '{re.escape(subset)}' subset \| (.+)$")
    for path in (path for folder in folders for path in sorted(folder.glob("*.log"))):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := line_of.search(line):
                pairs = [part.strip().rpartition(" ")[::2] for part in match[1].split("|")]
                scores = _numbers(pairs)
            elif "{" in line and f'"{subset}_num_updates"' in line:  # common.log_format=json
                scores = _json_scores(line[line.index("{") :], f"{subset}_")
            else:
                continue
            if scores.get("num_updates") == updates:
                found = scores
    return found


def _json_scores(text: str, prefix: str) -> dict[str, float]:
    try:
        content = json.loads(text)
    except ValueError:  # a line that was cut off
        return {}
    return _numbers((name.removeprefix(prefix), value) for name, value in content.items() if name.startswith(prefix))


def _numbers(pairs: Iterable[tuple[str, object]]) -> dict[str, float]:
    numbers = {}
    for name, text in pairs:
        try:
            numbers[name] = float(text)
        except (TypeError, ValueError):
            continue
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
