"""Reading foreign checkpoints and loading them strictly into our modules."""

import json
import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from fairseq import utils
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor, nn

from slt_plugin.checkpoints.keymaps import FAIRSEQ_TEXT, HUGGING_FACE_TEXT, CheckpointError, KeyTable, convert, fit
from slt_plugin.checkpoints.safe import LOAD_ERRORS, allow_fairseq_classes
from slt_plugin.text.vocabulary import language_code, printable_symbols, read_dictionary_file

logger = logging.getLogger(__name__)

ENCODER_PREFIX, DECODER_PREFIX = "encoder.text_encoder.", "decoder."
HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HUGGING_FACE_TYPES = ("bart", "mbart")
# Hugging Face's name of an activation -> fairseq's
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_accurate", "tanh": "tanh", "silu": "swish"}
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


@dataclass(frozen=True)
class LoadReport:
    """What ``load_pretrained_text`` did: tensors loaded, and names that kept the model's own values."""

    path: Path
    kind: str
    loaded: int
    missing: tuple[str, ...]


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
    content = _read_torch(path)
    if isinstance(content.get("model"), Mapping):
        return Foreign(_only_tensors(content["model"], path), "fairseq", _fairseq_options(content, path))
    return Foreign(_only_tensors(content, path), "tensors", {})


def load_pretrained_text(
    encoder_text: nn.Module | None,
    decoder: nn.Module | None,
    path: str | Path,
    *,
    dictionary: Dictionary | None = None,
    allow_missing: tuple[str, ...] = (),
) -> LoadReport:
    """Loads a fairseq ``model.pt`` or a Hugging Face directory of BART or mBART into a text encoder and decoder.

    Args:
        encoder_text: fairseq TransformerEncoderBase, with or without a token table; None: not loaded.
        decoder: fairseq TransformerDecoderBase; None: not loaded.
        dictionary: the vocabulary of the model. Its order is compared with the ``dict.txt`` beside a fairseq file, or
            with the tokenizer files of a Hugging Face directory.
        allow_missing: patterns of our names (``decoder.layers.3.fc1.weight``) that the file may lack.

    Raises:
        CheckpointError: the file does not fit: names, shapes, heads, activation, embedding scale, vocabulary.
    """
    path = Path(path)
    foreign = read_foreign(path)
    if foreign.kind == "tensors":
        raise CheckpointError(
            f"{path}: the weights alone do not tell heads and activation: give the fairseq model.pt, or the Hugging "
            "Face directory that holds config.json and the weights"
        )
    parts = {prefix: m for prefix, m in ((ENCODER_PREFIX, encoder_text), (DECODER_PREFIX, decoder)) if m is not None}
    target = {prefix + name: tensor for prefix, m in parts.items() for name, tensor in m.state_dict().items()}
    table = FAIRSEQ_TEXT if foreign.kind == "fairseq" else HUGGING_FACE_TEXT
    try:
        check_options(foreign, encoder_text, decoder)
        if decoder is not None and dictionary is not None:
            check_vocabulary(path, foreign.kind, dictionary)
        state = {k: v for k, v in convert(foreign.state, table).items() if k.startswith(tuple(parts))}
        state, missing = _fit_with_remedy(state, target, table, allow_missing)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for prefix, module in parts.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        module.load_state_dict(own, strict=False)  # `fit` has compared every name
    report = LoadReport(path, foreign.kind, len(state), tuple(missing))
    logger.info("loaded %d tensors of %s (%s) into %s", report.loaded, path, report.kind, " and ".join(parts))
    return report


def check_options(foreign: Foreign, encoder_text: nn.Module | None, decoder: nn.Module | None) -> None:
    """Compares what the shapes of the weights do not show: attention heads, activation, embedding scale.

    Raises:
        CheckpointError: every option that differs, with the value to set.
    """
    options, problems = foreign.metadata, []
    if foreign.kind == "huggingface":
        if options.get("model_type") not in HUGGING_FACE_TYPES:
            raise CheckpointError(
                f"config.json has model_type {options.get('model_type')!r}; expected {' or '.join(HUGGING_FACE_TYPES)}"
            )
        name = options.get("activation_function")
        if name not in ACTIVATIONS:
            raise CheckpointError(f"config.json has activation_function {name!r}; known: {', '.join(ACTIVATIONS)}")
        activation = ACTIVATIONS[name]
        scaled = options.get("scale_embedding")
    else:
        activation = options.get("activation_fn")
        scaled = None if "no_scale_embedding" not in options else not options["no_scale_embedding"]
    for part, module in (("encoder", encoder_text), ("decoder", decoder)):
        if module is None or not len(module.layers):
            continue
        layer = module.layers[0]
        heads = options.get(f"{part}_attention_heads")
        if heads is not None and layer.self_attn.num_heads != heads:
            problems.append(f"model.{part}_attention_heads={heads} (now {layer.self_attn.num_heads})")
        if activation is not None and layer.activation_fn != utils.get_activation_fn(activation):
            problems.append(f"model.activation_fn={activation} ({part})")
        scale = sqrt(layer.embed_dim) if scaled else 1.0
        if scaled is not None and abs(module.embed_scale - scale) > 1e-6:
            problems.append(f"model.scale_embedding={str(bool(scaled)).lower()} ({part})")
    if problems:
        raise CheckpointError(f"the weights were trained with other options: set {', '.join(problems)}")


