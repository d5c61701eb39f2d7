#!/usr/bin/env python3
"""Download public pretrained weights, with their origin, licence and checksum beside them.

    python scripts/download_pretrained.py --list
    python scripts/download_pretrained.py --model sonar_signhiera --out pretrained
    slt-import-checkpoint sign-hiera pretrained/dm_70h_ub_signhiera.pth signhiera_dm70h.pt

An interrupted download goes on where it stopped when the command is run again. A file appears under its own name only
when it is complete; `<file>.provenance.json` then holds its URL, sha256 and licence, which the importer takes over.
"""

import argparse
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.provenance import Provenance, read_sidecar, sha256_of, write_sidecar
from slt_plugin.checkpoints.releases import BASE_URL, NEVER_RELEASED, RELEASES, Release, was_never_released
from slt_plugin.common.download import CONNECTION_ERRORS, DownloadError, Remote, fetch, refusal, remote_of
from slt_plugin.common.messages import did_you_mean

LIST_TIMEOUT_SECONDS = 5


def download(name: str, release: Release, folder: Path, base_url: str, timeout: float) -> None:
    """Fetches the files of a release into ``folder``; those that are there already are checked instead.

    Raises:
        DownloadError: the server refuses a file, the connection fails again and again, the disk is too full.
    """
    for path in release.files:
        url, target = base_url.rstrip("/") + "/" + path, folder / path.rsplit("/", 1)[-1]
        if target.exists():
            _check_existing(target, url, release, timeout)
        else:
            _fetch(name, release, url, target, timeout)


def _fetch(name: str, release: Release, url: str, target: Path, timeout: float) -> None:
    def record(part: Path, remote: Remote) -> None:
        note = f"release {name}: {part.stat().st_size} bytes"
        note += f", last modified {remote.modified}" if remote.modified else ""
        note += "" if remote.total is not None else "; the server did not tell the length"
        _record(target, url, sha256_of(part), release, note)

    # recorded before it gets its name: a file that was downloaded is never without its record
    fetch(url, target, timeout=timeout, gone=NEVER_RELEASED, before_rename=record)
    digest = read_sidecar(target).sha256
    print(f"{target}: {target.stat().st_size:,} bytes, sha256 {digest}, licence {release.licence}")


def _check_existing(target: Path, url: str, release: Release, timeout: float) -> None:
    """A file of this name is there: by its recorded checksum, or else by the server's length, is it the right one?"""
    recorded = read_sidecar(target)
    if recorded is not None:
        if sha256_of(target) != recorded.sha256:
            raise DownloadError(f"{target} is not the file that was downloaded: its sha256 differs. Remove it first")
        print(f"{target}: there already, sha256 {recorded.sha256} as recorded")
        return
    try:
        total = remote_of(url, timeout).total
    except urllib.error.HTTPError as error:
        raise DownloadError(refusal(url, error, NEVER_RELEASED)) from error
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
        total = remote_of(url, LIST_TIMEOUT_SECONDS).total
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
