"""``slt-evaluate``: decode manifests with a checkpoint and score them against their raw texts.

usage: slt-evaluate checkpoint=PATH[:PATH...] data=DIR results=DIR [subset=test] [option=value ...]

    slt-evaluate checkpoint=runs/fingerspelling/checkpoint_best.pt data=data/fingerspelling \\
        results=results/fingerspelling 'subset=[test,test_unseen]' generation.beam=5

Options and their defaults: slt_plugin/config/generate/evaluate.yaml. Writes <results>/<subset>/hypotheses.jsonl and
metrics.json (with sacrebleu's signatures) and prints a table for each subset.
{HELP}"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.cli.decoding import Models
from slt_plugin.cli.errors import EXPECTED_ERRORS, one_line
from slt_plugin.cli.evaluation_checks import MAY_BE_NULL, check_checkpoints, check_options, prepare_results, read_texts
from slt_plugin.cli.launching import HELP, Request, Work, check_devices, launch, out_of_time, read_request
from slt_plugin.cli.overrides import CONFIGS, compose
from slt_plugin.common.files import atomic_open
from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.scoring.hypotheses import Hypothesis, write_hypotheses
from slt_plugin.scoring.report import check_metrics, format_table, score, signatures

logger = logging.getLogger(__name__)


class Decoder(Models):
    """Models that decode whole manifests."""

    def batches(self, subset: str, cfg):
        """fairseq's iterator over ``<data>/<subset>.tsv``.

        Raises:
            DataError: the manifest is wrong, or rows are too long and are not to be skipped.
        """
        self.task.load_dataset(subset, task_cfg=self.task.cfg)
        dataset = self.task.dataset(subset)
        limits = self.limits()
        skip = cfg.dataset.skip_invalid_size_inputs
        kept, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if ignored and not skip:
            raise DataError(
                f"{subset}.tsv: {dataset.limit_message(ignored, limits)}. Cut them, raise "
                "dataset.max_source_positions, or leave them out with dataset.skip_invalid_size_inputs=true"
            )
        if len(kept) == 0:
            raise DataError(f"{subset}.tsv: no row is left: {dataset.limit_message(ignored, limits)}")
        longest = int(dataset.source_lengths[kept].max())
        if cfg.dataset.max_tokens is not None and longest > cfg.dataset.max_tokens:
            raise DataError(
                f"{subset}.tsv: a row has {longest} source steps, more than dataset.max_tokens="
                f"{cfg.dataset.max_tokens}: raise it"
            )
        return self.task.get_batch_iterator(
            dataset=dataset,
            max_tokens=cfg.dataset.max_tokens,
            max_sentences=cfg.dataset.batch_size,
            max_positions=limits,
            ignore_invalid_inputs=skip,
            seed=cfg.common.seed,
            num_workers=cfg.dataset.num_workers,
        )

    def decode(self, subset: str, batches, cfg) -> list[Hypothesis]:
        """One hypothesis for each row of ``batches``, in the manifest's order."""
        from fairseq.logging.progress_bar import progress_bar

        rows = self.task.dataset(subset).rows
        found: dict[int, Hypothesis] = {}
        for sample in progress_bar(
            batches.next_epoch_itr(shuffle=False),
            log_format=cfg.common.log_format,
            prefix=subset,
            default_log_format="tqdm",
        ):
            for i, best in zip(sample["id"].tolist(), self.generate(sample), strict=True):
                text = self.task.codec.decode(best[0]["tokens"])
                found[i] = Hypothesis(rows[i].id, rows[i].text, text, float(best[0]["score"]), rows[i].text_lang)
        if len(found) != len(rows) and not cfg.dataset.skip_invalid_size_inputs:
            raise RuntimeError(f"{subset}: {len(found)} hypotheses for {len(rows)} rows")
        return [found[i] for i in sorted(found)]


