"""``slt-score``: corpus scores of existing outputs against the raw references.

examples:
  slt-score hypotheses.jsonl
  slt-score generate-test.txt --manifest data/test.tsv      (also a saved stdout of fairseq-generate)
  slt-score --hyp system.txt --ref reference.txt
  slt-score table.tsv                                       (columns hyp and ref; without header: --columns hyp,ref)
  slt-score new/hypotheses.jsonl --against old/hypotheses.jsonl           (is the difference more than chance?)
  slt-score hypotheses.jsonl --confidence --by length,signer --manifest data/test.tsv
  slt-score hypotheses.jsonl --metrics bleu4,reduced_bleu --train-manifest data/train.tsv --truecase
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from slt_plugin.cli.score_input import (
    System,
    in_same_order,
    is_generate_output,
    load,
    load_manifest,
    load_pair,
)
from slt_plugin.cli.scoring_settings import GROUPABLE, ScoringOptions, build_settings
from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import did_you_mean
from slt_plugin.data.manifest import Row
from slt_plugin.scoring.breakdown import LENGTH, breakdown
from slt_plugin.scoring.hypotheses import write_hypotheses
from slt_plugin.scoring.intervals import (
    SAMPLES,
    SEED,
    Comparison,
    bootstrap_signature,
    confidence,
    paired,
)
from slt_plugin.scoring.reduced_bleu import SIZE
from slt_plugin.scoring.report import (
    DEFAULT_METRICS,
    METRICS,
    check_metrics,
    check_pairs,
    format_breakdown,
    format_comparison,
    format_table,
    score,
    signatures,
    write_metrics,
)
from slt_plugin.scoring.settings import Settings

WITHOUT_MANIFEST = (LENGTH, "text_lang")  # known from the references and from hypotheses.jsonl


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_combination(parser, args)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s | %(name)s | %(message)s")
    try:
        _run(args)
    except SltError as error:
        print(f"slt-score: error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    metrics = _metrics(args)
    check_metrics(metrics)  # this and the settings before the work of reading
    settings = _settings(args, metrics)
    rows = load_manifest(args.manifest)
    system = load_pair(args.hyp, args.ref) if args.hyp else load(args.input, args, rows)
    sentences = system.sentences
    hypotheses, references = [s.hyp for s in sentences], [s.ref for s in sentences]
    check_pairs(hypotheses, references, [s.id for s in sentences])
    baseline = _baseline(args, system, rows) if args.against else None
    if args.save_hypotheses:
        write_hypotheses(args.save_hypotheses, sentences)
    scores, texts = score(hypotheses, references, metrics, settings), signatures(metrics, settings)
    intervals = groups = against = compared = None
    if args.confidence:
        intervals = confidence(hypotheses, references, metrics, settings, args.samples, args.seed)
    if baseline is not None:
        ours = {"system": hypotheses}
        compared = paired(baseline, ours, references, metrics, settings, args.samples, args.seed)["system"]
        before = score(baseline, references, metrics, settings)
        against = _against(args.against, before, compared)
    if args.by:
        groups = breakdown(hypotheses, references, _attributes(system, rows), args.by, metrics, settings)
    bootstrap = bootstrap_signature(args.samples, args.seed) if args.confidence or args.against else None

    print(f"{len(sentences)} sentences; references: {system.origin}")
    if args.lowercase:
        print("both sides were lower-cased before scoring (--lowercase): not comparable with cased scores")
    if args.truecase:
        print(f"hypotheses were given capitals as the texts of {args.train_manifest} have them (--truecase)")
    print(format_table(scores, texts, intervals))
    if intervals:
        print(f"intervals: sacrebleu's bootstrap over sentences, {bootstrap}")
    if compared is not None:
        print(f"\nagainst the baseline {args.against}:\n{format_comparison(scores, before, compared)}")
        print(f"p: sacrebleu's paired bootstrap test, {bootstrap}; in effect one-sided: two-sided 5 % is p < 0.025")
    if groups is not None:
        print(f"\n{format_breakdown(groups)}")
    if args.json:
        write_metrics(
            args.json,
            scores,
            texts,
            sentences=len(sentences),
            references=system.origin,
            lowercase=args.lowercase,
            intervals=intervals,
            bootstrap=bootstrap,
            groups=groups,
            against=against,
        )


def _metrics(args: argparse.Namespace) -> list[str]:
    """Those asked for; by default all that the other options give the means for."""
    if args.metrics is not None:
        return [name.strip() for name in args.metrics.split(",") if name.strip()]
    reduced = args.blacklist or (args.train_manifest and not args.truecase)
    wanted = {*DEFAULT_METRICS, *(("reduced_bleu", "reduced_bleu_kept") if reduced else ())}
    wanted |= {"bleurt"} if args.bleurt else set()
    return [name for name in METRICS if name in wanted]


def _settings(args: argparse.Namespace, metrics: Sequence[str]) -> Settings:
    options = ScoringOptions(
        lowercase=args.lowercase,
        truecase=args.truecase,
        train_manifest=args.train_manifest,
        blacklist=args.blacklist,
        blacklist_size=args.blacklist_size,
        bleurt=args.bleurt,
    )
    return build_settings(options, metrics, lambda name: f"--{name.replace('_', '-')}")


def _baseline(args: argparse.Namespace, system: System, rows: list[Row] | None) -> list[str]:
    """The other system's hypotheses, in the order of ``system``'s."""
    if args.hyp:
        return [other.hyp for other in load_pair(args.against, args.ref).sentences]
    others = load(args.against, args, rows).sentences
    return [other.hyp for other in in_same_order(system.sentences, args.input, others, args.against)]


def _against(path: Path, before: Mapping[str, float], compared: Mapping[str, Comparison]) -> dict[str, object]:
    return {
        "baseline": str(path),
        "metrics": dict(before),
        "p_values": {name: comparison.p_value for name, comparison in compared.items()},
    }


def _attributes(system: System, rows: list[Row] | None) -> list[dict]:
    """What sentences can be grouped by."""
    if rows is None:
        return [{"text_lang": sentence.text_lang} for sentence in system.sentences]
    by_id = {row.id: row for row in rows}
    names = [name for name in GROUPABLE if name != LENGTH]
    return [{name: getattr(by_id[sentence.id], name) for name in names} for sentence in system.sentences]


def _check_combination(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """An option that would have no effect is an error, not ignored."""
    if (args.hyp is None) != (args.ref is None):
        parser.error("--hyp and --ref go together")
    if (args.input is None) == (args.hyp is None):
        parser.error("give either one input file or --hyp and --ref")
    if args.hyp and args.manifest:
        parser.error("--manifest has no use with --hyp/--ref: --ref holds the references")
    if args.hyp and args.columns:
        parser.error("--columns has no use with --hyp/--ref: these have one sentence a line")
    inputs = [path for path in (args.input, args.against) if path is not None]
    generated = not args.hyp and any(is_generate_output(path, args.columns) for path in inputs)
    if args.allow_roundtrip_references and (args.manifest or not generated):
        parser.error("--allow-roundtrip-references is only for fairseq-generate's output without --manifest")
    for name in args.by:
        if name not in GROUPABLE:
            hint = did_you_mean(name, GROUPABLE)
            parser.error(f"--by {name}: no such property{hint or '.'} Choose from {', '.join(GROUPABLE)}")
        if name not in WITHOUT_MANIFEST and not args.manifest:
            parser.error(f"--by {name} needs --manifest: it is a column of the manifest")
    if args.truecase and not args.train_manifest:
        parser.error("--truecase needs --train-manifest: the casing of words is learnt from its texts")
    if args.truecase and args.lowercase:
        parser.error("--truecase restores capitals, --lowercase takes them away: give one of them")
    if not (args.confidence or args.against) and (args.samples is not None or args.seed is not None):
        parser.error("--samples and --seed are for --confidence and --against")
    args.samples = SAMPLES if args.samples is None else args.samples
    args.seed = SEED if args.seed is None else args.seed


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt-score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", nargs="?", type=Path, help="hypotheses.jsonl, a table (.tsv), or the output of fairseq-generate")
    add("--manifest", type=Path, help="TSV that was generated from: its text is the reference")
    add("--hyp", type=Path, help="plain text, one hypothesis a line (with --ref)")
    add("--ref", type=Path, help="plain text, one reference a line")
    add("--columns", type=_names, help="what the columns of a table without header are, for example hyp,ref")
    add(
        "--metrics",
        help=f"comma-separated, of {', '.join(METRICS)} (default: {','.join(DEFAULT_METRICS)}; reduced_bleu and "
        "reduced_bleu_kept with --blacklist or --train-manifest, bleurt with --bleurt)",
    )
    add("--lowercase", action="store_true", help="lower-case both sides before scoring")
    add("--truecase", action="store_true", help="give the hypotheses capitals, learnt from --train-manifest")
    add("--train-manifest", type=Path, help="the training's TSV: source of the blacklist and of the casing of words")
    add("--blacklist", type=Path, help="words that reduced BLEU leaves out, one a line, as written")
    add("--blacklist-size", type=int, help=f"words to take from --train-manifest, in two casings (default: {SIZE})")
    add("--bleurt", type=Path, metavar="FOLDER", help="a BLEURT checkpoint in PyTorch (extra bleurt)")
    add(
        "--against",
        type=Path,
        metavar="OTHER",
        help="baseline on the same sentences, in any of the formats (with --hyp: one hypothesis a line): paired test",
    )
    add("--confidence", action="store_true", help="95 %% intervals by bootstrap")
    add("--samples", type=int, help=f"bootstrap samples (default: {SAMPLES})")
    add("--seed", type=int, help=f"of the bootstrap (default: {SEED})")
    add("--by", type=_names, default=[], help=f"break scores down by {', '.join(GROUPABLE)}; comma-separated")
    add(
        "--allow-roundtrip-references",
        action="store_true",
        help="score against fairseq-generate's T- lines although they are not the raw text",
    )
    add("--json", type=Path, metavar="OUT", help="also write everything as JSON")
    add("--save-hypotheses", type=Path, metavar="OUT", help="also write the sentences as hypotheses.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main())
