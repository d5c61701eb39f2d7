"""The text tower of ``sign_clip``: a Hugging Face encoder, or the encoder of a fairseq BART or mBART."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from fairseq.data.data_utils import collate_tokens
from fairseq.models.transformer import TransformerConfig, TransformerEncoderBase
from torch import Tensor, nn

from slt_plugin.checkpoints.importer import load_pretrained_text, read_foreign
from slt_plugin.models.errors import OptionError
from slt_plugin.modules.clip import HFTextTower, TextTowerError, mean_over_valid
from slt_plugin.text import gpt2_tokenizer
from slt_plugin.text.codec import TextCodec, build_codec

logger = logging.getLogger(__name__)

FAIRSEQ_WEIGHTS = "model.pt"
SENTENCEPIECE_MODELS = ("sentence.bpe.model", "sentencepiece.bpe.model", "*.model")


def build_text_tower(
    directory: str, *, max_tokens: int, language: str | None = None, weights: bool = True
) -> nn.Module:
    """The text encoder in a directory, as a module that maps B sentences to (B, ``width``).

    Args:
        directory: with config.json: Hugging Face's; with model.pt: fairseq's.
        max_tokens: what is longer is cut.
        language: of the texts, where the vocabulary has languages (mBART).
        weights: False: a checkpoint is loaded afterwards. Hugging Face's weights are not read then; fairseq's file is,
            as it holds the sizes.

    Raises:
        TextTowerError, CheckpointError, CodecError: files that are missing, damaged or do not belong together.
        OptionError: a language that the vocabulary does not have, or none where it needs one.
    """
    folder = Path(directory)
    is_fairseq = (folder / FAIRSEQ_WEIGHTS).is_file() and not (folder / "config.json").is_file()
    if is_fairseq:
        return FairseqTextTower.from_directory(folder, max_tokens=max_tokens, language=language, weights=weights)
    tower = HFTextTower.from_directory(folder, max_tokens=max_tokens, weights=weights)
    if language is not None:
        raise OptionError(f"model.text_lang={language} is for mBART of fairseq, {directory} has no use for it: null")
    return tower


class FairseqTextTower(nn.Module):
    """Sentences -> the mean of fairseq's encoder states over their tokens, begin and end symbols included.

    Args:
        encoder: with its token table. codec: the vocabulary, no part of the state dict.
        max_tokens: what is longer is cut.
        language: the id that follows each text (mBART); None: no language.
    """

    def __init__(self, encoder: TransformerEncoderBase, codec: TextCodec, *, max_tokens: int, language: int | None):
        super().__init__()
        self.encoder = encoder
        self.codec = codec
        self.max_tokens = max_tokens
        self.language = language
        self.width: int = encoder.embed_tokens.embedding_dim

    @classmethod
    def from_directory(
        cls, folder: Path, *, max_tokens: int, language: str | None, weights: bool
    ) -> "FairseqTextTower":
        """See `build_text_tower`; model.pt, dict.txt, and encoder.json with vocab.bpe or a SentencePiece model."""
        path = folder / FAIRSEQ_WEIGHTS
        options = read_foreign(path).metadata
        languages = tuple(filter(None, str(options.get("langs") or "").split(",")))
        codec = _codec(folder, languages)
        if codec.languages and language is None:
            raise OptionError(
                f"{folder} is a model of many languages: set model.text_lang to that of the texts, such as "
                f"{codec.languages[0]}"
            )
        if language is not None and not codec.languages:
            raise OptionError(f"model.text_lang={language}: {folder} has no languages, so set it to null")
        cfg = TransformerConfig.from_namespace(Namespace(**options))
        if not 4 <= max_tokens <= cfg.max_source_positions:
            raise OptionError(
                f"model.text_max_tokens={max_tokens}: {folder} reads texts of 4 to {cfg.max_source_positions} tokens"
            )
        dictionary = codec.dictionary
        table = nn.Embedding(len(dictionary), cfg.encoder.embed_dim, padding_idx=dictionary.pad())
        encoder = TransformerEncoderBase(cfg, dictionary, table)
        if weights:
            load_pretrained_text(encoder, None, path)
        token = None if language is None else codec.language_id(language)
        return cls(encoder, codec, max_tokens=max_tokens, language=token)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """(B, T) int64, padded behind each text."""
        last = [] if self.language is None else [self.language]
        rows = []
        for text in texts:
            ids = self.codec.encode(text)  # the end symbol is the last
            room = self.max_tokens - len(last)
            if len(ids) > room:
                ids = torch.cat([ids[: room - 1], ids[-1:]])
            rows.append(torch.cat([ids, torch.tensor(last, dtype=torch.int64)]))
        return collate_tokens(rows, self.codec.dictionary.pad()).to(self.encoder.embed_tokens.weight.device)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> (B, width)."""
        tokens = self.tokenise(texts)
        padding_mask = tokens == self.codec.dictionary.pad()
        states = self.encoder(tokens)["encoder_out"][0].transpose(0, 1)  # T x B x C -> B x T x C
        return mean_over_valid(states, padding_mask)


def _codec(folder: Path, languages: tuple[str, ...]) -> TextCodec:
    dictionary = folder / "dict.txt"
    models = [file for pattern in SENTENCEPIECE_MODELS for file in sorted(folder.glob(pattern))]
    has_gpt2 = all((folder / name).is_file() for name in gpt2_tokenizer.FILES)
    if not dictionary.is_file() or not (has_gpt2 or models):
        raise TextTowerError(
            f"{folder} lacks the vocabulary of its {FAIRSEQ_WEIGHTS}: add {', '.join(gpt2_tokenizer.FILES)} (BART), or "
            "dict.txt and a SentencePiece .model (mBART)"
        )
    if has_gpt2:
        return build_codec("gpt2_bpe", folder)
    return build_codec("sentencepiece", models[0], dictionary_path=dictionary, languages=languages)
