"""The corpus manifest: one tab-separated file with a header, one row a clip (format: manifests/README.md)."""

import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.errors import DataError

SHOWN_PROBLEMS = 20
SHOWN_CHARACTERS = 60  # of a cell in a message
BOM = b"\xef\xbb\xbf"
_NUMBER = re.compile(r"[+-]?(\d{1,15}(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One clip. `path` stays as written in the manifest; a cell left empty is None."""

    id: str
    path: str
    text: str | None = None
    start: float | None = None  # seconds into the media file; None = its beginning
    end: float | None = None  # seconds into the media file; None = its end
    num_frames: int | None = None  # frames (or feature steps) of this row, not of the whole file
    fps: float | None = None
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 as parts of width and height, in [-1, 2]
    sign_lang: str | None = None
    text_lang: str | None = None
    signer: str | None = None
    corpus: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """`line` counts from 1 (the header); None where the problem is not of one line or column."""

    line: int | None
    column: str | None
    reason: str

    def __str__(self) -> str:
        place = [f"line {self.line}"] if self.line is not None else []
        place += [f"column {self.column}"] if self.column is not None else []
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class ManifestError(DataError):
    """Every problem of one manifest: `path`, `problems`; the message shows the first 20 and counts the rest."""

    def __init__(self, path: str | os.PathLike, problems: Sequence[Problem]):
        # both go to args, so that the error survives pickling out of a worker process
        super().__init__(path, problems)
        self.path, self.problems = path, list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.path}: {self.problems[0]}"
        lines = [f"{self.path}: {len(self.problems)} problems:"]
        lines += [f"  {problem}" for problem in self.problems[:SHOWN_PROBLEMS]]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"  ... and {len(self.problems) - SHOWN_PROBLEMS} more")
        return "\n".join(lines)


def _show(cell: str) -> str:
    """The cell in quotes, cut where it is long: a damaged file may hold one cell of many kilobytes."""
    return repr(cell if len(cell) <= SHOWN_CHARACTERS else cell[:SHOWN_CHARACTERS] + "...")


# Cell parsers: each takes a non-empty cell and returns the value or raises ValueError with the reason.
def _string(cell: str) -> str:
    return cell


def _name(cell: str) -> str:
    if cell != cell.strip():
        raise ValueError(f"spaces around {_show(cell)}: remove them")
    return cell


def _number(cell: str) -> float:
    if not _NUMBER.fullmatch(cell):
        raise ValueError(f"{_show(cell)} is not a number: write it like 12.5")
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError(f"{_show(cell)} is too large: write a finite number")
    return value


def _start(cell: str) -> float:
    value = _number(cell)
    if value < 0:
        raise ValueError(f"start {cell} is negative: give seconds from the beginning of the media file")
    return value


def _positive(cell: str) -> float:
    value = _number(cell)
    if value <= 0:
        raise ValueError(f"{cell} is not above 0: correct it, or leave the cell empty")
    return value


def _count(cell: str) -> int:
    if not _WHOLE.fullmatch(cell) or int(cell) == 0:
        raise ValueError(f"{_show(cell)} is not a whole number above 0: correct it, or leave the cell empty")
    return int(cell)


# a signer's box is square and may reach beyond the frame, which is black there
BOX_RANGE = (-1, 2)


def _box(cell: str) -> tuple[float, float, float, float]:
    parts = cell.split(",")
    if len(parts) != 4:
        raise ValueError(f"{_show(cell)} has {len(parts)} numbers: give 4, x0,y0,x1,y1")
    x0, y0, x1, y1 = map(_number, parts)
    low, high = BOX_RANGE
    if min(x0, y0, x1, y1) < low or max(x0, y0, x1, y1) > high:
        raise ValueError(f"{cell} leaves [{low}, {high}]: give x0,y0,x1,y1 as parts of the width and height")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"{cell} is empty: give x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


PARSERS: dict[str, Callable[[str], object]] = {
    "id": _name,
    "path": _name,
    "text": _string,
    "start": _start,
    "end": _positive,
    "num_frames": _count,
    "fps": _positive,
    "box": _box,
    "sign_lang": _name,
    "text_lang": _name,
    "signer": _name,
    "corpus": _name,
}
COLUMNS = tuple(PARSERS)
REQUIRED = ("id", "path")


