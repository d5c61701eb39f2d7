"""Hydra callbacks: a failed member of a sweep is not lost among the others."""

import os

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from slt_plugin.launch.submit import write_failure

_failed: list[str] = []


class FailedMember(Callback):
    """Notes failed members of a sweep in this process, and ends the job of one that submitit has started.

    hydra-submitit-launcher returns a failed member's exception as a result: the job would be COMPLETED with exit status
    0. In ``hydra.callbacks`` of our configs, so that it works with ``fairseq-hydra-train -m
    hydra/launcher=submitit_slurm``.
    """

    def on_job_start(self, config: DictConfig, **kwargs) -> None:
        """fairseq takes ``common.user_dir`` for imported once the package is, as this callback's import has done."""
        import slt_plugin.tasks  # noqa: F401  registers everything

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs) -> None:
        if job_return.status != JobStatus.FAILED or config.hydra.mode != RunMode.MULTIRUN:
            return
        overrides = " ".join(config.hydra.overrides.task) or "no overrides"
        member = f"sweep member {config.hydra.job.num} ({overrides})"
        _failed.append(member)
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            error = job_return._return_value  # the property would raise it
            first = (str(error).strip() or "no message").splitlines()[0]
            message = f"{member} failed: {type(error).__name__}: {first}"
            write_failure(message)
            # Hydra turns an Exception of a callback into a warning. Of this one Python prints the message, then exits 1
            raise SystemExit(message) from error


def failed_members() -> list[str]:
    """'sweep member 2 (common.seed=3)' of each that failed since the last call."""
    failed = list(_failed)
    _failed.clear()
    return failed
