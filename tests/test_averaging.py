"""The mean of checkpoints."""

import pytest
import torch

from slt_plugin.checkpoints.averaging import average_checkpoints
from slt_plugin.checkpoints.keymaps import CheckpointError


def write(path, **weights):
    history = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}
    extra = {"train_iterator": {"epoch": 1}}
    torch.save(
        {"cfg": None, "args": None, "model": weights, "optimizer_history": [history], "extra_state": extra}, path
    )
    return path


def test_mean_in_double_precision_and_own_type(tmp_path):
    paths = [
        write(tmp_path / f"{i}.pt", w=torch.tensor([value], dtype=torch.float16), n=torch.tensor(i))
        for i, value in enumerate((2048.0, 1.0, 1.0))
    ]
    found = average_checkpoints(paths, {})["model"]
    # in half precision 2048 + 1 is 2048
    assert found["w"].dtype == torch.float16 and found["w"].item() == torch.tensor(2050 / 3).half().item()
    assert found["n"].item() == 0


def test_other_models_are_refused(tmp_path):
    a = write(tmp_path / "a.pt", w=torch.zeros(2), v=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"b\.pt cannot be averaged with .*a\.pt.*only one of them has: v"):
        average_checkpoints([a, write(tmp_path / "b.pt", w=torch.zeros(2))], {})
    with pytest.raises(CheckpointError, match="other shapes: w"):
        average_checkpoints([a, write(tmp_path / "c.pt", w=torch.zeros(3), v=torch.zeros(1))], {})


def test_factors_of_lora_are_not_averaged(tmp_path):
    name = "hf.encoder.q.lora_A.default.weight"
    paths = [write(tmp_path / f"{i}.pt", **{name: torch.zeros(2)}) for i in range(2)]
    with pytest.raises(CheckpointError, match="merge-lora"):
        average_checkpoints(paths, {})
