"""The error of options that cannot be used."""


class OptionError(ValueError):
    """Options that are wrong or contradict each other: the message names them and says what to set."""
