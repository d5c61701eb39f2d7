"""``slt-pretrain``: train a video encoder without labels; the same as ``fairseq-hydra-train`` with our config folder.

usage: slt-pretrain --config-name NAME [hydra options] [option=value ...]

    slt-pretrain --config-name mae_tiny_cpu task.data=data/fingerspelling_video checkpoint.save_dir=runs/mae

Several manifests: 'dataset.train_subset="youtube_asl,how2sign"' 'task.train_ratios="1,2"'.
Own configs: --config-dir FOLDER (then fairseq-hydra-train with the same words does the same).
"""

import sys
from collections.abc import Sequence

from slt_plugin.cli.training import train


def main(argv: Sequence[str] | None = None) -> int:
    return train("pretrain", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
