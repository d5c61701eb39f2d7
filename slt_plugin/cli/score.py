"""``slt-score``: corpus scores of existing outputs against the raw references.

examples:
  slt-score hypotheses.jsonl
  slt-score generate-test.txt --manifest data/test.tsv      (also a saved stdout of fairseq-generate)
  slt-score --hyp system.txt --ref reference.txt
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import listing
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.fairseq_output import GenerateOutput, read_generate_output
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses, read_text, write_hypotheses
from slt_plugin.scoring.report import (
    METRICS,
    check_metrics,
    check_pairs,
    format_table,
    score,
    signatures,
    write_metrics,
)

ROUND_TRIP = (
    "the T- lines of fairseq-generate are references after a round trip through the model's vocabulary (lower-cased "
    "where it is, unknown characters lost), which makes scores look better than they are"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_combination(parser, args)
    try:
        _run(args)
    except SltError as error:
        print(f"slt-score: error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]
    check_metrics(metrics)  # before the work of reading
    sentences, origin = _load(args)
    hypotheses, references = [s.hyp for s in sentences], [s.ref for s in sentences]
    check_pairs(hypotheses, references, [s.id for s in sentences])
    if args.save_hypotheses:
        write_hypotheses(args.save_hypotheses, sentences)
    scores = score(hypotheses, references, metrics, lowercase=args.lowercase)
    texts = signatures(metrics, lowercase=args.lowercase)
    print(f"{len(sentences)} sentences; references: {origin}")
    if args.lowercase:
        print("both sides were lower-cased before scoring (--lowercase): not comparable with cased scores")
    print(format_table(scores, texts))
    if args.json:
        write_metrics(args.json, scores, texts, sentences=len(sentences), references=origin, lowercase=args.lowercase)


def _load(args: argparse.Namespace) -> tuple[list[Hypothesis], str]:
    """The sentences and, in words, where the references are from."""
    if args.hyp:
        return _plain_files(args.hyp, args.ref), str(args.ref)
    if args.input.suffix == ".jsonl":
        sentences = read_hypotheses(args.input)
        if args.manifest is None:
            return sentences, f"ref of {args.input}"
        rows = read_manifest(args.manifest, require_text=True)
        return _in_manifest_order(sentences, rows, args), f"text of {args.manifest}"
    output = read_generate_output(args.input)
    if args.manifest is not None:
        rows = read_manifest(args.manifest, require_text=True)
        return _by_row_number(output, rows, args), f"text of {args.manifest}"
    if not args.allow_roundtrip_references:
        raise ScoringError(
            f"{args.input}: references are needed: give --manifest, the TSV that was generated from ({ROUND_TRIP}; "
            "if they are wanted all the same: --allow-roundtrip-references)"
        )
    return _round_trip(output, args.input), f"T- lines of {args.input} (ROUND TRIP through the vocabulary, not raw)"


def _by_row_number(output: GenerateOutput, rows: list[Row], args: argparse.Namespace) -> list[Hypothesis]:
    """fairseq's sample id i is row i of the manifest."""
    missing = [f"{i} ({row.id})" for i, row in enumerate(rows) if i not in output.hypotheses]
    unknown = [str(i) for i in sorted(output.hypotheses) if i >= len(rows)]
    _check_complete(missing, unknown, len(rows), args)
    return [
        Hypothesis(row.id, row.text, output.hypotheses[i], output.scores[i], row.text_lang)
        for i, row in enumerate(rows)
    ]


def _in_manifest_order(sentences: list[Hypothesis], rows: list[Row], args: argparse.Namespace) -> list[Hypothesis]:
    """The manifest's rows must be exactly the file's sentences, with the same references."""
    by_id = {sentence.id: sentence for sentence in sentences}
    ids = {row.id for row in rows}
    missing = [row.id for row in rows if row.id not in by_id]
    _check_complete(missing, [name for name in by_id if name not in ids], len(rows), args)
    changed = [row.id for row in rows if by_id[row.id].ref != row.text]
    if changed:
        raise ScoringError(
            f"{args.input}: the ref of {len(changed)} sentence(s) differs from the text of {args.manifest}: "
            f"{listing(changed)}; score against the manifest that was generated from"
        )
    return [by_id[row.id] for row in rows]


def _check_complete(missing: list[str], unknown: list[str], rows: int, args: argparse.Namespace) -> None:
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
            f"{args.input} does not fit {args.manifest}, every row needs exactly one hypothesis: {'; '.join(problems)}"
        )


def _round_trip(output: GenerateOutput, path: Path) -> list[Hypothesis]:
    lacking = [str(i) for i in sorted(output.hypotheses) if i not in output.references]
    if lacking:
        raise ScoringError(f"{path}: {len(lacking)} sample id(s) have no T- line: {listing(lacking)}; give --manifest")
    return [
        Hypothesis(str(i), output.references[i], text, output.scores[i])
        for i, text in sorted(output.hypotheses.items())
    ]


def _plain_files(hyp: Path, ref: Path) -> list[Hypothesis]:
    hypotheses, references = _lines(hyp), _lines(ref)
    if len(hypotheses) != len(references):
        raise ScoringError(
            f"{hyp} has {len(hypotheses)} lines but {ref} has {len(references)}; line i of one must belong to line i "
            "of the other"
        )
    return [Hypothesis(f"line {i}", r, h, None) for i, (h, r) in enumerate(zip(hypotheses, references, strict=True), 1)]


def _lines(path: Path) -> list[str]:
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def _check_combination(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """An option that would have no effect is an error, not ignored."""
    if (args.hyp is None) != (args.ref is None):
        parser.error("--hyp and --ref go together")
    if (args.input is None) == (args.hyp is None):
        parser.error("give either one input file or --hyp and --ref")
    if args.hyp and args.manifest:
        parser.error("--manifest has no use with --hyp/--ref: --ref holds the references")
    if args.allow_roundtrip_references and (args.manifest or args.hyp or args.input.suffix == ".jsonl"):
        parser.error("--allow-roundtrip-references is only for fairseq-generate's output without --manifest")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt-score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="?", type=Path, help="hypotheses.jsonl, or the output of fairseq-generate")
    parser.add_argument("--manifest", type=Path, help="TSV that was generated from: its text is the reference")
    parser.add_argument("--hyp", type=Path, help="plain text, one hypothesis a line (with --ref)")
    parser.add_argument("--ref", type=Path, help="plain text, one reference a line")
    parser.add_argument("--metrics", default=",".join(METRICS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--lowercase", action="store_true", help="lower-case both sides before scoring")
    parser.add_argument(
        "--allow-roundtrip-references",
        action="store_true",
        help="score against fairseq-generate's T- lines although they are not the raw text",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write scores and signatures as JSON")
    parser.add_argument("--save-hypotheses", type=Path, metavar="OUT", help="also write them as hypotheses.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main())
