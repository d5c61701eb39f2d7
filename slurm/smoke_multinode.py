"""First step of smoke_multinode.sbatch, one process a rank: checks an all-reduce over all ranks of the step; rank 0
then writes a corpus of random poses for the second step, one update of slt-finetune.

usage (in a job): srun python slurm/smoke_multinode.py FOLDER     FOLDER: on a file system that all nodes share
"""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from slt_plugin.common.slurm import Ranks, step_ranks
from slt_plugin.data.manifest import Row, write_manifest

ELEMENTS = 4 * 2**20  # 16 MiB of float32
REPEATS = 5
TIMEOUT = timedelta(seconds=30)
LANDMARKS, FRAMES, FPS = 51, 80, 25.0
ROWS_A_RANK = 4
HINT = (
    "the ranks did not find or hear each other. Nodes with several networks: name the one between them with "
    "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (ip -brief address); a node's name that resolves to 127.x there: "
    "export MASTER_ADDR; NCCL_DEBUG=INFO says more"
)


def all_reduce(ranks: Ranks) -> str:
    """What was measured, in words.

    Raises:
        SystemExit: the sum is wrong, or the ranks do not reach each other.
    """
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", ranks.local_rank % gpus) if gpus else torch.device("cpu")
    backend = "nccl" if gpus else "gloo"
    if gpus:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{ranks.host}:{ranks.port}",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=TIMEOUT,
        )
        times = []
        for _ in range(REPEATS):
            values = torch.full((ELEMENTS,), float(ranks.rank + 1), device=device)
            start = time.perf_counter()
            dist.all_reduce(values)
            low, high = values.min().item(), values.max().item()  # waits for the result
            times.append(time.perf_counter() - start)
            expected = ranks.world_size * (ranks.world_size + 1) / 2
            if (low, high) != (expected, expected):
                raise SystemExit(f"rank {ranks.rank}: the all-reduce gave {low} to {high}, not {expected}")
        names: list = [None] * ranks.world_size
        dist.all_gather_object(names, os.environ.get("SLURMD_NODENAME"))
    except (RuntimeError, ValueError) as error:
        raise SystemExit(f"rank {ranks.rank} at {ranks.host}:{ranks.port}: {error}\n{HINT}") from error
    nodes = sorted(set(names))
    return (
        f"all-reduce over {ranks.world_size} ranks on {len(nodes)} node(s) ({', '.join(nodes)}), {backend}: right, "
        f"16 MiB in {1000 * min(times):.1f} ms"
    )


def write_corpus(folder: Path, rows: int) -> None:
    """``corpus/train.tsv`` of random poses with random texts, and their vocabulary ``char.model``."""
    import sentencepiece

    rng = np.random.default_rng(0)
    (folder / "corpus").mkdir(parents=True)
    poses = rng.normal(size=(rows * FRAMES, LANDMARKS, 3))
    poses[..., 2] = 1  # confidence
    np.save(folder / "corpus" / "poses.npy", poses.astype(np.float16))
    texts = [" ".join("".join(rng.choice(list("abcd"), 3)) for _ in range(3)) for _ in range(rows)]
    seconds = FRAMES / FPS
    write_manifest(
        folder / "corpus" / "train.tsv",
        [
            Row(f"row-{i}", "poses.npy", text, i * seconds, (i + 1) * seconds, FRAMES, FPS, text_lang="en")
            for i, text in enumerate(texts)
        ],
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab cd", "ba dc", "ad bc"]),
        model_prefix=str(folder / "char"),
        model_type="char",
        vocab_size=8,
        minloglevel=2,
    )


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    ranks = step_ranks(os.environ)
    if ranks is None:
        print("one task only: there is nothing to reduce; sbatch --nodes=2 slurm/smoke_multinode.sbatch")
        return 2
    said = all_reduce(ranks)
    if ranks.rank == 0:
        write_corpus(Path(argv[0]), ROWS_A_RANK * ranks.world_size)
        print(said)
    dist.barrier()
    if not (Path(argv[0]) / "corpus" / "train.tsv").is_file():
        print(f"{os.environ.get('SLURMD_NODENAME')} does not see {argv[0]}: the nodes share no such folder")
        return 1
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
