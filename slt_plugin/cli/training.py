"""What the commands that train have in common: fairseq's Hydra entry point with one of our config folders."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import slt_plugin
from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.launching import HELP, launch, local_ranks, read_request
from slt_plugin.cli.overrides import parse
from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import did_you_mean, listing
from slt_plugin.common.stopping import TRAINING
from slt_plugin.models.errors import OptionError

PACKAGE = Path(slt_plugin.__file__).parent
CONFIGS = PACKAGE / "config"  # one folder for each command
MULTIRUN = ("-m", "--multirun")


def config_names(folder: Path) -> list[str]:
    """The experiments of a config folder."""
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def check_config_name(name: str, folder: Path) -> None:
    """Refuses a name without a file: Hydra would take fairseq's bare defaults for it.

    Raises:
        OptionError: no such folder or experiment.
    """
    if not folder.is_dir():
        raise OptionError(f"--config-dir {folder} does not exist")
    if not (folder / f"{name.removesuffix('.yaml')}.yaml").is_file():
        names = config_names(folder)
        raise OptionError(
            f"--config-name {name}: no such experiment in {folder}{did_you_mean(name, names)}; "
            f"experiments: {', '.join(names) or 'none'}"
        )


def hydra_arguments(arguments: Sequence[str], folder: Path) -> list[str]:
    """The command line for fairseq's Hydra entry point: ours plus config folder and user directory."""
    words = sorted(arguments, key=lambda word: word not in MULTIRUN)  # Hydra wants all overrides side by side
    if not any(word.lstrip("+").startswith("common.user_dir=") for word in words):
        # ranks that fairseq spawns import the plugin through it
        words = with_overrides(words, [f"common.user_dir='{PACKAGE}'"])
    if not any(word.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for word in words):
        words = ["--config-dir", str(folder), *words]
    return words


def with_overrides(arguments: Sequence[str], further: Sequence[str]) -> list[str]:
    """Further overrides beside those of the command line."""
    words = list(arguments)
    first = next((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    return [*words[:first], *further, *words[first:]]


def check_ranks(arguments: Sequence[str], gpus: int) -> None:
    """Refuses what fairseq takes for success: it starts one process a GPU, so without GPUs none, and exits with 0.

    Raises:
        OptionError: an init method for several ranks, on a machine without GPUs, where fairseq is to start the ranks.
    """
    given = dict(word.lstrip("+").split("=", 1) for word in arguments if "=" in word and not word.startswith("-"))
    method = given.get("distributed_training.distributed_init_method", "null")
    no_spawn = given.get("distributed_training.distributed_no_spawn", "false").lower() == "true"
    if gpus == 0 and method != "null" and not no_spawn:
        raise OptionError(
            "distributed_training.distributed_init_method without GPUs: fairseq would start no process and train "
            "nothing. Start the ranks yourself (torchrun) with distributed_training.distributed_no_spawn=true"
        )


def train(command: str, usage: str | None, argv: Sequence[str] | None) -> int:
    """Runs ``slt-<command>`` with the experiments of ``config/<command>``; the exit status.

    Args:
        usage: printed where no experiment is named.
        argv: the words after the command; None: those of this process.
    """
    TRAINING.listen()  # importing torch takes longer than some jobs have left
    try:
        return _train(command, usage, list(sys.argv[1:] if argv is None else argv))
    finally:
        TRAINING.restore()


def _train(command: str, usage: str | None, arguments: list[str]) -> int:
    folder = CONFIGS / command
    if not any(a.startswith(("--config-name", "-cn")) for a in arguments):
        print(f"{usage}{HELP}\nexperiments: {', '.join(config_names(folder))}")
        return 0 if {"-h", "--help"} & set(arguments) else 2

    from hydra._internal.utils import get_args

    try:
        request = read_request(arguments, trains=True)
        words = hydra_arguments(request.words, folder)
        options = get_args(words)
        if options.config_path is None:  # else Hydra looks in several places
            check_config_name(options.config_name, Path(options.config_dir))
        overrides = parse(options.overrides, sweep=options.multirun)
    except EXPECTED_ERRORS as error:
        return _failed(command, one_line(error))

    import torch

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.cli.training_launch import check_members_apart, training_work
    from slt_plugin.cli.training_options import check_overrides, explain
    from slt_plugin.launch.local import forwarding
    from slt_plugin.launch.ranks import rank_words
    from slt_plugin.tasks import preemption

    try:
        check_overrides(overrides, writing=not request.dry_run)
        if not request.runs_here:
            TRAINING.restore()  # here nothing is trained
            return launch(request, training_work(command, request, options, overrides))
        if options.multirun:
            check_members_apart(options, overrides)
            if request.profile.local_ranks > 1:
                raise OptionError("launcher.local_ranks is for one training: leave -m out, or use launcher=slurm")
        status = local_ranks(request, f"slt_plugin.cli.{command}")
        if status is not None:
            return status
        further = rank_words(request.words, os.environ)
        check_ranks([*request.words, *further], torch.cuda.device_count())
        from fairseq_cli.hydra_train import cli_main

        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback and exit before the message below
        sys.argv = [f"slt-{command}", *with_overrides(words, further)]
        if not _spawns(sys.argv, torch.cuda.device_count()):
            cli_main()
            preemption.check_trained()
            return 0
        TRAINING.restore()
        try:
            with forwarding(TRAINING.numbers, lambda: [child.pid for child in multiprocessing.active_children()]):
                cli_main()
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code > 0:  # a rank has said why, or was asked to end
                return error.exit_code
            raise
    except SltError as error:
        return _failed(command, one_line(error))
    except EXPECTED_ERRORS as error:
        return _failed(command, explain(error, overrides))
    except Exception as error:
        # fairseq puts "cannot load model parameters" in the place of whatever a model says of a checkpoint
        if isinstance(error.__context__, SltError):
            return _failed(command, f"{one_line(error).rstrip('.')}: {one_line(error.__context__)}")
        if options.multirun:  # its last line names the member
            traceback.print_exc()
            return _failed(command, f"{type(error).__name__}: {one_line(error)}")
        raise
    return 0


def _spawns(words: Sequence[str], gpus: int) -> bool:
    """Whether fairseq starts processes of its own, one a GPU: they train, this one does not."""
    return gpus > 1 and not any(word.endswith("distributed_no_spawn=true") for word in words)


def _failed(command: str, message: str) -> int:
    from slt_plugin.launch.callbacks import failed_members

    members = failed_members()
    print(f"slt-{command}: {f'{listing(members)} failed: ' if members else ''}{message}", file=sys.stderr)
    return 1
