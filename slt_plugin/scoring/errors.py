"""The error that scoring and its readers raise."""

from slt_plugin.common.errors import SltError


class ScoringError(SltError):
    """Input that cannot be scored: the message names the file or sentence, what was expected and what to do."""
