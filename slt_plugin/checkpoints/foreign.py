"""Reading foreign checkpoint files: weights and plain values, never code (``weights_only`` throughout)."""

import json
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from omegaconf import OmegaConf
from torch import Tensor

from slt_plugin.checkpoints.keymaps import CheckpointError
from slt_plugin.checkpoints.safe import LOAD_ERRORS, allow_fairseq_classes

HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Metrics that were logged as arrays lie in the meters of many checkpoints of fairseq forks (Tarres et al. among them).
# Allowed while a foreign file is read, not for our own: they build arrays and run nothing.
NUMPY_CLASSES = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")),
    *(
        (function, f"numpy.{core}.multiarray.{function.__name__}")  # numpy 1 and 2 name the module differently
        for function in (np._core.multiarray._reconstruct, np._core.multiarray.scalar)
        for core in ("core", "_core")
    ),
]


class Foreign(NamedTuple):
    """A checkpoint as it lies on disk.

    kind: "fairseq" (a .pt file with "model"), "huggingface" (a directory with config.json) or "tensors" (a file of
        named tensors and nothing else).
    metadata: the options of the training: fairseq's ``args``, or ``cfg.task`` and ``cfg.model`` in one flat dict as in
        ``args``; Hugging Face's config.json; empty.
    """

    state: dict[str, Tensor]
    kind: str
    metadata: dict


def read_foreign(path: str | Path) -> Foreign:
    """Reads a fairseq ``.pt``, a Hugging Face directory, a ``.safetensors`` or a file of named tensors, to the CPU.

    Raises:
        CheckpointError: the path does not exist, holds nothing known, or needs classes that are not allowed.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: give a fairseq .pt file, a Hugging Face directory or a .safetensors file"
        )
    if path.is_dir():
        return _read_hugging_face(path)
    if path.suffix == ".safetensors":
        return Foreign(_read_safetensors(path), "tensors", {})
    content = read_torch(path)
    if isinstance(content.get("model"), Mapping):
        return Foreign(_only_tensors(content["model"], path), "fairseq", _fairseq_options(content, path))
    return Foreign(_only_tensors(content, path), "tensors", {})


def read_torch(path: Path, *, mmap: bool = False) -> dict:
    """The dict of a PyTorch file, on the CPU.

    Args:
        mmap: read a tensor's bytes when they are used: of a training checkpoint without its optimizer, a third.

    Raises:
        CheckpointError: no PyTorch file, a damaged one, classes that are not allowed, or something else than a dict.
    """
    allow_fairseq_classes()
    try:
        with torch.serialization.safe_globals(NUMPY_CLASSES):
            # files from before torch 1.6 are no archives and cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except LOAD_ERRORS as error:
        reason = (str(error).splitlines() or [""])[0]
        if "weights_only" in reason:  # torch's advice to run what the file holds is no advice
            reason = "it holds other things than weights and plain values, or is no PyTorch file"
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file of weights and plain values: {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict with the model's weights")
    return content


def read_content(path: str | Path) -> dict:
    """What lies in a file, at its top level: a PyTorch file's dict (tensors memory-mapped), or named tensors.

    Raises:
        CheckpointError: as ``read_torch``, or the path is no file.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the checkpoint file")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the file with the weights in it (.pth, .pt, .safetensors)")
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path, mmap=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _read_hugging_face(folder: Path) -> Foreign:
    config = folder / "config.json"
    if not config.is_file():
        fairseq_file = folder / "model.pt"
        remedy = f"give {fairseq_file}" if fairseq_file.is_file() else "expected a Hugging Face directory"
        raise CheckpointError(f"{folder} has no config.json: {remedy}")
    metadata = read_json(config)
    for name in HUGGING_FACE_WEIGHTS:
        if (folder / name).is_file():
            return Foreign(_read_weights(folder / name), "huggingface", metadata)
        index = folder / f"{name}.index.json"
        if index.is_file():  # weights in several files
            shards = sorted(set(read_json(index).get("weight_map", {}).values()))
            state = {key: value for shard in shards for key, value in _read_weights(folder / shard).items()}
            return Foreign(state, "huggingface", metadata)
    raise CheckpointError(f"{folder} has neither {' nor '.join(HUGGING_FACE_WEIGHTS)}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, but the index beside it names it: download it again")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _only_tensors(read_torch(path), path)


def read_json(path: Path) -> dict:
    """A JSON object, or a CheckpointError that names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def _only_tensors(state: Mapping, path: Path) -> dict[str, Tensor]:
    others = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = f"{others[0]!r} is no tensor" if others else "it is empty"
        raise CheckpointError(f"{path} is no state dict ({found}): expected named tensors, or 'model' with them")
    return dict(state)


def _fairseq_options(content: dict, path: Path) -> dict:
    """``args``, or since fairseq 0.10 the sections ``task`` and ``model`` of ``cfg``, which may be namespaces."""
    # the model's references to the task ("${task.max_source_positions}") give way to the task's values
    sections = [content["cfg"].get(name) for name in ("model", "task")] if content.get("cfg") else [content.get("args")]
    options = {}
    for section in sections:
        if OmegaConf.is_config(section):
            section = OmegaConf.to_container(section)  # also with values that nobody has set
        options |= section if isinstance(section, Mapping) else vars(section or Namespace())
    if not options:
        raise CheckpointError(f"{path} has neither args nor cfg.model, which tell heads and activation of the model")
    return options
