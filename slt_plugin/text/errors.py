"""The error that every codec raises."""


class CodecError(ValueError):
    """A vocabulary that cannot be read or used: the message names file or option, what was expected, what to do."""
