"""The symmetric contrastive loss of CLIP (Radford et al., 2021, section 2.3), over all ranks, and retrieval by it."""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from slt_plugin.modules.hiera_layout import ModuleShapeError, shape

# the logarithm of what cosines are multiplied by: its start and its upper bound (Radford et al., 2021, section 2.5)
LOG_SCALE_INIT = log(1 / 0.07)
LOG_SCALE_MAX = log(100)

RECALLS = (1, 5, 10)
DIRECTIONS = ("v2t", "t2v")  # videos look for their text, texts for their video
TIE = 1e-5  # cosines nearer than this are taken for equal: rounding must not decide between equal texts
CHUNK = 1024  # rows of a similarity matrix at a time


class ContrastiveGradients(NamedTuple):
    """The loss () and its derivatives by the embeddings, (N, D) each, and by the logarithm of the scale, ()."""

    loss: Tensor
    video: Tensor
    text: Tensor
    log_scale: Tensor


def contrastive_loss(video: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding the text of each video and the video of each text among all N, in float32.

    A single clip has a loss of 0.

    Args:
        video, text: (N, D), of length 1; row i of one belongs to row i of the other.
        log_scale: (), taken as `LOG_SCALE_MAX` above it.

    Raises:
        ModuleShapeError: embeddings that are not pairs.
    """
    _check_pairs(video, text)
    with torch.autocast(video.device.type, enabled=False):
        logits = log_scale.float().clamp(max=LOG_SCALE_MAX).exp() * video.float() @ text.float().T  # N x N
        own = torch.arange(len(video), device=video.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def contrastive_gradients(video: Tensor, text: Tensor, log_scale: Tensor) -> ContrastiveGradients:
    """`contrastive_loss` and its derivatives, apart from whatever computed the embeddings.

    At the bound the scale has a derivative only where the loss falls with a smaller scale: there it can come back.
    """
    with torch.enable_grad():
        bounded = log_scale.float().clamp(max=LOG_SCALE_MAX)  # at the bound itself there is a derivative
        leaves = [x.detach().float().requires_grad_() for x in (video, text, bounded)]
        loss = contrastive_loss(*leaves)
        d_video, d_text, d_log_scale = torch.autograd.grad(loss, leaves)
    if log_scale >= LOG_SCALE_MAX:
        d_log_scale = d_log_scale.clamp(min=0)
    return ContrastiveGradients(loss.detach(), d_video, d_text, d_log_scale)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks in their order, and where this rank's begin; a rank may have none. Without gradients.

    Args:
        rows: (n, ...), n differs from rank to rank, the rest does not.
    """
    rows = rows.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    gathered = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, count)
    counts = [int(n) for n in gathered]
    filled = rows.new_zeros(max(counts), *rows.shape[1:])
    filled[: len(rows)] = rows
    parts = [torch.empty_like(filled) for _ in counts]
    if max(counts):
        distributed.all_gather(parts, filled)
    joined = torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])
    return joined, sum(counts[: distributed.get_rank()])


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, element by element; equal on all of them."""
    values = values.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def retrieval_metrics(video: Tensor, text: Tensor) -> dict[str, float]:
    """Retrieval by cosine among N pairs, both ways: ``v2t_r1 v2t_r5 v2t_r10 v2t_median_rank``, ``t2v_...``.

    Recalls in percent. Ranks count from 1. Where the own one is as near as others (`TIE`), it counts as drawn among
    them: a recall by its probability, the rank by its mean. So a model that gives one embedding to everything is at
    chance, and so are equal texts among each other. What is not a number comes last.

    Args:
        video, text: (N, D); row i of one belongs to row i of the other. N = 0 gives nan.

    Raises:
        ModuleShapeError: embeddings that are not pairs.
    """
    _check_pairs(video, text)
    video, text = (F.normalize(x.detach().float(), dim=1) for x in (video, text))
    found = {}
    for direction, queries, items in (("v2t", video, text), ("t2v", text, video)):
        parts = [_nearer_and_tied(queries, items, first) for first in range(0, len(queries), CHUNK)]
        nearer, tied = torch.cat(parts, dim=1) if parts else queries.new_zeros(2, 0)
        for k in RECALLS:
            hits = ((k - nearer) / tied).clamp(0, 1)
            found[f"{direction}_r{k}"] = 100 * float(hits.mean())
        ranks = nearer + (tied + 1) / 2
        found[f"{direction}_median_rank"] = float(ranks.quantile(0.5)) if len(ranks) else float("nan")
    return found


def _nearer_and_tied(queries: Tensor, items: Tensor, first: int) -> Tensor:
    """(2, n): for each query of a chunk how many items are nearer than its own, and how many as near (its own too)."""
    similarity = queries[first : first + CHUNK] @ items.T  # n x N
    own = torch.arange(first, first + len(similarity), device=similarity.device)
    mine = similarity.gather(1, own[:, None])
    # negated, so that a similarity which is not a number counts against the query
    nearer = (~(similarity <= mine + TIE)).sum(1)
    tied = (~(similarity < mine - TIE)).sum(1) - nearer
    return torch.stack([nearer.clamp(max=len(items) - 1), tied.clamp(min=1)]).float()


def _check_pairs(video: Tensor, text: Tensor) -> None:
    if video.ndim != 2 or video.shape != text.shape:
        raise ModuleShapeError(
            f"expected as many embeddings of videos as of texts, (N, D) each; got {shape(video)} and {shape(text)}"
        )