def read_manifest(path: str | os.PathLike, *, require_text: bool = False) -> list[Row]:
    """Rows of the manifest in file order.

    Args:
        require_text: also report every row without text (needed for training and scoring).

    Raises:
        ManifestError: names every bad line with its column and reason; also for a file that cannot be opened.
    """
    rows, problems = _parse(read_bytes(path), require_text)
    if problems:
        raise ManifestError(path, sorted(problems, key=lambda problem: problem.line or 0))
    return rows


def write_manifest(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Write rows atomically: readers see the old file or the whole new one, never a part.

    Only columns that some row uses are written. An empty string is written, and read back, as None.

    Raises:
        ManifestError: for rows that `read_manifest` would refuse (line numbers are those the file would have);
            nothing is written then, and a file already there stays. Also where the folder does not exist.
    """
    path = Path(path)
    rows = list(rows)
    columns = [c for c in COLUMNS if c in REQUIRED or any(getattr(row, c) not in (None, "") for row in rows)]
    problems: list[Problem] = []
    lines = ["\t".join(columns)]
    for number, row in enumerate(rows, start=2):
        cells = []
        for column in columns:
            try:
                cells.append(_format(column, getattr(row, column)))
            except (TypeError, ValueError) as error:
                problems.append(Problem(number, column, f"row {_show(row.id)}: {error}"))
        lines.append("\t".join(cells))
    data = ("\n".join(lines) + "\n").encode("utf-8", errors="surrogatepass")
    if not problems:
        problems = [
            Problem(p.line, p.column, f"row {rows[p.line - 2].id!r}: {p.reason}" if p.line and p.line > 1 else p.reason)
            for p in _parse(data, require_text=False)[1]
        ]
    if not path.parent.is_dir():
        problems.append(Problem(None, None, f"cannot be written: make the folder {path.parent} first"))
    if problems:
        raise ManifestError(path, problems)
    with atomic_open(path) as file:
        file.write(data)


def resolve_path(row: Row, root: str | os.PathLike) -> Path:
    """Where the row's media lies: an absolute path as it is, a relative one under `root`.

    `root` is the user's media_root where one is given, else the manifest's folder.
    """
    return Path(root) / row.path  # pathlib: an absolute right side wins


def _format(column: str, value: object) -> str:
    if value is None:
        return ""
    if column == "num_frames":
        return str(operator.index(value))
    if column in ("start", "end", "fps"):
        return repr(float(value))
    if column == "box":
        return ",".join(repr(float(side)) for side in value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string: convert it")
    if any(char in value for char in "\t\n\r"):
        raise ValueError(f"tab or line break inside {_show(value)}: replace it by a space")
    return value


def _parse(data: bytes, require_text: bool) -> tuple[list[Row], list[Problem]]:
    if not data.strip():
        return [], [Problem(None, None, f"the file is empty: write a header line with {', '.join(REQUIRED)} and rows")]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return [], [Problem(1, None, "the file is UTF-16: save it as UTF-8 without a byte order mark")]
    lines, problems = decode_lines(data)
    problems += _byte_problems(data)
    names = lines[0].split("\t") if lines[0] is not None else []
    if not set(names) & set(REQUIRED):
        reason = (
            f"no header: write column names, tab-separated, with {' and '.join(REQUIRED)} "
            f"(known: {', '.join(COLUMNS)}). Convert SSVP-SLT and Tarrés files: slt-manifest convert"
        )
        return [], [*problems, Problem(1, None, reason)]
    problems += _header_problems(names, require_text)
    if len(lines) == 1:
        problems.append(Problem(None, None, "the file has a header and no rows: add one line for each clip"))
    rows: list[Row] = []
    first_line: dict[str, int] = {}
    parsers = [(name, PARSERS.get(name)) for name in names]
    for number, line in enumerate(lines[1:], start=2):
        if line is None:  # not UTF-8, already reported
            continue
        cells = line.split("\t")
        if len(cells) != len(names):
            problems.append(Problem(number, None, _cell_count_reason(line, len(cells), len(names))))
            continue
        values, bad = _cells(parsers, cells, number)
        bad += _row_problems(values, names, number, first_line, require_text)
        problems += bad
        if not problems:  # one problem and no row is used; without a required column there is no Row to make
            rows.append(Row(**values))
    return rows, problems


def read_bytes(path: str | os.PathLike) -> bytes:
    """The file's bytes; ManifestError where it cannot be opened."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}; check the path"
        raise ManifestError(path, [Problem(None, None, reason)]) from error


def decode_lines(data: bytes) -> tuple[list[str | None], list[Problem]]:
    """Lines without their ends, a byte order mark dropped (None = not UTF-8), and what is wrong inside the lines."""
    lines: list[str | None] = []
    problems = []
    raw = data.removeprefix(BOM).split(b"\n")  # not splitlines: texts may hold U+2028 and others it splits at
    if not raw[-1]:
        raw.pop()
    for number, line in enumerate(raw, start=1):
        line = line.removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            what = "carriage return" if b"\r" in line else "NUL byte"
            problems.append(Problem(number, None, f"{what} inside the line: remove it"))
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1}): save the file as UTF-8"
            problems.append(Problem(number, None, reason))
            lines.append(None)
    return lines, problems


