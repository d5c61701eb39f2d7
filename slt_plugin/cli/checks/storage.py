"""The output folder: kind of file system, space, files, hard links, atomic replacing, locks and writing speed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slt_plugin.cli.checks.machine import GB
from slt_plugin.cli.checks.result import FAIL, OK, WARN, Check, check_amount

TEST_BYTES, BLOCK_BYTES = 64 * 2**20, 8 * 2**20
SLOW = 50.0  # MB a second: a checkpoint of 1 GB takes 20 s, within the usual delay of a signal
FEW_FILES, NO_FILES = 50_000, 100  # free inodes: a store of features needs few, one file a clip many
ELSEWHERE = "give checkpoint.save_dir (or RUN=, DATA=) on another disk"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "files of this size are not allowed (ulimit -f)",
    errno.EROFS: "it is mounted read-only",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
}
REMEDIES = {
    errno.ENOSPC: f"free some space, or {ELSEWHERE}",
    errno.EDQUOT: f"quota -s (Lustre: lfs quota -h) shows it: free some space, or {ELSEWHERE}",
    errno.EFBIG: "raise the limit: ulimit -f unlimited",
}


def read_mount(mountinfo: str, path: Path) -> tuple[str, str, set[str]] | None:
    """(mount point, type, options) of the file system that an absolute path lies in, from /proc/self/mountinfo."""
    best = None
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 6 or len(kind) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(point) and (best is None or len(point) >= len(best[0])):  # later mounts hide earlier
            best = (point, kind[0], set(fields[5].split(",")) | set(kind[2].split(",")))
    return best


def check_file_system(mount: tuple[str, str, set[str]] | None) -> Check:
    """Kind of the file system, with what is known to go wrong on it."""
    if mount is None:
        return Check(OK, "file system", "unknown")
    point, kind, options = mount
    found = f"{kind} on {point}"
    if kind in ("tmpfs", "ramfs"):
        return Check(WARN, "file system", found, f"it is memory and gone after a reboot: {ELSEWHERE}")
    if kind == "overlay":
        remedy = "it is the container's own and goes with it: bind or mount a folder of the host (docker run -v)"
        return Check(WARN, "file system", found, remedy)
    if kind in ("nfs", "nfs4") and "soft" in options:
        remedy = "mounted 'soft': a time-out of the server can lose written data (man nfs); hard is safe"
        return Check(WARN, "file system", found, remedy)
    if kind in ("nfs", "nfs4"):
        found += "; other nodes may see new files some seconds late"
    elif kind == "lustre":
        found += "; slow with many small files: extract features into stores, not into a file a clip"
    return Check(OK, "file system", found)


def check_inodes(free: int, total: int) -> Check:
    """``free``, ``total``: from statvfs; 0 in total where the file system does not count them."""
    if total == 0:
        return Check(OK, "free inodes", "not limited")
    found = f"{free:,} of {total:,}"
    if free >= FEW_FILES:
        return Check(OK, "free inodes", found)
    remedy = "no more files can be made although there may be space: remove small files, use stores (slt-extract)"
    return Check(FAIL if free < NO_FILES else WARN, "free inodes", found, remedy)


def check_writing(folder: Path, size: int = TEST_BYTES) -> Check:
    """Writes ``size`` bytes with fsync into a new file of ``folder`` and measures.

    Raises:
        OSError: as the file system says.
    """
    block = os.urandom(BLOCK_BYTES)  # nothing that a file system could compress
    path = folder / "speed"
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        written = 0
        while written < size:
            written += file.write(block[: size - written])
        os.fsync(file.fileno())
    taken = time.perf_counter() - begin
    path.unlink()
    return judge_speed(size / 1e6 / taken, size)


def judge_speed(rate: float, size: int) -> Check:
    """``rate`` in MB a second, as measured over ``size`` bytes."""
    found = f"{rate:,.0f} MB/s with fsync ({size / 2**20:.0f} MiB): a checkpoint of 1 GB takes {1000 / rate:.1f} s"
    if rate >= SLOW:
        return Check(OK, "writing", found)
    remedy = f"save less often (checkpoint.save_interval_updates), a longer launcher.signal_delay, or {ELSEWHERE}"
    return Check(WARN, "writing", found, remedy)


def check_links(folder: Path) -> Check:
    """Hard links: with them checkpoint_best.pt and checkpoint_last.pt cost neither time nor space."""
    source = folder / "file"
    source.write_bytes(b"linked")
    try:
        os.link(source, folder / "link")
        works = os.path.samefile(source, folder / "link")
        found = "work" if works else "made a copy"
    except OSError as error:
        works, found = False, error.strerror or str(error)
    if works:
        return Check(OK, "hard links", found)
    return Check(WARN, "hard links", found, "best and last checkpoint are copied: twice the time and space of a save")


def check_replacing(folder: Path) -> Check:
    """``os.replace`` over a file that is there, by which every checkpoint gets its name."""
    old, new = folder / "old", folder / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    try:
        os.replace(new, old)
        found = "" if old.read_bytes() == b"new" and not new.exists() else "left the old file"
    except OSError as error:
        found = error.strerror or str(error)
    if not found:
        return Check(OK, "os.replace", "works")
    return Check(FAIL, "os.replace", found, f"checkpoints cannot be replaced safely here: {ELSEWHERE}")


def check_locks(folder: Path) -> Check:
    """``flock``, which keeps two downloads of one file apart."""
    try:
        with open(folder / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        remedy = "scripts/download_pretrained.py needs them: download elsewhere, or mount with locks (Lustre: -o flock)"
        return Check(WARN, "file locks", error.strerror or str(error), remedy)
    return Check(OK, "file locks", "work")


TESTS: tuple[tuple[str, Callable[[Path], Check]], ...] = (
    ("hard links", check_links),
    ("os.replace", check_replacing),
    ("file locks", check_locks),
    ("writing", check_writing),
)


def failed(name: str, error: OSError) -> Check:
    found = REASONS.get(error.errno or 0) or "writing fails"
    remedy = REMEDIES.get(error.errno or 0, ELSEWHERE)
    return Check(FAIL, name, f"{found} ({error.strerror or error})", remedy)


def try_folder(folder: Path) -> list[Check]:
    """Everything that needs writing, in a temporary folder inside; it is removed again."""
    try:
        inside = Path(tempfile.mkdtemp(prefix=".slt-doctor-", dir=folder))
    except OSError as error:
        return [failed("writing", error)]
    checks = []
    try:
        for name, test in TESTS:
            try:
                checks.append(test(inside))
            except OSError as error:
                checks.append(failed(name, error))
                if error.errno in FULL:
                    break
    finally:
        shutil.rmtree(inside, ignore_errors=True)
    return checks


def check_storage(folder: Path) -> list[Check]:
    """The whole section."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        return [Check(FAIL, "folder", f"{folder} {found}", f"mkdir -p {folder}, or give another: --folder DIR")]
    folder = folder.resolve()
    usage, files = shutil.disk_usage(folder), os.statvfs(folder)
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        mounts = ""
    remedy = f"checkpoints and corpora need more; {ELSEWHERE}"
    space = check_amount("free space", usage.free / GB, warn=10, fail=1, remedy=remedy)
    return [
        Check(OK, "folder", str(folder)),
        check_file_system(read_mount(mounts, folder)),
        space,
        check_inodes(files.f_favail, files.f_files),
        *try_folder(folder),
    ]
