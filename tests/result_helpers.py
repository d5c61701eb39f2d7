"""Results folders as slt-evaluate leaves them, made by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

from slt_plugin.scoring.hypotheses import Hypothesis, write_hypotheses
from slt_plugin.scoring.report import score, signatures
from slt_plugin.scoring.settings import Settings

METRICS = ("bleu4", "chrf", "rouge_l", "wer")


def results_folder(
    folder: Path,
    texts: Mapping[str, tuple[str, str]],
    *,
    metrics: Mapping[str, float] | None = None,
    lowercase: bool = False,
    **content,
) -> Path:
    """hypotheses.jsonl and metrics.json.

    Args:
        texts: id -> reference, hypothesis.
        metrics: scores; None: the true ones.
        content: further entries of metrics.json.
    """
    folder.mkdir(parents=True)
    write_hypotheses(folder / "hypotheses.jsonl", [Hypothesis(key, *pair, -0.5) for key, pair in texts.items()])
    settings = Settings(lowercase=lowercase)
    if metrics is None:
        metrics = score([h for _, h in texts.values()], [r for r, _ in texts.values()], METRICS, settings)
    document = {
        "metrics": dict(metrics),
        "signatures": signatures(list(metrics), settings),
        "sentences": len(texts),
        "references": "text of test.tsv",
        "lowercase": lowercase,
        **content,
    }
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder
