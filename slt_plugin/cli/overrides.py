"""The ``option=value`` words of a command line, read as Hydra reads them."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from slt_plugin.common.messages import did_you_mean
from slt_plugin.models.errors import OptionError

CONFIGS = Path(__file__).parents[1] / "config" / "generate"  # one YAML for each command that takes overrides


def parse(words: Sequence[str], *, sweep: bool | None = None) -> list[Override]:
    """One Override for each word.

    Args:
        sweep: several values for several runs (Hydra's --multirun) are allowed; None: the command has no such runs.

    Raises:
        OptionError: several values where one is expected; the message says how they are quoted.
        hydra.errors.OverrideParseException: a word that is no option=value.
    """
    overrides = OverridesParser.create().parse_overrides(list(words))
    for override in overrides:
        if override.is_sweep_override() and not sweep:
            key, value = override.key_or_group, override.get_value_string()
            runs = "" if sweep is None else "; for one run with each value add -m"
            raise OptionError(
                f"{override.input_line}: Hydra takes a value with commas for several runs{runs}. "
                f"As one text, quote it twice: '{key}=\"{value}\"'; as a list write '{key}=[{value}]'"
            )
    return overrides


def compose(command: str, words: Sequence[str], *, may_be_null: Sequence[str] = ()):
    """The options of ``slt-<command>``: <command>.yaml with the command line's overrides.

    Raises:
        OptionError: words that are no option there (see `check_words`).
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.version import VersionBase
    from omegaconf import OmegaConf

    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml"))
    check_words(f"slt-{command}", words, defaults, may_be_null=may_be_null)
    version = VersionBase.instance()
    before = version.version_base
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose(command, overrides=list(words))
    finally:
        version.version_base = before  # Hydra keeps ours, and fairseq cannot read old checkpoints (args) with it


def check_words(command: str, words: Sequence[str], defaults: dict, *, may_be_null: Sequence[str] = ()) -> None:
    """Refuses words that would have no effect, also those with Hydra's "+", and values of another type.

    Args:
        command: the name that users type, for messages.
        words: ``option=value``.
        defaults: the content of the command's YAML; an option that is null there may have any value.
        may_be_null: options that may be set to null though their default is not.

    Raises:
        OptionError
    """
    known = _leaves(defaults)
    for override in parse(words):
        key = override.key_or_group
        if key not in known:
            raise OptionError(f"{key} is no option{did_you_mean(key, known)} ({command} --help lists all of them)")
        if override.is_delete() or override.is_add():
            raise OptionError(f"{override.input_line}: write {key}=VALUE, options are neither added nor removed")
        value, default = override.value(), known[key]
        wanted = type(default)
        if wanted not in (bool, int, float) or (value is None and key in may_be_null):
            continue
        numbers = (int, float) if wanted is float else wanted
        if isinstance(value, bool) != (wanted is bool) or not isinstance(value, numbers):
            names = {bool: "true or false", int: "a whole number", float: "a number"}
            raise OptionError(f"{override.input_line}: {key} is {names[wanted]} (default: {default})")


def _leaves(tree: dict, prefix: str = "") -> dict[str, object]:
    """Dotted key -> default of every option; a list is one option, "???" (mandatory) reads as a text."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
