"""The error of an extraction that cannot go on."""

from slt_plugin.common.errors import SltError


class ExtractionError(SltError):
    """The message says what happened and what to do; what was finished before is in the store."""
