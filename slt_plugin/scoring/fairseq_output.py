"""Reads what ``fairseq-generate`` prints, or writes to ``generate-<subset>.txt``.

Lines used: ``D-<sample id> TAB <score, base 2> TAB <detokenised hypothesis>`` and, only where asked for,
``T-<sample id> TAB <reference after a round trip through the codec>``. Log lines and S-, H-, P-, A- lines are passed
over: they say nothing that scoring uses.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import read_text

LINE = re.compile(r"([DT])-(\d+)(?:\t|$)")


@dataclass
class GenerateOutput:
    """Keys are fairseq's sample ids: row numbers of the manifest, from 0."""

    hypotheses: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)  # natural-log probability
    references: dict[int, str] = field(default_factory=dict)  # from T- lines


def read_generate_output(path: str | Path) -> GenerateOutput:
    """Raises ScoringError where no D- line is there, a line is cut off, or an id has several D- lines."""
    output = GenerateOutput()
    problems: list[str] = []
    repeated: dict[int, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        match = LINE.match(line)
        if not match:
            continue
        kind, sample = match[1], int(match[2])
        if kind == "T":
            output.references[sample] = line[match.end() :]
            continue
        fields = line.split("\t", 2)
        score = _number(fields[1]) if len(fields) == 3 else None
        if score is None:
            problems.append(f"line {number}: {line[:80]!r}")
        elif sample in output.hypotheses:
            repeated[sample] = repeated.get(sample, 1) + 1
        else:
            output.hypotheses[sample] = fields[2]
            output.scores[sample] = score * math.log(2)
    if problems:
        raise ScoringError(
            f"{path}: {len(problems)} D- line(s) without score and text (was the run stopped while it wrote? "
            f"run fairseq-generate again): {listing(problems)}"
        )
    if repeated:
        ids = listing([f"{sample} ({count} times)" for sample, count in sorted(repeated.items())])
        raise ScoringError(
            f"{path}: {len(repeated)} sample id(s) have several D- lines: {ids}. Exactly one hypothesis a sentence is "
            "scored: run fairseq-generate with --nbest 1, and do not join the outputs of two runs"
        )
    if not output.hypotheses:
        raise ScoringError(
            f"{path}: no D- lines in it, so this is no output of fairseq-generate (or it ran with --quiet). "
            "Accepted are hypotheses.jsonl (with that suffix), fairseq-generate's output, a table with the columns hyp "
            "and ref (suffix .tsv, or any file with --columns), and --hyp FILE --ref FILE"
        )
    return output


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
