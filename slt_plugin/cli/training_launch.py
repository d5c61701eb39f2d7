"""A training as a job: the configuration that it will see, what can be refused before it is queued, its sweep."""

import argparse
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from slt_plugin.cli.launching import Request, Work, check_devices
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.launch.estimate import training_estimate
from slt_plugin.launch.running import note_jobs, refuse_running
from slt_plugin.launch.sweep import SAVE_DIR, check_sweep_folder, element_words, expand, write_sweep
from slt_plugin.models.errors import OptionError

REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # another option's value
OF_THE_JOB = ("oc.env:", "hydra:")  # what only the job can resolve, and what must not be printed here


def training_work(command: str, request: Request, options: argparse.Namespace, overrides: Sequence[Override]) -> Work:
    """What ``slt-<command>`` submits, once its configuration has been composed and checked.

    Args:
        options: Hydra's, of the command line.
        overrides: of the command line, with those that vary in a sweep.

    Raises:
        SltError: what the job would fail with, as far as this machine can tell.
    """
    sweeping, here = bool(options.multirun), request.profile.is_local
    elements = expand(overrides) if sweeping else []
    fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
    composed = [compose(options, [*fixed, *element.overrides]) for element in elements] or [compose(options, fixed)]
    resolved = resolve(composed[0])
    for cfg in composed:
        check_complete(cfg)
    cfg = resolved or composed[0]
    check_devices(request, cfg)
    if resolved is not None:
        check_task(resolved)
        check_starts(resolved)
    save_dir = str(cfg.checkpoint.save_dir)
    switches = [word for word in request.words if word not in options.overrides and word not in ("-m", "--multirun")]
    given = [override for override in overrides if override.input_line in request.words]  # without our user_dir
    kept = [override.input_line for override in given if not override.is_sweep_override()]
    lines = [[*switches, *kept]]
    if sweeping:
        if request.profile.chain:
            raise OptionError("launcher.chain is for one training: leave -m out, or requeue (launcher.chain=0)")
        if not here:
            check_one_folder(composed)
        kept = [o.input_line for o in given if not o.is_sweep_override() and o.key_or_group != SAVE_DIR]
        if not here:
            check_sweep_folder(Path(save_dir), elements, [*switches, *kept])
        lines = [element_words([*switches, *kept], element, save_dir) for element in elements]
    jobs: list[str] = []

    def submitted(submission):
        jobs.append(submission.job)
        note_jobs(Path(save_dir), jobs)
        if sweeping:
            write_sweep(Path(save_dir), f"slt-{command}", elements, [*switches, *kept], submission.job)

    if not here and not request.dry_run:
        refuse_running(Path(save_dir))
    title = f"# of element 0 of {len(elements)}: {' '.join(elements[0].overrides)}\n" if elements else ""
    return Work(
        command=f"slt-{command}",
        module=f"slt_plugin.cli.{command}",
        name=options.config_name.removesuffix(".yaml"),
        elements=lines,
        folder=Path(save_dir) / "slurm",
        config=title + OmegaConf.to_yaml(OmegaConf.create(printable(composed[0]))),
        estimate=training_estimate(
            OmegaConf.to_container(cfg), request.profile, ranks=ranks_of(request, cfg), elements=max(1, len(elements))
        ),
        submitted=submitted,
    )


def compose(options: argparse.Namespace, overrides: Sequence[str]) -> DictConfig:
    """The configuration that fairseq-hydra-train makes of these words, before interpolations are resolved."""
    import fairseq
    from fairseq.dataclass.initialize import add_defaults, hydra_init
    from hydra._internal.config_search_path_impl import SearchPathQuery
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from hydra.version import VersionBase, setbase

    import slt_plugin.tasks  # noqa: F401  registers everything

    hydra_init(options.config_name)
    own = None if options.config_path is None else str(Path(options.config_path).absolute())
    path = create_config_search_path(own or str(Path(fairseq.__file__).parent / "config"))
    if options.config_dir is not None:
        folder = f"file://{Path(options.config_dir).absolute()}"
        path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    version, log = VersionBase.instance(), logging.getLogger("hydra")
    before, level = version.version_base, log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the age of fairseq's entry point
            setbase("1.1")  # which it has
            hydra = Hydra.create_main_hydra2("train", path)
            cfg = hydra.compose_config(options.config_name, list(overrides), run_mode=RunMode.RUN)
    finally:
        GlobalHydra.instance().clear()
        version.version_base = before
        log.setLevel(level)
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra", None)
    add_defaults(cfg)
    return cfg


def resolve(cfg: DictConfig) -> DictConfig | None:
    """With interpolations resolved, as fairseq does; None where only the job can."""
    from fairseq.dataclass.utils import omegaconf_no_object_check

    try:
        container = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    except InterpolationResolutionError:
        return None
    with omegaconf_no_object_check():
        return OmegaConf.create(container)


