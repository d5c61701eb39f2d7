"""What a check finds, and how the report shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

OK, WARN, FAIL = "OK", "WARN", "FAIL"
COLOURS = {OK: "32", WARN: "33", FAIL: "31"}  # ANSI: green, yellow, red
NAME_WIDTH = 23


@dataclass(frozen=True)
class Check:
    """One line of the report: ``status`` is OK, WARN or FAIL; ``remedy`` is empty for OK."""

    status: str
    name: str
    found: str
    remedy: str = ""
    section: str = ""


def in_section(checks: Sequence[Check], section: str) -> list[Check]:
    return [replace(check, section=section) for check in checks]


def check_amount(name: str, amount: float, *, warn: float, fail: float, remedy: str) -> Check:
    """``amount``, ``warn`` and ``fail`` in GB; below ``warn`` and ``fail`` are the bounds of the two."""
    status = FAIL if amount < fail else WARN if amount < warn else OK
    return Check(status, name, f"{amount:.1f} GB", "" if status == OK else remedy)


def format_section(title: str, checks: Sequence[Check], *, colour: bool) -> str:
    """The lines of one section under its title; the words OK, WARN and FAIL in green, yellow and red."""
    lines = [f"\x1b[1m{title}\x1b[0m" if colour else title]
    for check in checks:
        word = f"{check.status:4}"
        if colour:
            word = f"\x1b[{COLOURS[check.status]}m{word}\x1b[0m"
        lines.append(f"  {word}  {check.name:{NAME_WIDTH}}  {check.found}")
        if check.remedy:
            lines.append(f"  {'':4}  {'':{NAME_WIDTH}}  -> {check.remedy}")
    return "\n".join(lines)


def counts(checks: Sequence[Check]) -> dict[str, int]:
    found = Counter(check.status for check in checks)
    return {status: found[status] for status in (OK, WARN, FAIL)}


def closing_line(checks: Sequence[Check]) -> str:
    number = counts(checks)
    return f"{number[OK]} OK, {number[WARN]} warnings, {number[FAIL]} failures"


def as_json(checks: Sequence[Check]) -> dict:
    return {"checks": [asdict(check) for check in checks], "counts": counts(checks)}
