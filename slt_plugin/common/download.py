"""Downloads that go on where they stopped; a file appears under its name only when it is complete and checked.

While it is fetched, ``NAME.part`` holds the bytes and ``NAME.part.json`` what the server said of the file.
"""

import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from slt_plugin import __version__
from slt_plugin.common.errors import SltError
from slt_plugin.common.files import atomic_open, sync_folder

BLOCK_BYTES = 2**20
PAUSE_SECONDS = (1, 5, 15, 30)  # before the first, second, ... retry without progress
TERMINAL_SECONDS, LOG_SECONDS = 0.2, 30.0  # between two lines of progress
GONE = (401, 403, 404, 410)  # dl.fbaipublicfiles.com answers 403 for files that it does not have
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
CONNECTION_ERRORS = (OSError, http.client.HTTPException)  # OSError: URLError, TimeoutError, ConnectionError


class DownloadError(SltError):
    """A download that cannot go on: the message names the URL and what to do."""


class Interrupted(OSError):
    """The connection ended before the whole file was there; the next request goes on from there."""


class Remote(NamedTuple):
    """What the server says of a file. ``total``: its bytes, None where it does not say."""

    total: int | None
    validator: str | None  # ETag or Last-Modified: changes when the file changes
    modified: str | None


class Checksum(NamedTuple):
    """A published sum. ``algorithm``: md5, sha256 or another of hashlib's; ``digest``: hexadecimal."""

    algorithm: str
    digest: str

    def check(self, path: Path, remedy: str) -> None:
        """Raises DownloadError where the file has another sum; ``remedy`` ends the message."""
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, self.algorithm).hexdigest()
        if found != self.digest.lower():
            raise DownloadError(f"{path}: its {self.algorithm} is {found}, expected {self.digest}: {remedy}")


class Progress:
    """How far something of ``total`` bytes is, its rate and the time left: a line rewritten in a terminal, else one
    now and then.

    Args:
        total: bytes, None where nobody knows.
        done: bytes that were there before: they do not count for the rate.
        stream: None: stderr.
    """

    def __init__(self, name: str, total: int | None, done: int = 0, stream: TextIO | None = None):
        self.name, self.total, self.done = name, total, done
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._before, self._begin = done, time.monotonic()
        self._told = self._begin if not self.terminal else 0.0

    def advance(self, count: int) -> None:
        """So many bytes more."""
        self.done += count
        now = time.monotonic()
        if now - self._told >= (TERMINAL_SECONDS if self.terminal else LOG_SECONDS):
            self._told = now
            self._write()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal and self._told:
            self._write()
            self.stream.write("\n")

    def line(self) -> str:
        """'NAME: 12.0 of 48.0 MB (25 %), 4.0 MB/s, 0:09 left'."""
        rate = (self.done - self._before) / max(time.monotonic() - self._begin, 1e-9)
        if self.total is None:
            return f"{self.name}: {self.done / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s"
        share = 100 * self.done / max(self.total, 1)
        sizes = f"{self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB ({share:.0f} %)"
        left = "" if rate <= 0 else f", {_clock((self.total - self.done) / rate)} left"
        return f"{self.name}: {sizes}, {rate / 1e6:.1f} MB/s{left}"

    def _write(self) -> None:
        self.stream.write(f"\r{self.line()}\x1b[K" if self.terminal else f"{self.line()}\n")
        self.stream.flush()


def fetch(
    url: str,
    target: Path,
    *,
    checksum: Checksum | None = None,
    timeout: float = 60.0,
    gone: str = "",
    before_rename: Callable[[Path, Remote], None] | None = None,
) -> None:
    """Makes ``target`` the file of ``url``, over as many connections as that takes; its folder is made.

    A file of that name that is there already is kept; with a checksum it must have it.

    Args:
        checksum: what the complete file must have; where it has not, it is removed.
        timeout: seconds without an answer.
        gone: what to do where the server has no such file; ends that message.
        before_rename: called with the complete, checked file under its temporary name.

    Raises:
        DownloadError: the server refuses, the connection fails again and again, the disk is too full, another process
            is fetching the file, the checksum is another one.
    """
    if target.exists():
        if checksum is not None:
            checksum.check(target, "remove the file to download it again")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with _locked(part) as file:
        remote = _complete(url, file, part, timeout, gone)
        if checksum is not None:
            try:
                checksum.check(part, f"what came from {url} was removed; run the command again to download it again")
            except DownloadError:
                _restart(file)
                raise
        if before_rename is not None:
            before_rename(part, remote)
        os.replace(part, target)
    sync_folder(target.parent)
    _state_path(part).unlink(missing_ok=True)


def remote_of(url: str, timeout: float) -> Remote:
    """What the server says of the file, without fetching it.

    Raises:
        HTTPError: the server refuses (``refusal`` words it).
        CONNECTION_ERRORS: there is no answer.
    """
    with _open(url, timeout, method="HEAD") as response:
        return _remote(response)


