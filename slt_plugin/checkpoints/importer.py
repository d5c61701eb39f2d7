"""Foreign weights, loaded strictly into our modules: BART and mBART here, others from the file of their project."""

import logging
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from fairseq import utils
from fairseq.data import Dictionary
from torch import nn

from slt_plugin.checkpoints.foreign import Foreign, read_foreign, read_json
from slt_plugin.checkpoints.keymaps import FAIRSEQ_TEXT, HUGGING_FACE_TEXT, CheckpointError, KeyTable, convert, fit
from slt_plugin.checkpoints.sign_hiera import load_sign_hiera
from slt_plugin.checkpoints.sonar import load_sonar_decoder, load_sonar_encoder, load_sonar_text_encoder
from slt_plugin.text.vocabulary import language_code, printable_symbols, read_dictionary_file

__all__ = [
    "Foreign",
    "LoadReport",
    "load_pretrained_text",
    "load_sign_hiera",
    "load_sonar_decoder",
    "load_sonar_encoder",
    "load_sonar_text_encoder",
    "read_foreign",
]

logger = logging.getLogger(__name__)

ENCODER_PREFIX, DECODER_PREFIX = "encoder.text_encoder.", "decoder."
HUGGING_FACE_TYPES = ("bart", "mbart")
# Hugging Face's name of an activation -> fairseq's
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_accurate", "tanh": "tanh", "silu": "swish"}


@dataclass(frozen=True)
class LoadReport:
    """What ``load_pretrained_text`` did: tensors loaded, and names that kept the model's own values."""

    path: Path
    kind: str
    loaded: int
    missing: tuple[str, ...]


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


def _hugging_face_tokens(folder: Path) -> tuple[Path, dict[int, str]]:
    """(file, id -> token) of a tokenizer directory; nothing where it only has a SentencePiece model."""
    file = folder / "tokenizer.json"
    tokens: dict[int, str] = {}
    if file.is_file():
        content = read_json(file)
        vocabulary = content.get("model", {}).get("vocab", {})
        if isinstance(vocabulary, list):  # Unigram: [piece, score]
            tokens = {index: piece for index, (piece, _) in enumerate(vocabulary)}
        else:
            tokens = {index: token for token, index in vocabulary.items()}
        tokens |= {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    elif (folder / "vocab.json").is_file():
        file = folder / "vocab.json"
        tokens = {index: token for token, index in read_json(file).items()}
    ids = sorted(tokens)
    return file, dict(zip(ids, printable_symbols([tokens[index] for index in ids]), strict=True))
