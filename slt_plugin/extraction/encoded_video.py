"""Videos as the features that a translation model was trained on, made at the moment they are asked for."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.transforms import normalise
from slt_plugin.extraction.options import DTYPES

logger = logging.getLogger(__name__)


class EncodedVideo:
    """A source (`slt_plugin.data.sources.Source`) of features, (T, C) float32, that `slt-extract` would have stored.

    Args:
        root: where relative paths of rows start.
        encoder: checkpoint of the SignHiera.
        fingerprint: of the features that the translation model was trained on; None: not known.
        channels: their width.
        device: where the encoder runs.

    Raises:
        DataError: ``encoder`` is not the one that made those features.
        CheckpointError: it cannot be read.
    """

    def __init__(
        self, root: Path, encoder: Path, *, fingerprint: Fingerprint | None, channels: int, device: str | torch.device
    ):
        made = {} if fingerprint is None else fingerprint.values
        if "checkpoint_sha256" in made:
            found = sha256_of(encoder)
            if found != made["checkpoint_sha256"]:
                raise DataError(
                    f"{encoder} is not the encoder of the features that the model was trained on: its sha256 is "
                    f"{found[:12]}..., theirs {str(made['checkpoint_sha256'])[:12]}..."
                )
        else:
            logger.warning("%s: whether the model's features came from this encoder is not known", encoder)
        self.hiera = load_sign_hiera(encoder, made.get("variant")).to(device).eval().requires_grad_(False)
        if self.hiera.feature_dim != channels:
            raise DataError(f"{encoder} gives {self.hiera.feature_dim} channels, the model reads {channels}")
        frames, size = self.hiera.input_size[:2]
        options = ClipOptions(num_frames=frames, stride=frames // 2, size=size)
        names = ("num_frames", "sampling_rate", "target_fps", "stride", "size")
        self.options = replace(options, **{name: made[name] for name in names if name in made})
        self.dtype = DTYPES[made.get("dtype", "fp32")]
        self.channels, self.device = channels, torch.device(device)
        self._video = VideoSource(root, self.options)

    def num_steps(self, row: Row) -> int:
        """See `Source.num_steps`."""
        return self._video.num_steps(row) // self.hiera.temporal_stride

    @torch.inference_mode()
    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> Tensor:
        """See `Source.load`; there is no augmentation."""
        clips = self._video.load(row)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = [
                self.hiera.encode_clips([normalise(clip.to(self.device)).transpose(0, 1)])[0]
                for clip in clips.frames.split(clips.lengths)
            ]
        return torch.cat(features).float().cpu()
