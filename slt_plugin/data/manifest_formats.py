"""Manifests of other projects, read as rows of ours: SSVP-SLT (no header) and Tarrés et al. 2023 (I3D, MediaPipe)."""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from slt_plugin.data.manifest import ManifestError, Problem, Row, decode_lines, read_bytes

FEATURE_SUFFIX = ".pt"
TARRES_COLUMNS = ("id", "signs_file", "signs_offset", "signs_length", "signs_type", "translation")
TARRES_OPTIONAL = {"signs_lang": "sign_lang", "translation_lang": "text_lang", "signer_id": "signer"}
# their dataset class loads the whole file for these, whatever signs_offset says; offset counts for mediapipe alone
TARRES_WHOLE_FILE = ("i3d", "openpose", "CNN2d")
TARRES_SEGMENT = ("mediapipe",)
_FILE_EXTENSION = re.compile(r"\.[A-Za-z]\w*$")


@dataclass(frozen=True)
class Conversion:
    """`notes`: what a reader of the converted manifest should know (empty texts, renamed ids, columns left out)."""

    rows: list[Row]
    notes: list[str]


def read_ssvp(path: str | os.PathLike, *, suffix: str | None = None) -> Conversion:
    """SSVP-SLT and DailyMoth-70h: `video_name duration caption`, or with suffix ".pt" `video_name length caption`.

    Videos lie in videos/<first 5 characters>/<video_name>, their features in
    features/{epoch}/<first 5 characters>/<stem>.pt; the literal "{epoch}" stands for every extraction copy.
    A video's duration becomes `end`, a feature length becomes `num_frames`.

    Raises:
        ManifestError: naming every line that cannot be read.
    """
    features = suffix == FEATURE_SUFFIX
    rows = []
    lines, problems = decode_lines(read_bytes(path))
    if not any(lines):
        problems.append(Problem(None, None, "the file is empty: check the path"))
    for number, line in enumerate(lines, start=1):
        if line is None:
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        # a caption may be empty, and some files lose the tab before it
        if len(cells) not in (2, 3) or not cells[0]:
            what = "length" if features else "duration"
            problems.append(Problem(number, None, f"{len(cells)} cells: give video_name, {what}, caption"))
            continue
        name, size = cells[:2]
        text = cells[2] or None if len(cells) == 3 else None
        try:
            if features:
                stem = os.path.splitext(name)[0]  # as their feature extraction names its files
                media = f"features/{{epoch}}/{name[:5]}/{stem}{FEATURE_SUFFIX}"
                rows.append(Row(id=stem, path=media, text=text, num_frames=_whole(size)))
            else:
                media = f"videos/{name[:5]}/{_file(name, suffix)}"
                rows.append(Row(id=_FILE_EXTENSION.sub("", name), path=media, text=text, end=_positive(size)))
        except ValueError as error:
            problems.append(Problem(number, "length" if features else "duration", str(error)))
    if problems:
        raise ManifestError(path, problems)
    notes = []
    if not features and all(row.end == int(row.end) for row in rows):
        notes.append("every duration is a whole number: if this is a features file, add --media-suffix .pt")
    return _finish(rows, notes)


def read_tarres(
    path: str | os.PathLike, *, suffix: str | None = None, folder: str | None = None, fps: float | None = None
) -> Conversion:
    """TSVs of github.com/imatge-upc/slt_how2sign_wicv2023 (columns TARRES_COLUMNS, TARRES_OPTIONAL and others).

    `signs_length` becomes `num_frames`: I3D features were extracted with stride 1, one feature a frame.
    For i3d, openpose and CNN2d the file is the sentence, as in their dataset class; for mediapipe it is the
    video and the sentence is frames [offset, offset + length), which needs `fps` to become seconds.

    Args:
        suffix: replaces the extension of signs_file.
        folder: replaces the folder of signs_file (their files hold absolute paths of one machine).
        fps: frames per second of mediapipe files.

    Raises:
        ManifestError: naming every line that cannot be read.
    """
    table, problems = _tarres_table(path)
    rows, whole_with_offset, left_out = [], 0, Counter()
    for number, cells in table:
        try:
            row = _tarres_row(cells, fps)
        except ValueError as error:
            problems.append(Problem(number, None, str(error)))
            continue
        name = PurePosixPath(row.path)
        file = PurePosixPath(folder) / name.name if folder is not None else name
        rows.append(replace(row, path=_file(str(file), suffix)))
        whole_with_offset += row.start is None and _whole(cells["signs_offset"], least=0) > 0
        left_out.update(c for c, v in cells.items() if v and c not in TARRES_COLUMNS and c not in TARRES_OPTIONAL)
    if problems:
        raise ManifestError(path, sorted(problems, key=lambda problem: problem.line or 0))
    notes = []
    if whole_with_offset:
        kinds = ", ".join(TARRES_WHOLE_FILE)
        notes.append(f"{whole_with_offset} rows: signs_offset not used, the file is the sentence ({kinds})")
    if left_out:
        columns = ", ".join(f"{column} ({count} rows)" for column, count in left_out.items())
        notes.append(f"columns without a place in the manifest, left out: {columns}")
    if folder is None and any(PurePosixPath(row.path).is_absolute() for row in rows):
        notes.append("signs_file holds absolute paths, kept as they are; --media-folder FOLDER replaces their folder")
    return _finish(rows, notes)


