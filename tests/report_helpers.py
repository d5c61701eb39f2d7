"""A folder of results as slt-evaluate writes it, with everything in it that a report can show."""

import json
from pathlib import Path

import numpy as np

from slt_plugin.data.landmarks import part_names
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.scoring.hypotheses import Hypothesis, write_hypotheses

FPS = 25.0
HOSTILE = "</script><script>window.hacked = 1</script> \"quoted\" 'too' <img src=x onerror=window.hacked=2> &amp; 🤟"
RTL = "שלום עולם"
PAIRS = (
    ("the weather is fine", "the weather is fine"),
    ("we meet tomorrow", "we meet today again"),
    ("she reads a book", "she a book"),
    (HOSTILE, f"{HOSTILE} more"),
    (RTL, RTL),
    ("nothing comes out", ""),
)
LOG = """\
[01-01 10:00:00,000][train_inner][INFO] - epoch 001:     50 / 100 loss=4.5, ppl=9, num_updates=50, lr=0.001
[01-01 10:01:00,000][train_inner][INFO] - epoch 001:    100 / 100 loss=2.5, ppl=4, num_updates=100, lr=0.002
[01-01 10:02:00,000][valid][INFO] - epoch 001 | valid on 'valid' subset | loss 2 | bleu 10.5 | chrf 30 | num_updates 100
[01-01 10:03:00,000][train][INFO] - epoch 001 | loss 3.5 | ppl 8 | num_updates 100 | lr 0.002
[01-01 10:04:00,000][valid][INFO] - epoch 002 | valid on 'valid' subset | loss 1 | bleu 20.5 | chrf 40 | num_updates 200
"""


def skeleton_strip(steps: int = 6) -> dict:
    """As `strip.strip` makes it, of a body and a right hand."""
    rng = np.random.default_rng(0)
    parts = [name.partition(".")[0] for name in part_names(("body", "right_hand"))]
    points = [[[round(float(v), 3) for v in rng.random(2)] for _ in parts] for _ in range(steps)]
    points[0][0] = None
    hand = parts.index("right_hand")
    return {
        "kind": "skeleton",
        "times": [0.5 * step for step in range(steps)],
        "edges": [[3, 4], [3, 5], *([hand + i, hand + i + 1] for i in range(4))],
        "points": points,
        "parts": parts,
    }


def saliency(steps: int = 10) -> dict:
    names = part_names(("body", "right_hand"))
    values = np.linspace(0.1, 1, steps * len(names)).reshape(steps, len(names))
    return {
        "times": [0.3 * step for step in range(steps)],
        "landmarks": [name.partition(".")[2] for name in names],
        "parts": [name.partition(".")[0] for name in names],
        "values": values.round(3).tolist(),
    }


def evidence_of(key: str, words: list[str], why: str = "worst", **more) -> dict:
    stretch = 3.0 / len(words)
    return {
        "id": key,
        "why": why,
        "seconds": 3.0,
        "words": [
            {
                "word": word,
                "start": round(i * stretch, 3),
                "end": round((i + 1) * stretch, 3),
                "drop": 1.5 + i,
                "random_drop": 0.25,
                "faithful": i % 3 != 2,
            }
            for i, word in enumerate(words)
        ],
        "strip": skeleton_strip(),
        "saliency": saliency(),
        **more,
    }


def write_results(root: Path, pairs=PAIRS, *, evidence: bool = True, log: str | None = LOG, **changes) -> Path:
    """A folder ``root/results/test``, its manifest and a training's log; ``changes`` to metrics.json, None removes."""
    folder = root / "results" / "test"
    folder.mkdir(parents=True)
    hypotheses = [
        Hypothesis(
            f"row-{i:04d}",
            ref,
            hyp,
            -0.1 * (i + 1),
            "en",
            ({"text": f"{hyp} again", "score": -0.9}, {"text": HOSTILE, "score": None}) if i == 1 else None,
        )
        for i, (ref, hyp) in enumerate(pairs)
    ]
    write_hypotheses(folder / "hypotheses.jsonl", hypotheses)
    write_manifest(
        root / "test.tsv",
        [
            Row(h.id, "a.npy", h.ref, 4.0 * i, 4.0 * i + 3, fps=FPS, signer=f"s{i % 2}")
            for i, h in enumerate(hypotheses)
        ],
    )
    if log is not None:
        (root / "train.log").write_text(log, encoding="utf-8")
    faithful = {"words": 20, "faithful": 17, "share": 0.85, "required": 0.7, "method": "hide and see"}
    metrics = {
        "metrics": {"bleu4": 41.25, "chrf": 55.5, "rouge_l": 60.0, "wer": 33.3},
        "signatures": {"bleu4": "nrefs:1|tok:13a", "chrf": "nrefs:1|nc:6", "rouge_l": "rouge", "wer": "jiwer"},
        "intervals": {"bleu4": [40.0, 42.5], "chrf": [54, 57], "rouge_l": [59, 61], "wer": [30, 36]},
        "breakdown": [
            {"by": "length", "value": "1 to 4", "sentences": 5, "scores": {"bleu4": 40.0, "chrf": 50.0}},
            {"by": "signer", "value": "<b>s0</b>", "sentences": 30, "scores": {"bleu4": 42.0, "chrf": None}},
        ],
        "rows": len(pairs) + 1,
        "sentences": len(pairs),
        "skipped": ["too-long"],
        "lowercase": False,
        "references": "text of test.tsv",
        "manifest": str(root / "test.tsv"),
        "subset": "test",
        "checkpoints": [str(root / "checkpoint_best.pt")],
        "averaged": False,
        "generation": {"beam": 5},
        "seed": 1,
        "speed": {"seconds": 2.0, "sentences_per_second": 3.0, "peak_memory_mb": 800.5, "device": "cpu"},
        "model": {
            "parameters": 1234567,
            "trainable": None,
            "training": {"updates": 400, "seed": 1},
            "notes": ["a note"],
        },
        "faithfulness": faithful,
        "masked_parts": {"all": {"bleu4": 41.25}, "no_hands": {"bleu4": 0.5}},
        "dataset": {"rows": "6", "hours": "0.005"},
        "command": ["slt-evaluate", "results=a b"],
        "config": "beam: 5\n",
        "versions": {"torch": "2.11.0"},
        "provenance": {"x_y/checkpoint_best.pt": {"imported": None}},
        "created": "2026-01-01T12:00:00+0000",
    }
    metrics = {name: value for name, value in {**metrics, **changes}.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if evidence:
        found = [evidence_of(h.id, h.hyp.split()) for h in hypotheses[:2]]
        document = {"faithfulness": faithful, "method": "hide and see", "sentences": found}
        (folder / "evidence.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