def write_results(subset: str, ids: Sequence[str], hypotheses: Sequence[Hypothesis], cfg) -> None:
    """Writes hypotheses.jsonl and metrics.json of one subset and prints its table.

    Args:
        ids: of every row of the manifest; those without a hypothesis were skipped.
    """
    from omegaconf import OmegaConf

    folder, manifest = Path(cfg.results) / subset, Path(cfg.data) / f"{subset}.tsv"
    scored = {hypothesis.id for hypothesis in hypotheses}
    skipped = [name for name in ids if name not in scored]
    metrics = list(cfg.metrics)
    scores = score([h.hyp for h in hypotheses], [h.ref for h in hypotheses], metrics, lowercase=cfg.lowercase)
    named = signatures(metrics, lowercase=cfg.lowercase)
    document = {
        "metrics": scores,
        "signatures": named,
        "rows": len(ids),
        "sentences": len(hypotheses),
        "skipped": skipped,
        "lowercase": cfg.lowercase,
        "references": f"text of {manifest}",
        "target_lang": cfg.target_lang,
        "checkpoints": str(cfg.checkpoint).split(":"),
        "generation": OmegaConf.to_container(cfg.generation),
        "seed": cfg.common.seed,
    }
    write_hypotheses(folder / "hypotheses.jsonl", hypotheses)
    with atomic_open(folder / "metrics.json") as file:
        file.write((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    counted = f"{len(hypotheses)} of {len(ids)} rows (skipped: {listing(skipped)})" if skipped else f"{len(ids)} rows"
    print(f"{manifest}: {counted} -> {folder}\n{format_table(scores, named)}\n")


def check(cfg, *, writing: bool) -> tuple[dict[str, list[str]], list[Path]]:
    """Everything that can be checked without the model; ids of the rows of each subset, checkpoints.

    Args:
        writing: make the results' folders, to see that they can be written.

    Raises:
        SltError: options, checkpoints or manifests that cannot be used.
    """
    from omegaconf import OmegaConf

    import slt_plugin.tasks  # noqa: F401  registers everything

    if not OmegaConf.is_list(cfg.metrics):
        cfg.metrics = [str(cfg.metrics)]
    subsets = list(map(str, cfg.subset)) if OmegaConf.is_list(cfg.subset) else [str(cfg.subset)]
    check_options(cfg)
    check_metrics(list(cfg.metrics))
    ids = {subset: read_texts(Path(str(cfg.data)), subset) for subset in subsets}
    if writing:
        prepare_results(Path(str(cfg.results)), subsets)
    return ids, check_checkpoints(str(cfg.checkpoint))


def evaluate(cfg) -> None:
    """Decodes and scores every subset of ``cfg``: all manifests are read before the first is decoded.

    Raises:
        SltError: see `check`.
    """
    import numpy as np
    from fairseq.utils import set_torch_seed

    ids, paths = check(cfg, writing=True)
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
    decoder = Decoder(paths, cfg, options)
    if decoder.task.codec.lowercase and not cfg.lowercase:
        logger.warning(
            "the model was trained on lower-cased text and is scored against references with capitals: "
            "lowercase=true lower-cases both sides"
        )
    batches = {subset: decoder.batches(subset, cfg) for subset in ids}
    for subset in ids:
        write_results(subset, ids[subset], decoder.decode(subset, batches[subset], cfg), cfg)


def evaluate_work(request: Request, cfg) -> Work:
    """What ``slt-evaluate launcher=slurm`` submits: one job. Raises SltError as `check`."""
    from omegaconf import OmegaConf

    from slt_plugin.launch.estimate import Amount, cost_lines

    check_devices(request, cfg)
    ids, _ = check(cfg, writing=not request.dry_run)
    rows = sum(map(len, ids.values()))
    return Work(
        command="slt-evaluate",
        module="slt_plugin.cli.evaluate",
        name=Path(str(cfg.results)).name,
        elements=[request.words],
        folder=Path(str(cfg.results)) / "slurm",
        config=OmegaConf.to_yaml(cfg),
        estimate=[
            f"rows: {rows:,} ({listing(list(ids))})",
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
        request = read_request(arguments)
        cfg = compose("evaluate", request.words, may_be_null=MAY_BE_NULL)
        if not request.runs_here:
            return launch(request, evaluate_work(request, cfg))
        evaluate(cfg)
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
