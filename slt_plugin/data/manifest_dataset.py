"""What fairseq datasets over manifests have in common: epochs, and when fairseq may read media through them."""

import os
import signal

from fairseq.data import FairseqDataset
from torch.utils.data import get_worker_info

_shielded = 0  # the process that outlives a SIGTERM


def shield_worker() -> None:
    """Lets a loader worker outlive one SIGTERM; in other processes and later nothing happens.

    Before a preemption SLURM may send it to all processes of a job. The training then goes on for some batches and
    ends its workers itself; a dead one would end it at once.
    """
    global _shielded
    if _shielded != os.getpid() and get_worker_info() is not None:
        _shielded = os.getpid()
        # the second one is multiprocessing's, at exit
        signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


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
