"""One rank of four: trains the tiny sign_clip on its share of the clips and writes what came out.

Run by torchrun from test_mae_contrastive.py: clip_ranks.py TOWER OUT.
"""

import sys
from pathlib import Path

import torch
from clip_helpers import adam, clip_batch, clip_criterion, clip_model, gradients, update
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from fairseq.logging import metrics
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

UPDATES = 4
# clips of each rank; a rank without clips gets a stand-in
SHARES = {"even": (2, 2, 2, 2), "uneven": (3, 2, 1, 0)}
SCENARIOS = {
    "legacy": ("even", {}),
    "pytorch": ("even", {}),
    "uneven": ("uneven", {}),
    "uneven pytorch": ("uneven", {}),
    "no_mae": ("uneven", {"no_mae": True}),
    "no_contrastive": ("uneven", {"no_contrastive": True}),
    "equal weights": ("even", {"gradnorm": False}),
}


def share(name: str, rank: int) -> tuple[dict, bool]:
    """This rank's clips, and whether they are a stand-in."""
    sizes = SHARES[name]
    if not sizes[rank]:
        return clip_batch(2, seed=9), True
    return clip_batch(sizes[rank], first=sum(sizes[:rank])), False


def train(model, wrapped, criterion, sample: dict, *, ignore: bool = False) -> dict:
    """`UPDATES` updates on one batch: first gradients, what was logged each time, and the model at the end."""
    optimizer, logged, first = adam(model), [], None
    for number in range(UPDATES):
        logged.append(update(wrapped, criterion, optimizer, sample, number, ignore=ignore))
        first = first or gradients(model)
        optimizer.step()
    return {"first": first, "logged": logged, "state": {k: v.clone() for k, v in model.state_dict().items()}}


def validate(model, criterion, samples: list[dict]) -> dict:
    """What a validation of these batches logs, as fairseq gathers it."""
    model.eval()
    criterion.eval()
    with metrics.aggregate(new_root=True) as found, torch.no_grad():
        for sample in samples:
            criterion(model, sample)
    return dict(found.get_smoothed_values())


def main(tower: Path, out: Path) -> None:
    distributed.init_process_group("gloo")
    rank, found = distributed.get_rank(), {}
    torch.set_num_threads(1)
    for name, (shares, options) in SCENARIOS.items():
        of_model = {key: value for key, value in options.items() if key != "gradnorm"}
        model, criterion = clip_model(tower, **of_model), clip_criterion(**options)
        if "pytorch" in name:
            wrapped = DistributedDataParallel(model)
        else:
            wrapped = ModuleProxyWrapper(LegacyDistributedDataParallel(model, distributed.group.WORLD))
        sample, stand_in = share(shares, rank)
        found[name] = train(model, wrapped, criterion, sample, ignore=stand_in)
    # a second batch for ranks 0 and 1 only: the others get one that was there already
    batches = [
        clip_batch(3, first=3 * rank),
        clip_batch(2, first=12 + 2 * rank) if rank < 2 else clip_batch(3, first=0),
    ]
    found["validation"] = validate(clip_model(tower), clip_criterion(), batches)
    torch.save(found, out / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