def _tarres_table(path: str | os.PathLike) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    """(line number, column -> cell) of every line."""
    lines, problems = decode_lines(read_bytes(path))
    parsed = list(_csv_lines(lines, problems))
    if not parsed or parsed[0][0] != 1:
        raise ManifestError(path, problems or [Problem(None, None, "the file is empty: check the path")])
    names = parsed[0][1]
    missing = [column for column in TARRES_COLUMNS if column not in names]
    if missing:
        reason = f"the header lacks {', '.join(missing)}: use the columns {', '.join(TARRES_COLUMNS)}"
        raise ManifestError(path, [Problem(1, None, reason)])
    if len(parsed) == 1 and not problems:
        problems.append(Problem(None, None, "the file has a header and no rows: check the path"))
    table = []
    for number, cells in parsed[1:]:
        if len(cells) == len(names):
            table.append((number, dict(zip(names, cells, strict=True))))
        else:
            problems.append(
                Problem(number, None, f"{len(cells)} cells, but the header has {len(names)}: correct the tabs")
            )
    return table, problems


def _csv_lines(lines: Sequence[str | None], problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Cells of each line. fairseq's writer escapes quotes by a backslash, pandas' default one doubles them.

    Line by line, because a stray quote would otherwise swallow the lines after it.
    """
    for number, line in enumerate(lines, start=1):
        if line is None:
            continue
        try:
            cells = next(csv.reader([line], delimiter="\t", escapechar="\\", strict=True), [])
        except csv.Error as error:
            problems.append(Problem(number, None, f'quotes do not match ({error}): escape them as \\"'))
            continue
        yield number, [cell.strip() for cell in cells]


def _tarres_row(cells: dict[str, str], fps: float | None) -> Row:
    for column in ("id", "signs_file"):
        if not cells[column]:
            raise ValueError(f"{column} is empty: fill it in")
    kind = cells["signs_type"]
    if kind not in TARRES_WHOLE_FILE + TARRES_SEGMENT:
        known = ", ".join(TARRES_WHOLE_FILE + TARRES_SEGMENT)
        raise ValueError(f"signs_type {kind!r} is unknown: use one of {known}")
    offset, length = _whole(cells["signs_offset"], least=0), _whole(cells["signs_length"])
    row = Row(
        id=cells["id"],
        path=cells["signs_file"],
        text=cells["translation"] or None,
        num_frames=length,
        **{ours: cells.get(theirs) or None for theirs, ours in TARRES_OPTIONAL.items()},
    )
    if kind in TARRES_WHOLE_FILE:
        return row
    if fps is None:
        raise ValueError(f"signs_type {kind}: offset and length are in frames, give the videos' rate with --fps")
    return replace(row, start=offset / fps, end=(offset + length) / fps, fps=fps)


def _positive(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{cell!r} is not a number above 0: correct it")
    return value


def _whole(cell: str, least: int = 1) -> int:
    """A whole number; "36.0" too, as pandas writes a column with gaps."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not least <= value < 1e12 or value != int(value):
        raise ValueError(f"{cell!r} is not a whole number of at least {least}: correct it")
    return int(value)


def _file(name: str, suffix: str | None) -> str:
    return name if suffix is None else _FILE_EXTENSION.sub("", name) + suffix


def _finish(rows: list[Row], notes: list[str]) -> Conversion:
    """Give repeated ids a number, so that no row is lost, and say how many texts are empty."""
    taken = {row.id for row in rows}
    count: Counter[str] = Counter()
    unique, renamed = [], []
    for row in rows:
        count[row.id] += 1
        if count[row.id] > 1:
            while (new := f"{row.id}-{count[row.id]}") in taken:
                count[row.id] += 1
            taken.add(new)
            renamed.append(new)
            row = replace(row, id=new)
        unique.append(row)
    if renamed:
        shown = ", ".join(renamed[:5]) + (", ..." if len(renamed) > 5 else "")
        notes = [f"{len(renamed)} rows repeat an id; they were kept under new ids: {shown}", *notes]
    empty = sum(row.text is None for row in unique)
    if empty:
        notes = [f"{empty} rows have an empty text; they were kept", *notes]
    return Conversion(unique, notes)
