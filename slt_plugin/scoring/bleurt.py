"""BLEURT (Sellam et al. 2020, arXiv 2004.04696; BLEURT-20: Pu et al. 2021, arXiv 2110.06341) in PyTorch.

Checkpoints are folders as https://huggingface.co/lucadiliello has them (BLEURT-20, BLEURT-20-D12, bleurt-base-512,
...): the weights of Google's release under the names that the package ``bleurt-pytorch`` gives them, as
``config.json``, ``model.safetensors`` or ``pytorch_model.bin``, and ``spm.model`` (BLEURT-20) or ``vocab.txt``. The
package itself (last release 0.0.1) cannot be imported with transformers 5. But the networks are BERT, and RemBERT where
embeddings are narrower than layers: transformers' own classes hold the weights, and sentencepiece and ``tokenizers``
cut the texts, as in the original.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.ratio import Ratio

logger = logging.getLogger(__name__)

BATCH = 16  # sentence pairs
EXTRA = "install the extra: pip install 'slt-plugin[bleurt]'"
SHARED = (  # entries of config.json that mean the same to BERT and RemBERT
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


class Bleurt(Ratio):
    """Mean BLEURT of the sentences, x 100; each pair of texts goes through the network once in a process.

    Args:
        folder: of the checkpoint.

    Raises:
        ScoringError: the extra is not installed, or ``folder`` is no checkpoint of BLEURT.
    """

    def __init__(self, folder: Path, *, lowercase: bool = False):
        self.network = load(Path(folder).resolve())
        package = f"transformers-{version('transformers')}"
        case = "lc" if lowercase else "mixed"
        super().__init__("BLEURT", {"case": case, "model": self.network.name, "version": package})

    def statistics(self, hypothesis: str, reference: str) -> tuple[float, float]:
        """BLEURT, about 0 to 1 but without bounds, and 1 sentence."""
        return self.network([hypothesis], [reference])[0], 1.0

    def _extract_corpus_statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]):
        return [[value, 1.0] for value in self.network(hypotheses, references[0])]


class Network:
    """A loaded checkpoint: ``network(hypotheses, references)`` gives one float a pair.

    Args:
        name: folder and checksum of its weights.
        model: a sequence classifier with one output, in evaluation mode.
        encode: text -> numbers of its pieces, without special ones.
        special: numbers of [CLS] and [SEP].
        pad: number that fills batches up.
        longest: pieces of a pair with its special ones; longer pairs are cut as the original does it.
    """

    def __init__(
        self, name: str, model, encode: Callable[[str], list[int]], special: tuple[int, int], pad: int, longest: int
    ):
        self.name, self.longest = name, longest
        self._model, self._encode, self._special, self._pad = model, encode, special, pad
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = list(zip(hypotheses, references, strict=True))
        unknown = {pair: self.pieces(*pair) for pair in dict.fromkeys(pairs) if pair not in self._known}
        order = sorted(unknown, key=lambda pair: len(unknown[pair][0]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            self._known.update(zip(batch, self._run([unknown[pair] for pair in batch]), strict=True))
        return [self._known[pair] for pair in pairs]

    def pieces(self, hypothesis: str, reference: str) -> tuple[list[int], list[int]]:
        """[CLS] reference [SEP] hypothesis [SEP], and 0 up to the first [SEP], then 1."""
        first, second = self._encode(reference), self._encode(hypothesis)
        if len(first) + len(second) > self.longest - 3:
            logger.warning("BLEURT reads %d pieces; a longer pair is cut: %.60r", self.longest, reference)
        while len(first) + len(second) > self.longest - 3:
            (first if len(first) > len(second) else second).pop()
        start, end = self._special
        return [start, *first, end, *second, end], [0] * (len(first) + 2) + [1] * (len(second) + 1)

    def _run(self, batch: list[tuple[list[int], list[int]]]) -> list[float]:
        import torch

        device = next(self._model.parameters()).device
        width = max(len(numbers) for numbers, _ in batch)
        numbers = torch.tensor([numbers + [self._pad] * (width - len(numbers)) for numbers, _ in batch])
        segments = torch.tensor([kinds + [0] * (width - len(kinds)) for _, kinds in batch])
        lengths = torch.tensor([[len(numbers)] for numbers, _ in batch])
        mask = (torch.arange(width) < lengths).long()
        with torch.inference_mode():
            logits = self._model(
                input_ids=numbers.to(device), attention_mask=mask.to(device), token_type_ids=segments.to(device)
            ).logits
        return logits.flatten().tolist()


@cache
def load(folder: Path) -> Network:
    """The checkpoint in ``folder``, on a GPU where there is one. Raises ScoringError as `Bleurt` does."""
    try:
        import torch
        import transformers  # noqa: F401  only to see early that the extra is there
    except ImportError as error:
        raise ScoringError(f"BLEURT needs transformers, which cannot be imported ({error}); {EXTRA}") from error
    config = _json(folder / "config.json")
    if config.get("model_type") != "bleurt":
        raise ScoringError(
            f"{folder}: model_type of config.json is {config.get('model_type')!r}, not 'bleurt'; give the folder of a "
            "BLEURT checkpoint in PyTorch, for example a download of https://huggingface.co/lucadiliello/BLEURT-20 "
            "(Google's own downloads are TensorFlow's)"
        )
    weights = _weights(folder)
    state, checksum = _read(weights)
    try:
        model = _build(config, state)
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ScoringError(f"{weights}: does not fit {folder / 'config.json'} ({error}); download it again") from error
    encode, special = _tokeniser(folder)
    longest = model.config.max_position_embeddings
    settings = folder / "tokenizer_config.json"
    if settings.exists():  # "no limit" is written there as 1e30
        longest = int(min(longest, _json(settings).get("model_max_length") or longest))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Network(
        f"{folder.name}-{checksum}", model.eval().to(device), encode, special, model.config.pad_token_id, longest
    )


def _build(config: dict, state: dict):
    """The network with the checkpoint's weights. Raises KeyError, TypeError, ValueError or RuntimeError."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        RemBertConfig,
        RemBertForSequenceClassification,
    )

    shared = {key: config[key] for key in SHARED if key in config} | {"num_labels": 1}
    if config.get("embedding_size") is None:
        model, prefix = BertForSequenceClassification(BertConfig(**shared)), "bert."
    else:
        narrow = RemBertConfig(**shared, input_embedding_size=config["embedding_size"])
        model, prefix = RemBertForSequenceClassification(narrow), "rembert."
    renamed = {
        key.replace("bleurt.", prefix, 1).replace(".embedding_projection.", ".embedding_hidden_mapping_in."): value
        for key, value in state.items()
        if not key.endswith("position_ids")  # a constant that older files hold
    }
    model.load_state_dict(renamed, strict=True)
    return model


