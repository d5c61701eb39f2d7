"""Mutates valid manifests, pose files and feature files and reads the result.

    python scripts/fuzz.py --cases 1000 [--seed 7] [--target manifest|pose|features] [--out runs/fuzz]

Every case must end in a valid, finite result or in a DataError that names the file (and row) and says what to do.
Anything else is a finding: it is printed once a place in the code, its input is kept in a folder below --out, and the
exit status is 1. hypothesis draws the mutations; the same seed, cases and hypothesis version give the same ones.
"""

import argparse
import contextlib
import math
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random, SystemRandom

import numpy as np
import torch
from fuzz_inputs import (
    CELLS,
    hostile_ran,
    manifest_bytes,
    mmpose_frames,
    mutate_bytes,
    mutate_json,
    pose_bytes,
    pt_bytes,
    write_npy,
    write_openpose,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from slt_plugin.data.errors import DataError
from slt_plugin.data.landmarks import PARTS
from slt_plugin.data.manifest import ManifestError, Row, read_manifest, write_manifest
from slt_plugin.data.pose import PoseAugment, PoseOptions
from slt_plugin.data.segments import END_SLACK, FPS_TOLERANCE
from slt_plugin.data.sources import FeatureSource, PoseSource, Source, inspect_media

Draw = Callable  # data.draw of hypothesis: takes a strategy

SECONDS = 10  # a case that takes longer is a finding
MEMORY = 4 << 30  # bytes of address space that a run may take on top: what a garbled header claims must not be believed
LONGEST_MESSAGE = 6000
CHANNELS = 8  # of the feature files
# What makes a message usable: a clause that begins with what to do, or the name that was meant
REMEDY = re.compile(
    r"(?:[;:,.?] |\(|\b(?:or|and) )(?:add|check|choose|convert|copy|correct|estimate|extract|fill it in|give|keep|"
    r"leave|make|point the|remove|replace|run|save|set|use|write)\b|did you mean '",
    re.IGNORECASE,
)


class Finding(Exception):
    """`place` tells findings apart: each is reported once."""

    def __init__(self, place: str, text: str):
        super().__init__(text)
        self.place = place


@dataclass(frozen=True)
class Kind:
    """All findings of one place: what the first one says, how many, where the first one's input is."""

    text: str
    count: int
    folder: Path


@dataclass(frozen=True)
class Result:
    accepted: int
    refused: int
    kinds: list[Kind]


# ---- cases: each writes one input into `folder` and reads it; True = accepted, False = refused, else Finding ----


def manifest_case(draw: Draw, rng: Random, folder: Path) -> bool:
    path = folder / "m.tsv"
    data = manifest_bytes()
    if draw(st.booleans()):
        data = mutate_bytes(rng, data, head=90)
    else:
        table = [line.split("\t") for line in data.decode().rstrip("\n").split("\n")]
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            line = draw(st.sampled_from(table))
            cell = draw(st.one_of(st.sampled_from(CELLS), st.text(max_size=5)))
            edit = draw(st.sampled_from(["set", "set", "set", "set", "drop", "add", "repeat"]))
            at = draw(st.integers(0, max(0, len(line) - 1)))
            if edit == "set":
                line[at : at + 1] = [cell]
            elif edit == "drop":
                del line[at : at + 1]
            elif edit == "add":
                line.insert(at, cell)
            else:
                table.append(list(line))
        data = ("\n".join("\t".join(line) for line in table) + "\n").encode("utf-8", errors="surrogatepass")
    path.write_bytes(data)
    require_text = draw(st.booleans())
    rows = outcome(lambda: read_manifest(path, require_text=require_text), [str(path)])
    if rows is None:
        return False
    for row in rows:
        if problem := bad_row(row, require_text):
            raise Finding(f"row: {problem}", f"accepted a row with {problem}: {row}")
    if not rows or len({row.id for row in rows}) < len(rows):
        raise Finding("rows", f"{len(rows)} rows, ids {[row.id for row in rows]}")
    again = folder / "again.tsv"
    write_manifest(again, rows)
    if read_manifest(again) != rows:
        raise Finding("round trip", "write_manifest and read_manifest give other rows")
    return True


def bad_row(row: Row, require_text: bool) -> str | None:
    values = [getattr(row, field.name) for field in fields(row)]
    numbers = [value for value in (row.start, row.end, row.fps, *(row.box or ())) if value is not None]
    if not row.id or not row.path or (require_text and not row.text):
        return "an empty required cell"
    if any(isinstance(value, str) and (not value.strip() or set(value) & set("\t\r\n\0")) for value in values):
        return "a blank cell, tab, NUL or line break"
    if not np.isfinite(numbers).all() or (row.start or 0) < 0 or (row.end is not None and row.end <= (row.start or 0)):
        return "impossible times"
    if (row.fps is not None and row.fps <= 0) or (row.num_frames is not None and row.num_frames < 1):
        return "an impossible frame rate or count"
    if row.box and not (0 <= row.box[0] < row.box[2] <= 1 and 0 <= row.box[1] < row.box[3] <= 1):
        return "an impossible box"
    return None


def pose_case(draw: Draw, rng: Random, folder: Path) -> bool:
    kind = draw(st.sampled_from([".pose", ".pose", ".npy", ".npy", "openpose", ".json"]))
    name = "clip" if kind == "openpose" else f"clip{kind}"
    if kind == ".pose":
        (folder / name).write_bytes(mutate_bytes(rng, pose_bytes(draw(st.sampled_from([0.2, 0.1, 0.0]))), head=300))
    elif kind == ".npy":
        points, values = (
            draw(st.sampled_from([51, 51, 72, 133, 137, 543, 586, 50])),
            draw(st.sampled_from([3, 3, 3, 2, 2, 4])),
        )
        write_npy(rng, folder / name, (4, points, values))
    elif kind == ".json":
        text = mutate_json(rng, mmpose_frames()).encode("utf-8", errors="surrogatepass")
        (folder / name).write_bytes(mutate_bytes(rng, text, head=60) if draw(st.booleans()) else text)
    else:
        write_openpose(rng, folder / name)
    parts = tuple(draw(st.lists(st.sampled_from(list(PARTS)), min_size=1, unique=True)))
    normalise = draw(st.sampled_from(["shoulders", "none"]))
    augment = PoseAugment(0.5, 20, 0.3, 0.2, 0.05, 0.5, 0.3) if normalise == "shoulders" else None
    options = PoseOptions(parts=parts, step_frames=draw(st.integers(1, 3)), normalise=normalise, augment=augment)
    less = normalise == "none" or len(parts) < len(PARTS)
    tensor = check_source(PoseSource(folder, options), row_for(draw, name), folder, inspect_may_refuse=less)
    if tensor is None:
        return False
    x, y, present = tensor.reshape(len(tensor), -1, 3).unbind(-1)
    if not ((present == 0) | (present == 1)).all() or (x.abs() + y.abs())[present == 0].any():
        raise Finding("missing", "present is not 0 or 1, or a missing landmark has coordinates")
    return True


def features_case(draw: Draw, rng: Random, folder: Path) -> bool:
    suffix = draw(st.sampled_from([".npy", ".pt", ".pt"]))
    copies = draw(st.sampled_from([[]] * 6 + [["0"], ["0", "1"], ["0", "notes"], ["x"]]))
    name = f"{'{epoch}/' if copies else ''}abcde/abcdef{suffix}"
    for copy in copies or [""]:
        path = folder / copy / f"abcde/abcdef{suffix}"
        path.parent.mkdir(parents=True)
        if rng.random() < 0.05:
            continue  # a missing copy
        if suffix == ".npy":
            write_npy(rng, path, (5, CHANNELS))
            continue
        data = pt_bytes(rng, (5, CHANNELS))
        path.write_bytes(mutate_bytes(rng, data, head=200) if draw(st.booleans()) else data)
    source = FeatureSource(folder, channels=CHANNELS, step=draw(st.integers(1, 3)))
    more = len(copies) > 1 or source.step > 1
    return check_source(source, row_for(draw, name), folder, inspect_may_refuse=more) is not None


def row_for(draw: Draw, name: str) -> Row:
    """A plain row, or one with a segment, wrong path, frame count or rate."""
    odd = draw(st.sampled_from(["nothing"] * 8 + ["path", "times", "times", "num_frames", "fps"]))
    times = [(0.0, 0.08), (0.04, None), (None, 0.1), (0.05, 0.9), (5.0, 6.0), (0.0, 1e9), (0.1, 0.10001)]
    start, end = draw(st.sampled_from(times)) if odd == "times" else (None, None)
    paths = [f"no/{name}", name + "x", ".", "..", "a" * 300, f"{name}/x", "clip.mp4"]
    path = draw(st.sampled_from(paths)) if odd == "path" else name
    num_frames = draw(st.sampled_from([4, 5, 2, 1000, 10**12])) if odd == "num_frames" else None
    rates = [25.0, 30.0, 1e-9, 1e9] if odd == "fps" else [25.0] if start is not None or draw(st.booleans()) else [None]
    return Row("row-7", path, "text", start, end, num_frames, draw(st.sampled_from(rates)))


def check_source(source: Source, row: Row, folder: Path, *, inspect_may_refuse: bool) -> torch.Tensor | None:
    """The evaluation tensor, after comparing all that can be asked about the row.

    inspect_may_refuse: it reads more than `load` does (all landmarks, steps and extraction copies).
    """
    names = [row.id, (row.path, str(folder)) if "{epoch}" in row.path else row.path]  # one of several for copies
    tensor = outcome(lambda: source.load(row), names)
    steps = outcome(lambda: source.num_steps(row), names)
    media = outcome(lambda: inspect_media(row, folder), names)
    trained = outcome(lambda: source.load(row, epoch=1, rng=np.random.default_rng(0)), names)
    if hostile_ran():
        raise Finding("pickle", "an object in the file was unpickled: its code was run")
    for result in (tensor, trained):
        if result is None:
            continue
        if result.dtype != torch.float32 or result.dim() != 2 or result.shape[1] != source.channels or not len(result):
            raise Finding(
                "tensor", f"{result.dtype} {tuple(result.shape)}, expected float32 (T > 0, {source.channels})"
            )
        if not torch.isfinite(result).all():
            raise Finding("finite", f"NaN or infinite values in the result of {row}")
    if tensor is None:
        return None
    # the row's times and rate are believed without opening the file: its own rate may be another by FPS_TOLERANCE,
    # and an end up to END_SLACK seconds past the file's is cut
    timed = row.fps and row.end is not None
    rounding = math.ceil(FPS_TOLERANCE * len(tensor)) if timed else 0
    slack = math.ceil(END_SLACK * row.fps) if timed and row.num_frames is None else 0
    if steps is None or not len(tensor) - rounding <= steps <= len(tensor) + rounding + slack:
        raise Finding("num_steps", f"num_steps gives {steps}, load {len(tensor)} steps for {row}")
    if (media is None and not inspect_may_refuse) or trained is None:
        what = "inspect_media" if media is None else "load for training"
        raise Finding(what, f"load for evaluation works, but {what} refuses {row}")
    return tensor


# ---- running ----

TARGETS = {"manifest": manifest_case, "pose": pose_case, "features": features_case}


def outcome(call: Callable, names: list[str | tuple[str, ...]]) -> object | None:
    """The call's result; None where it raised a DataError with a usable message."""
    try:
        with time_limit():
            return call()
    except DataError as error:
        check_message(error, names)
        return None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "slt_plugin" in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside slt_plugin"
        text = "".join(traceback.format_exception(error, limit=-4))
        raise Finding(f"{type(error).__name__} in {place}", f"{type(error).__name__} in {place}\n{text}") from error


def check_message(error: DataError, names: list[str | tuple[str, ...]]) -> None:
    message, place = str(error), origin(error)
    parts = [problem.reason for problem in error.problems] if isinstance(error, ManifestError) else [message]
    for part in parts:
        if not REMEDY.search(part):
            raise Finding(
                f"remedy {re.sub('[^a-z]+', ' ', part)[:40]}", f"no remedy in the message ({place}): {part!r}"
            )
    missing = [name for name in names if not any(n in message for n in ([name] if isinstance(name, str) else name))]
    if missing:
        raise Finding(f"name {place}", f"the message ({place}) does not name {missing}: {message!r}")
    if len(message) > LONGEST_MESSAGE:
        raise Finding(f"length {place}", f"a message of {len(message)} characters ({place}): {message[:200]!r}...")


def origin(error: DataError) -> str:
    """File and line of the message's first raise, before callers added the row's id and path."""
    while isinstance(error.__cause__, DataError):
        error = error.__cause__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


class TooSlow(Exception):
    pass


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(target: str, cases: int, seed: int, out: Path) -> Result:
    """Run the cases; the first input of each kind of finding is kept below `out`."""
    found: dict[str, list[Finding]] = {}
    folders: dict[str, Path] = {}
    counts = Counter()

    @hypothesis_seed(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # no shrinking: a finding must not stop the run
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        counts["started"] += 1  # some are given up by hypothesis while they draw
        folder = out / f"{target}-{seed}-{counts['started']}"  # a new name each time: readers may keep files open
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # hypothesis favours small whole numbers: good for seeds, too few places in a file would be changed
        rng = Random(data.draw(st.integers(0, 2**64)))
        try:
            counts["accepted" if TARGETS[target](data.draw, rng, folder) else "refused"] += 1
        except Finding as finding:
            found.setdefault(finding.place, []).append(finding)
            if folders.setdefault(finding.place, folder) == folder:
                (folder / "finding.txt").write_text(str(finding), encoding="utf-8", errors="backslashreplace")
        finally:
            if folder not in folders.values():
                shutil.rmtree(folder)

    with memory_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about garbled pickles
        one()
    kinds = [Kind(str(all_[0]), len(all_), folders[place]) for place, all_ in found.items()]
    return Result(counts["accepted"], counts["refused"], kinds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="in all, divided among the targets")
    parser.add_argument("--seed", type=int, help="default: a random one, which is printed")
    parser.add_argument("--target", choices=list(TARGETS), help="only this (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where inputs of findings are kept")
    args = parser.parse_args(argv)
    seed = SystemRandom().randrange(10**6) if args.seed is None else args.seed
    targets = [args.target] if args.target else list(TARGETS)
    if args.cases < len(targets):
        parser.error(f"--cases {args.cases}: give at least one for each of {', '.join(targets)}")
    clean = True
    for i, target in enumerate(targets):
        result = fuzz(target, args.cases // len(targets) + (i < args.cases % len(targets)), seed, args.out)
        findings = sum(kind.count for kind in result.kinds)
        print(
            f"{target}, seed {seed}: {result.accepted} accepted, {result.refused} refused with a usable message, "
            f"{findings} finding(s) of {len(result.kinds)} kind(s)",
            flush=True,
        )
        for kind in result.kinds:
            print(
                f"\n  {kind.count} case(s), input in {kind.folder}\n  " + kind.text.strip().replace("\n", "\n  ") + "\n"
            )
        clean = clean and not result.kinds
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
