"""Pose encoder, adapter and padding masks."""

import pytest
import torch

from slt_plugin.modules.adapter import Adapter
from slt_plugin.modules.padding import lengths_to_padding_mask, stride_padding_mask
from slt_plugin.modules.pose_encoder import PoseEncoder

LENGTHS = torch.tensor([13, 8, 1])


def clip(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 13, channels), lengths_to_padding_mask(LENGTHS, 13)


def test_mask_is_true_at_padding():
    mask = lengths_to_padding_mask(torch.tensor([2, 0, 3]), 3)
    assert mask.tolist() == [[False, False, True], [True, True, True], [False, False, False]]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_striding_keeps_ceil_of_length(stride):
    mask = stride_padding_mask(lengths_to_padding_mask(LENGTHS, 13), stride)
    assert (~mask).sum(1).tolist() == [-(-n // stride) for n in LENGTHS.tolist()]


@pytest.mark.parametrize("build", [
    lambda: PoseEncoder(in_channels=6, dim=16, strides=[2, 1, 2], kernel_size=5, dropout=0.0),
    lambda: Adapter(in_dim=6, out_dim=16, stride=3),
    lambda: Adapter(in_dim=6, out_dim=16),
])  # fmt: skip
def test_output_ignores_padding_and_batch(build):
    module = build().eval()
    x, mask = clip(6)
    features, out_mask = module(x, mask)
    assert features.shape[:2] == out_mask.shape and features.shape[2] == 16
    noisy, _ = module(x.masked_fill(mask.unsqueeze(-1), 1e3), mask)
    for i, n in enumerate(LENGTHS.tolist()):
        kept = ~out_mask[i]
        torch.testing.assert_close(noisy[i][kept], features[i][kept])
        alone, alone_mask = module(x[i : i + 1, :n], mask[i : i + 1, :n])
        assert not alone_mask.any()
        torch.testing.assert_close(alone[0], features[i][kept], rtol=1e-4, atol=1e-5)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="pose_kernel_size must be odd"):
        PoseEncoder(in_channels=6, dim=16, strides=[2], kernel_size=4, dropout=0.0)
    with pytest.raises(ValueError, match="adapter_stride"):
        Adapter(in_dim=6, out_dim=16, stride=0)
