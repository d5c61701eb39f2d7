"""Pre-extracted features: files, extraction copies and broken input."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from slt_plugin.data.errors import DataError
from slt_plugin.data.features import (
    FeatureError,
    check_all_copies,
    checked_features,
    choose_copy,
    feature_copies,
    feature_steps,
    is_features,
    open_features,
)
from slt_plugin.data.store import Fingerprint, StoreWriter


def read(path, first=0, last=None, step=1):
    array = open_features(path)
    return checked_features(path, array, first, len(array) if last is None else last, step)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)


def test_feature_errors_are_data_errors():
    assert issubclass(FeatureError, DataError)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_npy(tmp_path, features, dtype):
    np.save(tmp_path / "a.npy", features.astype(dtype))
    out = read(tmp_path / "a.npy", 2, 9, 3)
    assert out.dtype == np.float32
    assert out.dtype.isnative
    np.testing.assert_allclose(out, features[2:9:3], rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("zipped", [True, False])
def test_pt(tmp_path, features, dtype, zipped):
    tensor = torch.from_numpy(features).to(dtype).requires_grad_()
    torch.save(tensor, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    out = read(tmp_path / "a.pt")
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, features, rtol=2e-2)


def test_one_window_of_ssvp_slt(tmp_path):
    torch.save(torch.arange(4.0), tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").tolist() == [[0, 1, 2, 3]]


def test_the_copy_is_writable_and_its_own(tmp_path, features):
    np.save(tmp_path / "a.npy", features)
    read(tmp_path / "a.npy")[:] = 0
    np.testing.assert_array_equal(read(tmp_path / "a.npy"), features)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none(tmp_path, features, value):
    features = features.astype(np.float64)
    features[4, 1] = features[6, 2] = value
    np.save(tmp_path / "a.npy", features)
    with pytest.raises(FeatureError, match=r"a\.npy: NaN or infinite values in 2 steps, first in step 4; extract"):
        read(tmp_path / "a.npy")
    with pytest.raises(FeatureError, match="in 1 steps, first in step 6"):
        read(tmp_path / "a.npy", 3, 9, 3)
    np.testing.assert_array_equal(read(tmp_path / "a.npy", 0, 4), features[:4].astype(np.float32))


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_ranks(tmp_path, shape, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, np.ones(shape))
    else:
        torch.save(torch.ones(shape), path)
    with pytest.raises(FeatureError, match=r"save features of shape \(steps, channels\)"):
        read(path)


def test_unsupported_kinds(tmp_path):
    for name in ("a.mp4", "a", "a.npz"):
        with pytest.raises(FeatureError, match=rf"{name}: .* give \.npy or \.pt"):
            open_features(tmp_path / name)


def saved(value, **kwargs) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return print, ("code in a pickle was run",)


def text_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", "text")
    return file.getvalue()


GOOD = saved(torch.ones(9, 4))
LEGACY = saved(torch.ones(9, 4), _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text instead",
        GOOD[:100],
        GOOD[:-1],
        LEGACY[:100],
        LEGACY[:-1],
        LEGACY[:50] + b"\x00" * 50 + LEGACY[100:],
        text_zip(),
        pickle.dumps([1.0, 2.0], protocol=2),
        pickle.dumps(Evil(), protocol=2),
        saved(Evil()),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_broken_pt(tmp_path, content, capsys):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(FeatureError, match=r"a\.pt: not a complete \.pt file .*torch\.save\(tensor, path\)"):
        read(tmp_path / "a.pt")
    assert "code" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"features": torch.ones(3, 4)}, "holds a dict"),
        ([1, 2], "holds a list"),
        (torch.ones(3, 4, dtype=torch.int64), "not dense floating point"),
        (torch.ones(3, 4).to_sparse(), "not dense floating point"),
        (torch.ones(1, 4).expand(10**12, 4), "not dense floating point"),
    ],
)
def test_other_contents_of_pt(tmp_path, value, said):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(FeatureError, match=rf"a\.pt: .*{said}"):
        read(tmp_path / "a.pt")


def test_missing_files(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(FeatureError, match=r"a\.pt: no such file"):
        read(tmp_path / "a.pt")
    with pytest.raises(FeatureError, match=r"folder\.pt: cannot be read"):
        read(tmp_path / "folder.pt")


# ---- extraction copies ----


def test_copies_are_the_numbered_folders_in_order(tmp_path):
    for name in ("10", "2", "0", "notes", "-1"):
        (tmp_path / "features" / name).mkdir(parents=True)
    (tmp_path / "features" / "7").write_text("a file, not a folder")
    path = tmp_path / "features" / "{epoch}" / "abcde" / "abcdef.pt"
    assert feature_copies(path) == [tmp_path / "features" / n / "abcde" / "abcdef.pt" for n in ("0", "2", "10")]
    chosen = [choose_copy(path, epoch).parts[-3] for epoch in (1, 2, 3, 4, 5)]
    assert chosen == ["0", "2", "10", "0", "2"]
    assert choose_copy(path, None).parts[-3] == "0"


def test_a_path_without_copies():
    assert feature_copies(Path("x/a.pt")) == [Path("x/a.pt")]
    assert choose_copy(Path("x/a.pt"), 7) == Path("x/a.pt")


def test_refused_copies(tmp_path):
    with pytest.raises(FeatureError, match="no such file or folder"):
        feature_copies(tmp_path / "features" / "{epoch}" / "a.pt")
    with pytest.raises(FeatureError, match=r"no folder 0, 1, \.\.\."):
        feature_copies(tmp_path / "{epoch}" / "a.pt")
    for path in (tmp_path / "e{epoch}" / "a.pt", tmp_path / "{epoch}" / "{epoch}" / "a.pt"):
        with pytest.raises(FeatureError, match="once, as a whole folder name"):
            feature_copies(path)


# ---- stores ----


@pytest.fixture
def store(tmp_path):
    """a: 3 copies of 5 steps; b: 1 copy of 6 steps; gap: copies 0 and 2."""
    with StoreWriter(tmp_path / "f.store", Fingerprint({"stride": 64})) as writer:
        for key, copy, steps in (
            ("x/a", 0, 5),
            ("x/a", 1, 5),
            ("x/a", 2, 5),
            ("b", 0, 6),
            ("gap", 0, 1),
            ("gap", 2, 1),
        ):
            writer.add(key, copy, torch.full((steps, 4), float(copy)))
    return tmp_path / "f.store"


def test_copies_of_a_store(store):
    path = store / "x/a"
    assert [str(copy) for copy in feature_copies(path)] == [str(path), f"{path} (copy 1)", f"{path} (copy 2)"]
    for epoch, copy in ((None, 0), (1, 0), (2, 1), (3, 2), (4, 0)):
        chosen = choose_copy(path, epoch)
        assert feature_steps(chosen) == 5
        assert (read(chosen) == copy).all()
        assert read(chosen, 1, 4, 2).shape == (2, 4)
    assert is_features(path) and is_features(Path("a.pt")) and is_features(Path("{epoch}/a.npy"))
    assert not is_features(Path("a.npy")) and not is_features(Path("f.store"))


def test_steps_of_files(tmp_path, features):
    np.save(tmp_path / "a.npy", features)
    assert feature_steps(tmp_path / "a.npy") == 9


def test_keys_that_a_store_lacks_and_copies_with_gaps(store):
    with pytest.raises(DataError, match=r"f\.store: no features 'c'"):
        feature_copies(store / "c")
    with pytest.raises(FeatureError, match=r"gap: copy 1 of 3 is missing; run its extraction again"):
        feature_copies(store / "gap")
    with pytest.raises(DataError, match="no such store"):
        feature_copies(store.parent / "none.store" / "a")


def test_a_key_with_fewer_copies_than_others(store):
    check_all_copies(feature_copies(store / "x/a"))
    check_all_copies([Path("a.npy")])
    with pytest.raises(FeatureError, match=r"f\.store/b: 1 copies, others of the store have 3; extract the rest"):
        check_all_copies(feature_copies(store / "b"))
