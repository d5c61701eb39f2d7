"""``slt-doctor``: is this machine and this environment fit to train? Every problem comes with its remedy.

It imports nothing but the standard library (and ``packaging``) itself, because it has to run where torch or fairseq
cannot be imported; those are imported in child processes with a time limit. The checks are in ``cli/checks/``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import slt_plugin
from slt_plugin.cli.checks.gpu import check_gpu_section
from slt_plugin.cli.checks.machine import check_machine
from slt_plugin.cli.checks.python_environment import check_environment, user_dir
from slt_plugin.cli.checks.result import FAIL, Check, as_json, closing_line, format_section, in_section
from slt_plugin.cli.checks.slurm import check_slurm
from slt_plugin.cli.checks.storage import check_storage
from slt_plugin.cli.checks.video import check_video

WORKERS = 2  # dataset.num_workers of config/finetune/_base.yaml

Section = tuple[str, Callable[[], list[Check]]]


def sections(folder: Path, workers: int) -> tuple[Section, ...]:
    """Titles and what to call, in the order of the report."""
    return (
        ("Environment", check_environment),
        ("GPU", check_gpu_section),
        ("Video", check_video),
        ("Machine", check_machine),
        ("Output folder", lambda: check_storage(folder)),
        ("SLURM", lambda: check_slurm(workers)),
    )


def wants_colour(stream, environ) -> bool:
    """In a terminal, unless NO_COLOR (no-color.org) or a terminal that knows none says otherwise."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def run_checks(parts: Sequence[Section], show: Callable[[str, list[Check]], None]) -> list[Check]:
    """Runs the sections one after another; ``show`` gets each as soon as it is done."""
    checks = []
    for title, check in parts:
        try:
            found = in_section(check(), title)
        except Exception as error:  # noqa: BLE001  an answer that nobody foresaw must not cost the rest of the report
            what = f"the check itself failed: {type(error).__name__}: {error}"
            found = in_section(
                [Check(FAIL, title, what, "please report it, with the output of the tools above")], title
            )
        show(title, found)
        checks += found
    return checks


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where a check fails, 0 otherwise (warnings included)."""
    parser = argparse.ArgumentParser(
        prog="slt-doctor", description="Checks this machine and environment; on a cluster also run it inside a job."
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="where outputs go (default: the current folder)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=WORKERS,
        metavar="N",
        help="inside a job: loader workers (dataset.num_workers) to count its CPUs for (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object: version, checks, counts")
    parser.add_argument(
        "--user-dir",
        action="store_true",
        help="print only the installed folder of slt_plugin, for fairseq-generate --user-dir and common.user_dir=",
    )
    args = parser.parse_args(argv)
    if args.user_dir:
        print(user_dir())
        return 0
    colour = wants_colour(sys.stdout, os.environ)

    def show(title: str, checks: list[Check]) -> None:
        if not args.json:
            print(format_section(title, checks, colour=colour), flush=True)

    checks = run_checks(sections(args.folder, args.workers), show)
    if args.json:
        print(json.dumps({"version": slt_plugin.__version__, **as_json(checks)}, indent=1, ensure_ascii=False))
    else:
        print(closing_line(checks))
    return int(any(check.status == FAIL for check in checks))


if __name__ == "__main__":
    sys.exit(main())
