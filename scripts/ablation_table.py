"""A table of conditions with several finished runs each: mean and standard deviation of their scores.

    python scripts/ablation_table.py scratch=runs/a,runs/b tuned=runs/c,runs/d

Reads each folder's scores-<split>.json. The standard deviation is that of a sample (n - 1); of one run there is none.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from compare_tracks import METRICS, SPLITS, read_scores, table

from slt_plugin.common.errors import SltError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conditions", nargs="+", metavar="NAME=FOLDER,...", help="a condition and its runs' folders")
    args = parser.parse_args(argv)
    columns = {}
    for condition in args.conditions:
        name, separator, folders = condition.partition("=")
        if not (name and separator and all(folders.split(","))):
            parser.error(f"expected NAME=FOLDER,FOLDER, got {condition!r}")
        try:
            columns[name] = describe([Path(folder) for folder in folders.split(",")])
        except SltError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("\n".join(table(columns)))
    return 0


def describe(folders: Sequence[Path]) -> dict[str, str]:
    """Row title -> cell of one condition. Raises IncompleteRunError."""
    cells = {}
    for split in SPLITS:
        runs = [read_scores(folder, split) for folder in folders]
        for name, title in METRICS.items():
            values = [run[name] for run in runs]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells[f"{title} {split}"] = f"{statistics.mean(values):.2f}{spread}"
    return {**cells, "runs": str(len(folders))}


if __name__ == "__main__":
    sys.exit(main())
