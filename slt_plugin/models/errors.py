"""The error of options that cannot be used."""

from slt_plugin.common.errors import SltError


class OptionError(SltError):
    """Options that are wrong or contradict each other: the message names them and says what to set."""
