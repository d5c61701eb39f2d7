"""slt-extract that is killed, stopped, or loses a worker; staging; the plan of the work."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from extract_helpers import assert_same, contents, run, words, write_checkpoint, write_corpus, write_moving
from killed_source import KilledOn

from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.extraction import options
from slt_plugin.extraction.decoding import Decoders
from slt_plugin.extraction.plan import Job, Segment, find_segments, owners
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.staging import Stager

ROUNDING = 3e-5  # see test_extract
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """60 rows of one video: some seconds of work."""
    folder = tmp_path_factory.mktemp("many")
    write_moving(folder / "v.mp4", 250, seed=0)
    rows = [Row(f"r{i}", "v.mp4", start=i / 25, end=i / 25 + 6, fps=25.0) for i in range(60)]
    write_manifest(folder / "m.tsv", rows)
    return folder / "m.tsv"


def children(pid: int) -> list[int]:
    """All processes below ``pid``."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in found.splitlines())
    below, size = {pid}, 0
    while len(below) > size:
        size = len(below)
        below |= {child for child, parent in parents.items() if parent in below}
    return sorted(below - {pid})


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0]
    return False


def wait_until(what, seconds: float = 150.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "slt_plugin.cli.extract", *words(*arguments, **options)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_and_started_again(many, checkpoint, tmp_path, caplog):
    out = tmp_path / "f.store"
    process = start(many, checkpoint, out, num_workers=2, flush_minutes=1e-4)  # after every row
    wait_until(lambda: len(list(out.glob("*.safetensors"))) > 5)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, workers)))  # a dead parent's workers end
    assert len(workers) >= 2 and not out.with_suffix(".tsv").exists()
    there = len(contents(out))
    assert 4 < there < 60
    with caplog.at_level(logging.INFO):
        assert run(many, checkpoint, out) == 0
    assert f"{60 - there} features to extract, {there} in the store" in caplog.text
    assert not list(out.glob(".*"))
    assert run(many, checkpoint, tmp_path / "whole.store") == 0
    assert_same(contents(out), contents(tmp_path / "whole.store"), ROUNDING)
    assert len(read_manifest(out.with_suffix(".tsv"))) == 60


@pytest.mark.parametrize("number", STOPS)
def test_stopped_by_a_signal(many, checkpoint, tmp_path, monkeypatch, capsys, number):
    """What is finished reaches the disk, though nothing was flushed before."""
    original, taken = StoreSink.features, []

    def features(self, job, tensor):
        taken.append(job.name)
        if len(taken) == 3:
            os.kill(os.getpid(), number)
        return original(self, job, tensor)

    monkeypatch.setattr(StoreSink, "features", features)
    handlers = [signal.getsignal(each) for each in STOPS]
    assert run(many, checkpoint, tmp_path / "f.store") == 128 + number
    assert [signal.getsignal(each) for each in STOPS] == handlers
    assert f"ended by {number.name}; the same command goes on" in capsys.readouterr().err
    assert contents(tmp_path / "f.store").keys() == set(taken) and 3 <= len(taken) < 60


def test_a_signal_before_the_work_begins(many, checkpoint, tmp_path, monkeypatch, capsys):
    """While torch is imported, or the model read."""
    from slt_plugin.extraction import kinds

    original, unheard = kinds.run_kind, []

    def run_kind(*arguments):
        os.kill(os.getpid(), signal.SIGUSR2)
        return original(*arguments)

    monkeypatch.setattr(kinds, "run_kind", run_kind)
    before = signal.signal(signal.SIGUSR2, lambda number, frame: unheard.append(number))
    try:
        assert run(many, checkpoint, tmp_path / "f.store") == 128 + signal.SIGUSR2
        assert not unheard and not list(tmp_path.rglob("*.safetensors"))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert "ended by SIGUSR2; the same command goes on" in capsys.readouterr().err


def decoded(decoders: Decoders, jobs: list[Job]) -> dict:
    for job in jobs:
        decoders.add(job, job.segment.row)
    found = {}
    with decoders:
        while decoders.busy:
            item = decoders.take()
            if item is None:
                decoders.wait(1)
                continue
            found[item[0].segment.row.id] = item[1]
            decoders.release(item[0])
    return found


def jobs_of(manifest, copies: int = 1) -> list[Job]:
    segments = find_segments(read_manifest(manifest), manifest.parent)
    return [Job(segment, copy) for segment in segments for copy in range(copies)]


def test_a_worker_that_dies_costs_its_own_row_only(corpus):
    source = KilledOn(corpus.parent, ClipOptions(num_frames=32, stride=16, size=64))
    found = decoded(Decoders(source, workers=2, budget=1 << 30, seed=1), jobs_of(corpus))
    assert {row_id for row_id, result in found.items() if result.frames is None} == {"b"}
    assert "died" in found["b"].problem and "'b': b.mp4" in found["b"].problem and len(found) == 7


