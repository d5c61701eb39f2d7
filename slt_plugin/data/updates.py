"""Which rows are trained on together: batches that make up whole updates of all ranks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class UpdatePlan:
    """How the batches of one update are shared out.

    ranks: processes that train together.
    batches: that each of them adds up before it changes the weights (fairseq's update_freq).
    rows: of an update, at least ranks * batches; None: batches are filled by their frames.
    drop_last: leave out the rows at an epoch's end that make no whole update.

    fairseq gives batch i of an epoch to rank i % ranks, so every ``ranks * batches`` batches are one update.
    """

    ranks: int = 1
    batches: int = 1
    rows: int | None = None
    drop_last: bool = False

    @property
    def size(self) -> int:
        """Batches of an update, over all ranks."""
        return self.ranks * self.batches

    def count(self, items: int, of_update: int) -> int:
        """Updates that so many rows (or batches) make, where an update has ``of_update`` of them."""
        return items // of_update if self.drop_last else -(-items // of_update)

    def split(self, order: np.ndarray) -> list[np.ndarray]:
        """Rows to batches that differ by one row at most, ``rows`` of them in each update but the last."""
        batches = []
        for first in range(0, len(order), self.rows):
            update = order[first : first + self.rows]
            if len(update) < self.rows and self.drop_last:
                break
            batches += np.array_split(update, self._parts(len(update)))
        return batches

    def _parts(self, rows: int) -> int:
        """Batches of the last update: as many for one rank as for another wherever that can be.

        fairseq forgets how much a rank has added to the gradient if that rank's last batch is a stand-in for a
        missing one, and would then scale the update wrongly.
        """
        return min(self.size, rows // self.ranks * self.ranks) or rows

    def level(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Batches filled by frames: the last update's are dropped, or cut until all ranks have as many (`_parts`)."""
        whole = len(batches) // self.size * self.size
        last = [] if self.drop_last else list(batches[whole:])
        while len(last) > self.ranks and len(last) % self.ranks:
            longest = max(range(len(last)), key=lambda i: len(last[i]))
            if len(last[longest]) == 1:
                break
            last[longest : longest + 1] = np.array_split(last[longest], 2)
        return [*batches[:whole], *last]
