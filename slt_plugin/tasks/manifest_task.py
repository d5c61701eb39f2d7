"""What tasks over manifests have in common: where manifests lie, and when fairseq may read media."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING

from slt_plugin.data.clips import ClipOptions
from slt_plugin.data.errors import DataError
from slt_plugin.data.transforms import VideoAugment
from slt_plugin.models.errors import OptionError
from slt_plugin.tasks.trackers import keep_wandb_offline

AUGMENT_VIDEO = ("randaugment_ops", "randaugment_magnitude", "crop", "flip")
CLIP_OPTIONS = ("clip_frames", "clip_sampling_rate", "clip_target_fps", "clip_size")
VIDEO_OPTIONS = CLIP_OPTIONS + tuple(f"video_{name}" for name in AUGMENT_VIDEO)


@dataclass
class ManifestTaskConfig(FairseqDataclass):
    """Options of every task over manifests."""

    data: str = field(default=MISSING, metadata={"help": "directory with train.tsv, valid.tsv, ... (manifests)"})
    media_root: Optional[str] = field(
        default=None, metadata={"help": "directory that manifest paths start from; default: the manifest's own"}
    )
    clip_frames: int = field(default=128, metadata={"help": "video: sampled frames of a clip; the encoder's"})
    clip_sampling_rate: int = field(
        default=2, metadata={"help": "video: every n-th frame at clip_target_fps is sampled"}
    )
    clip_target_fps: float = field(
        default=25.0, metadata={"help": "video: the rate at which clip_sampling_rate counts"}
    )
    clip_size: int = field(default=224, metadata={"help": "video: side of the square frames in pixels; the encoder's"})
    video_randaugment_ops: int = field(default=0, metadata={"help": "training: RandAugment operations a clip; 0: none"})
    video_randaugment_magnitude: int = field(default=7, metadata={"help": "training: their strength, 0 to 30"})
    video_crop: int = field(default=0, metadata={"help": "training: random crops out of frames larger by this"})
    video_flip: float = field(default=0.0, metadata={"help": "training: probability of mirroring left and right"})
    persistent_workers: bool = field(
        default=False,
        metadata={"help": "keep loader workers after their epoch, although the next one starts new ones"},
    )
    deterministic: bool = field(
        default=False,
        metadata={"help": "GPUs: only kernels that give the same numbers every time; one that has none is an error"},
    )
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    tensorboard_logdir: Optional[str] = II("common.tensorboard_logdir")
    wandb_project: Optional[str] = II("common.wandb_project")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    seed: int = II("common.seed")


def clip_options(cfg: ManifestTaskConfig, *, stride: int | None = None, truncate: int = 0) -> ClipOptions:
    """How the options say that videos are cut into clips; ``stride``: None where clips are drawn at random.

    Raises:
        DataError: values that no clip can have.
    """
    return ClipOptions(
        num_frames=cfg.clip_frames,
        sampling_rate=cfg.clip_sampling_rate,
        target_fps=cfg.clip_target_fps,
        stride=cfg.clip_frames if stride is None else stride,
        size=cfg.clip_size,
        truncate=truncate,
        augment=VideoAugment(**{name: getattr(cfg, f"video_{name}") for name in AUGMENT_VIDEO}),
    )


class ManifestTask(FairseqTask):
    """Base of tasks whose splits are manifests ``<data>/<split>.tsv`` and whose datasets are `ManifestDataset`."""

    def _manifest_directory(self) -> Path:
        directory = Path(self.cfg.data)
        if not directory.is_dir():
            found = "is a file: give its directory" if directory.is_file() else "does not exist"
            raise DataError(f"task.data={directory} {found}; expected a directory with train.tsv, valid.tsv, ...")
        return directory

    def _manifest(self, name: str) -> Path:
        directory = self._manifest_directory()
        path = directory / f"{name}.tsv"
        if not path.is_file():
            found = ", ".join(sorted(p.stem for p in directory.glob("*.tsv"))) or "none"
            raise DataError(f"{path} does not exist; manifests in {directory}: {found}")
        return path

    @property
    def _media_root(self) -> Path:
        return Path(self.cfg.media_root) if self.cfg.media_root else self._manifest_directory()

    def _refuse_combined(self, split: str, combine: bool) -> None:
        if combine and split != self.cfg.train_subset:  # fairseq sets it for training, where it means nothing to us
            raise OptionError(
                "dataset.combine_valid_subsets is not supported: write one manifest, or list several in "
                "dataset.valid_subset"
            )

    def _prepare_dry_run(self, combine: bool) -> None:
        """To be called when a dataset has been loaded: what has to be done between that and the training.

        Only fairseq's trainer loads its training data with ``combine``. Before it trains, it iterates over all of the
        validation data in a dry run: that reads nothing, or raw video would be decoded for hours.
        """
        if combine:
            self._let_validation_read_media(False)
            keep_wandb_offline(self.cfg.wandb_project)

    def begin_epoch(self, epoch: int, model) -> None:
        super().begin_epoch(epoch, model)
        if self.cfg.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)
        self._let_validation_read_media(True)

    def _let_validation_read_media(self, value: bool) -> None:
        for dataset in self.datasets.values():
            if not dataset.training:
                dataset.reads_media = value

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        clips = sum(float(output.get("nsentences", 0)) for output in logging_outputs)
        metrics.log_speed("clips_per_second", clips, priority=95, round=1)  # behind wps
