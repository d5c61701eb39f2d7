"""Learning rate over one whole training: linear warm-up, then one cosine down to the minimum.

That is SGDR (Loshchilov and Hutter, 2017, equation 5) without its restarts, as MAE trains (He et al., 2022, appendix
A). fairseq's own ``cosine`` restarts at the last update and knows no warm-up in epochs: how many updates an epoch has
is known only once the task has made its batches, so a task announces it here.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import List  # noqa: UP035  fairseq reads List[float] in a config dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

NAME = "warmup_cosine"


@dataclass(frozen=True)
class TrainingLength:
    """How long a training is.

    updates_of_epochs: of epochs 1, 2, ...; the last number holds for all later ones. Empty: not known.
    max_update, max_epoch: the training ends with the first of them; 0: no limit.
    """

    updates_of_epochs: tuple[int, ...] = ()
    max_update: int = 0
    max_epoch: int = 0

    def after(self, epochs: int) -> int | None:
        """Updates in the first ``epochs`` epochs; None: not known."""
        if not self.updates_of_epochs:
            return None
        listed = self.updates_of_epochs[:epochs]
        return sum(listed) + (epochs - len(listed)) * self.updates_of_epochs[-1]

    @property
    def total(self) -> int | None:
        """All updates; None: not known, or without end."""
        ends = [self.max_update] if self.max_update else []
        if self.max_epoch:
            after = self.after(self.max_epoch)
            if after is None and not ends:
                return None
            ends += [] if after is None else [after]
        return min(ends, default=None)


_announced = TrainingLength()


def announce(length: TrainingLength) -> None:
    """Tells learning rates how long the training of this process is; an empty one when a training begins."""
    global _announced
    _announced = length


def training_length() -> int | None:
    """Updates of the whole training; None: no task has told (yet), or it has no end."""
    return _announced.total


@dataclass
class WarmupCosineConfig(FairseqDataclass):
    """Options of ``warmup_cosine``."""

    warmup_updates: int = field(default=0, metadata={"help": "updates of linear warm-up; 0: none"})
    warmup_epochs: int = field(default=0, metadata={"help": "warm-up in epochs instead, converted to updates"})
    min_lr: float = field(default=0.0, metadata={"help": "learning rate of the last update"})
    lr: List[float] = field(default=II("optimization.lr"))  # noqa: UP006
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")


@register_lr_scheduler(NAME, dataclass=WarmupCosineConfig)
class WarmupCosine(FairseqLRScheduler):
    """Update k of T is made with ``lr * k / W`` up to k = W, after that with

        ``min_lr + (lr - min_lr) * (1 + cos(pi * (k - W) / (T - W))) / 2``

    so that update T has ``min_lr`` exactly, and so has every later one.
    """

    def __init__(self, cfg: WarmupCosineConfig, optimizer):
        super().__init__(cfg, optimizer)
        if len(cfg.lr) > 1:
            given = ",".join(f"{rate:g}" for rate in cfg.lr)
            raise OptionError(
                f"optimization.lr=[{given}] are {len(cfg.lr)} rates, and lr_scheduler._name={NAME} takes one, for all "
                f"epochs: write optimization.lr=[{cfg.lr[0]:g}]"
            )
        self.max_lr = cfg.lr[0]
        if not 0 <= cfg.min_lr <= self.max_lr:
            raise OptionError(f"lr_scheduler.min_lr={cfg.min_lr}: give 0 to optimization.lr=[{self.max_lr}]")
        if cfg.warmup_updates and cfg.warmup_epochs:
            raise OptionError(
                f"lr_scheduler.warmup_updates={cfg.warmup_updates} and warmup_epochs={cfg.warmup_epochs}: give one of "
                "them, and 0 for the other"
            )
        self._restored: tuple[int, ...] = ()  # updates of epochs, as a checkpoint had them
        self._logged = False
        self.step_update(0)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "updates_of_epochs": list(self._length().updates_of_epochs)}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._restored = tuple(state_dict.get("updates_of_epochs", ()))

    def step_begin_epoch(self, epoch: int) -> None:
        """Checks the options, with all known that there is to know.

        Raises:
            OptionError: a training without end.
        """
        length = self._length()
        total, warmup = length.total, self._warmup(length)
        if total is None or warmup is None:
            raise OptionError(
                f"lr_scheduler._name={NAME} has to know the last update: set optimization.max_update"
                + ("" if length.updates_of_epochs else " and lr_scheduler.warmup_updates (this task counts no epochs)")
            )
        if not self._logged:
            self._logged = True
            if warmup >= total:
                logger.warning(
                    "a warm-up of %d updates leaves none of %d for the cosine: lower lr_scheduler.warmup_updates or "
                    "warmup_epochs, or train longer",
                    warmup, total,
                )  # fmt: skip
            epochs = f" ({self.cfg.warmup_epochs} epochs)" if self.cfg.warmup_epochs else ""
            logger.info(
                "learning rate: to %g in %d updates%s, then along a cosine to %g at update %d",
                self.max_lr, warmup, epochs, self.cfg.min_lr, total,
            )  # fmt: skip
            if self._restored and self._restored != length.updates_of_epochs:
                logger.warning(
                    "the checkpoint was trained with %s updates an epoch, now there are %s: the learning rate follows "
                    "the new numbers",
                    list(self._restored), list(length.updates_of_epochs),
                )  # fmt: skip

    def step_update(self, num_updates: int) -> float:
        """The rate of the update that follows ``num_updates``."""
        length = self._length()
        total, warmup = length.total, self._warmup(length)
        update = num_updates + 1
        if total is None or warmup is None:
            rate = self.cfg.min_lr  # fairseq asks before the task has told, and again before the first update
        elif update <= warmup:
            rate = self.max_lr * update / warmup
        elif update >= total:
            rate = self.cfg.min_lr
        else:
            angle = math.pi * (update - warmup) / (total - warmup)
            rate = self.cfg.min_lr + (self.max_lr - self.cfg.min_lr) * (1 + math.cos(angle)) / 2
        self.optimizer.set_lr(rate)
        return rate

    def _length(self) -> TrainingLength:
        epochs = _announced.updates_of_epochs or self._restored
        return TrainingLength(epochs, self.cfg.max_update, self.cfg.max_epoch)

    def _warmup(self, length: TrainingLength) -> int | None:
        return length.after(self.cfg.warmup_epochs) if self.cfg.warmup_epochs else self.cfg.warmup_updates
