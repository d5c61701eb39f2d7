"""``slt-report html``: the page of an evaluation, made again."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Makes report.html of one or more results folders again, from what slt-evaluate left in them: one file that needs no
network and no other file. Do so after an update of slt-plugin, or when the training's log has grown."""


def add_html(commands) -> None:
    """Declares the subcommand's arguments."""
    parser = commands.add_parser(
        "html",
        help="report.html of results of slt-evaluate, made again",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="RESULTS/SUBSET, where metrics.json lies"
    )
    parser.set_defaults(run=_html)


def _html(args: argparse.Namespace) -> None:
    from slt_plugin.report.html import write_report

    for folder in args.folders:
        print(write_report(folder), flush=True)
