"""Augmentation of video clips, the same draw for every frame of a clip, and the pixel values that SignHiera expects."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from slt_plugin.data.errors import DataError

# of SSVP-SLT (Rust et al., 2024) and of the public Hiera video models, for each colour channel
PIXEL_MEAN, PIXEL_STD = 0.45, 0.225
MAX_MAGNITUDE = 30  # of torchvision's RandAugment


@dataclass(frozen=True)
class VideoAugment:
    """What happens to a clip in training. SSVP-SLT pretrains with ops 4, magnitude 7, flip 0.5.

    randaugment_ops: operations of RandAugment (Cubuk et al., 2020) in a row; 0: none.
    randaugment_magnitude: their strength, 0 to 30.
    crop: frames are decoded larger by this many pixels on each side length, and a random square of the model's size
        is cut out; 0: none.
    flip: probability of mirroring left and right. A mirrored signer has changed the hand.
    """

    randaugment_ops: int = 0
    randaugment_magnitude: int = 7
    crop: int = 0
    flip: float = 0.0

    def __post_init__(self):
        if self.randaugment_ops < 0 or self.crop < 0:
            raise DataError(
                f"randaugment_ops={self.randaugment_ops}, crop={self.crop}: give whole numbers of at least 0"
            )
        if not 0 <= self.randaugment_magnitude <= MAX_MAGNITUDE:
            raise DataError(f"randaugment_magnitude={self.randaugment_magnitude}: give 0 to {MAX_MAGNITUDE}")
        if not 0 <= self.flip <= 1:
            raise DataError(f"flip={self.flip}: give a probability, 0 to 1")


def augment_clip(frames: Tensor, size: int, augment: VideoAugment, rng: np.random.Generator) -> Tensor:
    """One random change of a clip: (T, 3, S, S) uint8 with S = size + augment.crop -> (T, 3, size, size) uint8."""
    if augment.crop:
        top, left = (int(value) for value in rng.integers(0, augment.crop + 1, size=2))
        frames = frames[..., top : top + size, left : left + size]
    if augment.randaugment_ops:
        frames = _RandAugment(augment, rng)(frames)
    if rng.random() < augment.flip:
        frames = functional.horizontal_flip(frames)
    return frames


def normalise(frames: Tensor) -> Tensor:
    """uint8 pixels (..., 3, H, W) -> float32, each channel (value / 255 - 0.45) / 0.225; on the tensor's device."""
    return frames.float().div_(255).sub_(PIXEL_MEAN).div_(PIXEL_STD)


def denormalise(pixels: Tensor) -> Tensor:
    """The nearest uint8 pixels of what `normalise` gave, or a model in its place."""
    return (pixels.float() * PIXEL_STD + PIXEL_MEAN).mul(255).round().clamp(0, 255).byte()


class _RandAugment(v2.RandAugment):
    """torchvision's RandAugment with draws of its own generator.

    torchvision draws from torch's global generator. Frames are also loaded by a thread of the training process, where
    any use of that generator would change the model's dropout, differently at each run.
    """

    def __init__(self, augment: VideoAugment, rng: np.random.Generator):
        super().__init__(augment.randaugment_ops, augment.randaugment_magnitude, MAX_MAGNITUDE + 1)
        self.rng = rng

    def forward(self, frames: Tensor) -> Tensor:
        """(T, 3, H, W) uint8 -> the same shape."""
        for name in self.rng.choice(list(self._AUGMENTATION_SPACE), size=self.num_ops):
            magnitudes_of, signed = self._AUGMENTATION_SPACE[name]
            magnitudes = magnitudes_of(self.num_magnitude_bins, *frames.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[self.magnitude])
            if signed and self.rng.random() < 0.5:
                magnitude = -magnitude
            frames = self._apply_image_or_video_transform(
                frames, str(name), magnitude, interpolation=self.interpolation, fill=self._fill
            )
        return frames
