"""Which rows of a corpus a training sees, and how often in an epoch."""

import logging
from collections.abc import Sequence

import numpy as np

from slt_plugin.common.messages import listing
from slt_plugin.data.draws import Draw, generator
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row

logger = logging.getLogger(__name__)


def within_durations(
    name: str, rows: Sequence[Row], seconds: Sequence[float], *, shortest: float, longest: float
) -> list[int]:
    """Numbers of the rows of ``shortest`` to ``longest`` seconds; 0: no limit. The others are named in the log.

    Args:
        name: of the manifest, for messages.

    Raises:
        DataError: no row is left.
    """
    kept, short, long = [], [], []
    for i, (row, length) in enumerate(zip(rows, seconds, strict=True)):
        if length < shortest:
            short.append(f"{row.id} ({length:.2f} s)")
        elif longest and length > longest:
            long.append(f"{row.id} ({length:.2f} s)")
        else:
            kept.append(i)
    for limit, value, left_out in (("min_duration", shortest, short), ("max_duration", longest, long)):
        if left_out:
            logger.warning(
                "%s: task.%s=%g leaves out %d of %d rows: %s",
                name, limit, value, len(left_out), len(rows), listing(left_out),
            )  # fmt: skip
    if not kept:
        raise DataError(
            f"{name}: task.min_duration={shortest:g} and task.max_duration={longest:g} seconds leave out all "
            f"{len(rows)} rows, which have {min(seconds):.2f} to {max(seconds):.2f} s: change the limits"
        )
    return kept


class EpochRows:
    """The rows of each epoch: those of each manifest ``ratio`` times, of a fraction another random part each epoch.

    Args:
        sizes: rows of each manifest; the rows of all of them are numbered through.
        ratios: of each manifest, above 0.
        seed: of the random parts, with the epoch.

    Every epoch has the same number of rows.
    """

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float], seed: int):
        self.sizes, self.ratios, self.seed = list(sizes), list(ratios), seed
        # at least one row, or an epoch of a small manifest would have none
        self.parts = [max(round((ratio % 1) * size), int(ratio < 1)) for size, ratio in zip(sizes, ratios, strict=True)]

    def __len__(self) -> int:
        return sum(
            int(ratio) * size + part for size, ratio, part in zip(self.sizes, self.ratios, self.parts, strict=True)
        )

    def of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, times): the number of each of the epoch's rows, and how often it was there before: int64."""
        rows, times, first = [], [], 0
        for manifest, (size, ratio, part) in enumerate(zip(self.sizes, self.ratios, self.parts, strict=True)):
            for time in range(int(ratio)):
                rows.append(first + np.arange(size))
                times.append(np.full(size, time))
            drawn = generator(Draw.PART, self.seed, epoch, manifest).permutation(size)[:part]
            rows.append(first + np.sort(drawn))
            times.append(np.full(part, int(ratio)))
            first += size
        return np.concatenate(rows).astype(np.int64), np.concatenate(times).astype(np.int64)
