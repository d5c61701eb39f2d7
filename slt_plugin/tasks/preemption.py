"""Training that may be interrupted: hooks onto fairseq 0.12.3's training loop, put in place by ``install()``.

fairseq sets no signal handler: SIGUSR2, which SLURM sends before a time limit, and SIGTERM, which it sends before a
preemption, end it with what the last periodic checkpoint holds. Here they are noted; at the end of the update (and of
its validation, if there is one) all ranks together save ``checkpoint_last.pt`` and end, and the first one has SLURM
queue the job again. Training goes on from there as if nothing had happened.

``tests/test_preemption.py`` pins the source of what is wrapped and fails when another fairseq is installed.
"""

import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from fairseq import checkpoint_utils, trainer
from fairseq.distributed import utils as distributed_utils

from slt_plugin.common.errors import SltError
from slt_plugin.common.stopping import TRAINING, give_back
from slt_plugin.tasks.watchdog import Watchdog

logger = logging.getLogger(__name__)

DELAY = "SLT_SIGNAL_DELAY"  # environment: seconds between SIGUSR2 and the end of the job
FIRST_UPDATES = 2  # not timed: they compile, fill caches and wait for the first batches
MARGIN_SECONDS = 5.0  # requeueing takes as long as the controller needs to answer

_fairseq_init = trainer.Trainer.__init__
_fairseq_loop: dict[str, Callable] = {}  # functions of fairseq_cli.train, by name
_hooked: list[ModuleType] = []  # in which the hooks stand in for them
_fairseq_steps = {name: getattr(trainer.Trainer, name) for name in ("train_step", "valid_step", "set_num_updates")}

_watchdog = Watchdog()
_updates: int | None = None  # of the last training of this process; None: none has begun


class TrainingError(SltError):
    """A training that did not train."""


class BoundaryClock:
    """How long a training takes from one point where it can stop to the next, against the time that a signal leaves."""

    def __init__(self, delay: float | None):
        self.delay = delay
        self.count, self.last, self.longest, self.warned = 0, time.monotonic(), 0.0, 0.0

    def tick(self, save_seconds: float) -> None:
        """The end of an update, its validation and its checkpoint; ``save_seconds``: of the last checkpoint."""
        now = time.monotonic()
        if self.count >= FIRST_UPDATES:
            self.longest = max(self.longest, now - self.last)
        self.count, self.last = self.count + 1, now
        needed = self.longest + save_seconds + MARGIN_SECONDS
        if self.delay is not None and needed > self.delay and needed > 1.2 * self.warned:
            self.warned = needed
            logger.warning(
                "THE SIGNAL COMES TOO LATE: SLURM leaves %.0f s between SIGUSR2 and the end of the job, but an update "
                "with its validation took up to %.0f s and a checkpoint %.0f s. What was trained since the last "
                "checkpoint would be lost: give launcher.signal_delay=%d (sbatch --signal=USR2@%d and %s=%d)",
                *(self.delay, self.longest, save_seconds, *[int(2 * needed)] * 2, DELAY, int(2 * needed)),
            )


_clock = BoundaryClock(None)


def install() -> None:
    """Puts the hooks in place; calling it again changes nothing.

    fairseq's training script is not imported here: that sets up logging to stdout, for commands that do not train too.
    Where it is imported later, `begin` finds it.
    """
    trainer.Trainer.__init__ = begin
    trainer.Trainer.train_step, trainer.Trainer.valid_step = train_step, valid_step
    trainer.Trainer.set_num_updates = set_num_updates
    _install_in_the_training_script()


def _install_in_the_training_script() -> None:
    for module in _training_modules():
        if module in _hooked:  # what somebody has wrapped around the hooks since then stays
            continue
        _hooked.append(module)
        for hook in (train, validate_and_save):
            _fairseq_loop[hook.__name__] = getattr(module, hook.__name__)
            setattr(module, hook.__name__, functools.update_wrapper(hook, getattr(module, hook.__name__)))


def check_trained() -> None:
    """Raises TrainingError where this process was to train and has no update to show for it."""
    if _updates is None:
        raise TrainingError("nothing was trained: fairseq ended without building a trainer")
    if _updates == 0:
        raise TrainingError(
            "nothing was trained: no update was made. Look at optimization.max_epoch, optimization.max_update, "
            "optimization.stop_min_lr against the learning rate at the start, and at batches skipped in the log"
        )


def _training_modules() -> Iterator[ModuleType]:
    # the training script is __main__ under `python -m fairseq_cli.train`
    for name in ("fairseq_cli.train", "__main__"):
        module = sys.modules.get(name)
        if hasattr(module, "validate_and_save"):
            yield module


@functools.wraps(_fairseq_init)
def begin(self, cfg, *args, **options):
    """The trainer is built: from here on signals are noted, if not from the command's start on. One that came before
    ends the process, which has nothing to save yet."""
    global _updates, _clock
    _install_in_the_training_script()
    _updates = 0
    TRAINING.listen()
    delay = os.environ.get(DELAY)
    _clock = BoundaryClock(float(delay) if delay and "SLURM_JOB_ID" in os.environ else None)
    _fairseq_init(self, cfg, *args, **options)
    if number := _agreed(self):
        _leave(number, self)
    _watchdog.take_over(cfg.distributed_training)
    _watchdog.start(self)


@functools.wraps(_fairseq_steps["set_num_updates"])
def set_num_updates(self, num_updates):
    """After every update, and when a checkpoint is loaded. The number is kept, not the trainer: it holds the model."""
    global _updates
    _updates = num_updates
    return _fairseq_steps["set_num_updates"](self, num_updates)


@functools.wraps(_fairseq_steps["train_step"])
def train_step(self, *args, **options):
    _watchdog.beat()
    return _fairseq_steps["train_step"](self, *args, **options)


@functools.wraps(_fairseq_steps["valid_step"])
def valid_step(self, *args, **options):
    _watchdog.beat()
    return _fairseq_steps["valid_step"](self, *args, **options)


def train(cfg, trainer, task, epoch_itr):
    """One epoch; none where the checkpoint is of a finished training, of which fairseq would make one more update."""
    if _is_finished(cfg, trainer):
        logger.info("the training is complete with its %d updates: nothing is left to do", trainer.get_num_updates())
        return [None], True
    _watchdog.start(trainer)
    try:
        return _fairseq_loop["train"](cfg, trainer, task, epoch_itr)
    finally:
        _watchdog.stop()


def _is_finished(cfg, trainer) -> bool:
    if cfg.optimization.max_update and trainer.get_num_updates() >= cfg.optimization.max_update:
        return True
    stops = [module.should_stop_early for module in _training_modules() if hasattr(module, "should_stop_early")]
    return 0 < cfg.checkpoint.patience <= max((getattr(stop, "num_runs", 0) for stop in stops), default=0)


def validate_and_save(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch):
    """The end of an update: the one place where the state of all ranks is whole."""
    valid_losses, should_stop = _fairseq_loop["validate_and_save"](
        cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch
    )
    _clock.tick(getattr(trainer, "slt_save_seconds", 0.0))
    number = _agreed(trainer)
    if number and not should_stop:
        _save_and_leave(number, cfg, trainer, epoch_itr, valid_losses[0])
    return valid_losses, should_stop


def _agreed(trainer) -> int:
    """The signal that any rank has received, 0 for none: all have to stop at the same update."""
    number = TRAINING.received or 0
    if trainer.data_parallel_world_size == 1:
        return number
    heard = torch.tensor([number], device=trainer.device)
    distributed_utils.all_reduce(heard, group=trainer.data_parallel_process_group, op="max")
    return int(heard)


def _save_and_leave(number: int, cfg, trainer, epoch_itr, valid_loss: float | None) -> None:
    """Raises SystemExit."""
    logger.info("%s: saving at update %d", signal.Signals(number).name, trainer.get_num_updates())
    if cfg.checkpoint.no_save or cfg.checkpoint.no_last_checkpoints:
        logger.error(
            "ended by %s at update %d without a checkpoint to go on from: checkpoint.no_save or no_last_checkpoints is "
            "set. It is not queued again, or it would begin anew every time",
            *(signal.Signals(number).name, trainer.get_num_updates()),
        )
        raise SystemExit(128 + number)
    checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, valid_loss)
    _leave(number, trainer)


def _leave(number: int, trainer) -> None:
    """Raises SystemExit. Not an error to fairseq, Hydra and submitit, which catch or wrap those."""
    status = torch.zeros(1, dtype=torch.long, device=trainer.device)
    if trainer.data_parallel_rank == 0:
        message, code = give_back(number, TRAINING.replaced(signal.SIGUSR2), os.environ)
        logger.warning("stopped at update %d. %s", trainer.get_num_updates(), message)
        status += code
    if trainer.data_parallel_world_size > 1:  # a rank that ended first would have srun kill the one that requeues
        distributed_utils.all_reduce(status, group=trainer.data_parallel_process_group)
    raise SystemExit(int(status))
