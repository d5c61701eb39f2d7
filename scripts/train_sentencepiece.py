#!/usr/bin/env python3
"""Train a SentencePiece vocabulary on the texts of manifests.

    python scripts/train_sentencepiece.py data/train.tsv --model-type bpe --vocab-size 7000 --out data/spm

writes data/spm.model and data/spm.vocab. The ids of the model equal those of the fairseq dictionary that
`task.codec=sentencepiece` makes of it (<s> 0, <pad> 1, </s> 2, <unk> 3, then the pieces), and the vocabulary size
counts these four. The same texts and options give the same bytes: nothing is sampled, so there is no seed.
"""

import argparse
import io
import re
import sys
from pathlib import Path

import sentencepiece

from slt_plugin.common.files import atomic_open
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest

# The order of sums depends on the number of threads: a fixed number gives the same model on every machine.
THREADS = 4
# An upper limit for char, which takes what the text has (its use_all_vocab option would ignore the coverage).
ALL_CHARACTERS = sys.maxunicode + 1
SPECIALS = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}


class TrainingError(ValueError):
    """Options that do not fit the text; the message says which would."""


def train(texts: list[str], *, model_type: str, vocab_size: int | None, character_coverage: float) -> bytes:
    """Texts -> bytes of a SentencePiece model.

    `char` takes every character that the coverage keeps; the other types need `vocab_size`.

    Raises:
        TrainingError: the size does not fit the texts, or SentencePiece refuses them.
    """
    # SentencePiece silently leaves out sentences above max_sentence_length bytes
    longest = max(len(text.encode("utf-8")) for text in texts)
    writer = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=writer,
            model_type=model_type,
            vocab_size=vocab_size or ALL_CHARACTERS,
            character_coverage=character_coverage,
            max_sentence_length=longest + 1,
            num_threads=THREADS,
            minloglevel=2,
            **SPECIALS,
        )
    except RuntimeError as error:
        raise TrainingError(_explain(str(error), vocab_size)) from error
    return writer.getvalue()


def _explain(message: str, vocab_size: int | None) -> str:
    if found := re.search(r"Vocabulary size too high .* value <= (\d+)", message):
        return (
            f"--vocab-size {vocab_size} is too large for this text: the largest possible is {found[1]}. "
            "Give that or less, or more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"--vocab-size {vocab_size} is too small: the characters of the text alone need {found[1]}. "
            "Give at least that, or lower --character-coverage"
        )
    return f"SentencePiece cannot train on this text: {message}"


def vocab_lines(model: bytes) -> str:
    """The `.vocab` file of a model as SentencePiece itself writes it: `piece<TAB>score` lines."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = ((processor.id_to_piece(index), processor.get_score(index)) for index in range(len(processor)))
    return "".join(f"{piece}\t{score:g}\n" for piece, score in rows)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a SentencePiece vocabulary on the texts of manifests.")
    parser.add_argument("manifests", nargs="+", type=Path, help="manifests with a text column (training split)")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.model and PREFIX.vocab")
    parser.add_argument("--model-type", default="unigram", choices=("unigram", "bpe", "char", "word"))
    parser.add_argument(
        "--vocab-size", type=int, help="symbols, the four special ones included; not for char, which takes all"
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        help="share of the text's characters that get a symbol, the rarest others none (default: %(default)s)",
    )
    parser.add_argument("--lowercase", action="store_true", help="as task.lowercase of the training that follows")
    arguments = parser.parse_args(argv)
    if (arguments.model_type == "char") != (arguments.vocab_size is None):
        parser.error("--vocab-size is needed for unigram, bpe and word, and not allowed for char (it takes all)")
    if arguments.vocab_size is not None and arguments.vocab_size <= len(SPECIALS):
        parser.error(f"--vocab-size must be above {len(SPECIALS)}, the special symbols")
    if not 0 < arguments.character_coverage <= 1:
        parser.error("--character-coverage is a share: above 0, at most 1")
    if arguments.out.endswith(".model") or not Path(arguments.out).name:
        parser.error("--out is a prefix: the path without .model")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        rows = [row for path in arguments.manifests for row in read_manifest(path, require_text=True)]
        texts = [row.text.lower() if arguments.lowercase else row.text for row in rows]
        if not texts:
            raise TrainingError("the manifests have no rows")
        model = train(
            texts,
            model_type=arguments.model_type,
            vocab_size=arguments.vocab_size,
            character_coverage=arguments.character_coverage,
        )
        prefix = Path(arguments.out)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".model", model), (".vocab", vocab_lines(model).encode("utf-8"))):
            with atomic_open(prefix.with_name(prefix.name + suffix)) as file:
                file.write(content)
    except (DataError, TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [piece for ids in processor.encode(texts) for piece in ids]
    unknown = pieces.count(processor.unk_id())
    print(
        f"{arguments.out}.model: {arguments.model_type}, {len(processor)} symbols from {len(texts)} texts, "
        f"{len(pieces) / len(texts):.1f} pieces a text, {unknown} of {len(pieces)} unknown"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
