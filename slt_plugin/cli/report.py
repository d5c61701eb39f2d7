"""slt-report html | compare | sweep | neighbours | reconstruct: pages and tables of evaluations and trainings.

A further report is a function `_add_<name>` in ADDERS that declares its arguments and, with `run`, what they start
(it returns the exit status; None: 0).
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from slt_plugin.cli.compare_report import add_compare
from slt_plugin.cli.html_report import add_html
from slt_plugin.cli.output import ends_with_its_reader
from slt_plugin.cli.progress import progress
from slt_plugin.cli.reconstruct import add_reconstruct
from slt_plugin.cli.sweep_report import add_sweep
from slt_plugin.common.errors import SltError


def _add_neighbours(commands) -> None:
    parser = commands.add_parser("neighbours", help="the nearest sentences of another manifest, by their embeddings")
    what = "manifest of embeddings (slt-extract what=sonar, or what=sonar_teacher out_manifest=...), or their .store"
    parser.add_argument("--query", type=Path, required=True, metavar="FILE", help=what)
    parser.add_argument("--corpus", type=Path, required=True, metavar="FILE", help="the same: where to look")
    parser.add_argument("-k", type=int, default=5, metavar="K", help="how many for each row (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row of --query")
    parser.set_defaults(run=_neighbours)


def _neighbours(args: argparse.Namespace) -> None:
    from slt_plugin.report.embeddings import read_embeddings
    from slt_plugin.report.neighbours import nearest

    query, corpus = read_embeddings(args.query), read_embeddings(args.corpus)
    for found in progress(nearest(query, corpus, args.k), len(query.ids)):
        if args.json:
            neighbours = [neighbour._asdict() for neighbour in found.neighbours]
            print(json.dumps({"id": found.id, "text": found.text, "neighbours": neighbours}, ensure_ascii=False))
            continue
        print(f"{found.id}\t{found.text or ''}")
        for neighbour in found.neighbours:
            print(f"  {neighbour.cosine:.4f}\t{neighbour.id}\t{neighbour.text or ''}")


ADDERS: tuple[Callable, ...] = (add_html, add_compare, add_sweep, _add_neighbours, add_reconstruct)


@ends_with_its_reader
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 nothing could be reported (sweep: or a member failed), 2 wrong usage, 141 nobody reads."""
    parser = argparse.ArgumentParser(prog="slt-report", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for add in ADDERS:
        add(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except SltError as error:
        print(f"slt-report {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
