"""Sentence embeddings, of whatever: batches through a model into the store, in order of length."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from fairseq.data import data_utils
from torch import Tensor

from slt_plugin.extraction.device import fitting
from slt_plugin.extraction.plan import Job
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.signals import stop_signals
from slt_plugin.extraction.sink import StoreSink

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """Some jobs on their way to the model.

    content: what the model reads; None where all jobs failed.
    jobs: one for each row of ``content``.
    steps: of the source, padding left out.
    failed: jobs whose source could not be read, and why.
    """

    content: object | None
    jobs: list[Job]
    steps: int
    failed: list[tuple[Job, str]] = field(default_factory=list)


def batches_by_length(lengths: Sequence[int], max_steps: int) -> list[list[int]]:
    """Numbers of rows, in batches of at most ``max_steps`` steps with padding, or one row that has more.

    The longest come first: what does not fit into memory shows at once, and the time left is not told too short.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    if not len(counts):
        return []
    order = np.argsort(-counts, kind="stable")
    limit = max(max_steps, int(counts.max()))
    return [
        list(map(int, batch))
        for batch in data_utils.batch_by_size(
            order, lambda i: int(counts[i]), num_tokens_vec=counts[order], max_tokens=limit
        )
    ]


def embed_batches(
    batches: Iterable[Batch],
    embed: Callable[[object], Tensor],
    sink: StoreSink,
    progress: Progress,
    device: torch.device,
) -> int | None:
    """Stores one embedding (1, D) for each job; the signal that ended the work early, None where it was finished.

    Args:
        embed: the content of a batch -> (B, D).

    Raises:
        ExtractionError: a batch does not fit into the GPU's memory.
    """
    with stop_signals() as received, progress:
        iterator = iter(batches)
        while received() is None:
            with progress.waiting():
                batch = next(iterator, None)
            if batch is None:
                break
            progress.decoded()
            for job, cause in batch.failed:
                sink.failed(job, cause)
                progress.finished(failed=True)
            if batch.content is not None:
                with torch.inference_mode(), fitting(device, f"{len(batch.jobs)} rows", "lower max_tokens"):
                    embeddings = embed(batch.content).float().cpu()
                progress.encoded(batch.steps)
                for job, embedding in zip(batch.jobs, embeddings, strict=True):
                    progress.finished(failed=not sink.features(job, embedding.unsqueeze(0)))
        stopped = received()
    logger.info(progress.summary())
    return stopped