def _byte_problems(data: bytes) -> list[Problem]:
    problems = []
    if data.startswith(BOM):
        problems.append(Problem(1, None, "byte order mark (BOM): save the file as UTF-8 without it"))
    line_end_returns = re.compile(rb"\r(?=\n|\Z)")
    first = line_end_returns.search(data)
    if first:
        count = len(line_end_returns.findall(data))
        reason = f"carriage return at the end of {count} lines (CRLF): convert with sed -i 's/\\r$//' FILE"
        problems.append(Problem(1 + data.count(b"\n", 0, first.start()), None, reason))
    return problems


def _header_problems(names: list[str], require_text: bool) -> list[Problem]:
    problems = []
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(Problem(1, name, f"the column is there {names.count(name)} times: keep one"))
        if name not in PARSERS:
            hint = did_you_mean(name[:SHOWN_CHARACTERS].strip().lower(), COLUMNS)
            hint = hint or f"; remove it (known columns: {', '.join(COLUMNS)})"
            problems.append(Problem(1, name[:SHOWN_CHARACTERS] or "(empty name)", f"unknown column{hint}"))
    for name in (*REQUIRED, "text") if require_text else REQUIRED:
        if name not in names:
            why = " (needed for training and scoring)" if name == "text" else ""
            problems.append(Problem(1, name, f"required column is missing{why}: add it"))
    return problems


def _cell_count_reason(line: str, found: int, expected: int) -> str:
    if not line:
        return "empty line: remove it"
    remedy = "remove tabs inside a cell" if found > expected else "add the missing ones, empty where nothing is known"
    return f"{found} cells, but the header has {expected}: {remedy}"


def _cells(parsers: list, cells: list[str], number: int) -> tuple[dict[str, object], list[Problem]]:
    values, problems = {}, []
    for (name, parse), cell in zip(parsers, cells, strict=True):
        if not cell or parse is None:
            continue
        if cell.isspace():
            problems.append(Problem(number, name, "only spaces: leave the cell empty"))
            continue
        try:
            values[name] = parse(cell)
        except ValueError as error:
            problems.append(Problem(number, name, str(error)))
    return values, problems


def _row_problems(
    values: dict, names: list[str], number: int, first_line: dict[str, int], require_text: bool
) -> list[Problem]:
    """What only the cells together show; adds the row's id to `first_line`."""
    problems = []
    for name in REQUIRED:
        if name not in values and name in names:
            problems.append(Problem(number, name, "empty or unusable: fill it in"))
    if require_text and "text" not in values and "text" in names:
        problems.append(Problem(number, "text", "empty: fill it in, or remove the row (training and scoring need it)"))
    start, end = values.get("start"), values.get("end")
    if start is not None and end is not None and end <= start:
        problems.append(Problem(number, "end", f"end {end:g} is not after start {start:g}: correct one of them"))
    if "id" in values:
        first = first_line.setdefault(values["id"], number)
        if first != number:
            reason = f"{_show(values['id'])} is already the id of line {first}: give each row its own"
            problems.append(Problem(number, "id", reason))
    return problems
