"""Where a model of the Hugging Face hub lies on this machine: a directory, or the hub's cache."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from slt_plugin.text.errors import HubError

logger = logging.getLogger(__name__)

# "t5-small", "google/mt5-base"; what starts like a path or has more parts is one
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# configuration, tokenizer and PyTorch weights: a repository may hold those of TensorFlow, Flax and ONNX as well
_SMALL = ("*.json", "*.model", "*.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # the first of these that the repository has


def resolve(name: str | Path) -> Path:
    """A directory, or the id of a model on the hub -> the directory with its files.

    The hub's cache comes first. What is not in it is downloaded, unless HF_HUB_OFFLINE is set.

    Raises:
        HubError: no such directory; or the model is not in the cache and cannot be downloaded. The message holds the
            command that downloads it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise HubError(f"{name} is a file: give the directory of a Hugging Face model, or its id on the hub")
    if not _ID.fullmatch(str(name)):
        raise HubError(f"{name} does not exist: give the directory of a Hugging Face model, or its id on the hub")
    try:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise HubError(f"models of the hub need transformers ({error}): pip install 'slt-plugin[hf]'") from error
    cached = _cached(huggingface_hub, str(name), LocalEntryNotFoundError)
    if cached is not None:
        return cached
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise HubError(_message(name, "HF_HUB_OFFLINE is set"))
    logger.info("%s is not in the cache: downloading it from the hub", name)
    try:
        return _download(huggingface_hub, str(name))
    except RepositoryNotFoundError as error:
        raise HubError(_message(name, "the hub knows no such model (or it is private: hf auth login)")) from error
    except Exception as error:  # without a network: errors of the HTTP client that huggingface_hub has at the moment
        cause = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise HubError(_message(name, f"the hub does not answer: {cause}")) from error


def _cached(huggingface_hub, name: str, missing: type[Exception]) -> Path | None:
    """The snapshot in the cache; None where there is none, or one that lacks its weights."""
    try:
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except missing:
        return None
    complete = (folder / "config.json").is_file() and any(next(folder.glob(p), None) for p in _WEIGHTS)
    return folder if complete else None


def _download(huggingface_hub, name: str) -> Path:
    files = huggingface_hub.list_repo_files(name)
    weights = next((p for p in _WEIGHTS if any(Path(file).match(p) for file in files)), _WEIGHTS[0])
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_SMALL, weights]))


def _message(name: str | Path, why: str) -> str:
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return (
        f"the model {name} is neither a directory nor in the hub's cache ({cache}), and {why}. Download it where the "
        f"network is there, 'hf download {name}', with HF_HOME on a disk that this machine sees too; or with "
        "--local-dir FOLDER, and give FOLDER instead of the id"
    )
