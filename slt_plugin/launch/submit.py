"""From a profile to jobs: the sbatch file, written and submitted by submitit. The only file that imports it."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.launch.errors import LaunchError
from slt_plugin.launch.job import Job
from slt_plugin.launch.profile import Profile
from slt_plugin.models.errors import OptionError

# of the job or rank that the command is called in; where the configuration of SLURM lies stays
_OUTER = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
_OUTER_RANKS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


@dataclass(frozen=True)
class Submission:
    """A job, or an array of ``elements`` jobs, that SLURM has taken."""

    job: str
    elements: int
    folder: Path
    name: str

    @property
    def ids(self) -> list[str]:
        """What squeue, scontrol and scancel call its elements."""
        return [self.job] if self.elements == 1 else [f"{self.job}_{number}" for number in range(self.elements)]

    def log(self, job: str, task: int | str = 0) -> Path:
        """What a task of one of the ``ids`` has written, stdout and stderr together."""
        return self.folder / f"{job}_{task}_log.out"


def job_calls(profile: Profile, module: str, elements: Sequence[Sequence[str]], *, after: str | None = None):
    """What each element of an array runs: one `Job` for each command line."""
    settings = {"SLT_SIGNAL_DELAY": str(profile.signal_delay), "SLT_REQUEUE": str(int(profile.requeues))}
    return [Job(module, tuple(words), settings, profile.requeues, after) for words in elements]


def sbatch_text(profile: Profile, folder: Path, *, name: str, elements: int, dependency: str | None = None) -> str:
    """The file that `submit` would hand to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=_command(profile, folder),
        folder=folder,
        map_count=None if elements == 1 else elements,
        **_parameters(profile, name, dependency),
    )


def check_folder(folder: Path) -> None:
    """Raises OptionError where a log folder cannot be one."""
    if "%" in str(folder):
        raise OptionError(f"launcher.folder={folder}: SLURM would replace the %; give another folder")


def check_sbatch() -> None:
    """Raises LaunchError where this machine has no SLURM."""
    missing = [name for name in ("sbatch", "srun", "scontrol") if shutil.which(name) is None]
    if missing:
        raise LaunchError(
            f"{', '.join(missing)} not found: this machine has no SLURM. Call the command on a login node of the "
            "cluster, or here with launcher=local; dry_run=true shows what would be submitted"
        )


def submit(
    profile: Profile, jobs: Sequence[Job], folder: Path, *, name: str, dependency: str | None = None
) -> Submission:
    """Queues the jobs: one as a job, several as one array.

    Args:
        folder: of this submission's logs, sbatch file and pickles.
        name: the job's.
        dependency: as in sbatch; the job is cancelled where it can no longer be met.

    Raises:
        LaunchError: no SLURM here, or sbatch refuses; the message holds its words.
        OptionError: see `check_folder`.
    """
    check_sbatch()
    check_folder(folder)
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = folder.absolute()
    before = set(folder.iterdir()) if folder.is_dir() else set()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"launcher.folder={folder} cannot be made ({error.strerror}): give another folder") from error
    said = io.StringIO()
    try:
        # submitit prints what sbatch said and raises it; once is enough
        with _outer_job_hidden(), contextlib.redirect_stderr(said):
            executor = submitit.SlurmExecutor(folder, profile.max_num_timeout, python=profile.python)
            executor.update_parameters(**_parameters(profile, name, dependency))
            submitted = executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        _remove_leftovers(folder, before, made)
        raise LaunchError(f"sbatch refused the job: {_explained(_words_of_sbatch(str(error)), len(jobs))}") from error
    return Submission(submitted[0].job_id.split("_")[0], len(jobs), folder, name)


def resubmission(job: Job):
    """What submitit wants from ``checkpoint()``."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(job)


def write_failure(message: str) -> None:
    """In a job that submitit has started: tells whoever waits for its result that it has failed.

    Without a result they would wait until sacct says that the job has ended, and for ever where there is no sacct.
    """
    from submitit import JobEnvironment
    from submitit.core.utils import cloudpickle_dump, temporary_save_path

    with temporary_save_path(JobEnvironment().paths.result_pickle) as path:
        cloudpickle_dump(("error", message), path)


def _command(profile: Profile, folder: Path) -> str:
    python = shlex.quote(sys.executable) if profile.python is None else profile.python
    return f"{python} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"


def _parameters(profile: Profile, name: str, dependency: str | None) -> dict:
    """In submitit's names."""
    additional: dict[str, str | bool] = {"requeue" if profile.requeues else "no-requeue": True}
    additional |= {
        option.lstrip("-").replace("_", "-"): value for option, value in profile.extra.items() if value is not False
    }
    if profile.gpus and profile.gres:
        additional["gres"] = f"gpu:{profile.gpus_per_node}"
    if dependency is not None:
        additional |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    # without the first, the other ranks wait for ever for one that has died
    srun_args = ["--kill-on-bad-exit=1"]
    if profile.cpus_per_task is not None:  # since SLURM 22.05 srun does not take it over from sbatch
        srun_args.append(f"--cpus-per-task={profile.cpus_per_task}")
    wanted = {
        "job_name": name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "comment": profile.comment,
        "time": profile.minutes,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_per_node,
        "gpus_per_node": profile.gpus_per_node if profile.gpus and not profile.gres else None,
        "cpus_per_task": profile.cpus_per_task,
        "mem": profile.mem,
        "setup": list(profile.setup) or None,
        "signal_delay_s": profile.signal_delay,
        "array_parallelism": profile.array_parallelism,
        "stderr_to_stdout": True,  # one log for each task, whose last line says what happened
        "additional_parameters": additional,
        "srun_args": srun_args,
    }
    # submitit's wckey is its own name, which clusters that check it do not know
    return {key: value for key, value in wanted.items() if value is not None} | {"wckey": None}


@contextlib.contextmanager
def _outer_job_hidden() -> Iterator[None]:
    """A job that is submitted from within a job would inherit its tasks and memory (sbatch exports everything)."""
    outer = _OUTER if "SLURM_JOB_ID" in os.environ else ()
    names = [name for name in os.environ if (name.startswith(outer) and name not in _KEPT) or name in _OUTER_RANKS]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _words_of_sbatch(text: str) -> str:
    """'sbatch: error: A; sbatch: error: B' without the prefixes, in one line."""
    lines = [re.sub(r"^sbatch: (?:error: |fatal: )?", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "it does not say why"


def _explained(words: str, elements: int) -> str:
    """What sbatch says, and what to do where it does not say it."""
    if elements == 1 or "Invalid job array specification" not in words:
        return words
    return (
        f"{words}. An array of {elements} elements is more than the cluster takes at once (MaxArraySize{_max_array()} "
        "of scontrol show config): give slt-extract fewer num_shards, or split the sweep into several"
    )


def _max_array() -> str:
    """'=1001', or nothing where SLURM does not say it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=10, check=False)
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown.stdout, re.MULTILINE)
        return f"={match[1]}" if match else ""
    return ""


def _remove_leftovers(folder: Path, before: set[Path], made: Sequence[Path]) -> None:
    """What submitit wrote for a job that was not taken, and the folders that were made for it, the innermost first."""
    for path in set(folder.iterdir()) - before:
        if path.suffix in (".pkl", ".sh"):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else uses it
        for path in made:
            path.rmdir()
