"""Pictures of reconstructions: everything stands where it belongs."""

import pytest
import torch
from test_hiera_mae import random_weights, small_mae

from slt_plugin.data.transforms import denormalise, normalise
from slt_plugin.models.reconstruction import clip_pictures
from slt_plugin.modules.hiera_layout import ModuleShapeError
from slt_plugin.modules.hiera_mae import mae_tiny_32x64
from slt_plugin.modules.reconstruction import GREY, evenly_spaced, from_patches, reconstruct, to_patches

PADDING = torch.tensor([0, 20, 7])  # frames of 32: 16, 6 and 13 time steps stay
STEPS = [16, 6, 13]


def setup(*, q_pool: int, norm_pix_loss: bool):
    """An autoencoder of 4 units of 32 x 32 pixels a step, with 4**(3 - q_pool) patches each, and three clips."""
    mae = random_weights(small_mae(q_pool=q_pool, norm_pix_loss=norm_pix_loss)).eval()
    video = torch.rand(3, 3, 32, 64, 64, generator=torch.Generator().manual_seed(1)) * 4 - 2
    with torch.no_grad():
        return mae, video, mae(video, mask_ratio=0.7, padding=PADDING, seeds=torch.arange(3))


def unit_of(picture, unit: int):
    return picture[..., unit // 2 * 32 :, unit % 2 * 32 :][..., :32, :32]


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("q_pool", [3, 2])
def test_targets_as_predictions_give_the_clip_back(q_pool, norm_pix_loss):
    mae, video, output = setup(q_pool=q_pool, norm_pix_loss=norm_pix_loss)
    assert mae.positions == 4 ** (3 - q_pool)
    found = reconstruct(mae, video, output._replace(pred=output.target), PADDING)
    hidden_units = 0
    for i, (clip, steps) in enumerate(zip(found, STEPS, strict=True)):
        first_frames = video[i, :, : 2 * steps : 2].transpose(0, 1)
        assert torch.equal(clip.original, first_frames)
        torch.testing.assert_close(clip.reconstruction, first_frames, rtol=0, atol=2e-6)
        for step in range(steps):
            for unit in range(4):
                masked, original = unit_of(clip.masked[step], unit), unit_of(first_frames[step], unit)
                if output.mask[i, 4 * step + unit]:
                    assert torch.equal(masked, original)
                    assert torch.equal(unit_of(clip.reconstruction[step], unit), original)
                else:
                    hidden_units += 1
                    assert (masked == GREY).all()
        assert clip.loss == 0 and clip.hidden == int((~output.mask[i, : 4 * steps]).sum()) / (4 * steps)
    assert hidden_units * mae.positions == len(output.pred)


@pytest.mark.parametrize("q_pool", [3, 2])
def test_every_prediction_stands_in_its_own_patch(q_pool):
    """With the numbers of the predictions as their pixels; patches count row by row in a unit, units in a step."""
    mae, video, output = setup(q_pool=q_pool, norm_pix_loss=False)
    numbers = torch.arange(len(output.pred)).float()
    found = reconstruct(mae, video, output._replace(pred=numbers[:, None].expand_as(output.pred)), PADDING)
    side, size = (2, 16) if q_pool == 2 else (1, 32)
    number = 0
    for i, steps in enumerate(STEPS):
        for place in range(4 * steps):
            if output.mask[i, place]:
                continue
            unit = unit_of(found[i].reconstruction[place // 4], place % 4)
            for row in range(side):
                for column in range(side):
                    patch = unit[:, size * row : size * (row + 1), size * column : size * (column + 1)]
                    assert patch.shape == (3, size, size) and (patch == number).all()
                    number += 1
    assert number == len(numbers)


@pytest.mark.parametrize("q_pool", [3, 2])
def test_patches_are_those_that_the_loss_compares(q_pool):
    mae, video, output = setup(q_pool=q_pool, norm_pix_loss=False)
    rows = []
    for i, steps in enumerate(STEPS):
        frames = video[i, :, : 2 * steps : 2].transpose(0, 1)
        patches = to_patches(frames, mae.encoder)
        assert torch.equal(from_patches(patches, mae.encoder), frames)
        rows.append(patches.flatten(0, 1)[~output.mask[i, : 4 * steps]].flatten(0, 1))
    assert torch.equal(torch.cat(rows), output.target)


def test_predictions_of_nothing_show_the_patches_own_mean():
    """norm_pix_loss: brightness and contrast of a patch come from its target."""
    mae, video, output = setup(q_pool=2, norm_pix_loss=True)
    flat = reconstruct(mae, video, output._replace(pred=torch.zeros_like(output.pred)), PADDING)
    contrast = reconstruct(mae, video, output._replace(pred=torch.ones_like(output.pred)), PADDING)
    place = int((~output.mask[0]).nonzero()[0])
    means, ups, original = (
        unit_of(x[place // 4], place % 4)[:, 16:, :16]
        for x in (flat[0].reconstruction, contrast[0].reconstruction, flat[0].original)
    )
    torch.testing.assert_close(means, original.mean().expand_as(means))
    torch.testing.assert_close(ups - means, original.std().expand_as(means), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_losses_of_the_clips_make_up_the_loss(norm_pix_loss):
    mae, video, output = setup(q_pool=3, norm_pix_loss=norm_pix_loss)
    found = reconstruct(mae, video, output, PADDING)
    patches = [(~output.mask[i, : 4 * steps]).sum() for i, steps in enumerate(STEPS)]
    mean = sum(clip.loss * n for clip, n in zip(found, patches, strict=True)) / sum(patches)
    assert mean.item() == pytest.approx(output.loss.item(), rel=1e-5)
    alone = mae(video[1:2, :, :12], mask=output.mask[1:2, :24])
    assert found[1].loss == pytest.approx(alone.loss.item(), rel=1e-4)


def test_outputs_of_other_clips_are_refused():
    mae, video, output = setup(q_pool=3, norm_pix_loss=True)
    with pytest.raises(ModuleShapeError, match=r"mask \(3, 64\), the clips one of \(2, 64\)"):
        reconstruct(mae, video[:2], output)
    with pytest.raises(ModuleShapeError, match="predicted patches, the clips"):
        reconstruct(mae, video, output)  # without the padding


def test_pixels_come_back_as_they_were():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(denormalise(normalise(frames)), frames)
    assert denormalise(torch.tensor([-9.0, GREY, 9.0])).tolist() == [0, 57, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_a_batch(dtype):
    """Nothing is drawn at random, and the model is left as it was."""
    mae = mae_tiny_32x64(drop_path_rate=0.5).to(dtype).train()
    tokens = torch.randint(256, (2, 32, 3, 64, 64), dtype=torch.uint8)
    batch = {"src_tokens": tokens, "src_lengths": torch.tensor([32, 10]), "mask_seeds": torch.tensor([5, 6])}
    state = torch.get_rng_state()
    first, second = clip_pictures(mae, batch, 0.75), clip_pictures(mae, batch, 0.75)
    assert torch.equal(state, torch.get_rng_state()) and all(module.training for module in mae.modules())
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.rows, b.rows) and a.loss == b.loss
    assert [clip.rows.shape for clip in first] == [(3, 16, 3, 64, 64), (3, 5, 3, 64, 64)]
    assert [clip.hidden for clip in first] == [0.75, pytest.approx(0.8)]
    for clip, frames in zip(first, (tokens[0, ::2], tokens[1, :10:2]), strict=True):
        masked, reconstruction, original = clip.rows
        assert torch.equal(original, frames)
        hidden = (masked == 57).flatten(1).all(1)
        assert hidden.float().mean() == pytest.approx(clip.hidden)
        assert torch.equal(reconstruction[~hidden], frames[~hidden])
        assert not torch.equal(reconstruction[hidden], frames[hidden])
    assert not torch.equal(first[0].rows[0], clip_pictures(mae, batch, 0.5)[0].rows[0])


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(64, 8, [0, 9, 18, 27, 36, 45, 54, 63]), (3, 8, [0, 1, 2]), (9, 1, [0]), (5, 2, [0, 4]), (1, 4, [0])],
)
def test_evenly_spaced(count, wanted, expected):
    assert evenly_spaced(count, wanted) == expected
