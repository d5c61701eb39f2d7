"""The error of a job that could not be submitted or followed."""

from slt_plugin.common.errors import SltError


class LaunchError(SltError):
    """SLURM did not take or does not know the job: the message holds its words and what to do."""
