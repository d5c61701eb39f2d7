"""What a model is and costs: its size, the arithmetic of decoding, and the training behind it.

For ``metrics.json`` and the tables made of it. Nothing here guesses: what a checkpoint does not tell is None, and
``notes`` say why.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fairseq import utils
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slt_plugin.checkpoints.foreign import read_torch
from slt_plugin.data.manifest_stats import row_seconds

HOUR = 3600


def model_facts(
    models: Sequence[nn.Module], task, paths: Sequence[Path], sample: Mapping, *, seconds: float | None = None
) -> dict:
    """Facts of a model, or of an ensemble (sums over its members).

    Args:
        models: as they decode. Fewer than ``paths``: averages of these checkpoints, which are of one size.
        task: whose datasets hold the row of ``sample``, where ``seconds`` is not given.
        paths: the checkpoint files.
        sample: fairseq's batch of one row.
        seconds: of signing in that row; None: as the manifest has it.

    Returns:
        Plain values: ``parameters``; ``trainable``, those that the training moved; ``checkpoint_mb`` (10^6 bytes, the
        files as they lie there, an optimizer's state included), ``weights_mb`` (the model's tensors in them);
        ``gflops_per_second_of_signing`` (10^9 operations, a multiplication and an addition being two);
        ``training``: see `training_facts`; ``notes``: a list of texts.

    Raises:
        CheckpointError: a file cannot be read.
    """
    states = [read_torch(Path(path), mmap=True) for path in paths]
    notes = []
    if len(models) < len(paths):
        notes.append(f"{len(paths)} checkpoints were averaged: sizes are those of one")
    counted = list(zip(paths, states, strict=True))[: len(models)]
    training = training_facts(states, notes)
    parameters = [p for model in models for p in unique_parameters(model)]
    seconds = _seconds(task, sample) if seconds is None else seconds
    if not seconds:
        notes.append("GFLOPs: the manifest does not say how long the row is (end, or num_frames and fps)")
    else:
        notes.append("GFLOPs are of one row, its reference written once, without a beam")
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable": None if training is None else sum(p.numel() for p in parameters if p.requires_grad),
        "checkpoint_mb": round(sum(Path(path).stat().st_size for path, _ in counted) / 1e6, 3),
        "weights_mb": round(sum(_tensor_bytes(state.get("model", {})) for _, state in counted) / 1e6, 3),
        "gflops_per_second_of_signing": round(forward_flops(models, sample, notes) / seconds / 1e9, 4)
        if seconds
        else None,
        "training": training,
        "notes": notes,
    }


def unique_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Each once, tied ones too."""
    return list({id(p): p for p in model.parameters()}.values())


def forward_flops(models: Sequence[nn.Module], sample: Mapping, notes: list[str]) -> int:
    """Operations of encoding a row and of writing its reference once, each token from those before it.

    A greedy search of the same length costs as much, but for attention to positions that are not there yet; a beam of
    n costs about n times the decoder. Matrix products, convolutions and attention count; what is done element by
    element does not (PyTorch's own counter).
    """
    net_input = dict(sample["net_input"])
    if net_input.get("prev_output_tokens") is None:
        notes.append("GFLOPs: the row has no text; one output token was counted")
        net_input["prev_output_tokens"] = sample["start_tokens"].unsqueeze(1)  # 1 x 1
    total = 0
    for model in models:
        first = next(model.parameters())
        inputs = utils.apply_to_sample(lambda x, device=first.device: x.to(device), net_input)
        was_training = model.training
        model.eval()
        # the fused kernels of some devices are unknown to the counter, which then counts no attention at all
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs)
        model.train(was_training)
        total += counter.get_total_flops()
    return total


def training_facts(states: Sequence[Mapping], notes: list[str]) -> dict | None:
    """What the training cost that led to these checkpoints; None where none is recorded in them.

    Checkpoints of one training (same folder and seed) count once, by the latest; several trainings are added up.

    Returns:
        ``updates`` (of the longest), ``gpu_hours`` and ``cpu_hours`` (time until the checkpoint times processes; one
        of them is None), ``processes``, ``seed`` (None: several trainings).
    """
    trainings: dict[tuple, dict] = {}
    for state in states:
        found = _training(state)
        if found is None:
            notes.append("no training is recorded in a checkpoint (imported weights): its cost is unknown")
            return None
        key, facts = found
        if key not in trainings or trainings[key]["updates"] < facts["updates"]:
            trainings[key] = facts
    members = list(trainings.values())
    if not members:
        return None
    if len(members) > 1:
        notes.append(f"{len(members)} trainings: their hours are added up")
    if any(member["cpu_hours"] is not None for member in members):
        notes.append("CPU hours count processes, however many threads each had")
    notes.append("training time is that until the checkpoint, without pretraining and extraction done before")
    return {
        "updates": max(member["updates"] for member in members),
        "gpu_hours": _sum([member["gpu_hours"] for member in members]),
        "cpu_hours": _sum([member["cpu_hours"] for member in members]),
        "processes": max(member["processes"] for member in members),
        "seed": members[0]["seed"] if len(members) == 1 else None,
    }


def _training(state: Mapping) -> tuple[tuple, dict] | None:
    """What names the training of a checkpoint, and its facts."""
    try:
        config, extra = state["cfg"], state["extra_state"]
        updates = int(state["optimizer_history"][-1]["num_updates"])
        processes = int(config["distributed_training"]["distributed_world_size"])
        hours = float(extra["previous_training_time"]) * processes / HOUR
        on_cpu = _on_cpu(config, extra)
        seed, folder = config["common"]["seed"], config["checkpoint"]["save_dir"]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    hours = round(hours, 6)
    facts = {
        "updates": updates,
        "gpu_hours": None if on_cpu else hours,
        "cpu_hours": hours if on_cpu else None,
        "processes": processes,
        "seed": seed,
    }
    return (str(folder), seed), facts


def _on_cpu(config: Mapping, extra: Mapping) -> bool:
    """Asked for, or because there was no GPU: fairseq then logs no free memory of one."""
    if config["common"]["cpu"]:
        return True
    groups = extra.get("metrics") or {}
    return not any(meter[1] == "gb_free" for meters in groups.values() for meter in meters)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 6) if known else None


def _tensor_bytes(state: Mapping[str, Tensor]) -> int:
    """Of tensors that share their memory once."""
    found: dict[int, int] = {}  # address of the first element -> bytes
    for tensor in filter(torch.is_tensor, state.values()):
        at = tensor.data_ptr()
        found[at] = max(found.get(at, 0), tensor.numel() * tensor.element_size())
    return sum(found.values())


def _seconds(task, sample: Mapping) -> float | None:
    """Of the batch's row, which is looked up in the task's datasets by its id."""
    (name,) = sample["row_ids"]
    for dataset in task.datasets.values():
        row = next((row for row in dataset.rows if row.id == name), None)
        if row is not None:
            return row_seconds(row)
    return None
