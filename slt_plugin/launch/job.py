"""What runs in a job: one of our commands, with its words. submitit pickles it, so it holds nothing else."""

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from slt_plugin.common import slurm
from slt_plugin.common.stopping import TRY_AGAIN

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A call of ``module.main(words)``.

    Args:
        module: of a command, "slt_plugin.cli.finetune".
        words: its command line.
        settings: environment variables that the command reads (SLT_REQUEUE, SLT_SIGNAL_DELAY).
        requeues: whether submitit may queue it again.
        after: the job of a chain before this one.
    """

    module: str
    words: tuple[str, ...]
    settings: Mapping[str, str]
    requeues: bool = True
    after: str | None = None

    def __call__(self) -> None:
        """Raises SystemExit where the command fails: SLURM then shows the job as FAILED, with that exit status."""
        os.environ.update(self.settings)
        _print_once()
        if self.after is not None:
            failed = why_not_to_go_on(self.after)
            if failed:
                raise SystemExit(failed)
        status = importlib.import_module(self.module).main(list(self.words))
        if status:
            raise SystemExit(status)

    def checkpoint(self):
        """submitit calls it before it queues the job again: the same command goes on where it was."""
        from slt_plugin.launch.submit import resubmission

        return resubmission(self) if self.requeues else None


def _print_once() -> None:
    """submitit prints its lines itself, warnings both to stdout and to stderr: in our logs these are one file."""
    log = logging.getLogger("submitit")
    log.propagate = False
    if any(handler.level < logging.WARNING for handler in log.handlers):
        log.handlers = [handler for handler in log.handlers if handler.level < logging.WARNING]


def why_not_to_go_on(job: str) -> str | None:
    """The message where the job before was not ended by SLURM: failed, it would fail again; cancelled, somebody wants
    no more of it. None: go on.

    A dependency (afternotok) cannot tell the two apart.
    """
    try:
        before = slurm.show(job)
    except slurm.SlurmError as error:  # forgotten, after a long time in the queue
        logger.warning("what became of job %s before this one is not known (%s)", job, error)
        return None
    state, status = before.get("JobState", ""), before.get("ExitCode", "").split(":")[0]
    if state == "CANCELLED":
        return f"job {job}, which this one was to go on from, was cancelled: submit the same command again to go on"
    if state != "FAILED" or status == str(TRY_AGAIN):
        return None
    return f"job {job}, which this one was to go on from, failed with exit status {status}: see its log"
