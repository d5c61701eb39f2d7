"""Writing feature stores: kill -9, resume, many writers at once, refusals."""

import multiprocessing
import os
import random
import socket
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from slt_plugin.data.store import EntryError, FeatureStore, Fingerprint, StoreError, StoreWriter, open_store

FINGERPRINT = Fingerprint({"checkpoint": "dm70h", "fps": 25.0, "stride": 64, "crop": None})


def features(steps: int, seed: int = 0, channels: int = 4) -> torch.Tensor:
    return torch.randn(steps, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    with StoreWriter(tmp_path / "f.store", FINGERPRINT, shard_bytes=300) as writer:
        for clip in range(10):
            for copy in range(2):
                writer.add(f"c{clip}", copy, features(clip + 1, 2 * clip + copy))
    return tmp_path / "f.store"


# ---- kill -9 ----

COPIES = 2


@cache
def expected(clip: int, copy: int) -> torch.Tensor:
    return features(50 + clip % 7, COPIES * clip + copy, channels=64)


def write_all(folder: Path, part: str = "0of1", clips: range = range(10**6), started=None) -> None:
    """Adds what is missing; a shard holds three entries."""
    torch.set_num_threads(1)
    with StoreWriter(folder, FINGERPRINT, part=part, shard_bytes=36_000) as writer:
        if started is not None:
            started.set()
        for clip in clips:
            for copy in range(COPIES):
                if (f"clip/{clip}", copy) not in writer.done:
                    writer.add(f"clip/{clip}", copy, expected(clip, copy))


def check(folder: Path) -> int:
    """Every entry that can be seen is whole and right; how many there are."""
    if not list(folder.glob("*of*.safetensors")):
        return 0
    store = FeatureStore(folder)
    for key in store.keys():  # noqa: SIM118
        for copy in store.copies(key):
            np.testing.assert_array_equal(store.read(key, copy), expected(int(key.removeprefix("clip/")), copy))
    return sum(len(store.copies(key)) for key in store.keys())  # noqa: SIM118


def test_kill_9_loses_only_what_was_not_flushed(tmp_path):
    context, rng = multiprocessing.get_context("fork"), random.Random(0)
    folder, counts, leftovers = tmp_path / "f.store", [0], 0
    for _ in range(20):
        started = context.Event()
        process = context.Process(target=write_all, args=(folder,), kwargs={"started": started})
        process.start()
        assert started.wait(60)
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        process.join()
        leftovers += any(path.name.endswith(".tmp") for path in folder.iterdir())
        counts.append(check(folder))
    assert counts == sorted(counts) and counts[-1] > 0, counts
    assert leftovers > 0, "no kill came in the middle of a shard: the test shows nothing"
    clips = counts[-1] // COPIES + 20
    write_all(folder, clips=range(clips))
    assert check(folder) == clips * COPIES
    names = [name for path in folder.glob("*of*.safetensors") for name in entry_names(path)]
    assert len(names) == len(set(names)) == clips * COPIES  # each is stored once
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def entry_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_an_error_in_the_caller_keeps_what_was_added(tmp_path):
    def interrupted():
        with StoreWriter(tmp_path / "f.store", FINGERPRINT) as writer:
            writer.add("a", 0, features(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert FeatureStore(tmp_path / "f.store").keys() == ["a"]


def test_a_full_disk_loses_nothing_that_was_added(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "f.store", FINGERPRINT)
    writer.add("a", 0, features(3))
    fsync = os.fsync

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\)"):
        writer.flush()
    assert writer.done == set()
    assert [path.name for path in (tmp_path / "f.store").iterdir()] == ["fingerprint.json"]
    monkeypatch.setattr(os, "fsync", fsync)
    writer.close()
    assert writer.done == {("a", 0)}
    np.testing.assert_array_equal(FeatureStore(tmp_path / "f.store").read("a"), features(3))


def test_half_written_files_are_removed_where_that_is_safe(folder):
    host, dead, day = socket.gethostname(), 2**22 + 1, 86_400  # Linux gives no process a number above 2^22
    leftovers = {
        f".0of1-00099-00000000.safetensors.slt-{host}-{dead}.tmp": (0, True),  # this part's
        f".0of1-00099-00000000.safetensors.slt-elsewhere-{os.getpid()}.tmp": (0, True),
        f".0of1-00099-00000000.safetensors.slt-{host}-{os.getppid()}.tmp": (day, False),  # is running
        f".1of2-00099-00000000.safetensors.slt-{host}-{dead}.tmp": (day, True),
        f".1of2-00099-00000000.safetensors.slt-{host}-{dead + 1}.tmp": (0, False),  # perhaps another container's
        f".1of2-00099-00000000.safetensors.slt-elsewhere-{dead}.tmp": (day, False),  # may be running there
        f".index.safetensors.slt-{host}-{dead}.tmp": (day, True),
        ".nfs00001": (day, False),
    }
    for name, (age, _) in leftovers.items():
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert len(FeatureStore(folder)) == 10
    assert len(StoreWriter(folder, FINGERPRINT).done) == 20
    assert {name for name in leftovers if not (folder / name).exists()} == {
        n for n, (_, gone) in leftovers.items() if gone
    }


# ---- many writers ----


def test_many_writers_at_once(tmp_path):
    context, folder = multiprocessing.get_context("fork"), tmp_path / "f.store"
    parts = [(folder, f"{part}of4", range(part, 40, 4)) for part in range(4)]
    processes = [context.Process(target=write_all, args=part) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert check(folder) == 40 * COPIES
    assert {path.name.split("-")[0] for path in folder.glob("*of*.safetensors")} == {f"{part}of4" for part in range(4)}


def test_an_index_that_misses_the_shard_of_a_writer_that_ended_at_the_same_moment(tmp_path, monkeypatch):
    """The first lists the shards, the second writes its own and the index, then the first writes its older index."""
    folder = tmp_path / "f.store"
    first = StoreWriter(folder, FINGERPRINT, part="0of2")
    first.add("a", 0, features(2))
    first.close()
    older = (folder / "index.safetensors").read_bytes()
    with StoreWriter(folder, FINGERPRINT, part="1of2") as second:
        second.add("b", 0, features(3))
    (folder / "index.safetensors").write_bytes(older)
    assert FeatureStore(folder).keys() == ["a", "b"]
    assert StoreWriter(folder, FINGERPRINT).done == {("a", 0), ("b", 0)}
    assert (folder / "index.safetensors").read_bytes() != older  # and it is mended


def test_two_writers_of_one_part_overwrite_nothing(tmp_path):
    """As when SLURM requeues a job whose first run is not quite dead."""
    writers = [StoreWriter(tmp_path / "f.store", FINGERPRINT) for _ in range(2)]
    for number, writer in enumerate(writers):
        writer.add(f"k{number}", 0, features(2))
    for writer in writers:
        writer.close()
    assert FeatureStore(tmp_path / "f.store").keys() == ["k0", "k1"]


def test_readers_while_a_store_is_written(folder):
    with StoreWriter(folder, FINGERPRINT, part="1of2") as writer:
        for clip in range(5):
            writer.add(f"new{clip}", 0, features(2, clip))
            assert f"new{clip}" not in open_store(folder)
            writer.flush()
            np.testing.assert_array_equal(open_store(folder).read(f"new{clip}"), features(2, clip))


# ---- what a writer refuses ----


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": Fingerprint({**FINGERPRINT.values, "stride": 32})}, "stride: 64 in the store, 32 asked"),
        ({"dtype": "float16"}, "dtype: float32 in the store, float16 asked"),
        ({"origin": "/b"}, "origin: None in the store, /b asked"),
    ],
)
@pytest.mark.parametrize("empty", [True, False])
def test_another_fingerprint_is_refused_before_and_after_the_first_shard(folder, tmp_path, changed, said, empty):
    if empty:  # its first writer has not flushed yet
        folder = tmp_path / "g.store"
        StoreWriter(folder, FINGERPRINT)
    with pytest.raises(StoreError, match=rf"\.store: another .*{said}; give another folder, or delete"):
        StoreWriter(folder, **{"fingerprint": FINGERPRINT, **changed})
    assert len(StoreWriter(folder, FINGERPRINT).done) == (0 if empty else 20)


def test_two_writers_that_begin_at_once_with_different_fingerprints(tmp_path):
    first = StoreWriter(tmp_path / "f.store", FINGERPRINT, part="0of2")
    (tmp_path / "f.store/fingerprint.json").unlink()  # as if neither had seen the other's
    second = StoreWriter(tmp_path / "f.store", Fingerprint({"stride": 1}), part="1of2")
    second.add("b", 0, features(1))
    second.close()
    first.add("a", 0, features(1))
    with pytest.raises(StoreError, match="stride: 1 in the store, 64 asked"):
        first.flush()
    assert FeatureStore(tmp_path / "f.store").keys() == ["b"]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(4), r"\(4,\) torch.float32; give floating"),
        (torch.ones(0, 4), r"\(0, 4\)"),
        (torch.ones(3, 4, dtype=torch.int64), "int64"),
        (torch.ones(3, 5), "5 channels, but the store's features have 4"),
        (torch.tensor([[1.0, 2, 3, float("nan")]]), "NaN or infinite values; nothing"),
        (torch.full((1, 4), 1e300, dtype=torch.float64), "NaN or infinite values; nothing"),
    ],
)
def test_refused_features(folder, tensor, said):
    with StoreWriter(folder, FINGERPRINT) as writer, pytest.raises(EntryError, match=rf"copy 0 of 'x': .*{said}"):
        writer.add("x", 0, tensor)
    assert "x" not in FeatureStore(folder)


