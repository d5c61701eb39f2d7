"""The options of an extraction of SignHiera features, checked, and the fingerprint of the features that they give."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from slt_plugin.data.clips import ClipOptions
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.transforms import VideoAugment
from slt_plugin.extraction.store_options import MediaOptions
from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

GPU_BATCH_CLIPS = 8


@dataclass(frozen=True)
class ExtractOptions(MediaOptions):
    """Of ``what=features``.

    Raises:
        OptionError: values that no extraction can have.
    """

    variant: str | None
    epochs: int
    num_frames: int | None
    stride: int | None
    sampling_rate: int | None
    target_fps: float | None
    randaugment_ops: int
    randaugment_magnitude: int
    crop: int | None
    flip: float
    seed: int
    compile: bool
    batch_clips: int | None
    num_workers: int | None
    prefetch_mb: int
    staging: str | None
    staging_gb: float

    def _check_places(self) -> None:
        super()._check_places()
        if self.staging is not None and not self.staging_folder.is_dir():
            raise OptionError(f"staging={self.staging} is no folder here ({self.staging_folder})")

    @property
    def staging_folder(self) -> Path | None:
        """With variables of the environment filled in."""
        return None if self.staging is None else Path(os.path.expandvars(self.staging))

    def batch_size(self, device: torch.device) -> int:
        """Windows a model batch: on a CPU a batch is no faster than one by one, and takes more memory."""
        return self.batch_clips or (GPU_BATCH_CLIPS if device.type == "cuda" else 1)

    def workers(self, device: torch.device) -> int:
        """Decoding processes."""
        return loading_workers(self.num_workers, device)

    def clip_options(self, input_size: tuple[int, int, int], trained: Mapping[str, float]) -> ClipOptions:
        """How videos are cut for a model of this input size (frames, height, width).

        Args:
            trained: how they were cut in its training, `checkpoints.sign_hiera.SignHieraFile.clips`; a warning names
                what is asked for here and differs.

        Raises:
            OptionError: windows that the model cannot read.
        """
        frames, height, width = input_size
        if height != width:
            raise OptionError(f"the model reads frames of {width} x {height}, here they are square")
        num_frames = frames if self.num_frames is None else self.num_frames
        if num_frames > frames or num_frames % 2:
            raise OptionError(f"num_frames={num_frames}: give an even number up to the variant's {frames}")
        return ClipOptions(
            num_frames=num_frames,
            sampling_rate=int(self._sampling("sampling_rate", trained)),
            target_fps=float(self._sampling("target_fps", trained)),
            stride=num_frames // 2 if self.stride is None else self.stride,
            size=height,
            augment=VideoAugment(
                randaugment_ops=self.randaugment_ops,
                randaugment_magnitude=self.randaugment_magnitude,
                crop=height // 7 if self.crop is None else self.crop,  # 256 -> 224, as usual
                flip=float(self.flip),
            ),
        )

    def _sampling(self, name: str, trained: Mapping[str, float]) -> float:
        """The option's value: what is given, else that of the encoder's training, else the releases'."""
        given, theirs = getattr(self, name), trained.get(f"clip_{name}")
        if given is None:
            return getattr(ClipOptions(), name) if theirs is None else theirs
        if theirs not in (None, given):
            logger.warning(
                "%s=%g, but checkpoint=%s was trained with %g: features of videos that are cut in another way are "
                "worse; leave %s out to take the checkpoint's", name, given, self.checkpoint, theirs, name,
            )  # fmt: skip
        return given


def fingerprint(options: ExtractOptions, clips: ClipOptions, *, sha256: str, variant: str) -> Fingerprint:
    """What decides the numbers in the store: features with another fingerprint are not mixed with them.

    Args:
        sha256: of the checkpoint file.
        variant: the encoder's name.
    """
    return Fingerprint(
        {
            "encoder": "sign_hiera",
            "variant": variant,
            "checkpoint_sha256": sha256,
            "num_frames": clips.num_frames,
            "sampling_rate": clips.sampling_rate,
            "target_fps": clips.target_fps,
            "stride": clips.stride,
            "size": clips.size,
            "region": "box of the manifest squared, else the centre square",
            "dtype": options.dtype,
            # of the copies from 1 on; the seed is left out, as other draws of the same augmentation may be mixed
            "randaugment_ops": clips.augment.randaugment_ops,
            "randaugment_magnitude": clips.augment.randaugment_magnitude,
            "crop": clips.augment.crop,
            "flip": clips.augment.flip,
        }
    )


def available_cpus() -> int:
    """What SLURM gave this job, where the system can say so (not on macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loading_workers(num_workers: int | None, device: torch.device) -> int:
    """Processes that read ahead of a model, where it is not said how many: on a CPU one keeps ahead of any model."""
    if num_workers is not None:
        return num_workers
    return max(1, available_cpus() - 1) if device.type == "cuda" else 1


def model_threads(workers: int, configured: int) -> int:
    """Threads of a model on a CPU beside so many decoding processes.

    Threads that have to wait for each other after every layer suffer from any process on their CPUs: a small model took
    20 times as long with two threads on two busy CPUs as with one.

    Args:
        configured: what torch has now, e.g. from OMP_NUM_THREADS.
    """
    return max(1, min(configured, available_cpus() - workers))