def _tokeniser(folder: Path) -> tuple[Callable[[str], list[int]], tuple[int, int]]:
    """Text -> numbers of its pieces; numbers of [CLS] and [SEP]. BLEURT-20 has sentencepiece, older ones WordPiece."""
    models = sorted(folder.glob("*.model"))
    if models:
        from sentencepiece import SentencePieceProcessor

        try:
            processor = SentencePieceProcessor(model_file=str(models[0]))
        except (OSError, RuntimeError) as error:
            raise ScoringError(f"{models[0]}: cannot be read ({error}); download it again") from error
        special = tuple(processor.piece_to_id(piece) for piece in ("[CLS]", "[SEP]"))
        if processor.unk_id() in special:
            raise ScoringError(f"{models[0]}: no [CLS] or [SEP] among its pieces, so it is no vocabulary of BLEURT")
        return processor.encode, special
    vocabulary = folder / "vocab.txt"
    if not vocabulary.exists():
        raise ScoringError(f"{folder}: neither spm.model nor vocab.txt; download the whole checkpoint")
    from tokenizers import BertWordPieceTokenizer

    settings = folder / "tokenizer_config.json"
    lower = _json(settings).get("do_lower_case", True) if settings.exists() else True
    try:
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=lower)
    except TypeError as error:
        raise ScoringError(f"{vocabulary}: {error}; download the checkpoint again") from error
    special = tuple(tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))
    return (lambda text: tokenizer.encode(text, add_special_tokens=False).ids), special


def _weights(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return folder / name
    raise ScoringError(f"{folder}: neither model.safetensors nor pytorch_model.bin; download the whole checkpoint")


def _read(path: Path) -> tuple[dict, str]:
    """Tensors by name, and the first digits of the file's SHA-256."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        with open(path, "rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ScoringError(f"{path}: cannot be read ({error}); download it again") from error
    return state, checksum[:8]


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScoringError(f"{path}: cannot be read ({error.strerror or error}); check the folder") from error
    except ValueError as error:
        raise ScoringError(f"{path}: no JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ScoringError(f"{path}: no JSON object; download it again")
    return content
