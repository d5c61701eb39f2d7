"""``slt-finetune``: train a translation model; the same as ``fairseq-hydra-train`` with our config folder.

usage: slt-finetune --config-name NAME [hydra options] [option=value ...]

    slt-finetune --config-name fingerspelling_pose task.data=data/fingerspelling \\
        task.codec_path=data/fingerspelling/spm_char.model checkpoint.save_dir=runs/fingerspelling

Own configs: --config-dir FOLDER (then fairseq-hydra-train with the same words does the same).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import slt_plugin
from slt_plugin.data.errors import DataError
from slt_plugin.models.errors import OptionError

PACKAGE = Path(slt_plugin.__file__).parent
CONFIGS = PACKAGE / "config" / "finetune"


def config_names() -> list[str]:
    """The experiments that ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("_"))


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line for fairseq's Hydra entry point: ours plus config folder and user directory."""
    words = list(arguments)
    if not any(word.lstrip("+").startswith("common.user_dir=") for word in words):
        # ranks that fairseq spawns import the plugin through it; Hydra wants all overrides side by side
        first = next((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
        words.insert(first, f"common.user_dir='{PACKAGE}'")
    if not any(word.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for word in words):
        words = ["--config-dir", str(CONFIGS), *words]
    return words


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


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(a.startswith(("--config-name", "-cn")) for a in arguments):
        print(f"{__doc__}\nexperiments: {', '.join(config_names())}")
        return 0 if {"-h", "--help"} & set(arguments) else 2

    import torch
    from fairseq_cli.hydra_train import cli_main

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.checkpoints.keymaps import CheckpointError
    from slt_plugin.text.errors import CodecError

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback and exit before the message below

    sys.argv = ["slt-finetune", *hydra_arguments(arguments)]
    try:
        check_ranks(arguments, torch.cuda.device_count())
        cli_main()
    except (DataError, CodecError, CheckpointError, OptionError) as error:
        print(f"slt-finetune: {error}", file=sys.stderr)
        return 1
    return 0