def check_vocabulary(path: Path, kind: str, dictionary: Dictionary) -> None:
    """Compares the order of the vocabulary that ships with the weights with ``dictionary``.

    The file may be shorter: fairseq's tasks add ``<mask>`` and language symbols behind it; the number of rows is
    compared with the weights.

    Raises:
        CheckpointError: names the first symbol that differs.
    """
    if kind == "fairseq":
        file = path.parent / "dict.txt"
        theirs = dict(enumerate(read_dictionary_file(file.read_bytes(), str(file)))) if file.is_file() else {}
    else:
        file, theirs = _hugging_face_tokens(path)
        ours = dictionary.symbols[dictionary.nspecial :]
        if sum(symbol.isdecimal() for symbol in ours) * 2 > len(ours):
            theirs = {}  # a gpt2_bpe codec: symbols are GPT-2's numbers, while Hugging Face writes the tokens
    if not theirs:
        logger.warning("%s: no vocabulary to compare with; the codec's order is taken for the weights'", path)
        return
    for index, symbol in sorted(theirs.items()):
        own = dictionary.symbols[index] if index < len(dictionary) else None
        if own != symbol and (own is None or language_code(own) is None or language_code(own) != language_code(symbol)):
            raise CheckpointError(
                f"the vocabulary of the codec is not that of {file}: symbol {index} is {own!r} in the codec and "
                f"{symbol!r} in the file. Build the codec from the vocabulary that ships with these weights"
            )


def _fit_with_remedy(state, target, table: KeyTable, allow_missing: tuple[str, ...]):
    """``fit`` with advice for the two shapes that mostly differ."""
    try:
        return fit(state, target, table, allow_missing)
    except CheckpointError as error:
        advice = ""
        for name, option in (
            ("decoder.embed_tokens.weight", "build the codec from the vocabulary that ships with these weights"),
            ("encoder.text_encoder.embed_positions.weight", "set model.max_encoder_positions to the file's rows - 2"),
            ("decoder.embed_positions.weight", "set model.max_decoder_positions to the file's rows - 2"),
        ):
            if name in state and name in target and state[name].shape[0] != target[name].shape[0]:
                rows = f"{len(state[name])} rows in the file, {len(target[name])} in the model"
                advice += f". {name} has {rows}: {option}"
        raise CheckpointError(f"{error}{advice}") from error


# Files


def _read_torch(path: Path) -> dict:
    allow_fairseq_classes()
    try:
        with torch.serialization.safe_globals(NUMPY_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file of weights and plain values: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict with the model's weights")
    return content


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
    metadata = _read_json(config)
    for name in HUGGING_FACE_WEIGHTS:
        if (folder / name).is_file():
            return Foreign(_read_weights(folder / name), "huggingface", metadata)
        index = folder / f"{name}.index.json"
        if index.is_file():  # weights in several files
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
            state = {key: value for shard in shards for key, value in _read_weights(folder / shard).items()}
            return Foreign(state, "huggingface", metadata)
    raise CheckpointError(f"{folder} has neither {' nor '.join(HUGGING_FACE_WEIGHTS)}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, but the index beside it names it: download it again")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _only_tensors(_read_torch(path), path)


def _read_json(path: Path) -> dict:
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


def _hugging_face_tokens(folder: Path) -> tuple[Path, dict[int, str]]:
    """(file, id -> token) of a tokenizer directory; nothing where it only has a SentencePiece model."""
    file = folder / "tokenizer.json"
    tokens: dict[int, str] = {}
    if file.is_file():
        content = _read_json(file)
        vocabulary = content.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # Unigram: [piece, score]
            tokens = {index: piece for index, (piece, _) in enumerate(vocabulary)}
        else:
            tokens = {index: token for token, index in vocabulary.items()}
        tokens |= {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    elif (folder / "vocab.json").is_file():
        file = folder / "vocab.json"
        tokens = {index: token for token, index in _read_json(file).items()}
    ids = sorted(tokens)
    return file, dict(zip(ids, printable_symbols([tokens[index] for index in ids]), strict=True))
