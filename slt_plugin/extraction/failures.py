"""failed.tsv: the rows whose video could not be extracted, and why."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.files import atomic_open
from slt_plugin.extraction.plan import Segment

_HEADER = "id\tpath\tcause"


@dataclass(frozen=True)
class Failure:
    """One row; ``cause`` is one line."""

    id: str
    path: str
    cause: str


class FailureList:
    """The failures of one element, kept in ``failed.tsv`` (``failed-<shard>of<num_shards>.tsv``) in the store's folder.

    The file says what is wrong now: a row disappears when it is extracted, and the file with its last row.

    Args:
        expected: ids of the rows that this run will try; of others nothing is kept.
    """

    def __init__(self, folder: Path, part: str, expected: Container[str]):
        self.path = folder / ("failed.tsv" if part == "0of1" else f"failed-{part}.tsv")
        # of earlier runs, until this one has tried the row again
        self._old = {failure.id: failure for failure in read_failures(self.path) if failure.id in expected}
        self._new: dict[str, Failure] = {}
        self._changed = True

    @property
    def ids(self) -> tuple[str, ...]:
        """Rows that failed."""
        return tuple(self._old | self._new)

    def add(self, segment: Segment, cause: str) -> bool:
        """All rows of the segment; whether it is their first failure in this run."""
        first = segment.row.id not in self._new
        for row_id in segment.ids:
            self._new[row_id] = Failure(row_id, segment.row.path, " ".join(cause.split()))
        self._changed = True
        return first

    def succeeded(self, segment: Segment) -> None:
        """One copy of the segment was extracted; a failure of another one in this run stays."""
        for row_id in segment.ids:
            self._changed |= self._old.pop(row_id, None) is not None

    def write(self) -> None:
        """Where something has changed since the last time."""
        if self._changed:
            write_failures(self.path, (self._old | self._new).values())
        self._changed = False


def all_failures(folder: Path) -> dict[str, Failure]:
    """Row id -> failure, of every element that has written to the store."""
    return {failure.id: failure for path in sorted(folder.glob("failed*.tsv")) for failure in read_failures(path)}


def read_failures(path: Path) -> list[Failure]:
    """None where there is no file; lines that are no failures (a file edited by hand) are left out."""
    if not path.is_file():
        return []
    cells = (line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:])
    return [Failure(*line) for line in cells if len(line) == 3]


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """Atomically; no failures, no file."""
    lines = [_HEADER, *(f"{failure.id}\t{failure.path}\t{failure.cause}" for failure in failures)]
    if len(lines) == 1:
        path.unlink(missing_ok=True)
        return
    with atomic_open(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
