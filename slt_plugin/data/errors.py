"""The error that every reader of manifests and media raises."""

from slt_plugin.common.errors import SltError


class DataError(SltError):
    """Bad input data: the message names the file or row, what was expected and what to do."""
