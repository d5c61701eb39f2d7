"""Videos as the features that a translation model was trained on, made at the moment they are asked for."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.common.messages import listing
from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.transforms import normalise
from slt_plugin.extraction.store_options import DTYPES
from slt_plugin.modules.hiera import SignHiera

logger = logging.getLogger(__name__)

# what a fingerprint may say of the clips, under slt-extract's names
SAMPLING = {"num_frames": int, "sampling_rate": int, "target_fps": (int, float), "stride": int, "size": int}


class EncodedVideo:
    """A source (`slt_plugin.data.sources.Source`) of features, (T, C) float32, that `slt-extract` would have stored.

    Args:
        root: where relative paths of rows start.
        encoder: checkpoint of the SignHiera.
        fingerprint: of the features that the translation model was trained on; None: not known.
        channels: their width.
        step: every step-th of them is used.
        device: where the encoder runs.

    Raises:
        DataError: ``encoder`` is not the one that made those features, or the fingerprint has values of no meaning.
        CheckpointError: it cannot be read.
    """

    def __init__(
        self,
        root: Path,
        encoder: Path,
        *,
        fingerprint: Fingerprint | None,
        channels: int,
        step: int,
        device: str | torch.device,
    ):
        made = {} if fingerprint is None else fingerprint.values
        _check_encoder(encoder, made)
        self.hiera = load_sign_hiera(encoder, made.get("variant")).to(device).eval().requires_grad_(False)
        if self.hiera.feature_dim != channels:
            raise DataError(f"{encoder} gives {self.hiera.feature_dim} channels, the model reads {channels}")
        self.options = _clip_options(self.hiera, made)
        self.dtype = DTYPES[_value(made, "dtype", "fp32", str, DTYPES)]
        self.channels, self.step, self.device = channels, step, torch.device(device)
        self._video = VideoSource(root, self.options)

    def num_steps(self, row: Row) -> int:
        """See `Source.num_steps`."""
        return -(-self._video.num_steps(row) // (self.hiera.temporal_stride * self.step))

    @torch.inference_mode()
    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> Tensor:
        """See `Source.load`; there is no augmentation. One clip after the other is decoded and encoded."""
        features = []
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for frames in self._video.clips(row):
                pixels = normalise(frames.to(self.device)).transpose(0, 1)  # 3 x T x S x S
                features.append(self.hiera.encode_clips([pixels])[0].float().cpu())
        return torch.cat(features)[:: self.step]


def _check_encoder(encoder: Path, made: dict) -> None:
    if "checkpoint_sha256" in made:
        found = sha256_of(encoder)
        if found != made["checkpoint_sha256"]:
            raise DataError(
                f"{encoder} is not the encoder of the features that the model was trained on: its sha256 is "
                f"{found[:12]}..., theirs {str(made['checkpoint_sha256'])[:12]}..."
            )
        return
    stated = [f"{name}={value}" for name, value in made.items() if name not in SAMPLING]
    logger.warning(
        "%s: whether the model's features came from this encoder is not known (stated of them: %s)",
        encoder,
        listing(stated) or "nothing",
    )


def _clip_options(hiera: SignHiera, made: dict) -> ClipOptions:
    frames, size = hiera.input_size[:2]
    options = ClipOptions(num_frames=frames, stride=frames // 2, size=size)
    options = replace(
        options, **{name: _value(made, name, getattr(options, name), kind) for name, kind in SAMPLING.items()}
    )
    missing = [f"{name}={getattr(options, name)}" for name in SAMPLING if name not in made]
    if missing:
        logger.warning("the fingerprint of the model's features does not say how videos were cut: %s is assumed",
                       ", ".join(missing))  # fmt: skip
    if options.num_frames > frames or options.size != size:
        raise DataError(
            f"the features were made of {options.num_frames} frames of {options.size} pixels, the encoder reads "
            f"{frames} of {size}"
        )
    return options


def _value(made: dict, name: str, default, kind, choices=None):
    value = made.get(name, default)
    if isinstance(value, bool) or not isinstance(value, kind) or (choices is not None and value not in choices):
        expected = f"one of {', '.join(choices)}" if choices is not None else "a number"
        raise DataError(
            f"the fingerprint of the model's features says {name}={value!r}; expected {expected}, as slt-extract "
            "writes it"
        )
    return value
