"""``slt-finetune``: train a translation model; the same as ``fairseq-hydra-train`` with our config folder.

usage: slt-finetune --config-name NAME [hydra options] [option=value ...]

    slt-finetune --config-name fingerspelling_pose task.data=data/fingerspelling \\
        task.codec_path=data/fingerspelling/char.model checkpoint.save_dir=runs/fingerspelling

Own configs: --config-dir FOLDER (then fairseq-hydra-train with the same words does the same).
"""

import sys
from collections.abc import Sequence

from slt_plugin.cli.training import train


def main(argv: Sequence[str] | None = None) -> int:
    return train("finetune", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
