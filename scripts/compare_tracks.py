"""A table of finished runs of the quickstart, side by side: scores, size, speed of training.

    python scripts/compare_tracks.py pose=runs/fingerspelling video=runs/fingerspelling_video

Reads each folder's scores-<split>.json, train.log and checkpoint_best.pt. "clips/s" are sentences a second in training,
loading included: the median over the log's intervals, so that validation and other programs count little.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.common.errors import SltError

SPLITS = ("test", "test_unseen")
METRICS = {"bleu4": "BLEU-4", "chrf": "chrF"}
PARAMETERS = re.compile(r"num\. shared model params: ([\d,]+)")
INTERVAL = re.compile(r"\[train_inner\].*?\bups=([\d.]+).*?\bbsz=([\d.]+)")


SYNTHETIC = """
The videos are synthetic, drawn from the very landmarks of the pose track: their scores show that the raw-video path
learns, and say nothing about which of the two is better on real recordings."""


class IncompleteRunError(SltError):
    """A folder that does not hold a finished run."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="a run and what the table calls it")
    args = parser.parse_args(argv)
    columns = {}
    for run in args.runs:
        name, separator, folder = run.partition("=")
        if not (name and separator and folder):
            parser.error(f"expected NAME=FOLDER, got {run!r}")
        try:
            columns[name] = describe(Path(folder))
        except SltError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("\n".join(table(columns)))
    if "video" in columns:
        print(SYNTHETIC)
    return 0


def describe(folder: Path) -> dict[str, str]:
    """Row title -> cell of one run. Raises IncompleteRunError."""
    cells = {}
    for split in SPLITS:
        scores = read_scores(folder, split)
        cells |= {f"{title} {split}": f"{scores[name]:.2f}" for name, title in METRICS.items()}
    log = _read(folder / "train.log")
    parameters = PARAMETERS.findall(log)
    speeds = [float(updates) * float(sentences) for updates, sentences in INTERVAL.findall(log)]
    if not parameters or not speeds:
        raise IncompleteRunError(f"{folder}/train.log is not the log of a training: run scripts/quickstart.sh again")
    checkpoint = folder / "checkpoint_best.pt"
    if not checkpoint.is_file():
        raise IncompleteRunError(f"{checkpoint} is missing: run scripts/quickstart.sh again")
    return {
        **cells,
        "parameters": f"{int(parameters[-1].replace(',', '')) / 1e6:.1f} M",
        "checkpoint": f"{checkpoint.stat().st_size / 1e6:.0f} MB",
        "training clips/s": f"{statistics.median(speeds):.0f}",
    }


def read_scores(folder: Path, split: str) -> dict[str, float]:
    """Metrics of one run on one manifest. Raises IncompleteRunError."""
    return json.loads(_read(folder / f"scores-{split}.json"))["metrics"]


def table(columns: dict[str, dict[str, str]]) -> list[str]:
    """Lines of a Markdown table, one column a run."""
    titles = list(next(iter(columns.values())))
    rows = [["", *columns], *([title, *(cells[title] for cells in columns.values())] for title in titles)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise IncompleteRunError(f"{path}: {error.strerror}; run scripts/quickstart.sh again") from error


if __name__ == "__main__":
    sys.exit(main())
