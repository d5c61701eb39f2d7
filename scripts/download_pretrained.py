#!/usr/bin/env python3
"""Download public pretrained weights, with their origin, licence and checksum beside them.

    python scripts/download_pretrained.py --list
    python scripts/download_pretrained.py --model sonar_signhiera --out pretrained
    slt-import-checkpoint sign-hiera pretrained/dm_70h_ub_signhiera.pth signhiera_dm70h.pt

An interrupted download goes on where it stopped when the command is run again. A file appears under its own name only
when it is complete; `<file>.provenance.json` then holds its URL, sha256 and licence, which the importer takes over.
"""

import argparse
import fcntl
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from slt_plugin import __version__
from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.provenance import Provenance, read_sidecar, sha256_of, write_sidecar
from slt_plugin.checkpoints.releases import BASE_URL, NEVER_RELEASED, RELEASES, Release, was_never_released
from slt_plugin.common.errors import SltError
from slt_plugin.common.files import atomic_open, sync_folder
from slt_plugin.common.messages import did_you_mean

BLOCK_BYTES = 2**20
PAUSE_SECONDS = (1, 5, 15, 30)  # before the first, second, ... retry without progress
LIST_TIMEOUT_SECONDS = 5
GONE = (401, 403, 404, 410)  # this server answers 403 for files that it does not have
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


def download(name: str, release: Release, folder: Path, base_url: str, timeout: float) -> None:
    """Fetches the files of a release into ``folder``; those that are there already are checked instead.

    Raises:
        DownloadError: the server refuses a file, the connection fails again and again, the disk is too full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in release.files:
        url, target = base_url.rstrip("/") + "/" + path, folder / path.rsplit("/", 1)[-1]
        if target.exists():
            _check_existing(target, url, release, timeout)
            continue
        part = target.with_name(target.name + ".part")
        with _locked(part) as file:
            remote = _fetch(url, file, part, timeout)
            size = file.tell()
            digest = sha256_of(part)
            note = f"release {name}: {size} bytes"
            note += f", last modified {remote.modified}" if remote.modified else ""
            note += "" if remote.total is not None else "; the server did not tell the length"
            _record(target, url, digest, release, note)
            os.replace(part, target)
        sync_folder(folder)
        _state_path(part).unlink(missing_ok=True)
        print(f"{target}: {size:,} bytes, sha256 {digest}, licence {release.licence}")


def _fetch(url: str, file: BinaryIO, part: Path, timeout: float) -> Remote:
    """Appends to ``file`` until it is complete, over as many connections as that takes."""
    failures, answered = 0, False
    while True:
        before = file.tell()
        try:
            return _transfer(url, file, part, timeout)
        except urllib.error.HTTPError as error:
            if error.code not in TRY_AGAIN:
                raise DownloadError(_refusal(url, error)) from error
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
        print(f"{url}: {problem}; going on in {pause} s", file=sys.stderr)
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
    interval = 0.2 if sys.stderr.isatty() else 30.0  # a line now and then in a log file
    bar = tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, desc=name, mininterval=interval)
    with bar:
        while block := response.read(BLOCK_BYTES):
            try:
                file.write(block)
            except OSError as error:  # not the connection: trying again would not help
                raise DownloadError(f"{file.name} cannot be written: {error}") from error
            bar.update(len(block))


def _check_existing(target: Path, url: str, release: Release, timeout: float) -> None:
    """A file of this name is there: by its recorded checksum, or else by the server's length, is it the right one?"""
    recorded = read_sidecar(target)
    if recorded is not None:
        if sha256_of(target) != recorded.sha256:
            raise DownloadError(f"{target} is not the file that was downloaded: its sha256 differs. Remove it first")
        print(f"{target}: there already, sha256 {recorded.sha256} as recorded")
        return
    try:
        with _open(url, timeout, method="HEAD") as response:
            total = _remote(response).total
    except urllib.error.HTTPError as error:
        raise DownloadError(_refusal(url, error)) from error
    except CONNECTION_ERRORS as error:
        raise DownloadError(f"{target} is there without a record of its checksum, and {url}: {error}") from error
    size = target.stat().st_size
    if size != total:
        raise DownloadError(f"{target} has {size:,} bytes, the server's file {total}: remove it to download it again")
    digest = sha256_of(target)
    _record(target, url, digest, release, f"{size} bytes; it was there before, only its length was compared")
    print(f"{target}: there already with the server's length, sha256 {digest} recorded now")


