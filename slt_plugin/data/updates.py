"""Which rows are trained on together: batches that make up whole updates of all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slt_plugin.data.errors import DataError


@dataclass(frozen=True)
class UpdatePlan:
    """How the batches of one update are shared out.

    ranks: processes that train together.
    batches: that each of them adds up before it changes the weights (fairseq's update_freq).
    rows: of an update, at least ranks * batches; None: batches are filled by their frames.
    drop_last: leave out the rows at an epoch's end that make no whole update.

    fairseq gives batch i of an epoch to rank i % ranks, so every ``ranks * batches`` batches are one update.

    Every update has a row for each rank: fairseq gives a rank without one a stand-in, its first batch, and a resumed
    process that has not read any has none. So fewer rows than ranks at an epoch's end join the update before them.
    """

    ranks: int = 1
    batches: int = 1
    rows: int | None = None
    drop_last: bool = False

    @property
    def size(self) -> int:
        """Batches of an update, over all ranks."""
        return self.ranks * self.batches

    def count(self, rows: int) -> int:
        """Updates that so many rows of an epoch make, where an update has ``self.rows`` of them."""
        whole, rest = divmod(rows, self.rows)
        joins = self.drop_last or (whole and rest < self.ranks)
        return whole if joins else whole + bool(rest)

    def count_batches(self, batches: int) -> int:
        """Updates that so many batches of `level` make."""
        return -(-batches // self.size)

    def split(self, order: np.ndarray) -> list[np.ndarray]:
        """Rows to batches that differ by one row at most; `count` tells how many updates they are.

        Each has ``self.rows``, but the last: that has the rest, or up to ranks - 1 more.

        Raises:
            DataError: fewer rows than ranks.
        """
        self._check(len(order))
        ends = [self.rows * (number + 1) for number in range(self.count(len(order)))]
        if ends and not self.drop_last:
            ends[-1] = len(order)
        updates = np.split(order[: ends[-1]], ends[:-1]) if ends else []
        return [batch for update in updates for batch in np.array_split(update, self._parts(len(update)))]

    def _check(self, rows: int) -> None:
        if rows < self.ranks:
            raise DataError(
                f"{rows} rows an epoch are fewer than the {self.ranks} ranks that train together, each of which needs "
                "one: give more rows (task.train_ratios) or fewer ranks (distributed_training.distributed_world_size)"
            )

    def _parts(self, rows: int) -> int:
        """Batches of an update: as many for one rank as for another.

        fairseq forgets how much a rank has added to the gradient if that rank's last batch is a stand-in for a
        missing one, and would then scale the update wrongly.
        """
        return min(self.size, rows // self.ranks * self.ranks)

    def level(self, batches: Sequence[np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """Batches filled by frames: the last update's are dropped, or changed until all ranks have as many (`_parts`).

        They are cut for that. Where they have too few rows, what is over joins the batches of the last updates that
        stay the smallest; only if all of these are full, one has more frames than max_tokens.

        Args:
            frames: of each row, by its number.

        Raises:
            DataError: fewer rows than ranks.
        """
        self._check(sum(map(len, batches)))
        whole = len(batches) // self.size * self.size
        level, last = list(batches[:whole]), list(batches[whole:])
        if self.drop_last:
            return level
        rows = sum(map(len, last))
        wanted = min(-(-len(last) // self.ranks) * self.ranks, rows // self.ranks * self.ranks)
        while len(last) < wanted:
            longest = max(range(len(last)), key=lambda i: len(last[i]))
            last[longest : longest + 1] = np.array_split(last[longest], 2)
        level, over = [*level, *last[:wanted]], last[wanted:]
        first = max(0, whole - self.size)
        for row in (row for batch in over for row in batch):
            joined = [np.append(batch, row) for batch in level[first:]]
            least = min(range(len(joined)), key=lambda i: len(joined[i]) * frames[joined[i]].max())
            level[first + least] = joined[least]
        return level
