"""``slt-extract``: features of videos, sentence embeddings of signing or of texts -> a store and its manifest.

usage: slt-extract [what=features] checkpoint=PATH manifest=FILE.tsv out=DIR.store [option=value ...]

    slt-extract checkpoint=dm_70h_ub_signhiera.pth manifest=data/train.tsv out=feats/train.store dtype=bf16
    slt-extract what=sonar checkpoint=sonar_asl.pt manifest=data/test.tsv out=embeddings/test.store
    slt-extract what=sonar_teacher checkpoint=sonar_text_encoder.pt spm=sentencepiece.source.256000.model \\
        manifest=data/train.tsv out=teacher.store lang=eng_Latn

The same command again goes on where it stopped. Rows that cannot be read are listed with their cause in
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
from slt_plugin.models.errors import OptionError


def run(cfg) -> int:
    """The exit status: 0 fine, 1 rows failed, 128 + number after a signal.

    Raises:
        SltError: see `extraction.kinds`.
    """
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.cli.evaluation_checks import check_checkpoints
    from slt_plugin.common.messages import listing
    from slt_plugin.extraction.kinds import run_kind

    missing = OmegaConf.missing_keys(cfg)
    if cfg.merge and "checkpoint" in missing:
        cfg.checkpoint = None  # the store knows what it holds
    values = OmegaConf.to_container(cfg, throw_on_missing=True)
    if cfg.what == "sonar" and not cfg.merge and len(check_checkpoints(str(cfg.checkpoint))) > 1:
        raise OptionError(f"checkpoint={cfg.checkpoint}: give one file, not an ensemble")
    outcome = run_kind(values, OmegaConf.to_container(OmegaConf.load(CONFIGS / "extract.yaml")))
    if outcome.merged is not None:
        print(f"{outcome.merged.path or cfg.out}: {outcome.merged.written} rows")
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
