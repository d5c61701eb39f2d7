"""TensorBoard and W&B, as fairseq's progress bars keep them: numbers, texts and pictures lie in one run.

fairseq's progress bars take numbers only, and a task does not see them. So this file uses two internals of fairseq
0.12.3 (``fairseq/logging/progress_bar.py``), whose source ``tests/test_validation_pictures.py`` pins: the registry of
TensorBoard writers behind ``TensorboardProgressBarWrapper._writer``, which a bar fills when it writes its first number
and closes at exit, and the module's ``wandb``, whose run a bar has begun. No second writer or run is opened.

Neither is on by default, and none reaches the network by itself: W&B is kept offline unless its own ``WANDB_MODE`` says
otherwise.
"""

import logging
import os

from fairseq.distributed import utils as distributed_utils
from fairseq.logging import progress_bar

logger = logging.getLogger(__name__)

WANDB_MODE = "WANDB_MODE"


def tracked(cfg) -> bool:
    """Whether a training has TensorBoard or W&B on; ``cfg``: of a task over manifests."""
    return bool(cfg.tensorboard_logdir or cfg.wandb_project)


def tensorboard_writer(logdir: str, subset: str):
    """The writer of a subset's numbers; None where TensorBoard is not installed (fairseq has warned)."""
    if progress_bar.SummaryWriter is None:
        return None
    return progress_bar.TensorboardProgressBarWrapper(None, logdir)._writer(subset)


def wandb_run():
    """W&B's module and the run of fairseq's numbers; None and None where it is not installed (fairseq has warned)."""
    wandb = progress_bar.wandb
    return (None, None) if wandb is None or wandb.run is None else (wandb, wandb.run)


def keep_wandb_offline(project: str | None) -> None:
    """To be called before the training's first progress bar, which begins the run; ``project``: None: W&B is off."""
    if project is None or WANDB_MODE in os.environ:
        return
    os.environ[WANDB_MODE] = "offline"
    if distributed_utils.get_global_rank() == 0:
        logger.info(
            "W&B keeps this run on disk, nothing is sent: `wandb sync` uploads it later, WANDB_MODE=online at once"
        )
