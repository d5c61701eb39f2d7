"""Results of our own as they lie on disk: what ``slt-evaluate`` and ``slt-score --json`` wrote."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slt_plugin.report.errors import ReportError
from slt_plugin.report.result_files import HYPOTHESES_FILE, METRICS_FILE, check_sentences, read_object, results_below

WANTED = "give a results folder of slt-evaluate, its metrics.json, or a file of slt-score --json"


@dataclass(frozen=True)
class Result:
    """Scores of one evaluation, in percent, and what is known of how they came about.

    Attributes:
        path: the folder or file that was given.
        hypotheses: the sentences, where they lie beside the scores.
        model: `model_facts`; speed: as slt-evaluate measured it. Empty where unknown.
    """

    path: Path
    scores: Mapping[str, float]
    signatures: Mapping[str, str]
    sentences: int
    references: str
    lowercase: bool
    hypotheses: Path | None = None
    model: Mapping = field(default_factory=dict)
    speed: Mapping = field(default_factory=dict)

    @property
    def training(self) -> Mapping:
        """What the training cost; empty where unknown."""
        return self.model.get("training") or {}


def read_result(name: str, path: Path) -> Result:
    """The result in a folder of slt-evaluate, or in a file; ``name`` is what messages call it.

    Raises:
        ReportError: it cannot be read or holds no scores, or the sentences beside it are of another run.
    """
    file = path / METRICS_FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        hint = results_below(path) or f"; {WANTED}"
        raise ReportError(f"{name}={path} is a folder without {METRICS_FILE}{hint}")
    content = read_object(file, WANTED, f"{name}={path}")
    beside = file.with_name(HYPOTHESES_FILE)
    try:
        scores = {str(metric): float(value) for metric, value in content["metrics"].items()}
        result = Result(
            path=path,
            scores=scores,
            signatures={metric: str(content["signatures"][metric]) for metric in scores},
            sentences=int(content["sentences"]),
            references=str(content["references"]),
            lowercase=bool(content["lowercase"]),
            hypotheses=beside if file.name == METRICS_FILE and beside.is_file() else None,
            model=_mapping(content, "model"),
            speed=_mapping(content, "speed"),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ReportError(f"{name}={path} holds no scores (metrics, signatures, ...: {error!r}); {WANTED}") from error
    if not scores:
        raise ReportError(f"{name}={path} holds no scores; {WANTED}")
    if result.hypotheses is not None:
        check_sentences(file.parent, result.sentences)
    return result


def _mapping(content: Mapping, key: str) -> Mapping:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{key} is no object")
    return value
