"""Which of several processes that train together this one is, in fairseq's options."""

import os
import socket
from collections.abc import Mapping, Sequence

from slt_plugin.common.slurm import Ranks, step_ranks

GROUP = "distributed_training."
OWN = ("distributed_rank", "distributed_init_method", "distributed_port")  # with these the user has decided


def rank_words(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Further words of the command line where this process is one of several tasks of an ``srun`` step, of torchrun or
    of `local.run_ranks`; [] elsewhere, and where ``words`` name the ranks themselves.

    fairseq's own guess needs a port from the user, which the elements of a job array would have to share, and GPUs.

    Raises:
        SlurmError: see `common.slurm.step_ranks`.
    """
    given = {word.lstrip("+").split("=", 1)[0] for word in words if "=" in word and not word.startswith("-")}
    if any(f"{GROUP}{name}" in given for name in OWN):
        return []
    ranks = started_ranks(environ) or step_ranks(environ)
    if ranks is None:
        return []

    import torch

    gpus = torch.cuda.device_count()
    options = {
        "distributed_world_size": ranks.world_size,
        "distributed_rank": ranks.rank,
        "distributed_init_method": f"'tcp://{ranks.host}:{ranks.port}'",
        "distributed_no_spawn": "true",
        # a task that sees one GPU only is to take that one
        "device_id": ranks.local_rank % max(gpus, 1),
    }
    if gpus == 0 or "common.cpu=true" in words:
        options["distributed_backend"] = "gloo"
    elif "common.cpu=false" in words:  # of an experiment that is made for CPUs
        options["distributed_backend"] = "nccl"
    return [f"{GROUP}{name}={value}" for name, value in options.items() if f"{GROUP}{name}" not in given]


def started_ranks(environ: Mapping[str, str]) -> Ranks | None:
    """The ranks that torchrun and `local.run_ranks` write into the environment; None for a single process."""
    world_size = int(environ.get("WORLD_SIZE", "1"))
    if world_size < 2 or "RANK" not in environ or "MASTER_PORT" not in environ:
        return None
    return Ranks(
        rank=int(environ["RANK"]),
        world_size=world_size,
        local_rank=int(environ.get("LOCAL_RANK", environ["RANK"])),
        host=environ.get("MASTER_ADDR", "127.0.0.1"),
        port=int(environ["MASTER_PORT"]),
    )


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def local_environments(count: int) -> list[dict[str, str]]:
    """What each of ``count`` processes of this machine finds in its environment: torchrun's variables."""
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