def _record(target: Path, url: str, digest: str, release: Release, note: str) -> None:
    write_sidecar(target, Provenance(url, digest, release.licence, (f"licence: {release.licence_source}", note)))


# HTTP


def _open(url: str, timeout: float, headers: dict | None = None, method: str = "GET") -> http.client.HTTPResponse:
    headers = {"User-Agent": f"slt-plugin/{__version__}", **(headers or {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=timeout)


def _remote(response: http.client.HTTPResponse) -> Remote:
    headers = response.headers
    length = _range_total(headers) if response.status == 206 else headers.get("Content-Length")
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones
    return Remote(None if length is None else int(length), strong or modified, modified)


def _range_total(headers) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _range_start(headers) -> int | None:
    match = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    message = f"{url}: HTTP {error.code} {error.reason}"
    if error.code not in GONE:
        return message
    return f"{message}: the server has no such file, or no longer. {NEVER_RELEASED}"


# The unfinished file


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
            if part.exists() and part.stat().st_size == 0 and file.tell() == 0:  # refused at once
                part.unlink()


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
            f"{part.parent}: {total - have:,} bytes are needed, {free:,} are free; choose another --out"
        )


# The command


def list_releases(base_url: str) -> None:
    """Prints every release with URL, size as the server tells it now, licence."""
    urls = sorted({base_url.rstrip("/") + "/" + path for release in RELEASES.values() for path in release.files})
    with ThreadPoolExecutor(len(urls)) as pool:
        sizes = dict(zip(urls, pool.map(_size, urls), strict=True))
    for name, release in RELEASES.items():
        print(f"{name}: {release.content}")
        for path in release.files:
            url = base_url.rstrip("/") + "/" + path
            print(f"    {url} ({sizes[url]})")
        print(f"    licence {release.licence}: {release.licence_source}")
    print(f"\n{NEVER_RELEASED}.")


def _size(url: str) -> str:
    try:
        with _open(url, LIST_TIMEOUT_SECONDS, method="HEAD") as response:
            total = _remote(response).total
    except urllib.error.HTTPError as error:
        return f"not available: HTTP {error.code}"
    except CONNECTION_ERRORS:
        return "size unknown: the server cannot be reached"
    return "size unknown" if total is None else f"{total / 1e6:,.1f} MB"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download public pretrained weights; see --list.")
    parser.add_argument("--model", nargs="+", metavar="NAME", default=[], help=", ".join(RELEASES))
    parser.add_argument("--out", type=Path, default=Path("pretrained"), help="folder (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print what there is, with URL, size and licence")
    parser.add_argument("--mirror", metavar="URL", default=BASE_URL, help="in place of %(default)s")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="without an answer")
    arguments = parser.parse_args(argv)
    if not arguments.list and not arguments.model:
        parser.error("give --model NAME, or --list")
    if not arguments.mirror.startswith(("http://", "https://")):
        parser.error("--mirror is an http or https URL")
    for name in arguments.model:
        if was_never_released(name):
            parser.error(f"--model {name}: {NEVER_RELEASED}")
        if name not in RELEASES:
            known = ", ".join(RELEASES)
            parser.error(f"--model {name} is not known{did_you_mean(name, RELEASES)}; choose from {known}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.list:
            list_releases(arguments.mirror)
        for name in arguments.model:
            download(name, RELEASES[name], arguments.out, arguments.mirror, arguments.timeout)
    except (DownloadError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
