"""What every extraction does around its model: which jobs are left, the store that takes them, the manifest."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint, StoreWriter
from slt_plugin.extraction.failures import FailureList
from slt_plugin.extraction.merge import Merged, merge
from slt_plugin.extraction.plan import Job, Segment, owners
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.store_options import STORE_DTYPES, StoreOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    failed: ids of the rows that have nothing in the store: of all where this was the last step, else of this element.
    merged: what is in the store for the manifest, where this was the only or last step.
    stopped: the signal that ended the run early.
    """

    failed: tuple[str, ...] = ()
    merged: Merged | None = None
    stopped: int | None = None


def fill_store(
    options: StoreOptions,
    rows: Sequence[Row],
    segments: Sequence[Segment],
    mark: Fingerprint,
    work: Callable[[list[Job], StoreSink], int | None],
    *,
    copies: int = 1,
    names: tuple[str, str] = ("segments", "features"),
) -> Outcome:
    """Has ``work`` make what is not in the store yet, and writes the manifest where this is the only step.

    Args:
        rows: of the manifest.
        segments: what is made one by one; several rows may share one.
        mark: what decides the numbers in the store.
        work: makes jobs into the sink; gives the signal that ended it early, None where it was finished.
        copies: of each segment.
        names: what a segment, and what is made of it, is called in the log.

    Raises:
        SltError: the store holds something else; what ``work`` raises.
    """
    places = zip(segments, owners(segments, options.num_shards), strict=True)
    mine = [segment for segment, owner in places if owner == options.element]
    stopped = None
    with StoreWriter(options.folder, mark, part=options.part, dtype=STORE_DTYPES[options.store_dtype]) as writer:
        jobs = [Job(segment, copy) for segment in mine for copy in range(copies)]
        todo = [job for job in jobs if job.name not in writer.done]
        logger.info(
            "%s: %d rows show %d %s, %d of them for this element (%s); %d %s to extract, %d in the store",
            options.manifest, len(rows), len(segments), names[0], len(mine), options.part, len(todo), names[1],
            len(jobs) - len(todo),
        )  # fmt: skip
        failures = FailureList(options.folder, options.part, {row_id for job in todo for row_id in job.segment.ids})
        sink = StoreSink(writer, failures, 60 * options.flush_minutes)
        if todo:
            stopped = work(todo, sink)
        sink.flush()
    sink.warn_boxless()
    if stopped is None and options.num_shards == 1:
        return merge_elements(options, rows, segments, copies=copies)
    return Outcome(failures.ids, None, stopped)


def merge_elements(
    options: StoreOptions, rows: Sequence[Row], segments: Sequence[Segment], *, copies: int = 1
) -> Outcome:
    """Checks that every row was tried, and writes the manifest of the store."""
    merged = merge(
        rows, segments, options.folder, options.written_manifest, epochs=copies, num_shards=options.num_shards
    )
    return Outcome(merged.failed, merged)
