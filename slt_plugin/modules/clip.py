"""Towers of a video-text model: a Hugging Face text encoder that reads sentences, and the projections behind both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import listing

logger = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "tokenizer_config.json")
# what a file may lack: parts that are not used, and tables that are computed
UNUSED_WEIGHTS = ("pooler.", "position_ids")


class TextTowerError(SltError):
    """A directory that gives no text encoder, or a length that it does not read."""


class Projection(nn.Module):
    """Two linear layers without biases and a GELU between them: (B, in_dim) -> (B, dim), not normalised."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def mean_over_valid(states: Tensor, padding_mask: Tensor) -> Tensor:
    """states (B, T, C), padding_mask (B, T) True = padding -> the mean of the others, (B, C)."""
    valid = (~padding_mask).unsqueeze(-1)
    return states.masked_fill(~valid, 0).sum(1) / valid.sum(1).clamp(min=1)


class HFTextTower(nn.Module):
    """Sentences -> the mean of the encoder's states over their tokens, begin and end symbols included.

    Make it with ``from_directory``.

    Args:
        encoder: a transformers encoder. tokenizer: its tokenizer; it is no part of the state dict.
        max_tokens: what is longer is cut.
    """

    def __init__(self, encoder: nn.Module, tokenizer, *, max_tokens: int):
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.width: int = encoder.config.hidden_size

    @classmethod
    def from_directory(cls, directory: str | Path, *, max_tokens: int, weights: bool = True) -> HFTextTower:
        """The encoder and the tokenizer in a local directory, of T5 or any other encoder-decoder the encoder alone.

        Args:
            directory: as ``save_pretrained`` and ``hf download`` write it.
            weights: False: sizes as in config.json with random values, for a checkpoint that is loaded afterwards.

        Raises:
            TextTowerError: transformers or files are missing, do not belong together, or ``max_tokens`` is longer than
                what the encoder reads.
        """
        folder = Path(directory)
        check_directory(folder, weights=weights)
        tokenizer, encoder = _load(folder, weights)
        limit = _longest(encoder.config, tokenizer)
        if not 2 <= max_tokens <= limit:
            raise TextTowerError(f"{folder} reads texts of 2 to {limit} tokens: max_tokens={max_tokens} is outside")
        if tokenizer.pad_token_id is None:
            raise TextTowerError(
                f"{folder}: its tokenizer ({type(tokenizer).__name__}) has no padding symbol: set pad_token in "
                "tokenizer_config.json, or choose an encoder such as BERT or T5"
            )
        if len(tokenizer) > encoder.get_input_embeddings().num_embeddings:
            raise TextTowerError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens, the encoder's table "
                f"{encoder.get_input_embeddings().num_embeddings}: these files do not belong together"
            )
        return cls(encoder, tokenizer, max_tokens=max_tokens)

    def tokenise(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (1 = valid), (B, T) int64 each, on the encoder's device."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        device = self.encoder.device
        return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> (B, width)."""
        batch = self.tokenise(texts)
        states = self.encoder(**batch).last_hidden_state  # B x T x C
        return mean_over_valid(states, batch["attention_mask"] == 0)


def check_directory(folder: Path, *, weights: bool) -> None:
    """Raises TextTowerError that names every file which a Hugging Face text encoder lacks in ``folder``."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        # a repository's name on the hub has one slash, and so have many paths
        is_name = len(folder.parts) == 2 and not folder.is_absolute() and not folder.parent.exists()
        name = str(folder) if is_name else "google-t5/t5-base"
        raise TextTowerError(
            f"{folder} {what}: give the local directory of a Hugging Face text encoder; a training downloads nothing. "
            f"Once, where there is a network: hf download {name} --local-dir {Path(name).name}"
        )
    wanted = {"config.json": ("config.json",), f"a tokenizer ({', '.join(TOKENIZER_FILES)})": TOKENIZER_FILES}
    if weights:
        wanted[f"weights ({', '.join(WEIGHT_FILES)})"] = WEIGHT_FILES
    missing = [what for what, names in wanted.items() if not any(any(folder.glob(name)) for name in names)]
    if missing:
        raise TextTowerError(
            f"{folder} is no directory of a Hugging Face text encoder: it lacks {' and '.join(missing)}. It holds "
            f"{listing(sorted(file.name for file in folder.iterdir())) or 'nothing'}"
        )


def _load(folder: Path, weights: bool):
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    except ImportError as error:
        raise TextTowerError(
            f"a Hugging Face text tower needs transformers ({error}): pip install 'slt-plugin[hf]'"
        ) from error
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # of T5 and its relatives transformers has the encoder alone
        alone = config.is_encoder_decoder and type(config) in AutoModelForTextEncoding._model_mapping
        factory = AutoModelForTextEncoding if alone else AutoModel
        if weights:
            encoder, report = factory.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,  # else that of the file
                output_loading_info=True,
            )
            lacking = [name for name in report["missing_keys"] if not any(part in name for part in UNUSED_WEIGHTS)]
            if lacking:  # transformers would train on from random values
                raise TextTowerError(f"{folder}: its weights lack {listing(sorted(lacking))}: download it again")
        else:
            encoder = factory.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except TextTowerError:
        raise
    except Exception as error:  # tokenizers and safetensors raise plain Exception for damaged files
        raise TextTowerError(
            f"transformers cannot load a text encoder and its tokenizer from {folder}: "
            f"{' '.join(str(error).split())} Give a directory of T5, BERT or another encoder that save_pretrained wrote"
        ) from error
    if config.is_encoder_decoder and not alone:
        encoder = encoder.get_encoder()
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # reads the first token alone: it would never get a gradient
    return tokenizer, encoder.float()


def _longest(config, tokenizer) -> int:
    """The most tokens that the encoder reads; T5 has no bound of its own."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # the table begins behind the padding symbol
    return min(positions or 2**20, tokenizer.model_max_length)
