"""Profiles: what a job asks SLURM for. ``config/launcher/<name>.yaml``, with ``launcher.<option>=`` over it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import yaml

import slt_plugin
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.models.errors import OptionError

PROFILES = Path(slt_plugin.__file__).parent / "config" / "launcher"
LOCAL = "local"  # the profile of this machine
OF_LOCAL = ("local_ranks", "clips_per_second", "price_per_gpu_hour")  # the options that it has a use for
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML's
# sbatch options that the launcher itself sets -> what to write instead
_OURS = {
    "array": "-m, or num_shards of slt-extract",
    "chdir": "the folder that the command is called in",
    "error": "launcher.folder",
    "export": "the environment that the command is called in",
    "gpus": "launcher.gpus_per_node",
    "gpus-per-socket": "launcher.gpus_per_node",
    "gpus-per-task": "launcher.gpus_per_node",
    "gres": "launcher.gpus_per_node; where the cluster only knows --gres, give launcher.gres=true",
    "job-name": "the name of the config",
    "no-requeue": "launcher.requeue",
    "ntasks": "launcher.gpus_per_node or launcher.local_ranks",
    "ntasks-per-node": "launcher.gpus_per_node or launcher.local_ranks",
    "open-mode": "launcher.folder",
    "output": "launcher.folder",
    "requeue": "launcher.requeue",
    "signal": "launcher.signal_delay",
}


@dataclass(frozen=True)
class Profile:
    """What a job asks for; config/launcher/slurm.yaml says what each option means. None: the cluster's default.

    Raises:
        OptionError: values that no job can have.
    """

    name: str
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    gpus_per_node: str = "0"
    gres: bool = False
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str = "24:00:00"
    array_parallelism: int = 16
    constraint: str | None = None
    comment: str | None = None
    extra: Mapping[str, str | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    local_ranks: int = 1
    signal_delay: int = 120
    requeue: bool = True
    max_num_timeout: int = 100
    chain: int = 0
    folder: str | None = None
    python: str | None = None
    clips_per_second: float | None = None
    price_per_gpu_hour: float | None = None

    def __post_init__(self):
        for name, least in (("nodes", 1), ("array_parallelism", 1), ("local_ranks", 1), ("signal_delay", 1),
                            ("max_num_timeout", 0), ("chain", 0), ("cpus_per_task", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"launcher.{name}={value}: give a whole number of at least {least}")
        for name in ("clips_per_second", "price_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"launcher.{name}={value}: give a number above 0")
        if self.gpus and self.local_ranks > 1:
            raise OptionError(
                f"launcher.local_ranks={self.local_ranks} with launcher.gpus_per_node={self.gpus_per_node}: a GPU job "
                "has one task for each GPU; local_ranks is for jobs without GPUs (gpus_per_node=0)"
            )
        if self.minutes * 60 <= self.signal_delay:
            raise OptionError(
                f"launcher.signal_delay={self.signal_delay} s is not shorter than launcher.time={self.time}"
            )
        for option in self.extra:
            self._check_extra(option.lstrip("-").replace("_", "-"))

    def _check_extra(self, option: str) -> None:
        ours = {item.name.replace("_", "-"): f"launcher.{item.name}" for item in fields(Profile)} | _OURS
        option = {"G": "gpus"}.get(option, option)
        if option in ours:
            raise OptionError(f"launcher.extra.{option}: the launcher sets --{option} itself, from {ours[option]}")

    @property
    def is_local(self) -> bool:
        """Whether the command runs here and at once."""
        return self.name == LOCAL

    @property
    def gpus(self) -> int:
        """GPUs of a node: 4 of "4" and of "a100:4"."""
        match = re.fullmatch(r"(?:(?P<type>[A-Za-z][\w.-]*):)?(?P<count>\d+)|[A-Za-z][\w.-]*", self.gpus_per_node)
        if match is None:
            raise OptionError(f"launcher.gpus_per_node={self.gpus_per_node}: give a number, or TYPE:NUMBER")
        return int(match["count"] or 1)

    @property
    def tasks_per_node(self) -> int:
        """Processes of a node: one a GPU."""
        return self.gpus or self.local_ranks

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node

    @property
    def minutes(self) -> int:
        """The time limit, rounded up to whole minutes as SLURM does."""
        return parse_time(self.time)

    @property
    def requeues(self) -> bool:
        """Whether a job that is preempted or runs out of time is queued again."""
        return self.requeue and not self.chain


def parse_time(text: str) -> int:
    """Minutes of a time limit in SLURM's words: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        OptionError: other words.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise OptionError(f"launcher.time={text}: give SLURM's words, e.g. 30 (minutes), 24:00:00 or 2-12 (days-hours)")
    days, *rest = match.groups()
    first, second, third = (int(part) if part else 0 for part in rest)
    if days is not None:
        hours, minutes, seconds = int(days) * 24 + first, second, third
    elif rest[2] is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    total = hours * 60 + minutes + math.ceil(seconds / 60)
    if not total:
        raise OptionError(f"launcher.time={text}: a job without a time limit could not be told when it ends; give one")
    return total


