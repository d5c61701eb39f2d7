"""The error of everything that reads or writes checkpoints."""

from slt_plugin.common.errors import SltError


class CheckpointError(SltError):
    """A checkpoint that cannot be used: the message names the file, what was expected and what to do."""
