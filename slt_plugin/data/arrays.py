"""Memory maps of .npy files, checked before use and kept open for the next row of the same file."""

import tokenize
from functools import lru_cache
from pathlib import Path

import numpy as np

from slt_plugin.data.errors import DataError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # characters; numpy's own limit, checked here before numpy allocates what the header claims
_OPEN_MAPS = 16
# what numpy's header parser and mmap raise on truncated or garbled files (found by mutating valid files)
_NPY_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    SyntaxError,
    EOFError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)


def open_array(path: Path, error: type[DataError]) -> np.ndarray:
    """The floating-point array of a .npy file as a read-only memory map.

    The last few maps of this process stay open, because many rows of a corpus are segments of one long file; a file
    that has changed is opened anew. Raises `error`, naming the file and what to do.
    """
    try:
        stat = path.stat()
    except OSError as err:
        raise error(unreadable(path, err)) from err
    return _open(str(path), stat.st_size, stat.st_mtime_ns, error)


def unreadable(path: Path, err: OSError) -> str:
    """The message for a file or folder that the system does not open."""
    if isinstance(err, FileNotFoundError):
        return f"{path}: no such file or folder; correct the manifest's path or the media_root"
    return f"{path}: cannot be read ({err.strerror or err}); check the path and its permissions"


@lru_cache(maxsize=_OPEN_MAPS)  # module level, so that nothing open is pickled with a source or copied to a worker
def _open(path: str, size: int, mtime_ns: int, error: type[DataError]) -> np.ndarray:
    remedy = "write it again with numpy.save, or remove the row"
    try:
        with open(path, "rb") as file:
            start = file.read(12)
        width = 2 if start[6:7] == b"\x01" else 4  # of the header's size, by the format's version
        sound = start.startswith(_MAGIC) and int.from_bytes(start[8 : 8 + width], "little") <= _MAX_HEADER
        array = np.lib.format.open_memmap(path, mode="r") if sound else None
    except _NPY_ERRORS as err:
        raise error(f"{path}: not a complete .npy file ({first_line(err)}); {remedy}") from err
    except OSError as err:
        raise error(unreadable(Path(path), err)) from err
    if array is None:
        reason = f"its first bytes are {start[:8]!r}" if size else "it is empty"
        raise error(f"{path}: not a .npy file ({reason}); {remedy}")
    if array.dtype.kind != "f":
        raise error(f"{path}: holds {array.dtype} values; expected float16, float32 or float64; convert and save it")
    return np.asarray(array)  # a plain view: slicing numpy.memmap objects costs several microseconds each


def first_line(err: BaseException) -> str:
    """The beginning of a library's own message, to stand in brackets in ours."""
    lines = str(err).strip().splitlines()
    return lines[0][:120] if lines else type(err).__name__
