"""A source that kills its process; in a file of its own, which is quick to import, as every worker does it."""

import os
import signal

from slt_plugin.data.clips import VideoSource


class KilledOn(VideoSource):
    """Comes to row ``b`` and ends as the kernel ends a process when memory is short."""

    def load(self, row, *, epoch=1, rng=None):
        if row.id == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(row, epoch=epoch, rng=rng)
