"""Build the fingerspelling corpus: real letter recordings, composed sentences (see fingerspelling_synthesis.py).

    python manifests/fingerspelling.py --out data/fingerspelling

writes train.tsv, valid.tsv, test.tsv (new sentences of known words), test_unseen.tsv (new words only) and
poses/<split>-NNN.npy, (T, 51, 3) float16 x, y, confidence of many sentences one after another (body, left hand,
right hand of slt_plugin.data.landmarks; rows point to them by start and end). Half of the training sentences consist
of pseudo-words with English-like letter sequences, so that a model learns letters rather than a word list.

The same options give byte-identical files, whatever the number of workers. A manifest is written when its poses are
complete, so an interrupted build goes on where it stopped, and a finished one costs nothing to run again.

Words come from words.txt (English, text_lang "en"), or from --words FILE in the spoken language that the package's
index.csv gives for the sign language. A sign language whose letters spell fewer than 200 words of words.txt (Greek,
Ukrainian, Arabic alphabets) gets a vocabulary of random pseudo-words instead, with that spoken language as text_lang.
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from fingerspelling_synthesis import FPS, CorpusError, render_shard
from fingerspelling_texts import WORD_LIST, Sentence, Vocabulary, build_vocabularies, compose
from tqdm import tqdm

from slt_plugin.common.files import atomic_open
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, write_manifest

FORMAT = 2  # raise it whenever the same options would give other files
SPLITS = ("train", "valid", "test", "test_unseen")
SHARD = 500  # sentences a file


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    sizes = {split: getattr(options, split) for split in SPLITS}
    sign_langs = list(dict.fromkeys(options.sign_langs.split(",")))
    try:
        words = (options.words or WORD_LIST).read_bytes()
    except OSError as error:
        raise CorpusError(f"--words {options.words}: cannot be read ({error.strerror})") from error
    vocabularies = build_vocabularies(sign_langs, options.words, options.seed)
    description = {
        "format": FORMAT,
        "spoken-to-signed": version("spoken-to-signed"),
        **sizes,
        "seed": options.seed,
        "pseudo_words": options.pseudo_words,
        "sign_langs": sign_langs,
        "words_sha256": hashlib.sha256(words).hexdigest(),
    }
    claim_folder(options.out, description, options.overwrite)
    if all(is_complete(options.out, split, size) for split, size in sizes.items()):
        print(f"{options.out} is complete, nothing to do (--overwrite builds it again)")
        return 0
    sentences = compose(sizes, vocabularies, options.pseudo_words, options.seed)
    for split, rows in build(options.out, sentences, vocabularies, options.seed, options.workers).items():
        frames = sum(row.num_frames for row in rows)
        hours = frames / FPS / 3600
        print(f"{options.out / split}.tsv: {len(rows)} sentences, {hours:.2f} h, {frames / len(rows):.0f} frames each")
    return 0


def build(
    out: Path, sentences: dict[str, list[Sentence]], vocabularies: list[Vocabulary], seed: int, workers: int
) -> dict[str, list[Row]]:
    """Write the splits that are not complete yet; their rows."""
    (out / "poses").mkdir(parents=True, exist_ok=True)
    jobs = []  # (split, file, [(random seed, sign language, words)])
    for number, (split, items) in enumerate(sentences.items()):
        if is_complete(out, split, len(items)):
            continue
        (out / f"{split}.tsv").unlink(missing_ok=True)
        seeded = [((seed, number, i), item.sign_lang, item.words) for i, item in enumerate(items)]
        for k, name in enumerate(shard_names(split, len(items))):
            jobs.append((split, out / name, seeded[k * SHARD : (k + 1) * SHARD]))
    render = partial(render_shard, {vocabulary.language.sign_lang: vocabulary.language for vocabulary in vocabularies})
    rows: dict[str, list[Row]] = {}
    total = sum(len(job[2]) for job in jobs)
    with worker_map(workers) as run, tqdm(total=total, unit=" sentences", disable=None) as progress:
        results = run(render, [job[2] for job in jobs], [job[1] for job in jobs])
        for (split, path, _), counts in zip(jobs, results, strict=True):
            done = rows.setdefault(split, [])
            done += _shard_rows(split, f"poses/{path.name}", sentences[split], counts, first=len(done))
            if len(done) == len(sentences[split]):
                write_manifest(out / f"{split}.tsv", done)
            progress.update(len(counts))
    return rows


@contextmanager
def worker_map(workers: int) -> Iterator[Callable]:
    """`map` in this process, or in several; what is not begun when the block ends is dropped."""
    if workers == 1:
        yield map
        return
    # spawned, not forked: fork is unsafe beside the threads of numpy and tqdm
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _shard_rows(split: str, path: str, sentences: list[Sentence], counts: list[int], *, first: int) -> list[Row]:
    rows, frame = [], 0
    for i, count in enumerate(counts, first):
        row = Row(
            id=f"{split}-{i:05d}",
            path=path,
            text=sentences[i].text,
            start=frame / FPS,
            end=(frame + count) / FPS,
            num_frames=count,
            fps=float(FPS),
            sign_lang=sentences[i].sign_lang,
            text_lang=sentences[i].text_lang,
            corpus="fingerspelling",
        )
        rows.append(row)
        frame += count
    return rows


def shard_names(split: str, size: int) -> list[str]:
    return [f"poses/{split}-{k:03d}.npy" for k in range(-(-size // SHARD))]


def is_complete(out: Path, split: str, size: int) -> bool:
    return all((out / name).is_file() for name in (f"{split}.tsv", *shard_names(split, size)))


def claim_folder(
    out: Path, description: dict, overwrite: bool, media: str = "poses/{split}-[0-9][0-9][0-9].npy"
) -> None:
    """Record in corpus.json what `out` holds; refuse a folder that holds something else.

    `media` is the pattern of a split's media files: with the manifests they are what `overwrite` deletes.

    Raises:
        CorpusError: other options or versions, or files of unknown origin, and no --overwrite.
    """
    record = out / "corpus.json"
    ours = [out / f"{split}.tsv" for split in SPLITS]
    ours += [path for split in SPLITS for path in out.glob(media.format(split=split))]
    if overwrite:
        for path in [*ours, record]:
            path.unlink(missing_ok=True)
    elif record.is_file():
        changes = _changes(record, description)
        if not changes:
            return
        raise CorpusError(
            f"{out} holds a corpus built with other options ({changes}): add --overwrite to replace it, "
            "or choose another --out"
        )
    elif any(path.exists() for path in ours):
        raise CorpusError(f"{out} has manifests or media but no corpus.json: choose another --out, or add --overwrite")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_open(record) as file:
        file.write((json.dumps(description, indent=2) + "\n").encode("utf-8"))


def _changes(record: Path, description: dict) -> str:
    """What differs between the recorded description and this one; empty if nothing does."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"{record.name} is not readable: {error}"
    if not isinstance(found, dict):
        return f"{record.name} is not a JSON object"
    keys = [key for key in (*description, *found) if found.get(key) != description.get(key)]
    return "; ".join(f"{key}: {found.get(key)!r} there, {description.get(key)!r} now" for key in dict.fromkeys(keys))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    for split, size in zip(SPLITS, (12000, 300, 500, 500), strict=True):
        parser.add_argument(f"--{split.replace('_', '-')}", type=positive, default=size, help="sentences")
    parser.add_argument("--seed", type=_natural, default=1, help="of words, sentences, and their variation")
    parser.add_argument("--sign-langs", default="ase", metavar="CODES", help="sign languages, separated by commas")
    parser.add_argument("--words", type=Path, metavar="FILE", help="words, one a line, instead of words.txt")
    parser.add_argument("--pseudo-words", type=_fraction, default=0.5, help="fraction of training sentences")
    parser.add_argument("--workers", type=positive, default=2, help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus built with other options")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
