#!/usr/bin/env python3
"""Find the signer in every clip of a manifest and write the manifest with a `box` column.

    python scripts/signer_boxes.py data/train.tsv data/train.boxes.tsv --workers 8

or in shares, for example as a SLURM array of 16 jobs, and then once with --merge:

    python scripts/signer_boxes.py data/train.tsv data/train.boxes.tsv --num-shards 16 --shard $SLURM_ARRAY_TASK_ID
    python scripts/signer_boxes.py data/train.tsv data/train.boxes.tsv --num-shards 16 --merge

The rule is that of the released SSVP-SLT weights (slt_plugin/data/signer_box.py). Rows that have a box keep it unless
--overwrite is given. Beside OUT: OUT's name with .no_face.txt lists the clips without a face, which get the centre of
the frame, .failed.txt the rows that could not be read and stay as they were, and .boxes-0of1.jsonl keeps what is done:
the same command goes on where it was stopped, and tries again what failed.
Exit status: 0 fine, 1 something could not be read, 2 wrong usage, 130 stopped by Ctrl-C.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from slt_plugin.cli.progress import progress
from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.signer_box import EVERY, SignerBox, signer_box
from slt_plugin.data.signer_frames import DETECTION_SIDE, DETECTORS, load_detector


class Segment(NamedTuple):
    """What is looked at once, however many rows share it (a clip with texts in two languages is two rows)."""

    path: str  # as written in the manifest
    start: float | None
    end: float | None
    fps: float | None


Outcome = SignerBox | str  # str: why the segment could not be read


def segment_of(row: Row) -> Segment:
    return Segment(row.path, row.start, row.end, row.fps)


class Journal:
    """What one share of the work has found so far: JSON lines, the first one saying how it is looked for.

    A line that a killed process left unfinished is dropped. Raises DataError where the file was made in another way.
    """

    def __init__(self, path: Path, detector: str, every: int):
        self.path = path
        self.how = {"made_by": "signer_boxes", "detector": detector, "every": every, "long_side": DETECTION_SIDE}
        self._file = None

    def read(self) -> dict[Segment, Outcome]:
        """The newest outcome of each segment; nothing where the file is not there yet."""
        lines = self._whole_lines()
        if lines and lines[0] != self.how:
            raise DataError(
                f"{self.path} was made with {_options(lines[0])}, and now it is {_options(self.how)}: give the same "
                "options, another OUT, or delete the file"
            )
        outcomes = {}
        for line in lines[1:]:
            segment = Segment(*(line.pop(name) for name in Segment._fields))
            if "error" in line:
                outcomes[segment] = line["error"]
            else:
                outcomes[segment] = SignerBox(**{**line, "box": tuple(line["box"])})
        return outcomes

    def add(self, segment: Segment, outcome: Outcome) -> None:
        """Note an outcome; it is in the file when this returns."""
        if self._file is None:
            self._open()
        found = {"error": outcome} if isinstance(outcome, str) else asdict(outcome)
        self._write({**segment._asdict(), **found})

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _whole_lines(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{self.path}, line {number}: not JSON ({error}); delete the file") from error
        return lines

    def _open(self) -> None:
        self._file = open(self.path, "ab")  # noqa: SIM115 (closed by close)
        whole = self.path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)
        if not whole:
            self._write(self.how)

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n")
        self._file.flush()


def find_boxes(
    segments: Sequence[Segment], root: Path, *, detector: str, every: int, workers: int
) -> Iterator[tuple[Segment, Outcome]]:
    """Each segment with its outcome, in the order in which they are done.

    Raises:
        DataError: a worker process was killed.
    """
    options = (str(root), detector, every)
    if workers == 0 or len(segments) < 2:
        yield from ((segment, _find(segment, *options)) for segment in segments)
        return
    # forkserver: a plain fork of a process that has loaded torch (threads) may hang
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slt_plugin.data.signer_box"])
    todo, running = iter(segments), {}
    workers = min(workers, len(segments))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while True:
                for segment in islice(todo, 2 * workers - len(running)):
                    running[pool.submit(_find, segment, *options)] = segment
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running[future], future.result()
                    del running[future]
        except BrokenProcessPool as error:
            names = listing(sorted(segment.path for segment in running.values()), 4)
            raise DataError(
                f"a worker process was killed (out of memory, or a crash in a decoder) at one of {names}; give fewer "
                "--workers (0 = only this process); what is done is kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _find(segment: Segment, root: str, detector: str, every: int) -> Outcome:
    path = Path(root) / segment.path
    try:
        return signer_box(path, segment.start, segment.end, detector=detector, fps=segment.fps, every=every)
    except (DataError, OSError) as error:
        return str(error)


def write_results(args: argparse.Namespace, rows: Sequence[Row], outcomes: dict[Segment, Outcome]) -> int:
    """Write OUT and the two lists beside it, print a summary; the exit status."""
    out = args.out
    done, no_face, failed, cut = [], [], [], []
    counts = Counter()
    for row in rows:
        outcome = outcomes.get(segment_of(row))
        if (
            row.box is not None
            and not args.overwrite
            and not (isinstance(outcome, SignerBox) and outcome.box == row.box)
        ):
            outcome = None  # a box that is not of this script
        if isinstance(outcome, SignerBox):
            counts[outcome.source] += 1
            if outcome.source == "no face":
                no_face.append((row.id, row.path, str(outcome.samples)))
            if outcome.limited:
                cut.append(row.id)
            row = replace(row, box=outcome.box)
        elif outcome is not None:
            failed.append((row.id, row.path, " ".join(outcome.split())))
        done.append(row)
    write_manifest(out, done)
    kept = len(rows) - counts.total() - len(failed)
    print(
        f"{out}: {len(rows)} rows: {counts['one face']} with one face, {counts['tube']} with several, "
        f"{counts['no face']} with none, {kept} kept the box they had, {len(failed)} could not be read"
    )
    moved = args.media_root is None and out.parent.resolve() != args.manifest.parent.resolve()
    if moved and not all(Path(row.path).is_absolute() for row in rows):
        print(f"its relative paths start from {args.manifest.parent}: give that as media_root where {out} is read")
    if cut:
        print(f"{len(cut)} boxes reach more than a frame's size beyond it and were cut there: {listing(cut)}")
    if _write_list(out, "no_face", ("id", "path", "samples"), no_face):
        print(f"the clips without a face got the frame's centre; they are in {_beside(out, 'no_face.txt')}")
    if _write_list(out, "failed", ("id", "path", "cause"), failed):
        print(f"error: rows that could not be read: see {_beside(out, 'failed.txt')}", file=sys.stderr)
    return int(bool(failed))


def _write_list(out: Path, name: str, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> bool:
    path = _beside(out, f"{name}.txt")
    if not lines:
        path.unlink(missing_ok=True)  # of an earlier run: it would no longer be true
        return False
    with atomic_open(path) as file:
        file.writelines(("\t".join(line) + "\n").encode("utf-8", "surrogatepass") for line in (header, *lines))
    return True


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.stem}.{suffix}")


def _options(how: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in how.items())


def run(args: argparse.Namespace) -> int:
    rows = read_manifest(args.manifest)
    if not args.out.parent.is_dir():
        raise DataError(f"{args.out} cannot be written: make the folder {args.out.parent} first")
    root = args.media_root or args.manifest.parent
    if not root.is_dir():
        raise DataError(f"--media-root {root} is not a folder")
    segments = [*dict.fromkeys(segment_of(row) for row in rows if args.overwrite or row.box is None)]

    def journal(shard: int) -> Journal:
        return Journal(_beside(args.out, f"boxes-{shard}of{args.num_shards}.jsonl"), args.detector, args.every)

    if args.merge:
        outcomes, lacking = {}, []
        for shard in range(args.num_shards):
            share = journal(shard).read()
            missing = sum(segment not in share for segment in segments[shard :: args.num_shards])
            lacking += [f"--shard {shard} ({missing} clips)"] if missing else []
            outcomes |= share
        if lacking:
            raise DataError(f"not everything is done; run again {listing(lacking)}")
        return write_results(args, rows, outcomes)

    load_detector(args.detector)  # a missing package is one error here, not one a row
    share, notes = segments[args.shard :: args.num_shards], journal(args.shard)
    outcomes = notes.read()
    todo = [segment for segment in share if not isinstance(outcomes.get(segment), SignerBox)]
    if len(todo) < len(share):
        print(f"{len(share) - len(todo)} of {len(share)} clips were done before", file=sys.stderr)
    found = find_boxes(todo, root, detector=args.detector, every=args.every, workers=args.workers)
    try:
        for segment, outcome in progress(found, len(todo), "clip"):
            outcomes[segment] = outcome
            notes.add(segment, outcome)
    finally:
        notes.close()
    if args.num_shards == 1:
        return write_results(args, rows, outcomes)
    failed = sum(isinstance(outcomes[segment], str) for segment in share)
    print(f"{notes.path}: {len(share)} clips, {failed} could not be read; when all shards are done, run --merge")
    return int(failed > 0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("out", type=Path, metavar="OUT", help="may be MANIFEST itself")
    parser.add_argument("--media-root", type=Path, help="where relative paths start (default: MANIFEST's folder)")
    parser.add_argument("--detector", choices=DETECTORS, default="hog", help="default: %(default)s")
    parser.add_argument("--every", type=int, default=EVERY, help="look at each n-th frame (default: %(default)s)")
    # what SLURM gave this job, where the system can say so (not on macOS)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cpus, help="processes; 0 = only this one (default: %(default)s)")
    parser.add_argument("--num-shards", type=int, default=1, help="into how many shares the clips are divided")
    parser.add_argument("--shard", type=int, help="which of them to do, from 0")
    parser.add_argument("--merge", action="store_true", help="write OUT from the shares that are all done")
    parser.add_argument("--overwrite", action="store_true", help="replace boxes that rows already have")
    args = parser.parse_args(argv)
    if args.every < 1 or args.workers < 0 or args.num_shards < 1:
        parser.error("--every and --num-shards start at 1, --workers at 0")
    if args.merge and (args.num_shards == 1 or args.shard is not None):
        parser.error("--merge goes with the --num-shards of the runs, above 1, and without --shard")
    if not args.merge and args.num_shards > 1 and args.shard is None:
        parser.error(f"give --shard, from 0 to {args.num_shards - 1}, or --merge")
    if args.shard is not None and not 0 <= args.shard < args.num_shards:
        parser.error(f"--shard {args.shard}: with --num-shards {args.num_shards} it is from 0 to {args.num_shards - 1}")
    args.shard = args.shard or 0
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        return run(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
