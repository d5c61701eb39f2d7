"""Several processes that share a piece of work and bring the results together: torch.distributed on the CPU (gloo)."""

import contextlib
import datetime
from collections.abc import Iterator

from slt_plugin.common.slurm import Ranks

TOGETHER = datetime.timedelta(days=7)  # a rank may wait long for the slowest one; one that dies ends the others
ALONE = Ranks(rank=0, world_size=1, local_rank=0, host="127.0.0.1", port=0)


@contextlib.contextmanager
def joined(ranks: Ranks | None) -> Iterator[Ranks]:
    """A group of all ranks while the block runs; None: this process alone, for which there is none."""
    if ranks is None:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://{ranks.host}:{ranks.port}",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=TOGETHER,
    )
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()


def gather(value: object, ranks: Ranks) -> list | None:
    """The values of all ranks, in their order, on rank 0; None on the others."""
    if ranks.world_size == 1:
        return [value]
    from torch import distributed

    found = [None] * ranks.world_size if ranks.rank == 0 else None
    distributed.gather_object(value, found)
    return found
