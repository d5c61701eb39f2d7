"""Writing files so that a reader sees the old file or the whole new one, also after kill -9 and after a power cut."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def temporary_path(path: Path) -> Path:
    """Where this process writes ``path`` first: beside it, hidden, with host and process number in the name."""
    return path.with_name(f".{path.name}.slt-{socket.gethostname()}-{os.getpid()}.tmp")


def process_runs(pid: int) -> bool:
    """Whether this machine has a process of that number, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable, where the file system lets folders be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse it for folders; the rename itself stays atomic
        return
    finally:
        os.close(descriptor)


@contextmanager
def atomic_open(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` only when it is complete and on disk."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
