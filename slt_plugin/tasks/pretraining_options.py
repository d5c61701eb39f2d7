"""Options of task ``sign_pretraining``, and what follows from them: which manifests, how often, how many rows."""

from dataclasses import dataclass, field
from typing import List  # noqa: UP035  fairseq reads List[int] in a config dataclass

from omegaconf import II

from slt_plugin.common.messages import listing
from slt_plugin.data.updates import UpdatePlan
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import TrainingLength
from slt_plugin.tasks.manifest_task import ManifestTaskConfig


@dataclass
class SignPretrainingConfig(ManifestTaskConfig):
    """Options of task ``sign_pretraining``."""

    repeat_aug: int = field(
        default=1, metadata={"help": "training: clips that are drawn from a row each time it is decoded"}
    )
    clips_per_update: int = field(
        default=0,
        metadata={
            "help": "training: clips of one update over all ranks and accumulated batches, whatever their number; "
            "dataset.batch_size and max_tokens then limit a batch; 0: as many as these fill"
        },
    )
    min_duration: float = field(default=0.0, metadata={"help": "leave out rows shorter than this, in seconds"})
    max_duration: float = field(default=0.0, metadata={"help": "leave out rows longer than this; 0: none"})
    train_ratios: str = field(
        default="",
        metadata={
            "help": "how often an epoch sees each row of each manifest of dataset.train_subset, comma-joined: 2 is "
            "twice, 0.5 another random half each epoch; empty: once"
        },
    )
    picture_clips: int = field(
        default=0,
        metadata={
            "help": "reconstructions of so many clips, the first of the first validation subset, go to TensorBoard or "
            "W&B at each validation (common.tensorboard_logdir, wandb_project); they show the signers; 0: none"
        },
    )
    update_freq: List[int] = field(default=II("optimization.update_freq"))  # noqa: UP006
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")


def check_options(cfg: SignPretrainingConfig) -> None:
    """Raises OptionError for values that no training can have."""
    if cfg.repeat_aug < 1:
        raise OptionError(f"task.repeat_aug={cfg.repeat_aug}: give the clips of a row, at least 1")
    if cfg.clips_per_update < 0 or cfg.clips_per_update % cfg.repeat_aug:
        raise OptionError(
            f"task.clips_per_update={cfg.clips_per_update}: give 0 (off) or a multiple of task.repeat_aug="
            f"{cfg.repeat_aug}, the clips of a row"
        )
    if cfg.min_duration < 0 or cfg.max_duration < 0 or 0 < cfg.max_duration < cfg.min_duration:
        raise OptionError(
            f"task.min_duration={cfg.min_duration:g}, task.max_duration={cfg.max_duration:g}: give seconds, the least "
            "first; max_duration=0 is no limit"
        )


def manifest_names(subset: str) -> list[str]:
    """The manifests that ``dataset.train_subset`` joins with commas.

    Raises:
        OptionError: an empty name, or one that is there twice.
    """
    names = [name.strip() for name in subset.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise OptionError(f"dataset.train_subset={subset}: join the names of different manifests with commas")
    return names


def ratios_of(text: str, names: list[str]) -> list[float]:
    """The ratio of each manifest, from ``task.train_ratios``.

    Raises:
        OptionError: another number of ratios, or none above 0.
    """
    if not text.strip():
        return [1.0] * len(names)
    try:
        ratios = [float(part) for part in text.split(",")]
    except ValueError:
        ratios = []
    if len(ratios) != len(names) or not all(0 < ratio < float("inf") for ratio in ratios):
        raise OptionError(
            f"task.train_ratios={text}: give {len(names)} number(s) above 0, for {', '.join(names)}, for example "
            f"'task.train_ratios=\"{','.join(['1'] * len(names))}\"'"
        )
    return ratios


def update_freq_of(cfg: SignPretrainingConfig, epoch: int) -> int:
    """Batches of a rank in one update of an epoch, counted from 1."""
    return cfg.update_freq[min(epoch, len(cfg.update_freq)) - 1]


def update_plan(
    cfg: SignPretrainingConfig,
    *,
    ranks: int,
    epoch: int,
    max_rows: int | None,
    max_frames: int | None,
    drop_last: bool,
) -> UpdatePlan:
    """How the rows of an epoch are shared out.

    Args:
        max_rows: dataset.batch_size; None: no limit.
        max_frames: dataset.max_tokens; None: no limit.

    Raises:
        OptionError: ``clips_per_update`` does not go into so many batches of that size.
    """
    batches = update_freq_of(cfg, epoch)
    if not cfg.clips_per_update:
        rows = None if max_frames is not None else max_rows * ranks * batches
        return UpdatePlan(ranks, batches, rows, drop_last)
    rows = cfg.clips_per_update // cfg.repeat_aug
    limits = [] if max_rows is None else [max_rows]
    if max_frames is not None:
        limits.append(max_frames // (cfg.repeat_aug * cfg.clip_frames))
    most = min(limits)
    if not ranks * batches <= rows <= ranks * batches * most:
        raise OptionError(_wrong_freq(cfg, rows, ranks, batches, most))
    return UpdatePlan(ranks, batches, rows, drop_last)


def _wrong_freq(cfg: SignPretrainingConfig, rows: int, ranks: int, batches: int, most: int) -> str:
    frames = cfg.repeat_aug * cfg.clip_frames
    if not most:
        return (
            f"dataset.max_tokens is less than one row's {cfg.repeat_aug} clips of {cfg.clip_frames} frames ({frames})"
        )
    fits = range(max(1, -(-rows // (most * ranks))), rows // ranks + 1)
    remedy = "lower the number of ranks or raise task.clips_per_update"
    if fits:
        even = [n for n in fits if rows % (ranks * n) == 0]  # batches that are all alike large
        remedy = f"optimization.update_freq=[N] with N of {listing(even or list(fits))}, or another dataset.batch_size"
    return (
        f"task.clips_per_update={cfg.clips_per_update} are {rows} rows of {cfg.repeat_aug} clips; {ranks} rank(s) x "
        f"{batches} batch(es) of 1 to {most} rows (dataset.batch_size, dataset.max_tokens) do not make them: {remedy}"
    )


def training_length(cfg: SignPretrainingConfig, plans: list[UpdatePlan], rows: int, batches: int) -> TrainingLength:
    """The updates of each epoch that has an update_freq of its own.

    Args:
        plans: of epochs 1, 2, ...
        rows: of an epoch.
        batches: of an epoch, where they are filled by frames.
    """
    updates = tuple(plan.count_batches(batches) if plan.rows is None else plan.count(rows) for plan in plans)
    return TrainingLength(updates, cfg.max_update, cfg.max_epoch)


def describe(plan: UpdatePlan, copies: int, max_frames: int | None, length: TrainingLength) -> str:
    """What an update is made of, in one line for the log."""
    if plan.rows is None:
        made = f"an update: {plan.ranks} ranks x {plan.batches} batches of at most {max_frames:,} frames"
    else:
        least, rest = divmod(plan.rows, plan.size)
        rows = f"{least} to {least + 1}" if rest else str(least)
        made = (
            f"{plan.rows * copies} clips an update: {plan.ranks} ranks x {plan.batches} batches x {rows} rows x "
            f"{copies} clips"
        )
    updates = ", ".join(f"{count:,}" for count in length.updates_of_epochs)
    total = "without end" if length.total is None else f"{length.total:,} in all"
    return f"{made}; {updates} updates an epoch; {total}"
