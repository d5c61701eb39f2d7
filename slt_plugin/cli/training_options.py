"""What ``slt-pretrain`` and ``slt-finetune`` check before a training, and how a configuration's errors read."""

import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slt_plugin.cli.errors import one_line
from slt_plugin.common.messages import did_you_mean
from slt_plugin.models.errors import OptionError

GROUPS = ("task", "model", "criterion", "optimizer", "lr_scheduler")


def our_models() -> dict[str, type]:
    """Name -> dataclass of the models that this package has registered, in that order."""
    return {name: cls for name, cls in MODEL_DATACLASS_REGISTRY.items() if cls.__module__.startswith("slt_plugin.")}


def check_overrides(overrides: Sequence[Override], *, writing: bool = True) -> None:
    """Refuses what fairseq would fail on later with an error that does not say what to do.

    Args:
        writing: make the save_dir, to see that it can be written.

    Raises:
        OptionError: unknown names of registered classes, a number for a list, a save_dir that cannot be written.
    """
    for override in overrides:
        if override.is_delete() or override.is_sweep_override():
            continue
        key, value = override.key_or_group, override.value()
        group, _, option = key.partition(".")
        if value is None or "${" in str(value):
            continue
        if group in GROUPS and option == "_name":
            check_name(group, str(value))
        elif key == "checkpoint.save_dir":
            if writing:
                check_writable(str(value))
        elif isinstance(value, int | float) and OmegaConf.is_list(_fairseq_default(key)):
            raise OptionError(f"{key}={value}: this option is a list, write {key}=[{value}]")


def check_name(group: str, name: str) -> None:
    """Raises OptionError where fairseq has no ``group`` (task, model, ...) of that name registered."""
    known = _registered(group)
    if name not in known:
        # of fairseq's hundreds of models only ours fit our tasks
        shown = list(our_models()) if group == "model" else sorted(known)
        hint = did_you_mean(name, shown) or did_you_mean(name, known)
        raise OptionError(
            f"{group}._name={name} is not registered{hint}{' ' if hint else '; '}{group}s: {', '.join(shown)}"
        )


def check_writable(save_dir: str) -> None:
    """Raises OptionError where ``checkpoint.save_dir`` cannot be made or written."""
    if "://" in save_dir:  # storage that fairseq reaches through its PathManager
        return
    try:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        raise OptionError(
            f"checkpoint.save_dir={save_dir} cannot be written ({error.strerror}): give another folder"
        ) from error


def explain(error: BaseException, overrides: Sequence[Override]) -> str:
    """``one_line`` of an error that comes from composing the configuration, and what to write instead."""
    message = one_line(error)
    if "No match in the defaults list" in message:
        group = next((o.key_or_group for o in overrides if o.key_or_group in GROUPS), None)
        return message if group is None else f"{message.split(' To append')[0]} Write {group}._name=..."
    if "Could not override" in message:
        return _unknown_option(message, overrides)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return _misfit(error, overrides) or message
    return message


def _unknown_option(message: str, overrides: Sequence[Override]) -> str:
    """Hydra advises a leading "+" for every option it does not know; that helps only where the option exists."""
    for override in overrides:
        key = override.key_or_group
        if f"'{key}'" in message:
            group, _, option = key.partition(".")
            known = _options(group)
            if known and option.split(".")[0] not in known:
                return f"{key} is no option{did_you_mean(key, [f'{group}.{name}' for name in known])}"
    return message


def _misfit(error: OmegaConfBaseException, overrides: Sequence[Override]) -> str | None:
    """``error`` is of fairseq's merging a group into its dataclass; None where it is not.

    Its ``full_key`` is the option's name without the group, ``object_type`` the dataclass.
    """
    name, message = str(error.full_key), str(error).splitlines()[0]
    group = _group_of(error.object_type)
    if group is None:
        return None
    key = f"{group}.{name}"
    given = next((o for o in overrides if o.key_or_group == key and not o.is_delete()), None)
    if "not in" in message and given is None:
        return (
            f"{message}: the config sets {key}, which the {group} chosen with {group}._name does not have. "
            f"Remove it with ~{key}"
        )
    if "not in" in message:
        return f"{message}{did_you_mean(name, [field.name for field in fields(error.object_type)])}"
    if given is not None and isinstance(given.value(), list):
        joined = ",".join(map(str, given.value()))
        return f"{key}: {message}; the option is one text, quote it twice: '{key}=\"{joined}\"'"
    return f"{key}: {message}"


def _registries(group: str) -> dict:
    """Name -> dataclass (None where it has none)."""
    if group == "task":
        return TASK_DATACLASS_REGISTRY
    if group == "model":
        return MODEL_DATACLASS_REGISTRY
    return REGISTRIES[group]["dataclass_registry"]


def _registered(group: str) -> set[str]:
    names = set(_registries(group))
    if group == "model":
        names |= set(ARCH_MODEL_REGISTRY)
    elif group != "task":
        names |= set(REGISTRIES[group]["registry"])
    return names


def _group_of(dataclass: type | None) -> str | None:
    return next((group for group in GROUPS if dataclass in _registries(group).values()), None)


def _options(group: str) -> set[str]:
    """Every option that some class of the group has."""
    if group in GROUPS:
        classes = our_models().values() if group == "model" else _registries(group).values()
        return {field.name for dataclass in classes if dataclass is not None for field in fields(dataclass)}
    default = _fairseq_default(group)
    return set(default) if OmegaConf.is_dict(default) else set()


def _fairseq_default(key: str):
    """The default of an option (or group) of fairseq's own configuration; None where there is no such thing."""
    group, _, option = key.partition(".")
    if group in GROUPS or group not in {field.name for field in fields(FairseqConfig)}:
        return None
    section = OmegaConf.structured(getattr(FairseqConfig(), group))
    if not option:
        return section
    return section.get(option) if option in section and not OmegaConf.is_interpolation(section, option) else None
