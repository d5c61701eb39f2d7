"""What ``slt-evaluate`` finds out about a model for its report: evidence for words, saliency, scores without parts."""

import logging
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.cli.evaluation.decoder import Decoded, Decoder
from slt_plugin.cli.progress import progress
from slt_plugin.scoring.report import score
from slt_plugin.scoring.sentences import sentence_scores
from slt_plugin.scoring.settings import Settings

logger = logging.getLogger(__name__)


def chosen_sentences(scores: Sequence[float], count: int, seed: int) -> dict[int, str]:
    """Sentences to look at, number -> why: a third each "worst" and "best" by score, the others "random"."""
    import numpy as np

    count = min(count, len(scores))
    order = np.argsort(scores, kind="stable").tolist()
    worst, best = order[: (count + 1) // 3], order[::-1][: (count + 1) // 3]
    chosen = dict.fromkeys(worst, "worst")
    for number in best:
        if len(chosen) < count:
            chosen.setdefault(number, "best")
    rest = [number for number in order if number not in chosen]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: count - len(chosen)]
    chosen |= {rest[i]: "random" for i in drawn.tolist()}
    return dict(sorted(chosen.items()))


def evidence_document(decoder: Decoder, subset: str, decoded: Decoded, cfg, settings: Settings) -> dict | None:
    """``evidence.json`` of one manifest; None where nothing can be shown (no frame rate, so no times).

    Args:
        settings: sentences are chosen by their scores under these.

    Raises:
        DataError: media cannot be read.
    """
    import numpy as np
    import torch

    from slt_plugin.data.step_times import step_times
    from slt_plugin.report import evidence, saliency
    from slt_plugin.report.occlusion import Timeline
    from slt_plugin.report.strip import strip

    dataset, task = decoder.task.dataset(subset), decoder.task
    numbers = {row.id: number for number, row in enumerate(dataset.rows)}
    texts = settings.prepare([h.hyp for h in decoded.hypotheses], [h.ref for h in decoded.hypotheses])
    scores = [sentence_scores(hyp, ref)["chrf"] for hyp, ref in zip(*texts, strict=True)]
    chosen = chosen_sentences(scores, cfg.evidence, cfg.common.seed)
    rng = np.random.default_rng(cfg.common.seed)
    kind, root = str(task.cfg.source), Path(str(cfg.media_root or cfg.data))
    max_steps = cfg.dataset.max_tokens or cfg.dataset.batch_size * int(dataset.source_lengths.max())
    sentences, checks = [], []
    for place, why in progress(chosen.items(), len(chosen), "sentence"):
        hypothesis = decoded.hypotheses[place]
        index = numbers[hypothesis.id]
        row = dataset.rows[index]
        sample = decoder.on_device(dataset.collater([dataset[index]]))
        steps = sample["net_input"]["src_tokens"].size(1)
        found = step_times(dataset.source, row, steps)
        if found is None:
            logger.warning("%s: no frame rate and no end, so evidence has no times; fill fps in", row.id)
            continue
        if len(found[0].unique()) < evidence.FEWEST_STEPS:
            logger.warning("%s: %d source step(s), too short for evidence", row.id, steps)
            continue
        timeline, tokens = Timeline(*found), torch.tensor(decoded.tokens[place])
        explanation = evidence.explain(
            decoder.models, sample, tokens, task.codec.decode, timeline, rng=rng, max_steps=max_steps
        )
        checks += explanation.checks
        sentences.append({
            "id": row.id,
            "why": why,
            "seconds": round(timeline.seconds, 3),
            "words": _words(explanation),
            "strip": strip(row, root, kind, frames=cfg.frames, blur_faces=cfg.blur_faces),
            "saliency": saliency.saliency_over_time(
                saliency.landmark_saliency(decoder.models, sample, tokens), timeline.times, dataset.source.options.parts
            ) if kind == "pose" else None,
        })  # fmt: skip
    if not sentences:
        return None
    return {"faithfulness": evidence.faithfulness(checks), "method": evidence.METHOD, "sentences": sentences}


def _words(explanation) -> list[dict]:
    return [
        {
            "word": word.word,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "drop": round(check.drop, 4),
            "random_drop": round(check.random_drop, 4),
            "faithful": check.faithful,
        }
        for word, check in zip(explanation.words, explanation.checks, strict=True)
    ]


def masked_scores(
    decoder: Decoder, subset: str, batches, metrics: Sequence[str], settings: Settings
) -> dict[str, dict[str, float]]:
    """Scores without each group of landmarks ("no_hands": {metric: score}); {} on all ranks but the first."""
    from slt_plugin.report.saliency import hidden_channels

    found = {}
    for group, channels in hidden_channels(decoder.task.dataset(subset).source.options.parts).items():
        decoded = decoder.decode(subset, batches, hidden_channels=channels, note=f"without {group}")
        if decoded is not None:
            hypotheses = decoded.hypotheses
            found[f"no_{group}"] = score([h.hyp for h in hypotheses], [h.ref for h in hypotheses], metrics, settings)
    return found
