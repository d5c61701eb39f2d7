"""Reads a tab-separated table of hypotheses and references.

UTF-8, one sentence a line, no quoting: a tab separates, every other character counts. The columns are ``hyp`` and
``ref``, in any order, and optionally ``id``; a header names them, or the caller does.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, read_text

COLUMNS = ("id", "hyp", "ref")
REQUIRED = ("hyp", "ref")


def read_columns(path: str | Path, columns: Sequence[str] | None = None) -> list[Hypothesis]:
    """All sentences in file order; without a column ``id`` they are called ``line 1``, ``line 2``, ...

    Args:
        columns: what the columns are, for a file without header; None: the first line is a header.

    Raises:
        ScoringError: wrong column names, no sentences, lines of another number of cells, ids that repeat.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise ScoringError(f"{path}: no sentences in it")
    first = lines[0].split("\t")
    if columns is None:
        _check_names(first, f"{path}: line 1 must name the columns, tab-separated")
        columns, start = first, 1
    else:
        _check_names(columns, "--columns")
        if sorted(first) == sorted(columns):
            raise ScoringError(f"{path}: line 1 is a header ({', '.join(first)}): leave out --columns, it is read")
        start = 0
    rows = [line.split("\t") for line in lines[start:]]
    if not rows:
        raise ScoringError(f"{path}: a header and no sentences")
    wrong = [f"line {start + i + 1} has {len(row)}" for i, row in enumerate(rows) if len(row) != len(columns)]
    if wrong:
        raise ScoringError(
            f"{path}: {len(wrong)} of {len(rows)} lines do not have {len(columns)} tab-separated cells "
            f"({', '.join(columns)}): {listing(wrong)}"
        )
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    ids = [record.get("id", f"line {start + i + 1}") for i, record in enumerate(records)]
    times = Counter(ids)
    bad = sorted(name for name, count in times.items() if not name or count > 1)
    if bad:
        raise ScoringError(
            f"{path}: ids that are empty or repeat ({len(bad)}): {listing([repr(name) for name in bad])}"
        )
    return [Hypothesis(name, row["ref"], row["hyp"], None) for name, row in zip(ids, records, strict=True)]


def _check_names(names: Sequence[str], where: str) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    missing = [name for name in REQUIRED if name not in names]
    if not (unknown or missing or len(set(names)) != len(names)):
        return
    shown = [name if len(name) <= 40 else name[:40] + "..." for name in names]
    hint = did_you_mean(unknown[0], COLUMNS) if unknown else ""
    raise ScoringError(
        f"{where}: hyp and ref, and optionally id, each once; found {listing(shown)}{hint}. For a file without "
        "header: --columns hyp,ref (or ref,hyp: their order)"
    )
