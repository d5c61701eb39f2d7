"""The error of reports."""

from slt_plugin.common.errors import SltError


class ReportError(SltError):
    """Something that cannot be reported as asked: the message names it and says what to do."""
