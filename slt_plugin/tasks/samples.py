"""Sample sentences of each validation, beside the numbers that fairseq gives TensorBoard and W&B."""

from typing import NamedTuple

import torch.distributed
from fairseq.distributed import utils as distributed_utils

from slt_plugin.tasks.trackers import tensorboard_writer, tracked, wandb_run

NAME = "sample"


class Sample(NamedTuple):
    """One sentence of a validation; ``row`` counts the rows of the manifest."""

    row: int
    id: str
    reference: str
    hypothesis: str


class ValidationSamples:
    """Collects the sentences of a validation and writes them behind each subset.

    Args:
        cfg: the task's options.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self._subset = 0  # number of the one that is being validated
        self._samples: list[Sample] = []

    def begin(self) -> None:
        """To be called when a validation begins."""
        self._subset, self._samples = 0, []

    def add(self, sample: Sample) -> None:
        """To be called on the rank that has decoded it."""
        self._samples.append(sample)

    def finish_subset(self, num_updates: int) -> None:
        """To be called behind each subset of a validation, on every rank."""
        samples, self._samples = self._samples, []
        subset = self.cfg.valid_subset.split(",")[self._subset]
        self._subset += 1
        if not tracked(self.cfg):
            return
        found = sorted(_of_all_ranks(samples))
        if not found or distributed_utils.get_global_rank() != 0:
            return
        if self.cfg.tensorboard_logdir:
            to_tensorboard(self.cfg.tensorboard_logdir, subset, found, num_updates)
        if self.cfg.wandb_project:
            to_wandb(subset, found, num_updates)


def to_tensorboard(logdir: str, subset: str, samples: list[Sample], step: int) -> None:
    """Adds texts ``sample/<row id>`` to the TensorBoard run of a subset."""
    writer = tensorboard_writer(logdir, subset)
    if writer is None:
        return
    for sample in samples:
        # indented: shown as it stands, not read as Markdown
        text = f"    reference:  {sample.reference}\n    hypothesis: {sample.hypothesis}"
        writer.add_text(f"{NAME}/{sample.id}", text, step)
    writer.flush()


def to_wandb(subset: str, samples: list[Sample], step: int) -> None:
    """Logs a table ``<subset>/samples`` in the run of fairseq's progress bar."""
    wandb, run = wandb_run()
    if run is None:
        return
    rows = [[sample.id, sample.reference, sample.hypothesis] for sample in samples]
    table = wandb.Table(columns=["id", "reference", "hypothesis"], data=rows)
    run.log({f"{subset}/{NAME}s": table}, step=step)


def _of_all_ranks(samples: list[Sample]) -> list[Sample]:
    if distributed_utils.get_data_parallel_world_size() == 1:
        return samples
    parts: list = [None] * distributed_utils.get_data_parallel_world_size()
    torch.distributed.all_gather_object(parts, samples, group=distributed_utils.get_data_parallel_group())
    return [sample for part in parts for sample in part]
