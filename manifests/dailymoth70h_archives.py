"""The four archives of DailyMoth-70h: download with resume and md5, and extraction that is whole or not there.

Names, address and md5 sums: README.md and scripts/download_dm70.sh of facebookresearch/ssvp_slt, by which the archives
unpack to dailymoth-70h/<name>/.
"""

import fcntl
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from slt_plugin.common.download import Checksum, Progress, fetch
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError

FOLDER = "dailymoth-70h"  # on the server, and inside the archives
MD5 = {
    "manifests": "69e500cc5cfad3133c4b589428865472",
    "unblurred_clips": "3e69046f6cf415cec89c3544d0523325",
    "blurred_clips": "a2819c7b06a8b38eb7686e4dc90a7433",
    "raw_videos": "875ffe4eeac3a37e50b4202c2b4996d2",
}
GONE = "The addresses are in README.md of facebookresearch/ssvp_slt: if they changed, give --mirror"


class ArchiveError(DataError):
    """An archive that cannot be unpacked: the message names it and what to do."""


def obtain(names: Sequence[str], corpus: Path, base_url: str, md5: Mapping[str, str], timeout: float) -> Iterator[str]:
    """Makes ``corpus/<name>`` of every archive that is not there yet; yields a line on each.

    The archives stay in ``corpus/archives``: once ``corpus/<name>`` is there they can be deleted.

    Args:
        md5: archive -> sum; those that are not in it have the published one.

    Raises:
        DownloadError: an archive cannot be fetched, or has another md5.
        ArchiveError: it cannot be unpacked.
    """
    for name in names:
        folder = corpus / name
        if folder.is_dir():
            yield f"{folder}: there already"
            continue
        archive = corpus / "archives" / f"{name}.tar.gz"
        url = f"{base_url.rstrip('/')}/{FOLDER}/{archive.name}"
        fetch(url, archive, checksum=Checksum("md5", md5.get(name, MD5[name])), timeout=timeout, gone=GONE)
        files = extract(archive, folder)
        yield f"{folder}: {files:,} files of {archive}, which has the expected md5"


def extract(archive: Path, folder: Path) -> int:
    """Unpacks ``<folder's name>/`` or ``dailymoth-70h/<folder's name>/`` of the archive as ``folder``; how many files.

    It is unpacked beside ``folder`` and gets its name at the end, so that a stop leaves nothing that looks complete.

    Raises:
        ArchiveError: it is damaged, holds paths or links that lead out of it, holds another folder, or does not fit.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ArchiveError("this Python cannot unpack archives of others safely: use Python 3.11.4 or newer")
    size, free = archive.stat().st_size, shutil.disk_usage(folder.parent).free
    if size > free:
        raise ArchiveError(f"{archive} has {size:,} bytes and unpacks to more, {free:,} are free in {folder.parent}")
    temporary = folder.with_name(f".{folder.name}.extracting")
    with _locked(archive) as file:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was stopped
        temporary.mkdir()
        try:
            with Progress(f"unpacking {archive.name}", size) as progress:
                files = _unpack(_Counted(file, progress), temporary)
            found = [place for place in (temporary / folder.name, temporary / FOLDER / folder.name) if place.is_dir()]
            if not found:
                inside = listing(sorted(str(path.relative_to(temporary)) for path in temporary.glob("*/*")))
                raise ArchiveError(f"{archive} holds no folder {FOLDER}/{folder.name}, but {inside or 'nothing'}")
            os.replace(found[0], folder)
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise ArchiveError(
                f"{archive} cannot be unpacked: {error}. Remove it and run the command again to download it again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return files


def _unpack(file: BinaryIO, place: Path) -> int:
    files = 0
    with tarfile.open(fileobj=file, mode="r|gz") as tar:
        for member in tar:
            # "data": no path or link that leads out, no device, nobody else's rights
            tar.extract(member, place, filter="data")
            files += member.isfile()
    return files


class _Counted(io.RawIOBase):
    """The archive's file, telling how much of it was read."""

    def __init__(self, file: BinaryIO, progress: Progress):
        self.file, self.progress = file, progress

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        self.progress.advance(len(block))
        return block


@contextmanager
def _locked(archive: Path) -> Iterator[BinaryIO]:
    with open(archive, "r+b") as file:  # network file systems lock only what is open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArchiveError(f"{archive}: another process is unpacking it") from error
        yield file
