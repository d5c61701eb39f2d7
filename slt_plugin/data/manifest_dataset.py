"""What fairseq datasets over manifests have in common: epochs, and when fairseq may read media through them."""

import atexit
import multiprocessing
import os
import signal

from fairseq.data import FairseqDataset
from torch.utils.data import get_worker_info

_shielded = 0  # the process that outlives a SIGTERM
_tidied = 0  # the process that ends its workers itself


def shield_worker() -> None:
    """Lets a loader worker outlive a SIGTERM; in other processes nothing happens.

    Before a preemption SLURM may send it to all processes of a job. The training then goes on for some batches and
    ends its workers itself; a dead one would end it at once.
    """
    global _shielded
    if _shielded != os.getpid() and get_worker_info() is not None:
        _shielded = os.getpid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def kill_workers_at_exit() -> None:
    """Before multiprocessing does, which sends SIGTERM to workers that are left and waits for them for ever."""
    global _tidied
    if _tidied != os.getpid():
        _tidied = os.getpid()
        atexit.register(_kill_workers, os.getpid())


def _kill_workers(process: int) -> None:
    if os.getpid() != process:  # a fork of it
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report dead workers
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class ManifestDataset(FairseqDataset):
    """Base of datasets whose items are read from media files.

    Args:
        training: items differ from epoch to epoch.
        decodes_video: reading an item takes long.

    Attributes:
        epoch: counted from 1.
        reads_media: False: items are None and batches empty, for fairseq's dry run over the validation data (see
            `tasks.manifest_task.ManifestTask`).
    """

    def __init__(self, *, training: bool, decodes_video: bool):
        super().__init__()
        kill_workers_at_exit()
        self.training, self.decodes_video = training, decodes_video
        self.epoch = 1
        self.reads_media = True

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        # fairseq would keep epoch 1's shuffle and worker processes for ever, and a resumed run could not repeat that
        return not self.training

    @property
    def supports_fetch_outside_dataloader(self) -> bool:
        """Whether fairseq's trainer may read the first batch in the main process, as stand-in for ranks without one.

        Not before training, where it would decode video (or, in the dry run, get an empty batch that it keeps): the
        trainer then takes the first batch that it trains on.
        """
        return self.reads_media and not (self.decodes_video and self.training)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
