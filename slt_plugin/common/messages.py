"""Wording that many messages share."""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """'; did you mean 'x'?' where one choice is near, else ''."""
    near = difflib.get_close_matches(str(given), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(items: Sequence[object], shown: int = 10) -> str:
    """'a, b, c and 4 more'."""
    named = ", ".join(str(item) for item in items[:shown])
    return named + (f" and {len(items) - shown} more" if len(items) > shown else "")
