"""What ``slt-evaluate`` wrote into one folder of results, read back and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.report.errors import ReportError
from slt_plugin.report.result_files import (
    EVIDENCE_FILE,
    HYPOTHESES_FILE,
    METRICS_FILE,
    check_sentences,
    read_object,
    results_below,
)
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses

AGAIN = "run slt-evaluate again"


@dataclass(frozen=True)
class Results:
    """One subset of an evaluation.

    Attributes:
        metrics: content of metrics.json; "metrics" and "signatures" are there, everything else may be missing.
        evidence: content of evidence.json; None where there is no such file.
        rows: of the manifest, by id; empty where it is not there any more.
    """

    folder: Path
    metrics: Mapping[str, object]
    hypotheses: tuple[Hypothesis, ...]
    evidence: Mapping[str, object] | None
    rows: Mapping[str, Row]

    @property
    def name(self) -> str:
        """``<results>/<subset>`` as people name it."""
        folder = self.folder.resolve()
        subset = self.metrics.get("subset") or folder.name
        return f"{folder.parent.name}, {subset}"

    @property
    def truecased(self) -> bool:
        """Whether the hypotheses were given capitals before they were scored, as the signatures say."""
        return any("|truecased:" in str(text) for text in self.part("signatures").values()) or bool(
            self.part("truecased")
        )

    def scored(self, hypothesis: Hypothesis) -> str:
        """The hypothesis as it was scored: with the truecaser's capitals where there are any, else as generated."""
        return self.part("truecased").get(hypothesis.id, hypothesis.hyp)

    def part(self, name: str) -> Mapping:
        """An object of metrics.json; empty where it is missing or null."""
        value = self.metrics.get(name)
        return value if isinstance(value, Mapping) else {}


def read_results(folder: Path) -> Results:
    """Reads metrics.json and hypotheses.jsonl, and evidence.json and the manifest where they are.

    Raises:
        ReportError: the folder is none of results, a file in it is damaged (it is named), or two are of different runs.
    """
    folder = Path(folder)
    missing = [name for name in (METRICS_FILE, HYPOTHESES_FILE) if not (folder / name).is_file()]
    if missing:
        hint = results_below(folder)
        raise ReportError(f"{folder} has no {' and no '.join(missing)}: give a folder that slt-evaluate wrote{hint}")
    metrics = read_object(folder / METRICS_FILE, AGAIN)
    scores = metrics.get("metrics")
    if not isinstance(scores, Mapping) or not scores or not all(_is_number(value) for value in scores.values()):
        raise ReportError(f'{folder / METRICS_FILE} holds no scores under "metrics": run slt-evaluate again')
    if metrics.get("sentences") is not None:
        check_sentences(folder, metrics["sentences"])
    evidence = None
    if (folder / EVIDENCE_FILE).is_file():
        evidence = read_object(folder / EVIDENCE_FILE, AGAIN)
        _check_evidence(folder / EVIDENCE_FILE, evidence)
    try:
        hypotheses = read_hypotheses(folder / HYPOTHESES_FILE)
    except ScoringError as error:
        raise ReportError(str(error)) from error
    _check_truecased(folder / METRICS_FILE, metrics.get("truecased"), hypotheses)
    return Results(folder, metrics, tuple(hypotheses), evidence, _rows(metrics.get("manifest")))


def _check_truecased(path: Path, truecased: object, hypotheses: Sequence[Hypothesis]) -> None:
    """Every sentence's hypothesis as it was scored has to be there, or none."""
    if truecased is None:
        return
    known = truecased if isinstance(truecased, Mapping) else {}
    lacking = [h.id for h in hypotheses if not isinstance(known.get(h.id), str)]
    if lacking:
        raise ReportError(f'{path}: "truecased" has no text of {len(lacking)} sentences ({listing(lacking)}); {AGAIN}')


def _check_evidence(path: Path, evidence: Mapping) -> None:
    sentences = evidence.get("sentences")
    wanted = ("id", "words", "seconds")
    if not isinstance(sentences, list):
        raise ReportError(f'{path} has no list "sentences": run slt-evaluate again')
    for number, sentence in enumerate(sentences):
        missing = [name for name in wanted if not isinstance(sentence, dict) or name not in sentence]
        if missing:
            raise ReportError(f"{path}: sentence {number} lacks {', '.join(missing)}: run slt-evaluate again")


def _rows(manifest: object) -> dict[str, Row]:
    """The manifest's rows by id; none where it was moved or changed beyond reading since: the report does without."""
    if not isinstance(manifest, str) or not Path(manifest).is_file():
        return {}
    try:
        return {row.id: row for row in read_manifest(manifest)}
    except DataError:
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
