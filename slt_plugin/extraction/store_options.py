"""The options that every kind of extraction has, whatever it writes into its store."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from slt_plugin.common.messages import did_you_mean
from slt_plugin.models.errors import OptionError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORE_DTYPES = {"fp32": "float32", "fp16": "float16"}
_AT_LEAST = {  # smallest whole number of each; options that may be null are checked where they are given
    "epochs": 1,
    "num_shards": 1,
    "shard": 0,
    "num_frames": 2,
    "stride": 1,
    "sampling_rate": 1,
    "batch_clips": 1,
    "max_tokens": 1,
    "num_workers": 0,
    "prefetch_mb": 1,
    "randaugment_ops": 0,
    "randaugment_magnitude": 0,
    "crop": 0,
    "seed": 0,
}
_ABOVE_ZERO = ("target_fps", "staging_gb", "flush_minutes", "log_interval")
_OR_NULL = ("target_fps",)  # of them
_TEXTS = ("checkpoint", "variant", "media_root", "out_manifest", "device", "staging", "spm", "lang")  # or null
_NEEDED_TEXTS = ("manifest", "out")


def choose_device(name: str | None) -> torch.device:
    """A device by its name; None: a GPU where there is one.

    Raises:
        OptionError: one that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"device={name}: give cuda, cuda:NUMBER or cpu") from None
    if device.type not in ("cuda", "cpu"):
        raise OptionError(f"device={name}: give cuda, cuda:NUMBER or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device={name}: torch sees {torch.cuda.device_count()} GPUs (slt-doctor tells why)")
    return device


@dataclass(frozen=True)
class StoreOptions:
    """See config/generate/extract.yaml, whose keys these are. ``checkpoint`` is not needed to merge.

    Raises:
        OptionError: values that no extraction can have.
    """

    checkpoint: str | None
    manifest: str
    out: str
    out_manifest: str | None
    shard: int | None
    num_shards: int
    merge: bool
    device: str | None
    dtype: str
    store_dtype: str
    flush_minutes: float
    log_interval: float

    def __post_init__(self):
        self._check_values()
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

    def _check_values(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, least in _AT_LEAST.items():
            value = values.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise OptionError(f"{name}={value}: give a whole number of at least {least}")
        for name in values.keys() & _ABOVE_ZERO:
            value = values[name]
            if value is None and name in _OR_NULL:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise OptionError(f"{name}={value}: give a number above 0")
        for name, choices in (("dtype", DTYPES), ("store_dtype", STORE_DTYPES)):
            value = values[name]
            if value not in choices:
                raise OptionError(f"{name}={value}: give {' or '.join(choices)}{did_you_mean(value, choices)}")
        for name in (*_NEEDED_TEXTS, *_TEXTS):
            value = values.get(name)
            if not isinstance(value, str) and (value is not None or name in _NEEDED_TEXTS):
                raise OptionError(f"{name}={value}: give a text; a name that reads as a number needs quotes")

    def _check_places(self) -> None:
        if not Path(self.manifest).is_file():
            raise OptionError(f"manifest={self.manifest} does not exist")
        written = self.written_manifest
        if written is not None and written.resolve() == Path(self.manifest).resolve():
            raise OptionError(
                f"the manifest of the store would replace manifest={self.manifest}; name another file with "
                "out_manifest=..., or another folder with out=..."
            )

    @property
    def folder(self) -> Path:
        """The store."""
        return Path(self.out)

    @property
    def written_manifest(self) -> Path | None:
        """Where the manifest of what is in the store is written; None: nowhere."""
        return self.folder.with_suffix(".tsv") if self.out_manifest is None else Path(self.out_manifest)

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
        return choose_device(self.device)


@dataclass(frozen=True)
class MediaOptions(StoreOptions):
    """Of an extraction that reads the manifest's media."""

    media_root: str | None

    def _check_places(self) -> None:
        super()._check_places()
        if not self.root.is_dir():
            raise OptionError(f"media_root={self.media_root} is no folder")

    @property
    def root(self) -> Path:
        """Where relative paths of the manifest start."""
        return Path(self.manifest).parent if self.media_root is None else Path(self.media_root)
