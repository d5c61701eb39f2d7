"""The mean of several checkpoints of a training (Vaswani et al., 2017, section 6.1) as one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.common.messages import listing


def average_checkpoints(paths: Sequence[Path], overrides: dict) -> dict:
    """The content of the first checkpoint with the mean of all checkpoints' weights, each in its own precision.

    Whole numbers (counters) are those of the first. The files are read one after the other, so that two are in memory
    at most.

    Args:
        overrides: options that replace those of the first checkpoint, as fairseq's ``arg_overrides``.

    Raises:
        CheckpointError: the checkpoints are not of one model.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(str(paths[0]), overrides)
    if any("lora_" in name for name in state["model"]):
        raise CheckpointError(
            f"{paths[0]} holds LoRA's factors, whose mean is not the mean of what they do: fold them first, "
            "slt-import-checkpoint merge-lora CHECKPOINT OUT"
        )
    sums = {name: value.double() for name, value in state["model"].items() if value.is_floating_point()}
    for path in paths[1:]:
        weights = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)["model"]
        _check_same_model(state["model"], weights, paths[0], path)
        for name, total in sums.items():
            total += weights[name]
    for name, total in sums.items():
        state["model"][name] = (total / len(paths)).to(state["model"][name].dtype)
    return state


def _check_same_model(
    first: dict[str, torch.Tensor], other: dict[str, torch.Tensor], first_path: Path, path: Path
) -> None:
    names = sorted(first.keys() ^ other.keys())
    shapes = sorted(name for name in first.keys() & other.keys() if first[name].shape != other[name].shape)
    if names or shapes:
        what = f"weights that only one of them has: {listing(names)}" if names else f"other shapes: {listing(shapes)}"
        raise CheckpointError(f"{path} cannot be averaged with {first_path}, it is of another model ({what})")