def test_refused_entries(tmp_path):
    writer = StoreWriter(tmp_path / "f.store", FINGERPRINT, dtype="float16")
    with pytest.raises(EntryError, match="beyond float16"):
        writer.add("a", 0, torch.full((2, 4), 70_000.0))
    writer.add("a", 0, features(2))
    for pair, said in (
        (("a", 0), "stored already"),
        (("a/", 0), "as_key"),
        (("a", -1), "from 0"),
        (("a", True), "from 0"),
    ):
        with pytest.raises(EntryError, match=said):
            writer.add(*pair, features(2))
    writer.flush()
    with pytest.raises(EntryError, match="stored already; leave out"):
        writer.add("a", 0, features(2))
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="closed"):
        writer.add("b", 0, features(2))


@pytest.mark.parametrize(
    "changed", [{"part": "1"}, {"part": "3of3"}, {"part": "../0of1"}, {"dtype": "bfloat16"}, {"shard_bytes": 0}]
)
def test_refused_options(tmp_path, changed):
    with pytest.raises(StoreError, match="give"):
        StoreWriter(tmp_path / "f.store", FINGERPRINT, **changed)
    assert not (tmp_path / "f.store").exists()


@pytest.mark.parametrize("name", ["f", ".store", "f.store.old"])
def test_refused_folder_names(tmp_path, name):
    with pytest.raises(StoreError, match=r"a store's folder is named <name>\.store"):
        StoreWriter(tmp_path / name, FINGERPRINT)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        StoreWriter(tmp_path / "file" / "f.store", FINGERPRINT)
