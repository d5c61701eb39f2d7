"""The error that every reader of manifests and media raises."""


class DataError(ValueError):
    """Bad input data: the message names the file or row, what was expected and what to do."""
