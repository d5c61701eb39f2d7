"""Give every row of a manifest the text of another row: the negative control of scripts/control.sh.

    python scripts/shuffle_texts.py data/fingerspelling --out runs/control/shuffled --splits train valid

writes the manifests only; train with task.media_root=<the original folder>, where their paths start from.
"""

import argparse
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest

logger = logging.getLogger("shuffle_texts")


def shuffle_texts(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with their texts (and text_lang) permuted; ids, media and order stay.

    No row keeps its text, unless one text belongs to more than half of the rows: then as few as possible do.
    """
    rng = random.Random(seed)
    counts = Counter(row.text for row in rows)
    group = {text: rng.random() for text in sorted(counts)}
    # rows of equal text side by side, in random order: the text from `largest group` places on is then another one
    order = sorted(range(len(rows)), key=lambda i: (group[rows[i].text], rng.random()))
    distance = max(counts.values(), default=0)
    shuffled = list(rows)
    for place, i in enumerate(order):
        giver = rows[order[(place + distance) % len(rows)]]
        shuffled[i] = replace(rows[i], text=giver.text, text_lang=giver.text_lang)
    return shuffled


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with <split>.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shuffled manifests, made if missing")
    parser.add_argument("--splits", nargs="+", default=["train", "valid"], help="default: train valid")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.out.resolve() == args.data.resolve():
        parser.error("--out is the folder of the original manifests: choose another one")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for split in args.splits:
            rows = read_manifest(args.data / f"{split}.tsv", require_text=True)
            shuffled = shuffle_texts(rows, args.seed)
            write_manifest(args.out / f"{split}.tsv", shuffled)
            kept = sum(old.text == new.text for old, new in zip(rows, shuffled, strict=True))
            logger.info("%s: %d rows, %d keep their text", args.out / f"{split}.tsv", len(rows), kept)
    except (DataError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
