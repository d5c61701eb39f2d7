"""The dialects that ``slt-score`` reads, and how they are matched with a manifest and with each other."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.scoring.columns import read_columns
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.fairseq_output import GenerateOutput, read_generate_output
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses, read_text

ROUND_TRIP = (
    "the T- lines of fairseq-generate are references after a round trip through the model's vocabulary (lower-cased "
    "where it is, unknown characters lost), which makes scores look better than they are"
)


@dataclass(frozen=True)
class System:
    """One system's output.

    Args:
        sentences: in the manifest's order where there is one, else in the file's.
        origin: where the references are from, in words.
    """

    sentences: list[Hypothesis]
    origin: str


def is_generate_output(path: Path, columns: Sequence[str] | None) -> bool:
    """Whether ``path`` is read as fairseq-generate's output; else it is JSON lines or a table."""
    return columns is None and path.suffix not in (".jsonl", ".tsv")


def load(path: Path, args: argparse.Namespace, rows: list[Row] | None) -> System:
    """One file with hypotheses, of whatever dialect.

    Args:
        rows: of ``args.manifest``, where it is given.

    Raises:
        SltError: a file that cannot be read, or that does not fit the manifest.
    """
    if is_generate_output(path, args.columns):
        output = read_generate_output(path)
        if rows is not None:
            return System(_by_row_number(output, rows, path, args.manifest), f"text of {args.manifest}")
        if not args.allow_roundtrip_references:
            raise ScoringError(
                f"{path}: references are needed: give --manifest, the TSV that was generated from ({ROUND_TRIP}; "
                "if they are wanted all the same: --allow-roundtrip-references)"
            )
        return System(_round_trip(output, path), f"T- lines of {path} (ROUND TRIP through the vocabulary, not raw)")
    sentences = read_hypotheses(path) if _is_json(path, args.columns) else read_columns(path, args.columns)
    if rows is None:
        return System(sentences, f"ref of {path}")
    return System(_in_manifest_order(sentences, rows, path, args.manifest), f"text of {args.manifest}")


def load_pair(hyp: Path, ref: Path) -> System:
    """Two files of one sentence a line. Raises ScoringError."""
    hypotheses, references = _lines(hyp), _lines(ref)
    if len(hypotheses) != len(references):
        raise ScoringError(
            f"{hyp} has {len(hypotheses)} lines but {ref} has {len(references)}; line i of one must belong to line i "
            "of the other"
        )
    pairs = enumerate(zip(hypotheses, references, strict=True), 1)
    return System([Hypothesis(f"line {i}", r, h, None) for i, (h, r) in pairs], str(ref))


def load_manifest(path: Path | None) -> list[Row] | None:
    """Its rows, each with text; None where there is none. Raises ManifestError."""
    return None if path is None else read_manifest(path, require_text=True)


def in_same_order(
    sentences: Sequence[Hypothesis], path: Path, others: Sequence[Hypothesis], other_path: Path
) -> list[Hypothesis]:
    """``others`` in the order of ``sentences``. Raises ScoringError unless both have the same ids and references."""
    by_id = {other.id: other for other in others}
    ids = {sentence.id for sentence in sentences}
    lacking = [sentence.id for sentence in sentences if sentence.id not in by_id]
    extra = [name for name in by_id if name not in ids]
    problems = []
    if lacking:
        problems.append(f"{len(lacking)} of {len(ids)} ids of {path} are not in {other_path}: {listing(lacking)}")
    if extra:
        problems.append(f"{len(extra)} of {len(by_id)} ids of {other_path} are not in {path}: {listing(extra)}")
    if problems:
        raise ScoringError(
            f"systems are compared on the same sentences only: {'; '.join(problems)}; evaluate both on one manifest"
        )
    changed = [sentence.id for sentence in sentences if by_id[sentence.id].ref != sentence.ref]
    if changed:
        raise ScoringError(
            f"{path} and {other_path} have different references for {len(changed)} of {len(ids)} ids: "
            f"{listing(changed)}; score both against the same text (--manifest)"
        )
    return [by_id[sentence.id] for sentence in sentences]


def _is_json(path: Path, columns: Sequence[str] | None) -> bool:
    return columns is None and path.suffix == ".jsonl"


def _by_row_number(output: GenerateOutput, rows: list[Row], path: Path, manifest: Path) -> list[Hypothesis]:
    """fairseq's sample id i is row i of the manifest."""
    missing = [f"{i} ({row.id})" for i, row in enumerate(rows) if i not in output.hypotheses]
    unknown = [str(i) for i in sorted(output.hypotheses) if i >= len(rows)]
    _check_complete(missing, unknown, len(rows), path, manifest)
    return [
        Hypothesis(row.id, row.text, output.hypotheses[i], output.scores[i], row.text_lang)
        for i, row in enumerate(rows)
    ]


def _in_manifest_order(sentences: list[Hypothesis], rows: list[Row], path: Path, manifest: Path) -> list[Hypothesis]:
    """The manifest's rows must be exactly the file's sentences, with the same references."""
    by_id = {sentence.id: sentence for sentence in sentences}
    ids = {row.id for row in rows}
    missing = [row.id for row in rows if row.id not in by_id]
    _check_complete(missing, [name for name in by_id if name not in ids], len(rows), path, manifest)
    changed = [row.id for row in rows if by_id[row.id].ref != row.text]
    if changed:
        raise ScoringError(
            f"{path}: the ref of {len(changed)} sentence(s) differs from the text of {manifest}: "
            f"{listing(changed)}; score against the manifest that was generated from"
        )
    return [by_id[row.id] for row in rows]


def _check_complete(missing: list[str], unknown: list[str], rows: int, path: Path, manifest: Path) -> None:
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} of its {rows} rows have no hypothesis (were they skipped by "
            f"skip_invalid_size_inputs, or is this one shard of several?): {listing(missing)}"
        )
    if unknown:
        problems.append(f"{len(unknown)} hypothesis id(s) are not in it (is it another split?): {listing(unknown)}")
    if problems:
        raise ScoringError(
            f"{path} does not fit {manifest}, every row needs exactly one hypothesis: {'; '.join(problems)}"
        )


def _round_trip(output: GenerateOutput, path: Path) -> list[Hypothesis]:
    lacking = [str(i) for i in sorted(output.hypotheses) if i not in output.references]
    if lacking:
        raise ScoringError(f"{path}: {len(lacking)} sample id(s) have no T- line: {listing(lacking)}; give --manifest")
    return [
        Hypothesis(str(i), output.references[i], text, output.scores[i])
        for i, text in sorted(output.hypotheses.items())
    ]


def _lines(path: Path) -> list[str]:
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []
