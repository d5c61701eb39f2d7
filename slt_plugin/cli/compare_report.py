"""``slt-report compare``: systems side by side in one table, beside published ones."""

import argparse
from pathlib import Path

from slt_plugin.report.published import ALIASES, PUBLISHED

DESCRIPTION = """\
RUN is what slt-evaluate wrote for a subset (RESULTS/<subset>), its metrics.json, or a file of slt-score --json. Without
NAME= it is called by the folder above the subset's (RESULTS), or by the file's name. Several RUNs of a name are seeds
of the same thing: mean and standard deviation are shown. Where the sentences lie beside the
scores, the other systems are compared with the first by a paired bootstrap."""
EXAMPLE = """\
example:
  slt-report compare pose=runs/fingerspelling/results/test video=runs/fingerspelling_video/results/test --common
  slt-report compare base=a/test,b/test,c/test new=d/test,e/test --published how2sign --format latex --out table.tex"""
FORMATS = ("text", "markdown", "csv", "latex", "html")


def add_compare(commands) -> None:
    """Declares the subcommand's arguments."""
    parser = commands.add_parser(
        "compare",
        help="scores, significance, size, speed and cost of systems in one table, beside published ones",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "systems", nargs="+", type=_named_runs, metavar="[NAME=]RUN[,RUN...]", help="a name, and its run or runs"
    )
    known = ", ".join([*PUBLISHED, *ALIASES])
    parser.add_argument("--published", metavar="CORPUS", help=f"also the published scores of this corpus: {known}")
    parser.add_argument(
        "--metrics", type=_words, metavar="NAME,...", help="columns, in this order (default: all that there are)"
    )
    parser.add_argument(
        "--common", action="store_true", help="score all of them again, on the sentences that all of them have"
    )
    parser.add_argument(
        "--samples", type=_count, default=1000, metavar="N", help="of the bootstrap; 0: no p-values (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the bootstrap (default %(default)s)")
    parser.add_argument(
        "--note", action="append", default=[], metavar="TEXT", help="to stand first under the table; may be repeated"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="default %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> None:
    from slt_plugin.report import comparison_tables, tables
    from slt_plugin.report.compare import System, compare
    from slt_plugin.report.errors import ReportError
    from slt_plugin.report.results import read_result

    names = [name for name, _ in args.systems]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ReportError(
            f"{', '.join(sorted(twice))} is given twice: give each system a name of its own, and seeds of one system "
            "as NAME=RUN,RUN"
        )
    systems = [System(name, tuple(read_result(name, path) for path in paths)) for name, paths in args.systems]
    found = compare(
        systems,
        corpus=args.published,
        metrics=args.metrics,
        common=args.common,
        samples=args.samples,
        seed=args.seed,
    )
    if args.format == "csv":
        text = tables.as_csv(comparison_tables.records(found))
    else:
        text = getattr(tables, f"as_{args.format}")(comparison_tables.tables(found), [*args.note, *found.notes])
    if args.out is None:
        print(text)
    else:
        _write(args.out, text)


def _write(path: Path, text: str) -> None:
    from slt_plugin.common.files import atomic_open
    from slt_plugin.report.errors import ReportError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise ReportError(f"--out {path} cannot be written ({error.strerror or error})") from error


def _named_runs(word: str) -> tuple[str, list[Path]]:
    name, equals, paths = word.partition("=")
    if not equals and word and "," not in word:
        name, paths = _name_of(Path(word)), word
    if not (name and all(paths.split(","))):
        raise argparse.ArgumentTypeError(
            f"{word!r}: write RUN, NAME=RUN or NAME=RUN,RUN, e.g. zero-shot=results/zero/test"
        )
    return name, [Path(path) for path in paths.split(",")]


def _name_of(run: Path) -> str:
    """What a RUN without a name is called: RESULTS of RESULTS/<subset>, or the file's own name."""
    from slt_plugin.report.result_files import METRICS_FILE

    run = run.resolve()
    if run.name == METRICS_FILE:
        run = run.parent
    elif run.is_file() or run.suffix == ".json":
        return run.stem
    return run.parent.name


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: 0 or a whole number above it is needed")
    return int(text)
