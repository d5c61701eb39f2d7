"""``slt-evaluate``: decode manifests with a checkpoint and score them against their raw texts.

usage: slt-evaluate checkpoint=PATH[:PATH...] data=DIR results=DIR [subset=test] [option=value ...]

    slt-evaluate checkpoint=runs/fingerspelling/checkpoint_best.pt data=data/fingerspelling \\
        results=results/fingerspelling 'subset=[test,test_unseen]' generation.beam=5

Options and their defaults: slt_plugin/config/generate/evaluate.yaml. Writes <results>/<subset>/hypotheses.jsonl,
metrics.json (scores with signatures and 95 % intervals, speed, everything that made them), evidence.json and
report.html, and prints a table for each subset. Several GPUs or processes share the rows, each decoded once:
launcher.gpus_per_node=4 on SLURM, launcher.local_ranks=2 here, or torchrun.
{HELP}"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.evaluation_checks import MAY_BE_NULL, check_checkpoints, check_options, prepare_results, read_texts
from slt_plugin.cli.launching import (
    HELP,
    Request,
    Work,
    check_devices,
    launch,
    local_ranks,
    out_of_time,
    read_request,
)
from slt_plugin.cli.overrides import CONFIGS, compose
from slt_plugin.common.messages import listing
from slt_plugin.common.process_group import joined
from slt_plugin.models.errors import OptionError
from slt_plugin.scoring.hypotheses import write_hypotheses
from slt_plugin.scoring.intervals import Interval
from slt_plugin.scoring.report import check_metrics, format_table, signatures

logger = logging.getLogger(__name__)


def check(cfg, *, writing: bool) -> tuple[dict[str, list], list[Path]]:
    """Everything that can be checked without the model; the rows of each subset, checkpoints.

    Args:
        writing: make the results' folders, to see that they can be written.

    Raises:
        SltError: options, checkpoints or manifests that cannot be used.
    """
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers everything
    from slt_plugin.cli.evaluation.results import parts_of, scoring_settings

    if not OmegaConf.is_list(cfg.metrics):
        cfg.metrics = [str(cfg.metrics)]
    subsets = list(map(str, cfg.subset)) if OmegaConf.is_list(cfg.subset) else [str(cfg.subset)]
    check_options(cfg)
    check_metrics(list(cfg.metrics))
    rows = {subset: read_texts(Path(str(cfg.data)), subset) for subset in subsets}
    for subset in subsets:
        parts_of(rows[subset], cfg.breakdown)
    signatures(list(cfg.metrics), scoring_settings(cfg))  # which loads what metrics need, before anything is decoded
    if writing:
        prepare_results(Path(str(cfg.results)), subsets)
    paths = check_checkpoints(str(cfg.checkpoint))
    if cfg.average and len(paths) == 1:
        raise OptionError("average=true needs several checkpoints: checkpoint=A.pt:B.pt")
    return rows, paths


def evaluate(cfg, words: Sequence[str] = ()) -> None:
    """Decodes and scores every subset of ``cfg``: all manifests are read before the first is decoded.

    Args:
        words: of the command line, which the results repeat.

    Raises:
        SltError: see `check`.
    """
    import numpy as np
    from fairseq.utils import set_torch_seed

    from slt_plugin.cli.evaluation.decoder import Decoder
    from slt_plugin.cli.evaluation.evidence import masked_scores
    from slt_plugin.cli.evaluation.results import scoring_settings
    from slt_plugin.common.slurm import step_ranks
    from slt_plugin.launch.ranks import started_ranks

    with joined(started_ranks(os.environ) or step_ranks(os.environ)) as ranks:
        rows, paths = check(cfg, writing=ranks.rank == 0)
        settings = scoring_settings(cfg)
        np.random.seed(cfg.common.seed)
        set_torch_seed(cfg.common.seed)
        # the vocabulary comes from the checkpoint, data and limit from here, as with fairseq-generate
        options = {
            "data": str(cfg.data),
            "media_root": cfg.media_root and str(cfg.media_root),
            "max_source_positions": cfg.dataset.max_source_positions,
        }
        if cfg.target_lang is not None:  # null would take the checkpoint's language away
            options["target_lang"] = str(cfg.target_lang)
        decoder = Decoder(paths, cfg, options, ranks)
        if cfg.masked_parts and str(decoder.task.cfg.source) != "pose":
            raise OptionError(f"masked_parts=true: {cfg.checkpoint} reads {decoder.task.cfg.source}, not poses")
        if decoder.task.codec.lowercase and not (cfg.lowercase or cfg.truecase):
            logger.warning(
                "the model was trained on lower-cased text and is scored against references with capitals: "
                "lowercase=true lower-cases both sides, truecase=true gives the hypotheses capitals"
            )
        batches = {subset: decoder.batches(subset) for subset in rows}
        decoded = {subset: decoder.decode(subset, batches[subset]) for subset in rows}
        masked = {
            subset: masked_scores(decoder, subset, batches[subset], list(cfg.metrics), settings) if cfg.masked_parts
            else None
            for subset in rows
        }  # fmt: skip
    if ranks.rank == 0:  # the others are done: what follows is one process's work
        for subset in rows:
            write_results(decoder, subset, rows[subset], decoded[subset], masked[subset], cfg, settings, words)


def write_results(decoder, subset, rows, decoded, masked, cfg, settings, words) -> None:
    """Writes the results of one subset, with their report, and prints its table."""
    from slt_plugin.cli.evaluation import results
    from slt_plugin.cli.evaluation.evidence import evidence_document
    from slt_plugin.report.html import write_report
    from slt_plugin.report.model_facts import model_facts

    folder, manifest = Path(cfg.results) / subset, Path(cfg.data) / f"{subset}.tsv"
    paths = [Path(path) for path in str(cfg.checkpoint).split(":")]
    for name in ("metrics.json", "evidence.json", "report.html"):  # of an earlier run: never beside other sentences
        (folder / name).unlink(missing_ok=True)
    write_hypotheses(folder / "hypotheses.jsonl", decoded.hypotheses)
    of_id = {row.id: row for row in rows}
    by = results.parts_of(rows, cfg.breakdown)
    scores = results.scores_document(decoded.hypotheses, of_id, cfg, settings, by)
    origin = results.origin_document(subset, rows, decoded, cfg, words)
    document = {
        **scores,
        **origin,
        "model": None,
        "provenance": results.provenance(paths),
        "faithfulness": None,
        "masked_parts": masked and {"all": scores["metrics"], **masked},
    }
    results.write_json(folder / "metrics.json", document)  # what follows may fail; the scores are there
    document["model"] = model_facts(
        decoder.models, decoder.task, paths, decoder.sample(subset, decoded.hypotheses[0].id)
    )
    evidence = evidence_document(decoder, subset, decoded, cfg, settings) if cfg.evidence else None
    if evidence is not None:
        document["faithfulness"] = evidence["faithfulness"]
        results.write_json(folder / "evidence.json", evidence, indent=None)
    results.write_json(folder / "metrics.json", document)
    if cfg.report:
        write_report(folder)
    skipped = document["skipped"]
    counted = f"{len(rows) - len(skipped)} of {len(rows)} rows (skipped: {listing(skipped)})" if skipped else (
        f"{len(rows)} rows")  # fmt: skip
    intervals = {metric: Interval(*ends) for metric, ends in scores["intervals"].items()}
    print(f"{manifest}: {counted} -> {folder}\n{format_table(scores['metrics'], scores['signatures'], intervals)}\n")


def evaluate_work(request: Request, cfg) -> Work:
    """What ``slt-evaluate launcher=slurm`` submits: one job, of a task for each GPU. Raises SltError as `check`."""
    from omegaconf import OmegaConf

    from slt_plugin.launch.estimate import Amount, cost_lines

    check_devices(request, cfg)
    subsets, _ = check(cfg, writing=not request.dry_run)
    rows = sum(map(len, subsets.values()))
    return Work(
        command="slt-evaluate",
        module="slt_plugin.cli.evaluate",
        name=Path(str(cfg.results)).name,
        elements=[request.words],
        folder=Path(str(cfg.results)) / "slurm",
        config=OmegaConf.to_yaml(cfg),
        estimate=[
            f"rows: {rows:,} ({listing(list(subsets))})",
            *cost_lines(Amount(rows, ""), "sentences", request.profile),
        ],
        resumes=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__.replace('{HELP}', HELP)}\n{(CONFIGS / 'evaluate.yaml').read_text()}")
        return 0 if arguments else 2

    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    try:
        request = read_request(arguments, shares=True)
        cfg = compose("evaluate", request.words, may_be_null=MAY_BE_NULL)
        if not request.runs_here:
            return launch(request, evaluate_work(request, cfg))
        status = local_ranks(request, "slt_plugin.cli.evaluate")
        if status is not None:
            return status
        evaluate(cfg, arguments)
    except EXPECTED_ERRORS as error:
        print(f"slt-evaluate: {one_line(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        message = out_of_time(error)
        if message is None:
            raise
        print(f"slt-evaluate: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
