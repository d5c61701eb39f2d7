"""Retrieval among all clips of a validation, whatever its batches and ranks."""

import torch
from fairseq.logging import metrics
from torch import Tensor

from slt_plugin.modules.contrastive import DIRECTIONS, RECALLS, gather_rows, retrieval_metrics

_OF_EACH = (*(f"r{k}" for k in RECALLS), "median_rank")
NAMES = tuple(f"{direction}_{what}" for direction in DIRECTIONS for what in _OF_EACH)


class RetrievalPool:
    """Embeddings of clips and of their texts, by row number: a row that comes twice counts once.

    fairseq gives a rank without a batch of its own one that another has had already; nothing in it says so.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._metrics: dict[str, float] | None = None

    def add(self, ids: Tensor, video: Tensor, text: Tensor) -> None:
        """Rows of all ranks: ids (n,) int64, embeddings (n, D); to be called by all ranks at once."""
        ids, video, text = (gather_rows(x)[0].cpu() for x in (ids, video.float(), text.float()))
        self._rows.update((row, pair) for row, *pair in zip(ids.tolist(), video, text, strict=True))
        self._metrics = None

    def metrics(self) -> dict[str, float]:
        """See `retrieval_metrics`; of all rows so far."""
        if self._metrics is None:
            video, text = (torch.stack(side) for side in zip(*self._rows.values(), strict=True))
            self._metrics = {name: round(value, 2) for name, value in retrieval_metrics(video, text).items()}
        return self._metrics


class ValidationRetrieval:
    """One `RetrievalPool` for each validation of each subset, logged when fairseq asks for the validation's values.

    fairseq validates a subset within an aggregator of metrics made for it, so another one means another validation.
    Logged as derived metrics, the values are computed once, at its end. Aggregators keep the first function that they
    are given, and one of fairseq's outlives a validation, so the functions ask for the pool of the day. The command
    fairseq-validate makes its aggregator after the last batch and so shows losses alone.
    """

    def __init__(self) -> None:
        self._pool = RetrievalPool()
        self._aggregators: list = []

    def add(self, ids: Tensor, video: Tensor, text: Tensor) -> None:
        """See `RetrievalPool.add`."""
        active = metrics.get_active_aggregators()
        if [id(one) for one in active] != [id(one) for one in self._aggregators]:
            self._pool, self._aggregators = RetrievalPool(), list(active)
            for name in NAMES:
                metrics.log_derived(name, lambda _, name=name: self._pool.metrics()[name])
        self._pool.add(ids, video, text)
