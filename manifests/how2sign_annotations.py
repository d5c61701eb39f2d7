"""The annotation files of How2Sign, and a report of what happened to their rows.

File format (facts checked on the released validation file): tabs in spite of ".csv", CRLF, CSV quoting. A re-save with
commas is recognised by its header. Some rows hold UTF-8 that was read as Latin-1; they are repaired where only one
reading is possible.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import decode_lines, read_bytes

NAMES = ("VIDEO_NAME", "SENTENCE_NAME", "SENTENCE")
TIMES = ("START_REALIGNED", "END_REALIGNED")
_SECONDS = re.compile(r"\d{1,9}(\.\d*)?", re.ASCII)
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")
_UNDECODABLE = re.compile("[\x80-\x9f\ufffd]")


class How2SignError(DataError):
    """Annotations or folders that no manifest can be built from."""


@dataclass(frozen=True)
class Sentence:
    line: int  # of the annotation file, from 1
    name: str
    video: str
    text: str
    start: float | None  # seconds into the full-length video; None where the media are cut already
    end: float | None


class Note(NamedTuple):
    line: int
    id: str
    action: str  # dropped, clipped, repaired, kept
    cause: str
    detail: str


@dataclass
class Report:
    """What happened to the rows of one annotation file."""

    notes: list[Note] = field(default_factory=list)

    def add(self, line: int, name: str, action: str, cause: str, detail: str = "") -> None:
        self.notes.append(Note(line, name, action, cause, " ".join(detail.split())))

    def write(self, path: Path) -> None:
        lines = ["\t".join(Note._fields)]
        lines += ["\t".join(map(str, note)) for note in sorted(self.notes, key=lambda note: note.line)]
        with atomic_open(path) as file:
            file.write(("\n".join(lines) + "\n").encode("utf-8"))

    def summary(self) -> list[str]:
        counts = Counter((note.action, note.cause) for note in self.notes)
        return [f"{action:<9}{count:>6}  {cause}" for (action, cause), count in sorted(counts.items())]


def read_annotations(path: Path, report: Report, *, timed: bool) -> list[Sentence]:
    """The usable sentences of an annotation file, in its order; the others go to the report.

    Args:
        timed: the re-aligned times are needed (full-length videos).

    Raises:
        ManifestError: the file cannot be opened.
        How2SignError: it is not an annotation file of How2Sign, or has the older times where `timed`.
    """
    lines, problems = decode_lines(read_bytes(path))
    header = lines[0] if lines and lines[0] is not None else ""
    delimiter = "\t" if "\t" in header else ","
    columns = _cells(header, delimiter) or []
    needed = NAMES + TIMES if timed else NAMES
    missing = [name for name in needed if name not in columns]
    if missing:
        older = "START" in columns and missing == list(TIMES)
        raise How2SignError(
            f"{path}: this file has the older, misaligned times; download 'English Translation (manually re-aligned)'"
            if older
            else f"{path}: the header lacks {', '.join(missing)} (tab or comma separated; it has: "
            f"{listing(columns) or 'nothing'}); give how2sign_realigned_{{train,val,test}}.csv of How2Sign"
        )
    for problem in problems:
        if problem.line is not None and lines[problem.line - 1] is None:
            report.add(problem.line, "", "dropped", "line is not UTF-8", problem.reason)
    sentences: dict[str, Sentence] = {}
    for line, cells in _records(lines, delimiter, len(columns)):
        if cells is None or len(cells) != len(columns):
            why = "quotes do not match" if cells is None else f"{len(cells)} cells, the header has {len(columns)}"
            report.add(line, "", "dropped", "line cannot be read", why)
            continue
        sentence = _sentence(line, dict(zip(columns, cells, strict=True)), report, timed)
        if sentence is None:
            continue
        first = sentences.setdefault(sentence.name, sentence)
        if first is not sentence:
            same = replace(sentence, line=first.line) == first
            cause = "repeated row" if same else "repeated name with other text or times"
            report.add(line, sentence.name, "dropped", cause, f"line {first.line} is kept")
    return list(sentences.values())


def _records(lines: Sequence[str | None], delimiter: str, width: int) -> Iterator[tuple[int, list[str] | None]]:
    """(line number, cells; None = quotes do not match) of each row after the header.

    A quoted cell may go on in the next lines, but not over a line that is a row by itself: a stray quote would
    otherwise swallow the rows after it.
    """
    at = 1
    while at < len(lines):
        first, text = at + 1, lines[at]
        at += 1
        if not text:  # blank, or not UTF-8 and reported
            continue
        cells = _cells(text, delimiter)
        while cells is None and at < len(lines) and lines[at] is not None:
            following = _cells(lines[at], delimiter)
            if following is not None and len(following) == width:
                break
            text = f"{text}\n{lines[at]}"
            at += 1
            cells = _cells(text, delimiter)
        yield first, cells


def _cells(text: str, delimiter: str) -> list[str] | None:
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        return None


def _sentence(line: int, cells: dict[str, str], report: Report, timed: bool) -> Sentence | None:
    name, video = cells["SENTENCE_NAME"], cells["VIDEO_NAME"]
    text = " ".join(re.split(r"[\t\r\n]+", cells["SENTENCE"]))
    drop = partial(report.add, line, name, "dropped")
    if not name or not video:
        return drop("no SENTENCE_NAME or VIDEO_NAME")
    if not text:
        return drop("no text")
    start = end = None
    if timed:
        times = [cells[column] for column in TIMES]
        if not all(map(_SECONDS.fullmatch, times)):
            return drop("start or end is not a number of seconds", f"{times[0]!r} to {times[1]!r}")
        start, end = map(float, times)
        if end <= start:
            return drop("end is not after start", f"{start:g} s to {end:g} s")
    repaired = repair(text)
    if repaired != text:
        changes = [f"{run!r}: {repair(run)!r}" for run in _NON_ASCII.findall(text) if repair(run) != run]
        report.add(line, name, "repaired", "UTF-8 that was read as Latin-1", ", ".join(changes))
    if _UNDECODABLE.search(repaired):
        report.add(line, name, "kept", "text with undecodable characters", repr(repaired))
    return Sentence(line, name, video, repaired, start, end)


def repair(text: str) -> str:
    """Undo UTF-8 that was read as Latin-1 or Windows-1252, once or several times, where only one reading is possible.

    A run of non-ASCII characters is taken back to bytes; it is replaced where these are valid UTF-8 for Latin-1
    letters and signs (é, °) or for characters of three bytes and more (’, €). Other two-byte results are left alone:
    "É…" would decode too, to a letter that no English text has.
    """
    return _NON_ASCII.sub(_decoded, text)


def _decoded(run: re.Match) -> str:
    best = text = run[0]
    while True:  # each pass makes one character of two or more
        try:
            text = bytes(ord(char) if ord(char) < 256 else char.encode("cp1252")[0] for char in text).decode("utf-8")
        except UnicodeError:
            return best
        if all("\xa0" <= char <= "\xff" or char >= "\u0800" for char in text):
            best = text
