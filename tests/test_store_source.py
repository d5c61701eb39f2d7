"""FeatureSource and slt-manifest check on manifests whose rows lie in stores."""

import numpy as np
import pytest
import torch

from slt_plugin.cli.manifest import main
from slt_plugin.data.features import FeatureError
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.sources import FeatureSource
from slt_plugin.data.store import Fingerprint, StoreError, StoreWriter

FINGERPRINT = Fingerprint({"checkpoint": "dm70h", "stride": 64})


@pytest.fixture
def media(tmp_path):
    """f.store: a and b, 10 steps in 3 copies filled with the copy's number; other.store: another stride; a.npy."""
    with StoreWriter(tmp_path / "f.store", FINGERPRINT, dtype="float16") as writer:
        for key in ("a", "b"):
            for copy in range(3):
                writer.add(key, copy, torch.full((10, 4), float(copy)))
    with StoreWriter(tmp_path / "same.store", FINGERPRINT) as writer:
        writer.add("a", 0, torch.arange(40.0).reshape(10, 4))
    with StoreWriter(tmp_path / "other.store", Fingerprint({"checkpoint": "dm70h", "stride": 32})) as writer:
        writer.add("a", 0, torch.ones(10, 4))
    np.save(tmp_path / "a.npy", np.ones((10, 4), dtype=np.float32))
    return tmp_path


def test_rows_of_a_store(media):
    source, row = FeatureSource(media, channels=4), Row("a", "f.store/a")
    rng = np.random.default_rng(0)
    assert source.num_steps(row) == 10
    for epoch, copy in ((1, 0), (2, 1), (3, 2), (4, 0)):
        loaded = source.load(row, epoch=epoch, rng=rng)
        assert loaded.dtype == torch.float32 and loaded.shape == (10, 4) and (loaded == copy).all()
    assert (source.load(row, epoch=3) == 0).all()  # evaluation: always the first


def test_parts_and_steps_of_a_stored_row(media):
    source, row = FeatureSource(media, channels=4, step=2), Row("a", "same.store/a", start=2.0, end=5.0, fps=1.0)
    assert source.num_steps(row) == 2
    np.testing.assert_array_equal(source.load(row)[:, 0], [8, 16])


def test_errors_name_row_and_store(media):
    source = FeatureSource(media, channels=4)
    with pytest.raises(StoreError, match=r"row 'x': .*f\.store: no features 'c' among"):
        source.load(Row("x", "f.store/c"))
    with pytest.raises(FeatureError, match=r"row 'x': .*f\.store/a \(copy 2\): 4 channels, but .* for 768"):
        FeatureSource(media, channels=768).load(Row("x", "f.store/a"), epoch=3, rng=np.random.default_rng(0))


def test_the_fingerprint_of_rows(media):
    source = FeatureSource(media, channels=4)
    assert source.fingerprint([Row("a", "f.store/a"), Row("b", "f.store/b")]) == FINGERPRINT
    assert source.fingerprint([Row("a", "f.store/a"), Row("b", str(media / "same.store/a"))]) == FINGERPRINT
    assert source.fingerprint([Row("a", "a.npy")]) is None
    assert source.fingerprint([]) is None
    with pytest.raises(
        FeatureError, match=r"other\.store: .*stride: 64 in .*f\.store \(row 'a'\), 32 in .*other\.store"
    ):
        source.fingerprint([Row("a", "f.store/a"), Row("b", "other.store/a")])
    with pytest.raises(FeatureError, match=r"row 'b' is the plain file a\.npy, row 'a' of the store .*adopt-features"):
        source.fingerprint([Row("a", "f.store/a"), Row("b", "a.npy")])
    with pytest.raises(StoreError, match=r"row 'n': .*no such store"):
        source.fingerprint([Row("n", "none.store/a")])


def test_check_reads_stores(media, capsys):
    good = [Row(f"a{number}", "f.store/a", num_frames=10) for number in range(20)]
    write_manifest(media / "good.tsv", good)
    assert main(["check", str(media / "good.tsv"), "--workers", "0"]) == 0
    with StoreWriter(media / "f.store", FINGERPRINT, dtype="float16") as writer:
        writer.add("few", 0, torch.ones(10, 4))
    bad = [Row("gone", "f.store/c"), Row("few", "f.store/few"), Row("long", "f.store/b", num_frames=11)]
    write_manifest(media / "bad.tsv", [*good, *bad])
    capsys.readouterr()
    assert main(["check", str(media / "bad.tsv"), "--workers", "0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "row 'gone'" in lines[0] and "no features 'c'" in lines[0]
    assert "row 'few'" in lines[1] and "1 copies, others of the store have 3" in lines[1]
    assert "row 'long'" in lines[2] and "num_frames is 11, but 10" in lines[2]
