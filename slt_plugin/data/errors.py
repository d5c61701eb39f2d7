"""The error of all input that cannot be used, and where it comes from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slt_plugin.common.errors import SltError


class DataError(SltError):
    """A manifest or a media file that cannot be used: the message names it and says what to do."""


@contextmanager
def naming_row(row_id: str) -> Iterator[None]:
    """Put the row's id before the message of a DataError."""
    try:
        yield
    except DataError as err:
        raise type(err)(f"row {row_id!r}: {err}") from err


@contextmanager
def naming_file(path: Path | str) -> Iterator[None]:
    """Put the file's path before the message of a DataError that does not know it."""
    try:
        yield
    except DataError as err:
        raise type(err)(f"{path}: {err}") from err
