"""The error that every codec raises."""

from slt_plugin.common.errors import SltError


class CodecError(SltError):
    """A vocabulary that cannot be read or used: the message names file or option, what was expected, what to do."""


class HubError(CodecError):
    """A model or vocabulary of the Hugging Face hub that is not on this machine and cannot be downloaded."""
