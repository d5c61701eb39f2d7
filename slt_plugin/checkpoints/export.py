"""A checkpoint of a training as the small file that decoding needs: weights in fp16, nothing of the optimizer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.foreign import read_content
from slt_plugin.common.files import atomic_open

# what only a training reads; whatever else stands in the file (configuration, task, provenance, ...) stays
OF_TRAINING = ("last_optimizer_state", "optimizer_history", "criterion", "extra_state")


@dataclass(frozen=True)
class Export:
    """What an export has done: bytes of both files, and the largest change of a weight."""

    bytes_before: int
    bytes_after: int
    largest_change: float


def export_fp16(checkpoint: Path, out: Path) -> Export:
    """Writes ``out``, which every command that decodes loads like ``checkpoint``.

    The model is built in fp32 from it, so that a CPU computes with the rounded weights at its usual speed.

    Raises:
        CheckpointError: no checkpoint of a training, a weight that fp16 cannot hold, or ``out`` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another file")
    content = read_content(checkpoint)
    if not isinstance(content.get("model"), Mapping) or content.get("cfg") is None:
        raise CheckpointError(
            f"{checkpoint} is no checkpoint of our models (it has no 'model' with its 'cfg'): give one of slt-finetune "
            "or one that slt-import-checkpoint has written"
        )
    state, largest = _rounded(content["model"], checkpoint)
    small = {key: value for key, value in content.items() if key not in OF_TRAINING}
    small["model"] = state
    # the least that fairseq reads of them
    small["optimizer_history"] = [
        {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
    ]
    small["extra_state"] = {"train_iterator": {"epoch": 1}}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(out) as file:
        torch.save(small, file)
    return Export(checkpoint.stat().st_size, out.stat().st_size, largest)


def _rounded(state: Mapping[str, Tensor], checkpoint: Path) -> tuple[dict[str, Tensor], float]:
    """The state with floating-point tensors in fp16, and the largest change; tied weights stay one tensor."""
    rounded: dict[str, Tensor] = {}
    by_shape: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    largest = 0.0
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            rounded[name] = tensor.clone()
            continue
        # by value: a training on a GPU stores tied weights once for each name
        alike = by_shape.setdefault((tensor.dtype, tensor.shape), [])
        half = next((half for other, half in alike if torch.equal(other, tensor)), None)
        if half is None:
            half = tensor.half()
            if not torch.isfinite(half).all():
                raise CheckpointError(
                    f"{checkpoint}: {name} has {_what_is_wrong(tensor)}, which fp16 cannot hold (up to 65504)"
                )
            alike.append((tensor, half))
            if half.numel():
                largest = max(largest, (half.double() - tensor.double()).abs().max().item())
        rounded[name] = half
    return rounded, largest


def _what_is_wrong(tensor: Tensor) -> str:
    largest = tensor.abs().max().item()
    return f"values up to {largest:.3g}" if math.isfinite(largest) else "NaN or infinite values"
