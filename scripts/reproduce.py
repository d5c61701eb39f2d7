#!/usr/bin/env python3
"""Reproduce published results with this project's own commands: download, import, run, compare. Needs the internet.

    python scripts/reproduce.py demo
    python scripts/reproduce.py dailymoth --extract dtype=bf16
    python scripts/reproduce.py how2sign --tarres-checkpoint checkpoint.best_reduced_sacrebleu_3.5401.pt \\
        --tarres-spm cvpr23.train.how2sign.unigram7000_lowercased.model

steps:
  demo       SONAR's demo clip in English, French, German and Chinese: the texts of the public README, exactly
  dailymoth  the same models on DailyMoth-70h test: 30.8 BLEU-4, give or take 1.5 (a third party's number)
  how2sign   Tarres et al.'s model on their I3D features of How2Sign test: 8.03 BLEU-4, give or take 1.0

Every command is shown with a leading "+" and can be typed by hand. What was finished is not done again: the same
command goes on after a stop, an error, or a change of options. The exit status is 0 only if all chosen steps pass.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reproduce_runner import Check, Runner
from reproduce_steps import STEPS

from slt_plugin.checkpoints.releases import BASE_URL
from slt_plugin.common.errors import SltError
from slt_plugin.common.files import atomic_open

DATAVERSE = "https://dataverse.csuc.cat/"
PACKAGES = ("slt-plugin", "torch", "ve-fairseq", "av", "sacrebleu")


@dataclass
class Outcome:
    """What became of a step. ``error``: why it did not get to its checks."""

    checks: list[Check] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.error is None and all(check.passed for check in self.checks)


def run_step(name: str, options: argparse.Namespace, runner: Runner) -> Outcome:
    """Runs one step; errors of the user's input, files and network become its outcome."""
    begin = time.monotonic()
    print(f"== {name}", flush=True)
    try:
        outcome = Outcome(STEPS[name].run(options, runner))
    except (SltError, OSError) as error:
        outcome = Outcome(error=str(error))
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def describe(name: str, outcome: Outcome) -> str:
    """The step's result for people: measured beside expected."""
    lines = [f"{'PASS' if outcome.passed else 'FAIL'}  {name}  ({outcome.seconds:.0f} s)"]
    if outcome.error is not None:
        lines += [f"      {line}" for line in outcome.error.splitlines()]
    for check in outcome.checks:
        mark = "ok  " if check.passed else "DIFF"
        if check.tolerance is None:
            lines += [f"  {mark} {check.name}: expected {check.expected}"]
            lines += [f"       {' ' * len(check.name)}  measured {check.measured}"]
        else:
            expected = f"expected {check.expected:g}, give or take {check.tolerance:g}"
            lines.append(f"  {mark} {check.name}: measured {check.measured:.2f}, {expected}")
        if check.note:
            lines.append(f"       {check.note}")
    for source in dict.fromkeys(check.source for check in outcome.checks):
        lines.append(f"       expected by: {source}")
    if not outcome.passed and outcome.error is None:
        lines.append(f"       what to check: {STEPS[name].if_different}")
    return "\n".join(lines)


def write_report(path: Path, outcomes: dict[str, Outcome]) -> None:
    """Everything that was printed at the end, and the versions, as JSON."""
    steps = {name: {"passed": o.passed, **asdict(o)} for name, o in outcomes.items()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        document = {"passed": all(o.passed for o in outcomes.values()), "steps": steps, "versions": versions}
        file.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all chosen steps pass, 1 one does not, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks Chinese letters must not stop anything
        stream.reconfigure(errors="backslashreplace")
    runner, outcomes = Runner(options.work), {}
    try:
        for name in dict.fromkeys(options.steps):
            outcomes[name] = run_step(name, options, runner)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print("\n" + "\n\n".join(describe(name, outcome) for name, outcome in outcomes.items()))
    if options.json is not None:
        write_report(options.json, outcomes)
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+", choices=tuple(STEPS), metavar="STEP", help=", ".join(STEPS))
    help_work = "folder of downloads, checkpoints and results (default: %(default)s)"
    parser.add_argument("--work", type=Path, metavar="DIR", default=Path("runs/reproduce"), help=help_work)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    help_dtype = "of SONAR's weights (default: %(default)s)"
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help=help_dtype)
    help_url = "where the weights, the demo clip and DailyMoth-70h are (default: %(default)s)"
    parser.add_argument("--base-url", type=_url, metavar="URL", default=BASE_URL, help=help_url)
    group = parser.add_argument_group("dailymoth")
    group.add_argument("--corpus", type=Path, metavar="DIR", help="DailyMoth-70h, where you have it: manifests/, ...")
    help_extract = "further options of slt-extract, such as dtype=bf16 num_workers=8"
    group.add_argument("--extract", nargs="+", metavar="OPTION=VALUE", default=[], help=help_extract)
    help_md5 = "as of manifests/dailymoth70h.py, where --base-url has other archives"
    group.add_argument("--md5", nargs="+", metavar="ARCHIVE=MD5", default=[], help=help_md5)
    group = parser.add_argument_group("how2sign")
    group.add_argument("--tarres-checkpoint", type=Path, metavar="FILE", help="their fairseq checkpoint (.pt)")
    group.add_argument("--tarres-spm", type=Path, metavar="FILE", help="their SentencePiece .model")
    group.add_argument("--tarres-dict", type=Path, metavar="FILE", help="their dictionary (default: the model's .txt)")
    help_i3d = "a folder with their table of the test set and test/*.npy (default: downloaded)"
    group.add_argument("--i3d", type=Path, metavar="DIR", help=help_i3d)
    help_dataverse = "the repository of their data (default: %(default)s)"
    group.add_argument("--dataverse-url", type=_url, metavar="URL", default=DATAVERSE, help=help_dataverse)
    return parser


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not an http or https URL")
    return text


if __name__ == "__main__":
    sys.exit(main())
