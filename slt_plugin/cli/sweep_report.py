"""``slt-report sweep``: the members of a sweep, best first, with mean and standard deviation over seeds."""

import argparse
import json
import shlex
from pathlib import Path

DESCRIPTION = """\
Reads every training in and under DIR: of slt-finetune -m, of an array of launcher=slurm or of slurm/sweep.sbatch.
Members that differ in common.seed alone make one setting. Mean and standard deviation (n - 1) are of its members that
ran to their end (finished, or stopped early). Scores are those of the best checkpoint at validation."""


def add_sweep(commands) -> None:
    """Declares the subcommand's arguments."""
    parser = commands.add_parser(
        "sweep",
        help="best run of a sweep, mean and deviation over seeds",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 1 where a member failed (nothing trained, unreadable) or there is none.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="that holds the members' folders")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="compare by another validation score of the best checkpoints, from the logs (chrf, loss, ...)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object: metric, best, settings, members")
    parser.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    from slt_plugin.report.sweep import read_sweep

    sweep = read_sweep(args.folder, args.metric)
    if args.json:
        print(json.dumps(_as_json(sweep), ensure_ascii=False, indent=1))
    else:
        print(_as_text(sweep, args.folder))
    return int(any(member.failed for member in sweep.members))


def _as_text(sweep, folder: Path) -> str:
    from slt_plugin.report.tables import aligned

    better = "higher" if sweep.maximize else "lower"
    lines = [f"{len(sweep.members)} members, validation {sweep.metric} ({better} is better)", ""]
    if any(len(setting.members) > 1 for setting in sweep.settings):
        table = [["mean", "std", "n", "settings"]]
        for setting in sweep.settings:
            number = f"{setting.n}" if setting.n == len(setting.members) else f"{setting.n} of {len(setting.members)}"
            table.append([_number(setting.mean), _number(setting.std), number, _label(setting.settings)])
        lines += [aligned(table, numbers=range(3)), ""]
    table = [[sweep.metric, "seed", "updates", "state", "settings", "folder"]]
    for member in sweep.members:
        run = member.run
        updates = f"{run.updates} of {run.max_update}" if run.max_update else str(run.updates)
        seed = "" if member.seed is None else str(member.seed)
        table.append(
            [_number(member.score), seed, updates, run.state, _label(member.settings), _relative(run.folder, folder)]
        )
    lines.append(aligned(table, numbers=range(3)))
    lines += [f"{m.run.state}: {m.run.folder}: {m.run.reason}" for m in sweep.members if m.run.reason]
    lines += sweep.notes
    if sweep.best is not None:
        lines += ["", *_best_lines(sweep.best, sweep.metric)]
    if failed := sum(member.failed for member in sweep.members):
        lines += ["", f"{failed} of {len(sweep.members)} members failed"]
    return "\n".join(lines)


def _best_lines(best, metric: str) -> list[str]:
    unfinished = "" if best.run.state in ("finished", "stopped early") else f", {best.run.state}"
    return [f"best: {best.run.folder} ({metric} {_number(best.score)}{unfinished})", f"  {evaluation(best)}"]


def evaluation(best) -> str:
    """The command that evaluates a member's best checkpoint."""
    words = ["slt-evaluate", f"checkpoint={best.run.folder / 'checkpoint_best.pt'}"]
    words += [f"data={best.run.data}"] if best.run.data else []
    words += ["subset=test", f"results={best.run.folder / 'results'}"]
    return shlex.join(words)


def _as_json(sweep) -> dict:
    members = [
        {
            "folder": str(m.run.folder),
            "state": m.run.state,
            "reason": m.run.reason,
            "score": m.score,
            "seed": m.seed,
            "updates": m.run.updates,
            "max_update": m.run.max_update,
            "settings": list(m.settings),
            "overrides": list(m.overrides),
            "scores": dict(m.run.scores),
        }
        for m in sweep.members
    ]
    settings = [
        {
            "settings": list(s.settings),
            "mean": s.mean,
            "std": s.std,
            "n": s.n,
            "members": [str(member.run.folder) for member in s.members],
        }
        for s in sweep.settings
    ]
    best = sweep.best
    return {
        "metric": sweep.metric,
        "maximize": sweep.maximize,
        "best": None if best is None else {"folder": str(best.run.folder), "evaluate": evaluation(best)},
        "settings": settings,
        "members": members,
        "notes": list(sweep.notes),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _label(settings: tuple[str, ...]) -> str:
    return " ".join(settings) or "(no difference but the seed)"


def _relative(path: Path, folder: Path) -> str:
    """As short as it can be told apart."""
    for base in (folder, folder.resolve()):
        if path.is_relative_to(base) and path != base:
            return str(path.relative_to(base))
    return str(path)
