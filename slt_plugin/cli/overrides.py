"""The ``option=value`` words of a command line, read as Hydra reads them."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from slt_plugin.models.errors import OptionError


def parse(words: Sequence[str], *, sweep: bool = False) -> list[Override]:
    """One Override for each word.

    Args:
        sweep: several values for several runs (Hydra's --multirun) are allowed.

    Raises:
        OptionError: several values where one is expected; the message says how they are quoted.
        hydra.errors.OverrideParseException: a word that is no option=value.
    """
    overrides = OverridesParser.create().parse_overrides(list(words))
    for override in overrides:
        if override.is_sweep_override() and not sweep:
            key, value = override.key_or_group, override.get_value_string()
            raise OptionError(
                f"{override.input_line}: Hydra takes a value with commas for several runs. "
                f"As one text, quote it twice: '{key}=\"{value}\"'; as a list write '{key}=[{value}]'"
            )
    return overrides
