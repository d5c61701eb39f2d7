"""The nearest sentences of a corpus, by the cosine of their embeddings."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from slt_plugin.report.embeddings import Embeddings
from slt_plugin.report.errors import ReportError

_BLOCK = 2**25  # cosines in memory at once


class Neighbour(NamedTuple):
    """One sentence of the corpus."""

    id: str
    text: str | None
    cosine: float


class Query(NamedTuple):
    """A sentence with its neighbours, the nearest first."""

    id: str
    text: str | None
    neighbours: list[Neighbour]


def nearest(query: Embeddings, corpus: Embeddings, k: int) -> Iterator[Query]:
    """For each sentence of ``query`` the ``k`` of ``corpus`` with the highest cosine; of equal ones the first.

    Raises:
        ReportError: fewer than ``k`` sentences, or embeddings of different widths.
    """
    if not 1 <= k <= len(corpus.ids):
        raise ReportError(f"-k {k}: {corpus.where} has {len(corpus.ids)} sentences; give 1 to {len(corpus.ids)}")
    widths = query.vectors.shape[1], corpus.vectors.shape[1]
    if widths[0] != widths[1]:
        raise ReportError(
            f"{query.where} has embeddings of {widths[0]} dimensions, {corpus.where} of {widths[1]}: they are of "
            "different models and cannot be compared"
        )
    return _nearest(query, corpus, k)


def _nearest(query: Embeddings, corpus: Embeddings, k: int) -> Iterator[Query]:
    size = max(1, _BLOCK // len(corpus.ids))
    for first in range(0, len(query.ids), size):
        cosines = query.vectors[first : first + size] @ corpus.vectors.T  # queries x corpus
        for number, row in enumerate(cosines, start=first):
            # the k largest, in no order; then all that are as large as the smallest of them, so that ties go by order
            least = np.partition(row, -k)[-k]
            found = np.flatnonzero(row >= least)
            found = found[np.argsort(-row[found], kind="stable")][:k]
            neighbours = [Neighbour(corpus.ids[i], corpus.texts[i], float(row[i])) for i in found]
            yield Query(query.ids[number], query.texts[number], neighbours)
