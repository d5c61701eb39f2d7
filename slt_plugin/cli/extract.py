"""``slt-extract``: features of videos, sentence embeddings of signing or of texts -> a store and its manifest.

usage: slt-extract [what=features] checkpoint=PATH manifest=FILE.tsv out=DIR.store [option=value ...]

    slt-extract checkpoint=dm_70h_ub_signhiera.pth manifest=data/train.tsv out=feats/train.store dtype=bf16
    slt-extract what=sonar checkpoint=sonar_asl.pt manifest=data/test.tsv out=embeddings/test.store
    slt-extract what=sonar_teacher checkpoint=sonar_text_encoder.pt spm=sentencepiece.source.256000.model \\
        manifest=data/train.tsv out=teacher.store lang=eng_Latn

The same command again goes on where it stopped. Rows that cannot be read are listed with their cause in
<out>/failed.tsv and make the exit status 1; the others are kept. In parts, as a SLURM array and a job that
merges when all have ended; then again those that failed:

    slt-extract ... launcher=slurm num_shards=64
    slt-extract ... launcher=slurm num_shards=64 'shard=[3,7]'

or by hand:

    slt-extract ... num_shards=64 shard=$SLURM_ARRAY_TASK_ID      # 64 times
    slt-extract ... num_shards=64 merge=true                      # once, at the end
{HELP}
Options and their defaults (slt_plugin/config/generate/extract.yaml):
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.launching import HELP, Request, Work, launch, out_of_time, read_request
from slt_plugin.cli.overrides import CONFIGS, compose
from slt_plugin.common.stopping import give_back
from slt_plugin.extraction.signals import EXTRACTION
from slt_plugin.models.errors import OptionError


def run(cfg) -> int:
    """The exit status: 0 fine, 1 rows failed, 128 + number after a signal (75 in a job that goes on later).

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
        message, status = give_back(outcome.stopped, signal.getsignal(signal.SIGUSR2), os.environ)
        print(message, file=sys.stderr)
        return status
    return 1 if outcome.failed else 0


def shards_of(cfg) -> list[int | None]:
    """The shards of this call: all, or those of ``shard=3`` and ``shard=[3,7]``; [None] where there is one only.

    Raises:
        OptionError: a number that is none, or is there twice.
    """
    from omegaconf import OmegaConf

    if cfg.merge or (cfg.num_shards == 1 and cfg.shard is None):
        return [None]
    given = list(cfg.shard) if OmegaConf.is_list(cfg.shard) else [cfg.shard]
    shards = list(range(cfg.num_shards)) if given == [None] else given
    wrong = [n for n in shards if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < cfg.num_shards]
    if wrong or len(set(shards)) < len(shards) or not shards:
        raise OptionError(
            f"shard={cfg.shard} num_shards={cfg.num_shards}: give different numbers from 0 to {cfg.num_shards - 1}"
        )
    return shards


def extract_work(request: Request, cfg) -> Work:
    """What ``slt-extract launcher=slurm`` submits.

    Raises:
        SltError: what the job would fail with, as far as this machine can tell.
    """
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.data.manifest import read_manifest
    from slt_plugin.extraction.kinds import kind_options
    from slt_plugin.launch.estimate import Amount, cost_lines

    shards = shards_of(cfg)
    missing = sorted(OmegaConf.missing_keys(cfg) - ({"checkpoint"} if cfg.merge else set()))
    if missing:
        raise OptionError(f"{', '.join(missing)} must be given: {' '.join(f'{key}=...' for key in missing)}")
    values = OmegaConf.to_container(cfg) | {"shard": shards[0], "staging": None}  # only the job has that folder
    kind_options(values, OmegaConf.to_container(OmegaConf.load(CONFIGS / "extract.yaml")))
    for key in ("checkpoint", "spm"):
        path = values[key]
        if path is not None and path != "???" and not Path(path).exists():
            raise OptionError(f"{key}={path} does not exist")
    words = [word for word in request.words if not word.startswith("shard=")]
    elements = [words if shard is None else [*words, f"shard={shard}"] for shard in shards]
    rows = len(read_manifest(Path(cfg.manifest)))
    share = f"{cfg.manifest}; {len(shards)} of {cfg.num_shards} shards"
    counted = Amount(None, "the number of windows is not known before the videos are opened")
    if cfg.what != "features":
        counted = Amount(rows * len(shards) / cfg.num_shards, "", at_most=True)
    store = Path(cfg.out)
    return Work(
        command="slt-extract",
        module="slt_plugin.cli.extract",
        name=store.stem,
        elements=elements,
        folder=store.with_name(f"{store.stem}.slurm"),
        config=OmegaConf.to_yaml(cfg),
        estimate=[f"rows: {rows:,} ({share})", *cost_lines(counted, "clips", request.profile, jobs=len(elements))],
        last=[*words, "merge=true"] if shards != [None] else None,
        resumes=not cfg.merge,
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__.replace('{HELP}', HELP)}\n{(CONFIGS / 'extract.yaml').read_text()}")
        return 0 if arguments else 2

    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    try:
        request = read_request(arguments)
        cfg = compose("extract", request.words)
        if not request.runs_here:
            if cfg.merge and not request.profile.is_local:  # it reads two files
                request = replace(request, profile=replace(request.profile, gpus_per_node="0"))
            return launch(request, extract_work(request, cfg))
        if not cfg.merge:
            EXTRACTION.listen()  # importing torch takes longer than some jobs have left
        return run(cfg)
    except EXPECTED_ERRORS as error:
        print(f"slt-extract: {one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        message = out_of_time(error)
        if message is None:
            raise
        print(f"slt-extract: {message}", file=sys.stderr)
        return 1
    finally:
        EXTRACTION.restore()


if __name__ == "__main__":
    sys.exit(main())