def profile_names(folder: Path | None = None) -> list[str]:
    """The profiles of the package and of a folder."""
    return sorted({path.stem for place in (PROFILES, folder) if place is not None for path in place.glob("*.yaml")})


def find_profile(name: str, folder: str | None) -> Path:
    """The file of ``launcher=name``, which may be a path; ``folder`` is searched before the package.

    Raises:
        OptionError: no such file or folder.
    """
    if name.endswith(".yaml") or "/" in name:
        if not Path(name).is_file():
            raise OptionError(f"launcher={name}: no such file")
        return Path(name)
    own = None if folder is None else Path(folder)
    if own is not None and not own.is_dir():
        raise OptionError(f"launcher.dir={folder} is no folder")
    for place in (own, PROFILES):
        if place is not None and (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    names = profile_names(own)
    raise OptionError(
        f"launcher={name}: no such profile{did_you_mean(name, names)}; profiles: {listing(names)}. Own ones: "
        "launcher=FILE.yaml, or launcher.dir=FOLDER launcher=NAME"
    )


def load_profile(name: str, folder: str | None, given: Mapping[str, object]) -> Profile:
    """The profile ``name`` with the command line's options over it.

    Args:
        folder: launcher.dir.
        given: option -> value of ``launcher.<option>=value``; "extra.NAME" is one of ``extra``.

    Raises:
        OptionError: unknown options, or values that they cannot have; options that have no effect on this machine.
    """
    path = find_profile(name, folder)
    local = path == PROFILES / f"{LOCAL}.yaml"
    # every value as the text it is: YAML would read 24:00:00 as the number 86400
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path}: expected lines of 'option: value'")
    kinds = {item.name: item for item in fields(Profile) if item.name != "name"}
    values: dict[str, object] = {}
    for where, options in ((f"{path}: ", content), ("launcher.", given)):
        for key, value in options.items():
            option, _, inner = str(key).partition(".")
            if option not in kinds or (inner and option != "extra"):
                raise OptionError(f"{where}{key} is no option{did_you_mean(key, kinds)}; options: {', '.join(kinds)}")
            if local and option not in OF_LOCAL:
                raise OptionError(
                    f"{where}{key} has no effect on this machine: give launcher=slurm, or another profile "
                    f"({listing(profile_names())})"
                )
            if inner:
                values[option] = {**values.get(option, {}), inner: _extra_value(value)}
            else:
                values[option] = _converted(f"{where}{key}", kinds[option], value)
    kept = {key: value for key, value in values.items() if value is not None}
    return replace(Profile(LOCAL if local else path.stem), **kept)


def _extra_value(value: object) -> str | bool:
    text = str(value)
    return {"true": True, "false": False}.get(text.lower(), text)


def _converted(where: str, item, value: object):
    """``value`` as the option's type; None: the default."""
    kind = str(item.type)
    if isinstance(value, str) and value.strip() in ("", "~", "null"):
        value = None
    if value is None:
        return None
    if item.name == "setup":
        lines = value if isinstance(value, list) else [value]
        return tuple(str(line) for line in lines)
    if item.name == "extra":
        if not isinstance(value, Mapping):
            raise OptionError(f"{where}={value}: give 'OPTION: VALUE' pairs")
        return {str(key): _extra_value(inner) for key, inner in value.items()}
    if isinstance(value, list | Mapping):
        raise OptionError(f"{where}={value}: give one value")
    text = str(value).strip()
    if "bool" in kind:
        if text.lower() not in _BOOLEANS:
            raise OptionError(f"{where}={value}: give true or false")
        return _BOOLEANS[text.lower()]
    if "int" in kind or "float" in kind:
        try:
            return int(text) if "int" in kind else float(text)
        except ValueError:
            number = "a whole number" if "int" in kind else "a number"
            raise OptionError(f"{where}={value}: give {number}") from None
    return text
