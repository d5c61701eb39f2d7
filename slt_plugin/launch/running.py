"""Which job trains in a folder: a second one would write over its checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path

from slt_plugin.common import slurm
from slt_plugin.common.files import atomic_open
from slt_plugin.launch.errors import LaunchError

FILE = Path("slurm") / "jobs.json"  # in checkpoint.save_dir


def note_jobs(save_dir: Path, jobs: Sequence[str]) -> None:
    """Notes the jobs (of a chain several) that train in a folder, in the place of those before."""
    path = save_dir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        file.write((json.dumps({"jobs": list(jobs)}) + "\n").encode())


def refuse_running(save_dir: Path) -> None:
    """Refuses a folder in which a job trains or will train. A job that SLURM has forgotten has ended.

    Raises:
        LaunchError: such a job, or it cannot be read which ones there are.
        SlurmError: SLURM does not answer.
    """
    path = save_dir / FILE
    if not path.is_file():
        return
    try:
        jobs = [str(job) for job in json.loads(path.read_text(encoding="utf-8"))["jobs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"{path} cannot be read ({error}): remove it if no job trains in {save_dir}") from error
    for job in jobs:
        states = sorted({record.get("JobState", "UNKNOWN") for record in slurm.show_all(job).values()})
        running = [state for state in states if not slurm.ended(state)]
        if running:
            raise LaunchError(
                f"{save_dir}: job {job} trains there and has not ended ({', '.join(running)}). Wait for it (squeue -j "
                f"{job}), end it (scancel {' '.join(jobs)}), or give another checkpoint.save_dir"
            )
