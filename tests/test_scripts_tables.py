"""How quickstart.sh, ablation.sh and control.sh end: tables by slt-report compare, and the control's limit."""

import json
import subprocess
import sys
from pathlib import Path

from result_helpers import results_folder

SCRIPTS = Path(__file__).parents[1] / "scripts"
METRICS = "--metrics bleu4,chrf,rouge_l,wer"


def both_splits(results: Path, bleu: float, sentences: int) -> None:
    """Sentences r0, r1, ...; the scores are made up."""
    for split in ("test", "test_unseen"):
        texts = {f"r{i}": (f"word {i} more", f"word {i} {'more' if i % 2 else 'less'}") for i in range(sentences)}
        results_folder(results / split, texts, metrics=dict.fromkeys(("bleu4", "chrf", "rouge_l", "wer"), bleu))


def ending(name: str, first: str, last: str) -> str:
    """The lines of a script from one that begins with ``first`` to before one that begins with ``last`` (its end)."""
    source = (SCRIPTS / name).read_text()
    start = source.index(f"\n{first}")
    return source[start : source.index(f"\n{last}", start)] if last else source[start:]


def run_ending(code: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {SCRIPTS}/common.sh\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstarts_last_table(tmp_path):
    """Its closing lines as they stand, on results of tracks with different sentences."""
    both_splits(tmp_path / "p/results", 50.0, 8)
    both_splits(tmp_path / "v/results", 50.0, 4)
    closing = ending("quickstart.sh", "NOTE=()", "cat <<END")
    out = run_ending(f'TRACKS="pose video"; TABLE=(pose=p/results video=v/results)\n{closing}', tmp_path)
    commands = [line for line in out.splitlines() if line.startswith("+ ")]
    assert [line.split("--note")[0] for line in commands] == [
        f"+ slt-report compare pose=p/results/{split} video=v/results/{split} --common {METRICS} "
        for split in ("test", "test_unseen")
    ]
    assert out.count("All scores are of the 4 sentences that all have.") == 2
    label = "The videos are synthetic, drawn from the very landmarks of the pose track: their scores show"
    assert out.count(label) == 4  # in the command and under the table
    assert "v/results/test_unseen (4 sentences)" in out
    fast = run_ending(f"TRACKS=pose; TABLE=(pose=p/results)\n{closing}", tmp_path)
    assert "synthetic" not in fast and "p/results/test_unseen (8 sentences)" in fast


def test_the_ablations_last_table(tmp_path):
    for number in range(6):
        both_splits(tmp_path / f"{number}/results", 10.0 * number, 4)
    code = "declare -A RUNS=([scratch]=0/results/SPLIT,1/results/SPLIT [frozen]=2/results/SPLIT,3/results/SPLIT "
    code += "[tuned]=4/results/SPLIT,5/results/SPLIT)\n"
    out = run_ending(code + ending("ablation.sh", "for split in test test_unseen; do\n    printf", ""), tmp_path)
    row = next(line for line in out.splitlines() if line.startswith("MAE, trained further  "))
    assert row.split("  ")[1].strip() == "45.00 ± 7.07" and "5/results/test (4 sentences)" in row
    assert "Mean ± standard deviation (n - 1) over runs: from scratch 2, MAE, frozen 2, MAE, trained further 2." in out


def test_the_control_fails_where_shuffled_texts_still_score(tmp_path):
    """Its last lines, on made-up scores: the limit is 10 BLEU-4."""
    source = (SCRIPTS / "control.sh").read_text()
    ending = source[source.index("\nbleu=") :]
    code = f'set -euo pipefail; source {SCRIPTS}/common.sh; OUT={tmp_path}; LIMIT=10; PATH="$BIN:$PATH"\n{ending}'
    (tmp_path / "results/test").mkdir(parents=True)
    for bleu, status in [(1.3, 0), (9.99, 0), (10.0, 1), (74.2, 1)]:
        (tmp_path / "results/test/metrics.json").write_text(json.dumps({"metrics": {"bleu4": bleu}}))
        run = subprocess.run(
            ["bash", "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "BIN": str(Path(sys.executable).parent)},
        )
        assert run.returncode == status, run.stderr
        assert ("control failed" in run.stderr) == bool(status)
