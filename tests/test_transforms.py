"""Clip augmentation: one draw for all frames, reproducible, and no trace in torch's random state."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from slt_plugin.data.errors import DataError
from slt_plugin.data.transforms import VideoAugment, augment_clip, normalise

ALL = VideoAugment(randaugment_ops=4, randaugment_magnitude=7, crop=4, flip=0.5)


def still_clip(frames: int = 5, size: int = 20) -> torch.Tensor:
    """The same picture in every frame."""
    picture = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return picture.expand(frames, -1, -1, -1).contiguous()


def test_every_frame_gets_the_same_draw():
    changed = 0
    for seed in range(40):
        out = augment_clip(still_clip(), 16, ALL, np.random.default_rng(seed))
        assert out.shape == (5, 3, 16, 16) and out.dtype == torch.uint8
        assert (out == out[:1]).all()
        changed += not torch.equal(out[0], still_clip()[0, :, 2:18, 2:18])
    assert changed > 30


def test_the_draw_depends_on_the_generator_alone():
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    first = augment_clip(still_clip(), 16, ALL, np.random.default_rng(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(augment_clip(still_clip(), 16, ALL, np.random.default_rng(3)), first)
    others = [augment_clip(still_clip(), 16, ALL, np.random.default_rng(seed)) for seed in range(4, 14)]
    assert not all(torch.equal(other, first) for other in others)


class Draws:
    """Stands for a generator: one operation, and a sign."""

    def __init__(self, operation: str, value: float):
        self.operation, self.value = operation, value

    def choice(self, names, size):
        assert self.operation in names
        return [self.operation] * size

    def random(self):
        return self.value


@pytest.mark.parametrize("operation", sorted(v2.RandAugment._AUGMENTATION_SPACE))
@pytest.mark.parametrize("negative", [True, False])
def test_every_operation_is_torchvisions(operation, negative, monkeypatch):
    """Our subclass reads protected attributes, which another torchvision may change."""
    monkeypatch.setattr(v2.RandAugment, "_get_random_item", lambda self, space: (operation, space[operation]))
    monkeypatch.setattr(torch, "rand", lambda shape: torch.tensor(0.0 if negative else 1.0))
    theirs = v2.RandAugment(1, 9)(still_clip())
    augment = VideoAugment(randaugment_ops=1, randaugment_magnitude=9)
    assert torch.equal(augment_clip(still_clip(), 20, augment, Draws(operation, 0.0 if negative else 0.9)), theirs)
    assert operation == "Identity" or not torch.equal(theirs, still_clip())


def test_crops_reach_every_corner_and_flips_happen_by_their_probability():
    frames = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6).expand(2, 3, 6, 6)
    corners = {
        int(augment_clip(frames, 4, VideoAugment(crop=2), np.random.default_rng(seed))[0, 0, 0, 0])
        for seed in range(200)
    }
    assert corners == {0, 1, 2, 6, 7, 8, 12, 13, 14}
    flipped = sum(
        int(augment_clip(frames, 6, VideoAugment(flip=0.25), np.random.default_rng(seed))[0, 0, 0, 0]) == 5
        for seed in range(400)
    )
    assert 60 < flipped < 140


def test_normalised_pixels():
    frames = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 3, 1, 1)
    values = normalise(frames)[:, 0, 0, 0]
    torch.testing.assert_close(values, torch.tensor([-2.0, (0.2 - 0.45) / 0.225, (1 - 0.45) / 0.225]))
    assert frames[1, 0, 0, 0] == 51  # the input is as it was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"randaugment_ops": -1}, "randaugment_ops=-1"),
        ({"randaugment_magnitude": 31}, "0 to 30"),
        ({"flip": 1.5}, "probability"),
        ({"crop": -2}, "crop=-2"),
    ],
)
def test_impossible_augmentation_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        VideoAugment(**options)
