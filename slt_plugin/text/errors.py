"""The error that every codec raises."""

from slt_plugin.common.errors import SltError


class CodecError(SltError):
    """A vocabulary that cannot be read or used: the message names file or option, what was expected, what to do."""
