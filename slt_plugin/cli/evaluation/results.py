"""What ``slt-evaluate`` says about decoded manifests: scores with their intervals and everything that made them."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from slt_plugin.cli.evaluation.decoder import Decoded
from slt_plugin.cli.scoring_settings import GROUPABLE, ScoringOptions, build_settings
from slt_plugin.common.files import atomic_open
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.models.errors import OptionError
from slt_plugin.scoring.breakdown import breakdown
from slt_plugin.scoring.hypotheses import Hypothesis
from slt_plugin.scoring.intervals import bootstrap_signature, confidence
from slt_plugin.scoring.report import score, signatures
from slt_plugin.scoring.settings import Settings

BREAKDOWNS = ("signer", "corpus", "text_lang")  # columns that are shown where a manifest has several values
PACKAGES = ("slt-plugin", "torch", "torchvision", "ve-fairseq", "sacrebleu", "rouge-score", "jiwer", "numpy", "av")


def scoring_settings(cfg) -> Settings:
    """How the options have hypotheses scored.

    Raises:
        SltError: options that contradict each other, have no effect, or lack what a metric needs.
    """
    metrics = list(cfg.metrics)
    needed = cfg.truecase or (cfg.blacklist is None and any(metric.startswith("reduced_bleu") for metric in metrics))
    manifest = _path(cfg.train_manifest)
    if manifest is None and needed:
        manifest = Path(str(cfg.data)) / "train.tsv"
        if not manifest.is_file():
            raise DataError(
                f"{manifest} does not exist: truecase=true and metric reduced_bleu need the training's texts; give "
                "train_manifest=TSV (reduced_bleu: or blacklist=FILE)"
            )
    options = ScoringOptions(
        lowercase=cfg.lowercase,
        truecase=cfg.truecase,
        train_manifest=manifest,
        blacklist=_path(cfg.blacklist),
        blacklist_size=cfg.blacklist_size,
        bleurt=_path(cfg.bleurt),
    )
    return build_settings(options, metrics, lambda name: name)


def _path(value: object) -> Path | None:
    return None if value is None else Path(str(value))


def parts_of(rows: Sequence[Row], wanted: Sequence[str] | None) -> list[str]:
    """The columns that scores are broken down by.

    Raises:
        OptionError: a column that manifests do not have.
    """
    if wanted is None:
        return ["length", *(name for name in BREAKDOWNS if len({getattr(row, name) for row in rows}) > 1)]
    unknown = [name for name in wanted if name not in GROUPABLE]
    if unknown:
        raise OptionError(
            f"breakdown=[{','.join(wanted)}]: scores cannot be broken down by {', '.join(unknown)}; give some of "
            f"{', '.join(GROUPABLE)}"
        )
    return list(wanted)


def scores_document(
    hypotheses: Sequence[Hypothesis], rows: Mapping[str, Row], cfg, settings: Settings, by: Sequence[str]
) -> dict:
    """Scores of one manifest with signatures, intervals and breakdown, as ``metrics.json`` has them.

    Args:
        rows: of the manifest, by id.
        by: see `parts_of`.
    """
    metrics = list(cfg.metrics)
    hyps, refs = [h.hyp for h in hypotheses], [h.ref for h in hypotheses]
    intervals, bootstrap = {}, None
    if cfg.confidence:  # with slt-score's own seed, so that both give the same intervals
        found = confidence(hyps, refs, metrics, settings=settings, samples=cfg.confidence)
        intervals = {metric: [interval.low, interval.high] for metric, interval in found.items()}
        bootstrap = bootstrap_signature(cfg.confidence)
    attributes = [{name: getattr(rows[h.id], name) for name in Row.__slots__} for h in hypotheses]
    groups = breakdown(hyps, refs, attributes, by, metrics, settings) if by else []
    truecased = None
    if settings.truecaser is not None:  # what a report has to compare with the references
        truecased = dict(zip((h.id for h in hypotheses), settings.prepare(hyps, refs)[0], strict=True))
    return {
        "metrics": score(hyps, refs, metrics, settings),
        "truecased": truecased,
        "signatures": signatures(metrics, settings),
        "intervals": intervals,
        "bootstrap": bootstrap,
        "breakdown": [
            {"by": group.by, "value": group.value, "sentences": group.sentences, "scores": group.scores}
            for group in groups
        ],
    }


def origin_document(subset: str, rows: Sequence[Row], decoded: Decoded, cfg, words: Sequence[str]) -> dict:
    """Where the numbers come from: data, model, options, machine."""
    from omegaconf import OmegaConf

    from slt_plugin.data.manifest_stats import describe

    manifest = Path(str(cfg.data)) / f"{subset}.tsv"
    scored = {hypothesis.id for hypothesis in decoded.hypotheses}
    return {
        "rows": len(rows),
        "sentences": len(scored),
        "skipped": [row.id for row in rows if row.id not in scored],
        "lowercase": cfg.lowercase,
        "references": f"text of {manifest}",
        "manifest": str(manifest.resolve()),
        "media_root": str(Path(str(cfg.media_root or cfg.data)).resolve()),
        "subset": subset,
        "target_lang": cfg.target_lang,
        "checkpoints": str(cfg.checkpoint).split(":"),
        "averaged": cfg.average,
        "generation": OmegaConf.to_container(cfg.generation),
        "seed": cfg.common.seed,
        "speed": decoded.speed,
        "dataset": dict(describe(rows)),
        "command": ["slt-evaluate", *words],
        "config": OmegaConf.to_yaml(cfg),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def provenance(paths: Sequence[Path]) -> dict:
    """Where the weights of each checkpoint come from, as far as it says: imported files, what a training began with."""
    from slt_plugin.checkpoints.foreign import read_torch

    found = {}
    for path in paths:
        state = read_torch(path, mmap=True)
        config = state.get("cfg") or {}
        model, checkpoint = config.get("model") or {}, config.get("checkpoint") or {}
        begun = {name: model.get(name) for name in ("text_pretrained", "signhiera_pretrained", "sonar_pretrained")}
        begun["finetune_from_model"] = checkpoint.get("finetune_from_model")
        found[str(path)] = {
            "imported": state.get("provenance"),
            "started_from": {name: str(value) for name, value in begun.items() if value},
        }
    return found


def write_json(path: Path, document: dict, *, indent: int | None = 2) -> None:
    """Atomically; numbers that JSON does not have are an error."""
    with atomic_open(path) as file:
        file.write((json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())
