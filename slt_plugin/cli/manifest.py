"""slt-manifest check | stats | convert | adopt-features: look at manifests, or make them from other projects' data."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from slt_plugin.cli import adopt_features
from slt_plugin.cli.progress import progress
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.manifest_formats import FEATURE_SUFFIX, read_ssvp, read_tarres
from slt_plugin.data.manifest_stats import describe


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 something is wrong with a file, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (DataError, OSError) as error:
        print(f"slt-manifest {args.command}: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slt-manifest", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="read manifests and open their media; list everything that is wrong")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check.add_argument("--media-root", type=Path, help="where relative paths start (default: the manifest's folder)")
    check.add_argument("--no-media", action="store_true", help="check the table only")
    help_workers = "processes that open media; 0 = only this one (default: one a CPU, here %(default)s)"
    check.add_argument("--workers", type=_count, default=_cpus(), metavar="N", help=help_workers)
    check.add_argument("--require-text", action="store_true", help="report rows without text (training needs it)")
    check.set_defaults(run=_check)

    stats = commands.add_parser("stats", help="lengths, vocabulary, out-of-vocabulary rate against the first file")
    stats.add_argument("files", nargs="+", type=Path, metavar="FILE")
    stats.set_defaults(run=_stats)

    convert = commands.add_parser("convert", help="make a manifest from another project's table")
    convert.add_argument("--from", dest="source", choices=("ssvp", "tarres"), required=True)
    convert.add_argument("--media-suffix", help=f"the media files' extension; ssvp: {FEATURE_SUFFIX} = features layout")
    convert.add_argument("--media-folder", help="tarres: replaces the folder part of signs_file")
    convert.add_argument("--fps", type=_rate, help="tarres: frames per second of mediapipe files")
    convert.add_argument("input", type=Path, metavar="IN")
    convert.add_argument("output", type=Path, metavar="OUT")
    convert.set_defaults(run=_convert, error=convert.error)

    adopt_features.add_parser(commands)
    return parser


def _cpus() -> int:
    # what SLURM gave this job, where the system can say so (not on macOS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 0")
    return int(value)


def _rate(value: str) -> float:
    rate = float(value)  # argparse words the ValueError
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not above 0")
    return rate


def _check(args: argparse.Namespace) -> int:
    if args.media_root is not None and not args.media_root.is_dir():
        raise DataError(f"--media-root {args.media_root} is not a folder")
    failed = False
    for file in args.files:
        try:
            rows = read_manifest(file, require_text=args.require_text)
        except DataError as error:
            print(error)
            failed = True
            continue
        if args.no_media:
            print(f"{file}: {len(rows)} rows, fine; media not opened")
        elif _check_media(file, rows, args.media_root or file.parent, args.workers):
            failed = True
    return int(failed)


def _check_media(file: Path, rows: list[Row], root: Path, workers: int) -> bool:
    """Whether something is wrong."""
    from slt_plugin.data.manifest_check import media_problems  # imports torch: seconds, for this command alone

    bad = 0
    for reason in media_problems(rows, root, workers=workers, progress=progress):
        bad += 1
        tqdm.write(f"{file}: {reason}")  # print would break the bar
    print(f"{file}: {len(rows)} rows, {bad or 'none'} with bad media")
    return bad > 0


def _stats(args: argparse.Namespace) -> int:
    manifests = []
    failed = False
    for file in args.files:
        try:
            manifests.append(read_manifest(file))
        except DataError as error:
            print(f"slt-manifest stats: error: {error}", file=sys.stderr)
            failed = True
    if failed:
        return 1
    for number, (file, rows) in enumerate(zip(args.files, manifests, strict=True)):
        print(file if number == 0 else f"\n{file} (vocabulary against {args.files[0]})")
        for what, value in describe(rows, train_rows=manifests[0] if number else None):
            print(f"  {what:<18} {value}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        args.error("OUT is the file IN: give another name")
    if args.media_suffix is not None and not args.media_suffix.startswith("."):
        args.error(f"--media-suffix {args.media_suffix} must begin with a dot: .{args.media_suffix}")
    if args.source == "ssvp":
        if args.media_folder is not None or args.fps is not None:
            args.error("--media-folder and --fps are for --from tarres")
        conversion = read_ssvp(args.input, suffix=args.media_suffix)
    else:
        conversion = read_tarres(args.input, suffix=args.media_suffix, folder=args.media_folder, fps=args.fps)
    write_manifest(args.output, conversion.rows)
    print(f"{args.output}: {len(conversion.rows)} rows")
    for note in conversion.notes:
        print(f"  {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