def test_frames_that_wait_stay_within_the_budget(corpus):
    """A row larger than the budget comes alone, smaller ones together. Rows that tell their length are known before."""
    frames = {"a": 20, "b": 33, "c": 70, "d": 131, "e": 64}
    source = VideoSource(corpus.parent, ClipOptions(num_frames=32, stride=16, size=64))
    rows = [Row(name, f"{name}.mp4", num_frames=frames[name], fps=25.0) for name in "aedbcaeab"]
    jobs = [Job(Segment(f"{number}", row, (row.id,)), 0) for number, row in enumerate(rows)]
    held, alone, together, budget = {}, [], 0, 2 * 3 * 64 * 64 * 32
    with Decoders(source, workers=2, budget=budget, seed=1) as decoders:
        for job in jobs:
            decoders.add(job, job.segment.row)
        while decoders.busy:
            item = decoders.take()
            if item is not None:
                held[item[0]] = item[1].bytes
                assert len(held) == 1 or sum(held.values()) <= budget
                together = max(together, len(held))
                if sum(held.values()) > budget:
                    alone.append(item[0].segment.row.id)
            elif decoders.running:
                decoders.wait(1)
            else:  # nothing more fits: the model takes what waits
                for job in held:
                    decoders.release(job)
                held.clear()
    assert together > 1 and alone == ["d"]


def test_staging_copies_each_file_once_and_cleans_up(corpus, checkpoint, tmp_path, monkeypatch):
    copied = []
    original = Stager._copy
    monkeypatch.setattr(Stager, "_copy", lambda self, *paths: copied.append(paths[0].name) or original(self, *paths))
    local = tmp_path / "local"
    local.mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(local))
    for name, given in (("plain", {}), ("staged", {"staging": "$SLURM_TMPDIR", "num_workers": 2})):
        assert run(corpus, checkpoint, tmp_path / f"{name}.store", epochs=2, **given) == 0
    assert sorted(copied) == [f"{name}.mp4" for name in "abcde"]
    assert not list(local.iterdir())
    assert_same(contents(tmp_path / "plain.store"), contents(tmp_path / "staged.store"), ROUNDING)


def test_staging_is_bounded(corpus, tmp_path):
    sizes = {path.name: path.stat().st_size for path in corpus.parent.glob("*.mp4")}
    limit = sizes["a.mp4"] + sizes["b.mp4"]
    jobs = jobs_of(corpus)
    most, given, open_jobs = 0, {}, []
    with Stager(jobs, corpus.parent, tmp_path, limit) as stager:
        while stager.busy or open_jobs:
            item = stager.take()
            if item is not None:
                given[item[0].segment.row.id] = item[1].path
                assert (corpus.parent / item[1].path).is_file()
                open_jobs.append(item[0])
            elif open_jobs:
                stager.finished(open_jobs.pop(0))
            else:
                stager.wait(1)
            most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*/*")))
    assert 0 < most <= limit and not list(tmp_path.iterdir())
    local = {row_id for row_id, path in given.items() if path.startswith(str(tmp_path))}
    fits = {job.segment.row.id for job in jobs if sizes[job.segment.row.path] <= limit}
    assert local == fits and {"a", "b"} <= local and len(given) == len(jobs)


def test_staging_removes_what_a_killed_run_left(corpus, tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    with Stager(jobs_of(corpus), corpus.parent, tmp_path, 1) as stager:
        (mine,) = tmp_path.iterdir()
        left = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{process.pid}-")
        left.mkdir()
        with Stager([], corpus.parent, tmp_path, 1):
            assert not left.exists() and mine.exists()
    assert stager.busy and not list(tmp_path.iterdir())


def test_failures_name_the_original_not_the_staged_file(checkpoint, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    write_moving(tmp_path / "good.mp4", 20, seed=0)
    write_manifest(tmp_path / "m.tsv", [Row("x", "bad.mp4"), Row("y", "good.mp4")])
    (tmp_path / "local").mkdir()
    assert (
        run(
            tmp_path / "m.tsv",
            checkpoint,
            tmp_path / "f.store",
            staging=tmp_path / "local",
            out_manifest=tmp_path / "o.tsv",
        )
        == 1
    )
    line = (tmp_path / "f.store" / "failed.tsv").read_text().splitlines()[1]
    assert line.startswith("x\tbad.mp4\t") and "bad.mp4: " in line.split("\t")[2] and "local" not in line


def test_elements_share_the_frames_and_few_files(tmp_path):
    """One video of many rows goes to neighbours; lengths count where all rows tell them."""
    for name in "xy":
        (tmp_path / name).write_bytes(b"1")
    long = [Row(f"x{i}", "x", start=float(i), end=i + 1.0, fps=25.0) for i in range(90)]
    short = [Row(f"y{i}", "y", start=i / 10, end=i / 10 + 0.1, fps=20.0) for i in range(90)]
    mixed = [row for pair in zip(long, short, strict=True) for row in pair]
    segments = find_segments(mixed, tmp_path)
    assert [segment.row.id for segment in segments] == [row.id for row in (*long, *short)]
    numbers = owners(segments, 4)
    assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2, 3}
    frames = [0] * 4
    for segment, number in zip(segments, numbers, strict=True):
        frames[number] += 25 if segment.row.path == "x" else 2
    assert max(frames) - min(frames) <= 50
    counted = owners(find_segments([*mixed, Row("z", "x")], tmp_path), 4)  # one row does not tell
    assert [counted.count(number) for number in range(4)] == [45, 45, 46, 45]
    assert owners(segments[:1], 4) in ([1], [2]) and owners([], 4) == []


@pytest.mark.parametrize(("workers", "configured", "expected"), [(0, 8, 4), (0, 2, 2), (1, 8, 3), (4, 8, 1), (9, 8, 1)])
def test_a_cpu_model_leaves_the_decoders_their_cpus(monkeypatch, workers, configured, expected):
    monkeypatch.setattr(options, "available_cpus", lambda: 4)
    assert options.model_threads(workers, configured) == expected
