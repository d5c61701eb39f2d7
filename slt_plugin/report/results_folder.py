"""What ``slt-evaluate`` wrote into one folder of results, read back and checked."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.report.errors import ReportError
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses

METRICS_FILE, HYPOTHESES_FILE, EVIDENCE_FILE = "metrics.json", "hypotheses.jsonl", "evidence.json"


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

    def part(self, name: str) -> Mapping:
        """An object of metrics.json; empty where it is missing or null."""
        value = self.metrics.get(name)
        return value if isinstance(value, Mapping) else {}


def read_results(folder: Path) -> Results:
    """Reads metrics.json and hypotheses.jsonl, and evidence.json and the manifest where they are.

    Raises:
        ReportError: the folder is none of results, or a file in it is damaged; it is named.
    """
    folder = Path(folder)
    missing = [name for name in (METRICS_FILE, HYPOTHESES_FILE) if not (folder / name).is_file()]
    if missing:
        below = sorted(str(path.parent) for path in folder.glob(f"*/{METRICS_FILE}")) if folder.is_dir() else []
        hint = f"; perhaps you mean {' '.join(below)}" if below else ""
        raise ReportError(f"{folder} has no {' and no '.join(missing)}: give a folder that slt-evaluate wrote{hint}")
    metrics = _read_object(folder / METRICS_FILE)
    scores = metrics.get("metrics")
    if not isinstance(scores, Mapping) or not scores or not all(_is_number(value) for value in scores.values()):
        raise ReportError(f'{folder / METRICS_FILE} holds no scores under "metrics": run slt-evaluate again')
    evidence = None
    if (folder / EVIDENCE_FILE).is_file():
        evidence = _read_object(folder / EVIDENCE_FILE)
        _check_evidence(folder / EVIDENCE_FILE, evidence)
    try:
        hypotheses = read_hypotheses(folder / HYPOTHESES_FILE)
    except ScoringError as error:
        raise ReportError(str(error)) from error
    return Results(folder, metrics, tuple(hypotheses), evidence, _rows(metrics.get("manifest")))


def _read_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read ({error}): run slt-evaluate again") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} holds a JSON {type(content).__name__}, not an object: run slt-evaluate again")
    return content


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
