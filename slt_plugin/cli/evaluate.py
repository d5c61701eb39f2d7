"""``slt-evaluate``: decode manifests with a checkpoint and score them against their raw texts.

usage: slt-evaluate checkpoint=PATH[:PATH...] data=DIR results=DIR [subset=test] [option=value ...]

    slt-evaluate checkpoint=runs/fingerspelling/checkpoint_best.pt data=data/fingerspelling \\
        results=results/fingerspelling 'subset=[test,test_unseen]' generation.beam=5

Options and their defaults: slt_plugin/config/generate/evaluate.yaml. Writes <results>/<subset>/hypotheses.jsonl and
metrics.json (with sacrebleu's signatures) and prints a table for each subset.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.data.errors import DataError
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, write_hypotheses
from slt_plugin.scoring.report import check_metrics, format_table, score, signatures, write_metrics

CONFIGS = Path(__file__).parents[1] / "config" / "generate"

logger = logging.getLogger(__name__)


def compose(overrides: Sequence[str]):
    """The options: evaluate.yaml with the command line's overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra_compose("evaluate", overrides=list(overrides))


@dataclass
class Decoder:
    """Models of one checkpoint (or ensemble), their task and a fairseq generator."""

    task: object
    models: list
    generator: object
    device: str

    @classmethod
    def load(cls, cfg) -> "Decoder":
        """Loads ``cfg.checkpoint`` onto the GPU where there is one. Raises DataError where a file is missing."""
        import torch
        from fairseq import checkpoint_utils

        import slt_plugin.tasks  # noqa: F401  registers everything

        paths = str(cfg.checkpoint).split(":")
        for path in paths:
            if not Path(path).is_file():
                raise DataError(f"checkpoint={path} does not exist")
        # the vocabulary comes from the checkpoint, data from here
        overrides = {"data": str(cfg.data), "media_root": cfg.media_root and str(cfg.media_root)}
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(paths, arg_overrides=overrides)
        device = "cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu"
        for model in models:
            if cfg.common.fp16:
                model.half()
            elif cfg.common.bf16:
                model.bfloat16()
            model.to(device).prepare_for_inference_(cfg)
        return cls(task, models, task.build_generator(models, cfg.generation), device)

    def decode(self, subset: str, cfg) -> list[Hypothesis]:
        """One hypothesis for each row of ``<data>/<subset>.tsv``, in the manifest's order."""
        from fairseq import utils
        from fairseq.logging.progress_bar import progress_bar

        self.task.load_dataset(subset, task_cfg=self.task.cfg)
        dataset = self.task.dataset(subset)
        limits = utils.resolve_max_positions(self.task.max_positions(), *[m.max_positions() for m in self.models])
        iterator = self.task.get_batch_iterator(
            dataset=dataset,
            max_tokens=cfg.dataset.max_tokens,
            max_sentences=cfg.dataset.batch_size,
            max_positions=limits,
            ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs,
            seed=cfg.common.seed,
            num_workers=cfg.dataset.num_workers,
        ).next_epoch_itr(shuffle=False)
        found: dict[int, Hypothesis] = {}
        for sample in progress_bar(
            iterator, log_format=cfg.common.log_format, prefix=subset, default_log_format="tqdm"
        ):
            if self.device == "cuda":
                sample = utils.move_to_cuda(sample)
            for i, best in zip(
                sample["id"].tolist(), self.task.inference_step(self.generator, self.models, sample), strict=True
            ):
                row = dataset.rows[i]
                text = self.task.codec.decode(best[0]["tokens"])
                found[i] = Hypothesis(row.id, row.text or "", text, float(best[0]["score"]), row.text_lang)
        if len(found) != len(dataset) and not cfg.dataset.skip_invalid_size_inputs:
            raise RuntimeError(f"{subset}: {len(found)} hypotheses for {len(dataset)} rows")
        return [found[i] for i in sorted(found)]


def evaluate(cfg) -> None:
    """Decodes and scores every subset of ``cfg``; raises DataError and ScoringError on bad input."""
    import numpy as np
    from fairseq.utils import set_torch_seed

    metrics = list(cfg.metrics)
    check_metrics(metrics)
    np.random.seed(cfg.common.seed)
    set_torch_seed(cfg.common.seed)
    decoder = Decoder.load(cfg)
    for subset in [cfg.subset] if isinstance(cfg.subset, str) else list(cfg.subset):
        hypotheses = decoder.decode(subset, cfg)
        folder = Path(cfg.results) / subset
        write_hypotheses(folder / "hypotheses.jsonl", hypotheses)
        manifest = Path(cfg.data) / f"{subset}.tsv"
        scores = score([h.hyp for h in hypotheses], [h.ref for h in hypotheses], metrics, lowercase=cfg.lowercase)
        named = signatures(metrics, lowercase=cfg.lowercase)
        write_metrics(
            folder / "metrics.json",
            scores,
            named,
            sentences=len(hypotheses),
            references=f"text of {manifest}",
            lowercase=cfg.lowercase,
        )
        print(f"{manifest}: {len(hypotheses)} sentences -> {folder}\n{format_table(scores, named)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\n{(CONFIGS / 'evaluate.yaml').read_text()}")
        return 0 if arguments else 2
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    try:
        evaluate(compose(arguments))
    except (DataError, ScoringError, HydraException, OmegaConfBaseException) as error:
        print(f"slt-evaluate: {error}", file=sys.stderr)
        return 1
    return 0
