"""Feature stores: fingerprints, keys, reading, the index, damage and refusals."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open

from slt_plugin.data import store as store_module
from slt_plugin.data.errors import DataError
from slt_plugin.data.store import (
    FeatureStore,
    Fingerprint,
    StoreError,
    StoreWriter,
    as_key,
    open_store,
    split_path,
)
from slt_plugin.data.store_shards import key_problem

FINGERPRINT = Fingerprint({"checkpoint": "dm70h", "fps": 25.0, "stride": 64, "crop": None})


def features(steps: int, seed: int = 0, channels: int = 4) -> torch.Tensor:
    return torch.randn(steps, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    """Clips c0 .. c9, the n-th of n + 1 steps, in two copies over several shards."""
    with StoreWriter(tmp_path / "f.store", FINGERPRINT, shard_bytes=300) as writer:
        for clip in range(10):
            for copy in range(2):
                writer.add(f"c{clip}", copy, features(clip + 1, 2 * clip + copy))
    return tmp_path / "f.store"


def shards(folder):
    return sorted(path for path in folder.glob("*of*.safetensors"))


# ---- fingerprints ----


def test_fingerprints_are_compared_by_value():
    again = Fingerprint({"crop": None, "stride": 64.0, "fps": 25, "checkpoint": "dm70h"})
    assert again == FINGERPRINT and hash(again) == hash(FINGERPRINT) and again.digest == FINGERPRINT.digest
    assert json.loads(FINGERPRINT.canonical) == {"checkpoint": "dm70h", "crop": None, "fps": 25, "stride": 64}
    for changed in ({"stride": 32}, {"stride": "64"}, {"stride": True}, {"crop": "None"}, {"size": 224}):
        assert Fingerprint(FINGERPRINT.values | changed) != FINGERPRINT
    assert Fingerprint({"flip": True}) != Fingerprint({"flip": 1})


def test_a_difference_is_readable():
    other = Fingerprint({"checkpoint": "dm70h", "fps": 25, "stride": "64", "size": 224})
    assert FINGERPRINT.difference(other) == (
        "crop: None in the store, not given asked; size: not given in the store, 224 asked; "
        "stride: 64 in the store, '64' asked"
    )
    assert FINGERPRINT.difference(FINGERPRINT) == ""


@pytest.mark.parametrize(
    "values", [{}, {"a": float("nan")}, {"a": float("inf")}, {"a": [1]}, {" a": 1}, {"": 1}, {1: 1}]
)
def test_refused_fingerprints(values):
    with pytest.raises(StoreError, match="fingerprint"):
        Fingerprint(values)


# ---- keys and paths ----


def test_split_path():
    assert split_path("/data/f.store/a/b.pt") == ("/data/f.store", "a/b.pt")
    assert split_path("x.store/y.store/a") == ("x.store/y.store", "a")
    assert split_path("F.STORE/a") == ("F.STORE", "a")
    for path in ("features/a.npy", "f.store", "f.store/", "f.stored/a", "fstore/a"):
        assert split_path(path) is None


def test_every_name_has_a_key_of_its_own_that_survives_a_path(tmp_path):
    plain = ["abc", "a/b", "fZc-5.rgb_front", "Grüße 1", "手语", "a.store.x", "...", "{epoch}"]
    odd = ["", "a//b", "a/", "/a", "./a", "a/./b", "..", "../a", "a.store", "x.STORE/b", " a", "a ", "a\tb", "a\nb"]
    odd += ["50%", "a%2Fb", "a%252Fb", "\u202e"]
    assert [as_key(name) for name in plain] == plain
    keys = [as_key(name) for name in plain + odd[1:]]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert key_problem(key) is None
        assert split_path(tmp_path / "f.store" / key) == (str(tmp_path / "f.store"), key)
    assert all(key_problem(name) for name in odd if "%" not in name)


# ---- reading ----


def test_what_is_written_is_read(folder):
    store = FeatureStore(folder)
    assert len(shards(folder)) > 3
    assert (store.fingerprint, store.channels, store.num_copies, store.dtype) == (FINGERPRINT, 4, 2, "float32")
    assert store.keys() == [f"c{clip}" for clip in range(10)] and len(store) == 10
    assert "c3" in store and "c10" not in store
    for clip in (7, 0, 9, 3):
        assert store.copies(f"c{clip}") == (0, 1)
        for copy in (1, 0):
            array = store.read(f"c{clip}", copy)
            assert store.num_steps(f"c{clip}", copy) == clip + 1
            np.testing.assert_array_equal(array, features(clip + 1, 2 * clip + copy))
            assert not array.flags.writeable
    with safe_open(shards(folder)[0], framework="pt") as file:  # a standard file, also without this package
        torch.testing.assert_close(file.get_tensor("1/c0"), features(1, 1), rtol=0, atol=0)


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_types(tmp_path, given, dtype):
    tensor = features(6, 1).to(given).requires_grad_()
    with StoreWriter(tmp_path / "f.store", FINGERPRINT, dtype=dtype) as writer:
        writer.add("a", 0, tensor.T.contiguous().T)  # not contiguous
        with torch.no_grad():
            tensor.zero_()  # the caller may use its memory again
    read = FeatureStore(tmp_path / "f.store").read("a")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, features(6, 1).to(given).to(getattr(torch, dtype)))


def test_keys_and_copies_that_are_not_there(folder):
    store = FeatureStore(folder)
    with pytest.raises(StoreError, match=r"f\.store: no features 'c10' among its 10 keys \(c0, c1 and 8 more\)"):
        store.read("c10")
    for copy in (2, -1):
        with pytest.raises(StoreError, match=rf"f\.store/c1: no copy {copy} \(there are 0, 1\)"):
            store.read("c1", copy)


def test_a_folder_without_a_store(tmp_path):
    assert issubclass(StoreError, DataError)
    with pytest.raises(StoreError, match=r"f\.store: no such store; extract"):
        open_store(tmp_path / "f.store")
    StoreWriter(tmp_path / "f.store", FINGERPRINT).close()
    with pytest.raises(StoreError, match="holds no features yet"):
        FeatureStore(tmp_path / "f.store")


def test_a_store_is_pickled_as_its_folder_and_read_after_a_fork(folder):
    store = FeatureStore(folder)
    store.read("c4")
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).read("c4"), store.read("c4"))  # noqa: S301
    # a training in this process notes SIGTERM, which is how a pool ends its workers
    killable = {"initializer": signal.signal, "initargs": (signal.SIGTERM, signal.SIG_DFL)}
    with multiprocessing.get_context("fork").Pool(2, **killable) as pool:
        results = pool.starmap(store.read, [(f"c{clip}", 1) for clip in range(10)])
    for clip, array in enumerate(results):
        np.testing.assert_array_equal(array, features(clip + 1, 2 * clip + 1))


def test_the_number_of_open_files_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and not what is tested here
    with StoreWriter(tmp_path / "f.store", FINGERPRINT, shard_bytes=1) as writer:
        for clip in range(2 * store_module._OPEN_MAPS):
            writer.add(f"{clip}", 0, features(1))
    store = FeatureStore(tmp_path / "f.store")
    before = len(os.listdir("/proc/self/fd"))
    for clip in range(2 * store_module._OPEN_MAPS):
        store.read(f"{clip}")
    assert len(os.listdir("/proc/self/fd")) <= before + store_module._OPEN_MAPS


def test_an_open_store_sees_what_is_added_and_made_anew(folder):
    assert len(open_store(folder)) == 10
    assert open_store(folder) is open_store(folder)
    with StoreWriter(folder, FINGERPRINT) as writer:
        writer.add("new", 0, features(2))
        writer.flush()
        assert "new" in open_store(folder)
    assert open_store(folder).read("new").shape == (2, 4)
    assert not (open_store(folder).read("c5") == 7).any()
    shutil.rmtree(folder)
    with StoreWriter(folder, FINGERPRINT, shard_bytes=300) as writer:  # shards of the same names and sizes
        for clip in range(10):
            for copy in range(2):
                writer.add(f"c{clip}", copy, torch.full((clip + 1, 4), 7.0))
    assert (open_store(folder).read("c5") == 7).all()


# ---- the index is made from the shards ----


@pytest.mark.parametrize("damage", ["missing", "empty", "garbled", "older", "other format", "wrong table", "one bit"])
def test_the_index_is_made_again(folder, damage):
    index = folder / "index.safetensors"
    whole = index.read_bytes()
    if damage == "missing":
        index.unlink()
    elif damage == "older":
        with StoreWriter(folder, FINGERPRINT, part="1of2") as writer:
            writer.add("new", 0, features(2))
        index.write_bytes(whole)
    else:
        changed = {
            "empty": b"",
            "garbled": whole[: len(whole) // 2],
            "other format": whole.replace(b"index/1", b"index/9"),
        }
        changed["wrong table"] = whole.replace(b'"steps"', b'"stepz"')
        changed["one bit"] = whole[:-1] + bytes([whole[-1] ^ 1])
        assert changed[damage] != whole
        index.write_bytes(changed[damage])
    store = FeatureStore(folder)
    assert len(store) == 10 + (damage == "older")
    np.testing.assert_array_equal(store.read("c9", 1), features(10, 19))
    assert index.read_bytes() == whole or damage == "older"


def test_a_removed_shard_is_noticed(folder):
    gone = shards(folder)[0]
    with safe_open(gone, framework="pt") as file:
        lost = {tuple(name.split("/")) for name in file.keys()}  # noqa: SIM118
    gone.unlink()
    with StoreWriter(folder, FINGERPRINT) as writer:
        assert {(key, str(copy)) for key, copy in writer.done} == {
            (f"c{clip}", str(copy)) for clip in range(10) for copy in range(2)
        } - {(key, copy) for copy, key in lost}


def test_a_store_that_cannot_be_written_is_read(folder, monkeypatch, caplog):
    (folder / "index.safetensors").unlink()

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("slt_plugin.data.store_index.atomic_open", refuse)
    with caplog.at_level("INFO"):
        assert len(FeatureStore(folder)) == 10
    assert "the index could not be written" in caplog.text


def test_copies_stored_twice(folder, tmp_path, caplog):
    """As after two writers of one part: the same copy in two shards."""
    with StoreWriter(tmp_path / "g.store", FINGERPRINT, part="1of2") as writer:
        writer.add("c3", 0, torch.zeros(4, 4))
    shutil.copy(shards(tmp_path / "g.store")[0], folder)
    for _ in range(2):
        np.testing.assert_array_equal(FeatureStore(folder).read("c3"), features(4, 6))
        (folder / "index.safetensors").unlink()
    assert "1 copies are stored twice" in caplog.text
    FeatureStore(folder)
    for shard in shards(folder):
        if shard.name.startswith("0of1"):
            shard.unlink()
    np.testing.assert_array_equal(FeatureStore(folder).read("c3"), np.zeros((4, 4)))


def test_which_of_two_is_used_does_not_depend_on_when_they_came(tmp_path):
    for name, part, value in (("f", "1of2", 1.0), ("g", "0of2", 0.0)):
        with StoreWriter(tmp_path / f"{name}.store", FINGERPRINT, part=part) as writer:
            writer.add("a", 0, torch.full((3, 4), value))
    shutil.copy(shards(tmp_path / "g.store")[0], tmp_path / "f.store")
    assert (FeatureStore(tmp_path / "f.store").read("a") == 0).all()
    (tmp_path / "f.store/index.safetensors").unlink()
    assert (FeatureStore(tmp_path / "f.store").read("a") == 0).all()


def test_copies_that_disagree(folder, tmp_path):
    with StoreWriter(tmp_path / "g.store", FINGERPRINT, part="1of2") as writer:
        writer.add("c3", 0, features(5))
    shutil.copy(shards(tmp_path / "g.store")[0], folder)
    with pytest.raises(StoreError, match=r"copy 0 of 'c3' has 4 steps in 0of1-.* and 5 in 1of2-.*; delete the shard"):
        FeatureStore(folder)


# ---- damage and strangers ----


@pytest.mark.parametrize("with_index", [True, False])
def test_a_truncated_shard(folder, with_index):
    shard = shards(folder)[-1]
    os.truncate(shard, shard.stat().st_size - 4)
    if with_index:
        store = FeatureStore(folder)
        assert store.read("c0").shape == (1, 4)
        with pytest.raises(StoreError, match=rf"{shard.name}: \d+ bytes, \d+ expected; delete it"):
            store.read("c9", 1)
    else:
        (folder / "index.safetensors").unlink()
        with pytest.raises(StoreError, match=rf"{shard.name}: not a whole shard .*; delete it"):
            FeatureStore(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{}", "changed"])
def test_a_damaged_header(folder, content):
    shard = shards(folder)[0]
    shard.write_bytes(shard.read_bytes().replace(b"c0", b"c1") if content == "changed" else content)
    (folder / "index.safetensors").unlink()
    with pytest.raises(StoreError, match=rf"{shard.name}: its header is damaged; delete it, and run what wrote"):
        FeatureStore(folder)


def test_a_file_that_is_no_shard(folder):
    shutil.copy(shards(folder)[0], folder / "mine.safetensors")
    with pytest.raises(StoreError, match=r"mine\.safetensors: not a shard's name"):
        FeatureStore(folder)


def test_shards_of_two_fingerprints(folder, tmp_path):
    with StoreWriter(tmp_path / "g.store", Fingerprint(FINGERPRINT.values | {"stride": 32})) as writer:
        writer.add("x", 0, features(3))
    foreign = shards(tmp_path / "g.store")[0]
    shutil.copy(foreign, folder)
    said = rf"shards of different fingerprints \(stride: 64 in 0of1-\S+, 32 in {foreign.name}\); move one kind"
    with pytest.raises(StoreError, match=said):
        FeatureStore(folder)
    (folder / "index.safetensors").unlink()
    with pytest.raises(StoreError, match="shards of different fingerprints"):
        FeatureStore(folder)
