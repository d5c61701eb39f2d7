"""``slt-extract``: a manifest of videos and a SignHiera checkpoint -> a feature store and its manifest.

usage: slt-extract checkpoint=PATH manifest=FILE.tsv out=DIR.store [option=value ...]

    slt-extract checkpoint=dm_70h_ub_signhiera.pth manifest=data/train.tsv out=feats/train.store dtype=bf16

The same command again goes on where it stopped. Videos that cannot be read are listed with their cause in
<out>/failed.tsv and make the exit status 1; the others are kept. In parts, e.g. as a SLURM array:

    slt-extract ... num_shards=64 shard=$SLURM_ARRAY_TASK_ID      # 64 times
    slt-extract ... num_shards=64 merge=true                      # once, at the end

Options and their defaults (slt_plugin/config/generate/extract.yaml):
"""

import logging
import signal
import sys
from collections.abc import Sequence

from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.overrides import CONFIGS, compose


def run(cfg) -> int:
    """The exit status: 0 fine, 1 rows failed, 128 + number after a signal.

    Raises:
        SltError: see `extraction.extract`.
    """
    from omegaconf import OmegaConf

    from slt_plugin.common.messages import listing
    from slt_plugin.extraction.extract import extract
    from slt_plugin.extraction.options import ExtractOptions

    missing = OmegaConf.missing_keys(cfg)
    if cfg.merge and "checkpoint" in missing:
        cfg.checkpoint = None  # the store knows what it holds
    outcome = extract(ExtractOptions(**OmegaConf.to_container(cfg, throw_on_missing=True)))
    if outcome.merged is not None:
        print(f"{outcome.merged.path}: {outcome.merged.written} rows")
    if outcome.failed:
        print(
            f"{len(outcome.failed)} rows failed: {listing(outcome.failed)}; the causes are in {cfg.out}/failed*.tsv",
            file=sys.stderr,
        )
    if outcome.stopped is not None:
        name = signal.Signals(outcome.stopped).name
        print(f"stopped by {name}; the same command goes on from here", file=sys.stderr)
        return 128 + outcome.stopped
    return 1 if outcome.failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{(CONFIGS / 'extract.yaml').read_text()}")
        return 0 if arguments else 2

    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    try:
        return run(compose("extract", arguments))
    except EXPECTED_ERRORS as error:
        print(f"slt-extract: {one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
