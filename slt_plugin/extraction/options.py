"""The options of an extraction, checked, and the fingerprint of the features that they give."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.clips import ClipOptions
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.transforms import VideoAugment
from slt_plugin.models.errors import OptionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORE_DTYPES = {"fp32": "float32", "fp16": "float16"}
GPU_BATCH_CLIPS = 8
_AT_LEAST = {  # smallest whole number of each; options that may be null are checked where they are given
    "epochs": 1,
    "num_shards": 1,
    "shard": 0,
    "num_frames": 2,
    "stride": 1,
    "sampling_rate": 1,
    "batch_clips": 1,
    "num_workers": 0,
    "prefetch_mb": 1,
    "randaugment_ops": 0,
    "randaugment_magnitude": 0,
    "crop": 0,
    "seed": 0,
}
_ABOVE_ZERO = ("target_fps", "staging_gb", "flush_minutes", "log_interval")


@dataclass(frozen=True)
class ExtractOptions:
    """See config/generate/extract.yaml, whose keys these are. ``checkpoint`` is not needed to merge.

    Raises:
        OptionError: values that no extraction can have.
    """

    checkpoint: str | None
    variant: str | None
    manifest: str
    media_root: str | None
    out: str
    out_manifest: str | None
    epochs: int
    shard: int | None
    num_shards: int
    merge: bool
    num_frames: int | None
    stride: int | None
    sampling_rate: int
    target_fps: float
    randaugment_ops: int
    randaugment_magnitude: int
    crop: int | None
    flip: float
    seed: int
    device: str | None
    dtype: str
    store_dtype: str
    compile: bool
    batch_clips: int | None
    num_workers: int | None
    prefetch_mb: int
    staging: str | None
    staging_gb: float
    flush_minutes: float
    log_interval: float

    def __post_init__(self):
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise OptionError(f"{name}={value}: give a whole number of at least {least}")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise OptionError(f"{name}={value}: give a number above 0")
        for name, choices in (("dtype", DTYPES), ("store_dtype", STORE_DTYPES)):
            value = getattr(self, name)
            if value not in choices:
                raise OptionError(f"{name}={value}: give {' or '.join(choices)}{did_you_mean(value, choices)}")
        for name in ("checkpoint", "variant", "manifest", "media_root", "out", "out_manifest", "device", "staging"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("manifest", "out")):
                raise OptionError(f"{name}={value}: give a text; a name that reads as a number needs quotes")
        if self.shard is None and self.num_shards > 1 and not self.merge:
            raise OptionError(
                f"num_shards={self.num_shards} without shard: give shard=0 to shard={self.num_shards - 1}, one each "
                "run (in an array job shard=$SLURM_ARRAY_TASK_ID), then merge=true"
            )
        if self.element >= self.num_shards:
            raise OptionError(
                f"shard={self.shard} num_shards={self.num_shards}: the shards are numbered 0 to {self.num_shards - 1}"
            )
        if self.folder.suffix != ".store" or not self.folder.stem:
            raise OptionError(
                f"out={self.out}: the store is a folder whose name ends in .store, e.g. feats/train.store"
            )
        self._check_places()

    def _check_places(self) -> None:
        if not Path(self.manifest).is_file():
            raise OptionError(f"manifest={self.manifest} does not exist")
        if not self.root.is_dir():
            raise OptionError(f"media_root={self.media_root} is no folder")
        if self.feature_manifest.resolve() == Path(self.manifest).resolve():
            raise OptionError(
                f"the feature manifest would replace manifest={self.manifest}; name another file with "
                "out_manifest=..., or another folder with out=..."
            )
        if self.staging is not None and not self.staging_folder.is_dir():
            raise OptionError(f"staging={self.staging} is no folder here ({self.staging_folder})")

    @property
    def folder(self) -> Path:
        """The store."""
        return Path(self.out)

    @property
    def root(self) -> Path:
        """Where relative paths of the manifest start."""
        return Path(self.manifest).parent if self.media_root is None else Path(self.media_root)

    @property
    def feature_manifest(self) -> Path:
        """Where the manifest of the features is written."""
        return self.folder.with_suffix(".tsv") if self.out_manifest is None else Path(self.out_manifest)

    @property
    def staging_folder(self) -> Path | None:
        """With variables of the environment filled in."""
        return None if self.staging is None else Path(os.path.expandvars(self.staging))

    @property
    def element(self) -> int:
        """The number of this element."""
        return self.shard or 0

    @property
    def part(self) -> str:
        """The name of this element's part of the store."""
        return f"{self.element}of{self.num_shards}"

    def choose_device(self) -> torch.device:
        """Raises OptionError for one that is not there."""
        if self.device is None:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise OptionError(f"device={self.device}: give cuda, cuda:NUMBER or cpu") from None
        if device.type not in ("cuda", "cpu"):
            raise OptionError(f"device={self.device}: give cuda, cuda:NUMBER or cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise OptionError(
                f"device={self.device}: torch sees {torch.cuda.device_count()} GPUs (slt-doctor tells why)"
            )
        return device

    def batch_size(self, device: torch.device) -> int:
        """Windows a model batch: on a CPU a batch is no faster than one by one, and takes more memory."""
        return self.batch_clips or (GPU_BATCH_CLIPS if device.type == "cuda" else 1)

    def workers(self, device: torch.device) -> int:
        """Decoding processes. On a CPU one keeps ahead of any model."""
        if self.num_workers is not None:
            return self.num_workers
        return max(1, available_cpus() - 1) if device.type == "cuda" else 1

    def clip_options(self, input_size: tuple[int, int, int]) -> ClipOptions:
        """How videos are cut for a model of this input size (frames, height, width).

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
            sampling_rate=self.sampling_rate,
            target_fps=float(self.target_fps),
            stride=num_frames // 2 if self.stride is None else self.stride,
            size=height,
            augment=VideoAugment(
                randaugment_ops=self.randaugment_ops,
                randaugment_magnitude=self.randaugment_magnitude,
                crop=height // 7 if self.crop is None else self.crop,  # 256 -> 224, as usual
                flip=float(self.flip),
            ),
        )


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


def model_threads(workers: int, configured: int) -> int:
    """Threads of a model on a CPU beside so many decoding processes.

    Threads that have to wait for each other after every layer suffer from any process on their CPUs: a small model took
    20 times as long with two threads on two busy CPUs as with one.

    Args:
        configured: what torch has now, e.g. from OMP_NUM_THREADS.
    """
    return max(1, min(configured, available_cpus() - workers))
