"""Opening .npy files: memory maps that are kept, and broken files."""

import io
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from slt_plugin.data import arrays
from slt_plugin.data.arrays import open_array
from slt_plugin.data.errors import DataError


class Broken(DataError):
    pass


def test_values_are_a_read_only_map(tmp_path):
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", expected)
    array = open_array(tmp_path / "a.npy", Broken)
    np.testing.assert_array_equal(array, expected)
    assert isinstance(array.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_maps_are_kept_open_but_only_a_few(tmp_path):
    arrays._open.cache_clear()
    for i in range(arrays._OPEN_MAPS + 5):
        np.save(tmp_path / f"{i}.npy", np.zeros(3))
        assert open_array(tmp_path / f"{i}.npy", Broken) is open_array(tmp_path / f"{i}.npy", Broken)
    assert arrays._open.cache_info().currsize == arrays._OPEN_MAPS


def test_a_file_that_has_changed_is_opened_anew(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    assert open_array(path, Broken).sum() == 0
    np.save(tmp_path / "new.npy", np.ones(3))
    os.replace(tmp_path / "new.npy", path)
    os.utime(path, ns=(1, 1))
    assert open_array(path, Broken).sum() == 3


def saved(array, **kwargs) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


GOOD = saved(np.ones((5, 4), np.float32))


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        GOOD[:9],
        GOOD[:60],
        GOOD[:-1],
        GOOD.replace(b"(5, 4)", b"(9, 9)"),
        GOOD.replace(b"(5, 4), }", b"(5, 4000000000000000000000),}"),
        GOOD.replace(b"(5, 4)", b"(-5,4)"),
        GOOD.replace(b"(5, 4)", b"((((((").replace(b"False", b"((((("),
        GOOD.replace(b"'<f4'", b"'<q9'"),
        GOOD.replace(b"'<f4'", b"(),,,"),
        GOOD[:6] + b"\x02\x00\xff\xff\xff\xff" + GOOD[12:],
        GOOD[:6] + b"\x09\x00" + GOOD[8:],
        b"just some text that is longer than a header",
        pickle.dumps([1, 2, 3]),
        saved(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        zipped(),
        saved(np.zeros((0, 4), np.float32))[:-10],
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_broken_files(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(Broken, match=r"a\.npy: not a .*write it again with numpy\.save"):
        open_array(tmp_path / "a.npy", Broken)


def test_an_absurd_header_size_allocates_nothing(tmp_path):
    (tmp_path / "a.npy").write_bytes(GOOD[:6] + b"\x02\x00\xff\xff\xff\x7f" + GOOD[12:])
    tracemalloc.start()
    try:
        with pytest.raises(Broken, match=r"not a \.npy file"):
            open_array(tmp_path / "a.npy", Broken)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_other_types_of_values(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3, np.int64))
    with pytest.raises(Broken, match="holds int64 values; expected float16, float32 or float64"):
        open_array(tmp_path / "a.npy", Broken)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(Broken, match=r"b\.npy: no such file"):
        open_array(tmp_path / "b.npy", Broken)
    with pytest.raises(Broken, match="cannot be read"):
        open_array(tmp_path, Broken)