def refusal(url: str, error: urllib.error.HTTPError, gone: str = "") -> str:
    """The message for a refused request; ``gone`` as in ``fetch``."""
    message = f"{url}: HTTP {error.code} {error.reason}"
    if error.code not in GONE:
        return message
    return f"{message}: the server has no such file, or no longer" + (f". {gone}" if gone else "")


# one file over several connections


def _complete(url: str, file: BinaryIO, part: Path, timeout: float, gone: str) -> Remote:
    """Appends to ``file`` until it is complete."""
    failures, answered = 0, False
    while True:
        before = file.tell()
        try:
            return _transfer(url, file, part, timeout)
        except urllib.error.HTTPError as error:
            if error.code not in TRY_AGAIN:
                raise DownloadError(refusal(url, error, gone)) from error
            problem, answered = f"HTTP {error.code}", True
        except CONNECTION_ERRORS as error:
            problem = str(error) or type(error).__name__
        progress = file.tell() > before
        failures, answered = 1 if progress else failures + 1, answered or progress
        if failures > (len(PAUSE_SECONDS) if answered else 1):  # nobody there: no use in waiting
            raise DownloadError(
                f"{url}: {problem}, {failures} times without progress. {file.tell():,} bytes are in {part}; run the "
                "command again to go on. Where the machine has no internet, set https_proxy, or run it elsewhere and "
                "copy the folder"
            )
        pause = PAUSE_SECONDS[failures - 1]
        sys.stderr.write(f"{url}: {problem}; going on in {pause} s\n")
        time.sleep(pause)


def _transfer(url: str, file: BinaryIO, part: Path, timeout: float) -> Remote:
    """One request: the bytes behind those of ``file``, or all of them where the server's file is not the same one."""
    have, known = file.tell(), _read_state(part, url)
    headers = {}
    if have and known is not None:
        headers["Range"] = f"bytes={have}-"
        if known.validator:
            headers["If-Range"] = known.validator  # the whole file comes where it has changed
    try:
        response = _open(url, timeout, headers)
    except urllib.error.HTTPError as error:
        if error.code == 416 and known is not None and _range_total(error.headers) == have:
            return known  # everything was there, only the rename was missing
        if error.code == 416:
            _restart(file)
            raise Interrupted("the part that was there is longer than the server's file: starting again") from error
        raise
    with response:
        remote = _remote(response)
        if "text/html" in response.headers.get("Content-Type", ""):
            raise DownloadError(f"{url}: a web page came instead of the file: a login page or a proxy is in between")
        resumed = response.status == 206
        if resumed and (remote.total != known.total or _range_start(response.headers) != have):
            _restart(file)
            raise Interrupted("the server's file has changed: starting again")
        if not resumed:
            _restart(file)
        with atomic_open(_state_path(part)) as state:
            state.write(json.dumps({"url": url, **remote._asdict()}).encode())
        _check_space(part, remote.total, file.tell())
        _copy(response, file, remote.total, part.name.removesuffix(".part"))
    if remote.total is not None and file.tell() != remote.total:
        if file.tell() > remote.total:
            _restart(file)
        raise Interrupted(f"the connection ended after {file.tell():,} of {remote.total:,} bytes")
    file.flush()
    os.fsync(file.fileno())
    return remote


def _copy(response: http.client.HTTPResponse, file: BinaryIO, total: int | None, name: str) -> None:
    with Progress(name, total, file.tell()) as progress:
        while block := response.read(BLOCK_BYTES):
            try:
                file.write(block)
            except OSError as error:  # not the connection: trying again would not help
                raise DownloadError(f"{file.name} cannot be written: {error}") from error
            progress.advance(len(block))


# HTTP


def _open(
    url: str, timeout: float, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"slt-plugin/{__version__}", **(headers or {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=timeout)


def _remote(response: http.client.HTTPResponse) -> Remote:
    headers = response.headers
    length = _range_total(headers) if response.status == 206 else headers.get("Content-Length")
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones
    return Remote(None if length is None else int(length), strong or modified, modified)


def _range_total(headers: Mapping[str, str]) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _range_start(headers: Mapping[str, str]) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


# the unfinished file


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    with open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(f"{part}: another process is downloading it") from error
        try:
            yield file
        finally:
            if part.exists() and part.stat().st_size == 0 and file.tell() == 0:  # refused at once, or another sum
                part.unlink()
                _state_path(part).unlink(missing_ok=True)


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_state(part: Path, url: str) -> Remote | None:
    """What the server said when the unfinished file was begun; None where that is not known, or of another URL."""
    try:
        state = json.loads(_state_path(part).read_text(encoding="utf-8"))
        return Remote(state["total"], state["validator"], state["modified"]) if state["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # then the download begins again


def _check_space(part: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise DownloadError(
            f"{part.parent}: {total - have:,} bytes are needed, {free:,} are free; free some, or choose another folder"
        )


def _clock(seconds: float) -> str:
    """'0:09', '12:30', '3:20:00'."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
