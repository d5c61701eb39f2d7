"""What ``slt-extract`` can make (``what=``): the options of each kind, and the function that makes it."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import NamedTuple

from slt_plugin.common.messages import did_you_mean
from slt_plugin.extraction.extract import extract
from slt_plugin.extraction.filling import Outcome
from slt_plugin.extraction.options import ExtractOptions
from slt_plugin.extraction.sonar import SonarOptions, extract_sonar
from slt_plugin.extraction.store_options import StoreOptions
from slt_plugin.extraction.teacher import TeacherOptions, extract_teacher
from slt_plugin.models.errors import OptionError


class Kind(NamedTuple):
    """One value of ``what``."""

    options: type[StoreOptions]
    extract: Callable[[StoreOptions], Outcome]


KINDS = {
    "features": Kind(ExtractOptions, extract),
    "sonar": Kind(SonarOptions, extract_sonar),
    "sonar_teacher": Kind(TeacherOptions, extract_teacher),
}


def option_names(kind: Kind) -> set[str]:
    """The options that it has a use for."""
    return {field.name for field in fields(kind.options)}


def run_kind(values: Mapping[str, object], defaults: Mapping[str, object]) -> Outcome:
    """Makes ``values["what"]``; arguments and errors as `kind_options`, and what the kind raises."""
    options = kind_options(values, defaults)
    return KINDS[values["what"]].extract(options)


def kind_options(values: Mapping[str, object], defaults: Mapping[str, object]) -> StoreOptions:
    """The options of ``values["what"]``, checked.

    Args:
        values: of every option in extract.yaml.
        defaults: theirs.

    Raises:
        OptionError: no such kind, options that it has no use for, or values that they cannot have.
    """
    what = values["what"]
    if what not in KINDS:
        raise OptionError(f"what={what}{did_you_mean(what, KINDS)}: give {', '.join(KINDS)}")
    kind = KINDS[what]
    used = option_names(kind)
    foreign = [name for name in values if name not in (*used, "what") and values[name] != defaults[name]]
    if foreign:
        others = [name for name, other in KINDS.items() if option_names(other).issuperset(foreign)]
        hint = f", or set what={' or '.join(others)}" if others else ""
        raise OptionError(f"what={what} has no use for {', '.join(foreign)}: leave them out{hint}")
    return kind.options(**{name: values[name] for name in used})
