"""``hypotheses.jsonl``: what generation writes and all scoring and reports read.

One JSON object a line, UTF-8: ``id`` (the manifest's), ``ref`` (the manifest's raw text), ``hyp`` (detokenised),
``score`` (natural-log probability as the generator ranks it, so length-normalised unless lenpen is 0; null where
unknown), optional ``text_lang`` and ``alternatives``: the n best outputs, best first, as objects with ``text`` and
``score``; the first of them is the output in ``hyp`` and ``score`` itself. Other keys are allowed and not read.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.scoring.errors import ScoringError

REQUIRED = ("id", "ref", "hyp", "score")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Hypothesis:
    id: str
    ref: str
    hyp: str
    score: float | None
    text_lang: str | None = None
    alternatives: tuple[dict, ...] | None = None  # {"text": str, "score": float | None} each, the first is the output


def read_text(path: str | Path) -> str:
    """The file's text, UTF-8 (a byte order mark is dropped), any line ends as ``\\n``. Raises ScoringError."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ScoringError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise ScoringError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 so that a reader never sees half a file. Folders are made. Raises ScoringError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise ScoringError(f"{path}: cannot be written ({error.strerror or error}); check folder and space") from error


def read_hypotheses(path: str | Path) -> list[Hypothesis]:
    """All sentences in file order. Raises one ScoringError that lists every bad line with its number and reason."""
    hypotheses: list[Hypothesis] = []
    problems: list[str] = []
    lines = read_text(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise ScoringError(f"{path}: no sentences in it; did the run that wrote it finish?")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            problems.append(f"line {number}: no JSON object ({error})")
            continue
        reason = _problem(record)
        if reason:
            problems.append(f"line {number}: {reason}")
        else:
            required = (record[key] for key in REQUIRED)
            others = record.get("alternatives")
            others = others if others is None else tuple(others)
            hypotheses.append(Hypothesis(*required, record.get("text_lang"), others))
    problems += _duplicates(hypotheses)
    if problems:
        raise ScoringError(
            f"{path}: {len(problems)} problem(s) in {len(lines)} line(s); every line must be a JSON object with "
            f"{', '.join(REQUIRED)}:{_lines(problems)}"
        )
    return hypotheses


def write_hypotheses(path: str | Path, hypotheses: Iterable[Hypothesis]) -> None:
    """Write atomically. Raises ScoringError on what read_hypotheses would refuse; the file is then untouched."""
    hypotheses = list(hypotheses)
    problems = [f"sentence {h.id!r}: {reason}" for h in hypotheses if (reason := _problem(asdict(h)))]
    problems += _duplicates(hypotheses)
    if not hypotheses:
        problems = ["no sentences given"]
    if problems:
        raise ScoringError(f"{path}: not written, {len(problems)} problem(s):{_lines(problems)}")
    lines = []
    for hypothesis in hypotheses:
        record = asdict(hypothesis)
        for key in ("text_lang", "alternatives"):
            if record[key] is None:
                del record[key]
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    write_text_atomically(path, "".join(lines))


def _problem(record: object) -> str | None:
    """Why the JSON value is no hypothesis, or None."""
    if not isinstance(record, dict):
        return f"a JSON {type(record).__name__}, not an object"
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        others = [key for key in record if key not in REQUIRED]
        near = [f"{key!r} for {close[0]!r}" for key in missing if (close := get_close_matches(key, others, 1, 0.5))]
        return f"missing {', '.join(missing)}" + (f" (write {', '.join(near)}?)" if near else "")
    for key in ("id", "ref", "hyp", "text_lang"):
        value = record.get(key)
        if not isinstance(value, str) and not (key == "text_lang" and value is None):
            return f"{key} must be a string, got {value!r}"
        if value and not _encodable(value):
            return f"{key} holds half of a surrogate pair, which is no text: {value!r}"
    if not record["id"]:
        return "id is empty"
    if not _is_score(record["score"]):
        return f"score must be a finite number or null, got {record['score']!r}"
    others = record.get("alternatives")
    if others is not None and not isinstance(others, list | tuple):
        return f"alternatives must be a list, got {others!r}"
    for other in others or ():
        if not (isinstance(other, dict) and isinstance(other.get("text"), str) and _encodable(other["text"])):
            return f"each of alternatives must be an object with text and score, got {other!r}"
        if "score" not in other or not _is_score(other["score"]):
            return f"the score of each of alternatives must be a finite number or null, got {other!r}"
    return None


def _is_score(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _duplicates(hypotheses: list[Hypothesis]) -> list[str]:
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for hypothesis in hypotheses:
        if hypothesis.id in seen:
            twice[hypothesis.id] = None
        seen.add(hypothesis.id)
    return [f"{len(twice)} id(s) more than once: {listing(list(twice))}"] if twice else []


def _lines(problems: list[str]) -> str:
    """One line each, indented; the first SHOWN_PROBLEMS of them."""
    more = len(problems) - SHOWN_PROBLEMS
    return "".join(f"\n  {line}" for line in [*problems[:SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])
