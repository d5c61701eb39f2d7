"""The error that scoring and its readers raise."""

from slt_plugin.common.errors import SltError


class ScoringError(SltError):
    """Input that cannot be scored: the message names the file or sentence, what was expected and what to do."""


def listing(items: list[str], limit: int = 10) -> str:
    """``a, b, c and 7 more``: error messages stay readable when thousands of rows are wrong."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
