"""Where the results of an extraction go: features to the store, failures to failed.tsv."""

import logging
import time

from torch import Tensor

from slt_plugin.common.messages import listing
from slt_plugin.data.store import StoreWriter
from slt_plugin.data.store_fingerprint import EntryError
from slt_plugin.extraction.failures import FailureList
from slt_plugin.extraction.plan import Job

logger = logging.getLogger(__name__)


class StoreSink:
    """A `pipeline.Sink`; what it was given reaches the disk every ``interval`` seconds."""

    def __init__(self, writer: StoreWriter, failures: FailureList, interval: float):
        self.writer, self.failures, self.interval = writer, failures, interval
        self._flushed = time.monotonic()
        self._boxless: dict[str, str] = {}  # row id -> warning

    def features(self, job: Job, features: Tensor) -> bool:
        """See `Sink`."""
        try:
            self.writer.add(*job.name, features)
        except EntryError as error:  # NaN, or too large for the store's type
            self.failed(job, f"row {job.segment.row.id!r}: {error}; try dtype=fp32 store_dtype=fp32")
            return False
        self.failures.succeeded(job.segment)
        self._flush_now_and_then()
        return True

    def failed(self, job: Job, cause: str) -> None:
        """See `Sink`."""
        if self.failures.add(job.segment, cause):  # once, not for every copy
            logger.warning("failed: %s", cause)
        self._flush_now_and_then()

    def boxless(self, job: Job, warning: str) -> None:
        """See `Sink`."""
        self._boxless.update(dict.fromkeys(job.segment.ids, warning))

    def warn_boxless(self) -> None:
        """Once, with all rows that it is about."""
        if self._boxless:
            rows = list(self._boxless)
            logger.warning("%d rows without a box: %s: %s", len(rows), self._boxless[rows[0]], listing(rows))

    def flush(self) -> None:
        """Everything reaches the disk."""
        self.writer.flush()
        self.failures.write()
        self._flushed = time.monotonic()

    def _flush_now_and_then(self) -> None:
        if time.monotonic() - self._flushed >= self.interval:
            self.flush()
