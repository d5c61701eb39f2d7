"""Reconstructions of a few validation clips as pictures, beside the scalars that fairseq gives TensorBoard and W&B."""

from collections.abc import Mapping, Sequence

import numpy as np
from fairseq.distributed import utils as distributed_utils
from torch import Tensor
from torchvision.utils import make_grid

from slt_plugin.data.pretraining import PretrainingDataset
from slt_plugin.models.errors import OptionError
from slt_plugin.models.reconstruction import PICTURE_ROWS, ClipPictures, clip_pictures
from slt_plugin.modules.reconstruction import evenly_spaced
from slt_plugin.tasks.trackers import tensorboard_writer, tracked, wandb_run

STEPS = 8  # columns of a picture
NAME = "reconstruction"


def check_picture_options(cfg, model_cfg) -> None:
    """Refuses ``task.picture_clips`` where there is nothing to draw, or nowhere to put it.

    Raises:
        OptionError
    """
    if cfg.picture_clips < 0:
        raise OptionError(f"task.picture_clips={cfg.picture_clips}: give the number of clips, 0 for none")
    if not cfg.picture_clips:
        return
    if not tracked(cfg):
        raise OptionError(
            f"task.picture_clips={cfg.picture_clips}: pictures go to TensorBoard or W&B, and neither is on: set "
            "common.tensorboard_logdir or common.wandb_project, or task.picture_clips=0 (slt-report reconstruct writes "
            "files)"
        )
    if getattr(model_cfg, "no_mae", False):
        raise OptionError(
            f"task.picture_clips={cfg.picture_clips}: criterion.no_mae=true trains no reconstruction; set it to 0"
        )


class ValidationPictures:
    """Writes pictures once at each validation: of the first clips of the first subset, always the same ones.

    Args:
        cfg: the task's options.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self._due = False

    def begin(self) -> None:
        """To be called when a validation begins."""
        self._due = True

    def finish_subset(self, datasets: Mapping[str, PretrainingDataset], model, num_updates: int) -> None:
        """To be called behind each subset of a validation, on every rank; model: `sign_mae` or `sign_clip`."""
        if not self._due or not self.cfg.picture_clips:
            return
        self._due = False
        if distributed_utils.get_global_rank() != 0:
            return
        subset = self.cfg.valid_subset.split(",")[0]
        dataset = datasets[subset]
        ids, clips = [], []
        for number in range(min(self.cfg.picture_clips, len(dataset))):
            batch = dataset.collater([dataset[number]])
            ids += batch["row_ids"]
            clips += clip_pictures(model.mae, batch["net_input"], model.cfg.mask_ratio)
        if self.cfg.tensorboard_logdir:
            to_tensorboard(self.cfg.tensorboard_logdir, subset, ids, clips, num_updates)
        if self.cfg.wandb_project:
            to_wandb(subset, ids, clips, num_updates)


def clip_grid(clip: ClipPictures) -> Tensor:
    """One picture of a clip, (3, H, W) uint8: a row of each kind, evenly spaced time steps from left to right."""
    steps = evenly_spaced(clip.rows.shape[1], STEPS)
    return make_grid(clip.rows[:, steps].flatten(0, 1), nrow=len(steps), pad_value=255)


def to_tensorboard(logdir: str, subset: str, ids: Sequence[str], clips: Sequence[ClipPictures], step: int) -> None:
    """Adds pictures ``reconstruction/<row id>`` to the TensorBoard run of a subset."""
    writer = tensorboard_writer(logdir, subset)
    if writer is None:
        return
    for row_id, clip in zip(ids, clips, strict=True):
        writer.add_image(f"{NAME}/{row_id}", clip_grid(clip), step)
    writer.flush()


def to_wandb(subset: str, ids: Sequence[str], clips: Sequence[ClipPictures], step: int) -> None:
    """Logs pictures as ``<subset>/reconstruction``, captioned, in the run of fairseq's progress bar."""
    wandb, run = wandb_run()
    if run is None:
        return
    images = [
        wandb.Image(
            np.ascontiguousarray(clip_grid(clip).permute(1, 2, 0).numpy()),
            caption=f"{row_id}: {', '.join(PICTURE_ROWS)}; loss {clip.loss:.4f}",
        )
        for row_id, clip in zip(ids, clips, strict=True)
    ]
    run.log({f"{subset}/{NAME}": images}, step=step)
