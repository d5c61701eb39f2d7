"""slt_plugin/common/download.py: what test_download_pretrained.py does not reach: checksums and the progress line."""

import hashlib
import io

import pytest
from http_helpers import serve

from slt_plugin.common import download
from slt_plugin.common.download import Checksum, DownloadError, Progress, fetch

CONTENT = bytes(range(256)) * 4000
GOOD = Checksum("md5", hashlib.md5(CONTENT).hexdigest())
BAD = Checksum("md5", "0" * 32)


@pytest.fixture
def server():
    with serve({"/a/file?format=original": CONTENT}) as server:
        server.file = f"{server.url}/a/file?format=original"
        yield server


@pytest.mark.parametrize("checksum", [GOOD, Checksum("sha256", hashlib.sha256(CONTENT).hexdigest().upper()), None])
def test_a_file_with_the_expected_sum(server, tmp_path, checksum):
    target = tmp_path / "new" / "folder" / "file.tsv"
    fetch(server.file, target, checksum=checksum)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file.tsv"]
    fetch(server.file, target, checksum=checksum)
    assert len(server.log) == 1  # it was there


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_another_sum_is_refused_and_nothing_is_left(server, tmp_path, algorithm):
    target = tmp_path / "file"
    with pytest.raises(DownloadError, match=rf"its {algorithm} is [0-9a-f]+, expected 00.* was removed"):
        fetch(server.file, target, checksum=Checksum(algorithm, "0" * 32))
    assert list(tmp_path.iterdir()) == []
    fetch(server.file, target, checksum=GOOD)  # from the beginning, not from what was refused
    assert [entry[1] for entry in server.log] == [None, None]


def test_a_file_that_was_there_must_have_the_sum(server, tmp_path):
    target = tmp_path / "file"
    target.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError, match="remove the file to download it again"):
        fetch(server.file, target, checksum=GOOD)
    assert target.read_bytes() == CONTENT[:-1]
    assert server.log == []


def test_the_sum_is_that_of_the_whole_file_after_a_break(server, tmp_path):
    server.faults = [{"end": 500_000}]
    fetch(server.file, tmp_path / "file", checksum=GOOD)
    assert [entry[1] for entry in server.log] == [None, "bytes=500000-"]


def test_what_runs_before_the_rename_can_stop_it(server, tmp_path):
    def refuse(part, remote):
        assert part.read_bytes() == CONTENT
        assert remote.total == len(CONTENT)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fetch(server.file, tmp_path / "file", before_rename=refuse)
    assert not (tmp_path / "file").exists()


def test_a_missing_file_says_what_the_caller_knows(server, tmp_path):
    with pytest.raises(DownloadError, match=r"/b: HTTP 403 .*: the server has no such file, or no longer. Try c"):
        fetch(f"{server.url}/b", tmp_path / "b", gone="Try c")


def test_progress_tells_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress("x.tar", 48_000_000, done=8_000_000, stream=stream) as progress:
        for _ in range(2):
            now[0] += 20
            progress.advance(2_000_000)  # what was there before does not count for the rate
    # 20 s: not yet; 40 s: one line. 0.1 MB/s, 36 MB are left
    assert stream.getvalue() == "x.tar: 12.0 of 48.0 MB (25 %), 0.1 MB/s, 6:00 left\n"
    unknown = Progress("y", None, stream=stream)
    unknown.advance(3_000_000)
    now[0] += 2
    assert unknown.line() == "y: 3.0 MB, 1.5 MB/s"


def test_progress_rewrites_one_line_in_a_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("x", 2_000_000, stream=stream) as progress:
        for _ in range(2):
            now[0] += 1
            progress.advance(1_000_000)
    lines = stream.getvalue().split("\r")[1:]
    assert lines[0] == "x: 1.0 of 2.0 MB (50 %), 1.0 MB/s, 0:01 left\x1b[K"
    assert lines[-1] == "x: 2.0 of 2.0 MB (100 %), 1.0 MB/s, 0:00 left\x1b[K\n"