def printable(cfg: DictConfig) -> dict:
    """With interpolations resolved, except those whose value comes from the environment, by whatever detour.

    It may be a secret.
    """
    raw = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)

    def of_the_job(value) -> bool:
        if not isinstance(value, str) or "${" not in value:
            return False
        return any(name in value for name in OF_THE_JOB) or any(map(of_the_job, map(at, REFERENCE.findall(value))))

    def at(key: str):
        found = raw
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def value_of(value, key: str):
        if isinstance(value, dict):
            return {name: value_of(inner, f"{key}.{name}" if key else str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [value_of(inner, f"{key}[{number}]") for number, inner in enumerate(value)]
        if not isinstance(value, str) or "${" not in value or of_the_job(value):
            return value
        try:
            found = OmegaConf.select(cfg, key)
        except InterpolationResolutionError:
            return value
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    return value_of(raw, "")


def check_complete(cfg: DictConfig) -> None:
    """Raises OptionError where mandatory options (???) have no value."""

    def missing_in(tree: dict, prefix: str) -> list[str]:
        inner = [missing_in(value, f"{prefix}{key}.") for key, value in tree.items() if isinstance(value, dict)]
        return [f"{prefix}{key}" for key, value in tree.items() if value == "???"] + [key for of in inner for key in of]

    missing = sorted(missing_in(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True), ""))
    if missing:
        raise OptionError(f"{listing(missing)} must be given: {' '.join(f'{key}=...' for key in missing[:3])}")


def check_task(cfg: DictConfig) -> None:
    """Builds the task, which reads its vocabulary, and looks for its manifests.

    Raises:
        SltError: options, files or folders that the training would end with at once.
    """
    from fairseq import tasks

    from slt_plugin.tasks.manifest_task import ManifestTask

    task = tasks.setup_task(cfg.task)
    if not isinstance(task, ManifestTask):
        return
    subsets = [cfg.dataset.train_subset] + ([] if cfg.dataset.disable_validation else [cfg.dataset.valid_subset])
    for name in (name.strip() for subset in subsets for name in str(subset).split(",")):
        check_manifest(Path(str(cfg.task.data)), name)
    codec = getattr(task, "codec", None)
    if codec is not None and not codec.kind:
        raise OptionError("task.codec_path is not set: give the vocabulary")


def check_starts(cfg: DictConfig) -> None:
    """Looks for the files that the training begins with.

    Raises:
        SltError: one is not there; a checkpoint of a training cannot be loaded.
    """
    from slt_plugin.checkpoints.safe import LAST, choose_restore_file

    for option in ("text_pretrained", "signhiera_pretrained", "pretrained"):
        path = cfg.model.get(option) if cfg.model else None
        if path is not None and "://" not in path and not Path(path).exists():
            raise OptionError(f"model.{option}={path} does not exist on this machine: give another path")
    named = cfg.checkpoint
    if named.restore_file != LAST or named.continue_once is not None or named.finetune_from_model is not None:
        choose_restore_file(named, named.checkpoint_suffix)


def check_manifest(directory: Path, name: str) -> None:
    """Raises OptionError where a manifest is not there."""
    if (directory / f"{name}.tsv").is_file():
        return
    if not directory.is_dir():
        raise OptionError(
            f"task.data={directory} is no folder on this machine. Where only the job has it, write it with a variable "
            "of the job's environment: 'task.data=${oc.env:SLURM_TMPDIR}/data'"
        )
    found = sorted(path.stem for path in directory.glob("*.tsv"))
    raise OptionError(
        f"{directory / name}.tsv does not exist{did_you_mean(name, found)}; manifests in {directory}: "
        f"{listing(found) or 'none'}"
    )


def check_one_folder(composed: Sequence[DictConfig]) -> None:
    """Raises OptionError where ``checkpoint.save_dir`` follows an option that varies."""
    folders = [OmegaConf.to_container(cfg.checkpoint, resolve=True)["save_dir"] for cfg in composed]
    if len(set(folders)) > 1:
        raise OptionError(
            f"{SAVE_DIR} differs from element to element ({folders[0]}, {folders[-1]}): give the sweep's folder, in "
            "which each element gets one of its own"
        )


def check_members_apart(options: argparse.Namespace, overrides: Sequence[Override]) -> None:
    """Raises OptionError where members of a sweep that Hydra runs here would share their checkpoints."""
    swept = [override.key_or_group for override in overrides if override.is_sweep_override()]
    if not swept or SAVE_DIR in swept:
        return
    fixed = [override.input_line for override in overrides if not override.is_sweep_override()]
    firsts = [element.overrides for element in expand(overrides)]
    raw = str(OmegaConf.to_container(compose(options, [*fixed, *firsts[0]]), resolve=False)["checkpoint"]["save_dir"])
    if "${hydra:" in raw or any(f"${{{key}}}" in raw for key in swept):
        return
    raise OptionError(
        f"-m: all members would write into {SAVE_DIR}={raw}, and each go on from the checkpoint of the one before. "
        f"Give each its own: '{SAVE_DIR}={raw}/${{hydra:job.num}}'"
    )


def ranks_of(request: Request, cfg: DictConfig) -> int:
    """Processes that will train together."""
    if not request.profile.is_local:
        return request.profile.world_size
    if request.profile.local_ranks > 1 or cfg.common.cpu:
        return request.profile.local_ranks
    import torch

    return max(1, torch.cuda.device_count())
