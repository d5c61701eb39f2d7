"""Kills trainings and extractions at random instants, has them go on, and compares what comes out in the end.

    python tests/chaos.py --kills 100 [--what train,extract] [--seed 1] [--json FILE]

Each training runs to its end over as many interruptions as come: SIGKILL to all of its processes (a node goes down) or
to one of them, SIGUSR2 (a time limit), SIGTERM (a preemption). After each, every checkpoint must load and none may be
older than what was there before; at the end weights, optimiser, scores and early stopping must equal a training without
interruption bit for bit. An extraction must end with the same features for every row. Exit status 1 where one does not.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from conftest import write_pose_corpus
from extract_helpers import contents, words, write_checkpoint, write_moving
from forked_training import Forked, load, start, train_words, training_difference, updates

from slt_plugin.checkpoints.safe import find_problem
from slt_plugin.data.manifest import Row, read_manifest, write_manifest

ROUNDING = 3e-5  # features of one row, computed in batches of different sizes (tests/test_extract.py)
SIGNALS = (signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM)
FASTER = ("checkpoint.save_interval_updates=3", "dataset.validate_interval_updates=3", "checkpoint.patience=20")


@dataclass
class Tally:
    """What was counted."""

    kills: Counter = field(default_factory=Counter)  # by signal
    runs: Counter = field(default_factory=Counter)  # trainings and extractions that came to their end
    problems: list[str] = field(default_factory=list)  # corrupt, lost, different: each with its circumstances
    corrupt: int = 0
    lost: int = 0
    different: int = 0

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    def note(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.problems.append(f"{kind}: {what}")


def write_vocabulary(folder: Path) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab cd", "ba dc", "ad bc"]), model_prefix=str(folder / "char"), model_type="char",
        vocab_size=8, minloglevel=2,
    )  # fmt: skip
    return folder / "char.model"


def interrupt(processes: list[Forked], rng: random.Random, longest: float) -> str | None:
    """Sends a signal at a random instant; its name, None where the run ended before it came."""
    number = rng.choice(SIGNALS)
    deadline = time.monotonic() + rng.uniform(0.1, longest)
    while time.monotonic() < deadline:
        if all(process.poll() is not None for process in processes):
            return None
        time.sleep(0.002)
    alive = [process for process in processes if process.poll() is None]
    if not alive:
        return None
    if number != signal.SIGKILL:
        for process in alive if rng.random() < 0.5 else rng.sample(alive, 1):
            process.send(number)
        wait_like_srun(processes)
        return number.name
    victims = processes if rng.random() < 0.5 else rng.sample(alive, 1)
    for process in victims:
        process.kill()
    for process in processes:  # the launcher and srun end the other ranks where one dies
        if process.poll() is None:
            process.kill()
    return number.name


def wait_like_srun(processes: list[Forked]) -> None:
    """Until all have ended: with --kill-on-bad-exit a rank that dies (before it listens to signals) ends the others."""
    while any(process.poll() is None for process in processes):
        died = any(process.poll() is not None and process.status < 0 for process in processes)
        for process in processes:
            if died and process.poll() is None:
                process.kill()
        time.sleep(0.01)


class Trainings:
    """A tiny pose model, with 1 or 2 ranks and 0 or 2 loader workers."""

    def __init__(self, folder: Path, updates_in_all: int):
        self.folder, self.updates = folder, updates_in_all
        self.corpus = write_pose_corpus(folder / "corpus", {"train": 40, "valid": 6})
        self.spm = write_vocabulary(folder)
        self.whole: dict[tuple[int, int], tuple[Path, float]] = {}

    def words(self, run: Path, workers: int) -> list[str]:
        return train_words(
            self.corpus, self.spm, run, f"dataset.num_workers={workers}", f"optimization.max_update={self.updates}",
            *FASTER,
        )  # fmt: skip

    def uninterrupted(self, ranks: int, workers: int) -> tuple[Path, float]:
        """Its folder, and the seconds that it took."""
        if (ranks, workers) not in self.whole:
            run = self.folder / f"whole-{ranks}-{workers}"
            begin = time.monotonic()
            processes = start(self.words(run, workers), run.with_suffix(".log"), ranks=ranks)
            if any(process.wait() for process in processes):
                raise RuntimeError(f"the training without interruption failed:\n{processes[0].text()[-3000:]}")
            self.whole[ranks, workers] = run, time.monotonic() - begin
        return self.whole[ranks, workers]

    def life(self, number: int, kills: int, rng: random.Random, tally: Tally) -> None:
        """One training, over at most ``kills`` interruptions."""
        ranks, workers = rng.choice([1, 2]), rng.choice([0, 2])
        whole, seconds = self.uninterrupted(ranks, workers)
        run, log = self.folder / f"run-{number}", self.folder / f"run-{number}.log"
        name, before = f"training {number} ({ranks} ranks, {workers} workers)", 0
        for kill in range(kills + 1):
            processes = start(self.words(run, workers), log, ranks=ranks)
            came = interrupt(processes, rng, 1.1 * seconds) if kill < kills else None
            if came is None:
                statuses = [process.wait() for process in processes]
                if any(statuses):
                    tally.note("lost", f"{name} ended with {statuses}: {processes[0].text()[-1500:]}")
                    return
                break
            tally.kills[came] += 1
            before = self.check(run, f"{name}, {came} as kill {tally.total}", before, tally)
        tally.runs["train"] += 1
        if found := training_difference(whole, run):
            tally.note("different", f"{name}: {found}")

    def check(self, run: Path, name: str, before: int, tally: Tally) -> int:
        """The updates of the last checkpoint, which must not be fewer than ``before``."""
        for path in run.glob("checkpoint*.pt"):
            if problem := find_problem(path):
                tally.note("corrupt", f"{name}: {path.name}: {problem}")
        last = run / "checkpoint_last.pt"
        if not last.exists() or find_problem(last):
            if before:
                tally.note("lost", f"{name}: no checkpoint of {before} updates any more")
            return 0
        now = updates(load(last))
        if now < before:
            tally.note("lost", f"{name}: {now} updates, {before} before")
        return now


class Extractions:
    """slt-extract with a tiny SignHiera over rows of one video."""

    def __init__(self, folder: Path, rows: int):
        folder.mkdir()
        self.folder, self.seconds = folder, 0.0
        write_moving(folder / "v.mp4", 250, seed=0)
        self.manifest, self.checkpoint = folder / "m.tsv", write_checkpoint(folder / "tiny.pt")
        write_manifest(
            self.manifest, [Row(f"r{i}", "v.mp4", start=i / 10, end=i / 10 + 2, fps=25.0) for i in range(rows)]
        )
        self.whole: dict | None = None

    def start(self, store: Path, log: Path) -> Forked:
        from slt_plugin.cli import extract

        arguments = words(self.manifest, self.checkpoint, store, num_workers=1, flush_minutes=1e-4)

        def run() -> int:
            torch.set_num_threads(1)
            return extract.main(arguments)

        return Forked(run, log)

    def uninterrupted(self) -> dict:
        if self.whole is None:
            begin = time.monotonic()
            process = self.start(self.folder / "whole.store", self.folder / "whole.log")
            if process.wait():
                raise RuntimeError(f"the extraction without interruption failed:\n{process.text()[-3000:]}")
            self.whole, self.seconds = contents(self.folder / "whole.store"), time.monotonic() - begin
        return self.whole

    def life(self, number: int, kills: int, rng: random.Random, tally: Tally) -> None:
        """One extraction, over at most ``kills`` interruptions."""
        whole, name = self.uninterrupted(), f"extraction {number}"
        store, log, before = self.folder / f"{number}.store", self.folder / f"{number}.log", 0
        for kill in range(kills + 1):
            process = self.start(store, log)
            came = interrupt([process], rng, 1.1 * self.seconds) if kill < kills else None
            if came is None:
                if process.wait():
                    tally.note("lost", f"{name} ended with {process.status}: {process.text()[-1500:]}")
                    return
                break
            tally.kills[came] += 1
            now = len(contents(store)) if list(store.glob("*.safetensors")) else 0
            if now < before:
                tally.note("lost", f"{name}: {now} rows in the store, {before} before")
            before = now
        tally.runs["extract"] += 1
        found = contents(store)
        if found.keys() != whole.keys() or len(read_manifest(store.with_suffix(".tsv"))) != len(whole):
            tally.note("lost", f"{name}: {len(found)} of {len(whole)} rows in the store")
        elif not all(np.allclose(found[key], whole[key], atol=ROUNDING, rtol=ROUNDING) for key in whole):
            tally.note("different", f"{name}: features differ by more than rounding")


def storm(
    folder: Path, kills: int, what: list[str], seed: int, told: Callable[[str], None], *, updates_in_all: int = 24
) -> Tally:
    """``kills`` interruptions, of what ``what`` names in turn.

    Args:
        told: is given a line of progress after each run.
    """
    tally, rng = Tally(), random.Random(seed)
    kinds = {
        "train": lambda: Trainings(folder / "train", updates_in_all),
        "extract": lambda: Extractions(folder / "extract", 40),
    }
    (folder / "train").mkdir()
    subjects = {name: kinds[name]() for name in what}
    begin, number = time.monotonic(), 0
    while tally.total < kills:
        name = what[number % len(what)]
        subjects[name].life(number, min(kills - tally.total, rng.randint(1, 8)), rng, tally)
        number += 1
        rate = tally.total / (time.monotonic() - begin)
        left = f", about {(kills - tally.total) / rate:.0f} s left" if tally.total else ""
        told(f"{tally.total} of {kills} kills, {number} runs, {len(tally.problems)} problems{left}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many (default %(default)s)")
    parser.add_argument("--what", default="train,extract", help="train, extract or both (default)")
    parser.add_argument("--seed", type=int, default=1, help="of instants and signals (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the counts there")
    args = parser.parse_args()
    what = args.what.split(",")
    if args.kills < 1 or not set(what) <= {"train", "extract"}:
        parser.error("--kills is at least 1, --what one or both of train,extract")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = storm(Path(folder), args.kills, what, args.seed, lambda line: print(line, file=sys.stderr, flush=True))
    counts = {
        "kills": dict(tally.kills), "completed": dict(tally.runs), "corrupt": tally.corrupt, "lost": tally.lost,
        "different": tally.different, "seconds": round(time.monotonic() - begin),
    }  # fmt: skip
    print(*tally.problems, json.dumps(counts), sep="\n")
    if args.json:
        args.json.write_text(json.dumps(counts, indent=2) + "\n")
    return int(bool(tally.problems))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
