"""The base of all errors that a user can mend."""


class SltError(ValueError):
    """Input, options or files that cannot be used: the message names them, says what was expected and what to do.

    Commands print it in one line, without a traceback.
    """
