"""GradNorm (Chen et al., 2018, arXiv 1711.02257): loss weights that let several tasks learn at one pace.

The gradient of GradNorm's own loss with respect to the weights has a closed form, so nothing is differentiated here.
"""

import logging
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Weights stay above it, which the paper does not say: with a negative one the training would raise that loss.
MIN_WEIGHT = 1e-3
_WARN_EVERY = 100  # steps, where every one of them is cut off


class GradNormStep(NamedTuple):
    """One step: GradNorm's loss, its derivative by each weight, and the new weights, which sum to their number.

    clamped: whether a weight would have fallen below MIN_WEIGHT.
    """

    loss: float
    derivatives: list[float]
    weights: list[float]
    clamped: bool


def gradnorm_step(
    weights: Sequence[float],
    losses: Sequence[float],
    initial_losses: Sequence[float],
    norms: Sequence[float],
    *,
    lr: float,
    alpha: float,
) -> GradNormStep:
    """One SGD step on the weights (Chen et al., 2018, section 3.2 and algorithm 1), in double precision.

    With the weighted norms G_i = w_i * norm_i and a task's share p_i of the sum of relative losses l_i = L_i / L_i(0),
    the loss is sum_i |G_i - (sum_j G_j) * p_i ** alpha|. The targets are constants, so the derivative by w_i is
    norm_i * sign(G_i - target_i). The paper's target, mean(G) * (l_i / mean(l)) ** alpha, is the same at alpha = 1; at
    another one this, as SSVP-SLT has it, is n ** (1 - alpha) times as large for n tasks.

    Args:
        weights, losses, initial_losses: of each task; losses are unweighted.
        norms: of each unweighted loss's gradient with respect to the parameters that the tasks share.
        lr: of the weights.
        alpha: how much slower tasks are pulled to the pace of the others; 0: all gradients are made alike large.
    """
    weighted = [w * norm for w, norm in zip(weights, norms, strict=True)]
    relative = [loss / first for loss, first in zip(losses, initial_losses, strict=True)]
    targets = [sum(weighted) * (one / sum(relative)) ** alpha for one in relative]
    differences = [g - target for g, target in zip(weighted, targets, strict=True)]
    derivatives = [norm * ((d > 0) - (d < 0)) for norm, d in zip(norms, differences, strict=True)]
    free = [w - lr * d for w, d in zip(weights, derivatives, strict=True)]
    moved = [max(w, MIN_WEIGHT) for w in free]
    scaled = [len(moved) * w / sum(moved) for w in moved]
    return GradNormStep(sum(map(abs, differences)), derivatives, scaled, min(free) < MIN_WEIGHT)


class GradNorm(nn.Module):
    """The weights of several losses, and what they were at the first step.

    They are buffers, so they are saved and resumed with the model and no optimizer touches them; they stay float32
    when the model is cast to bf16 or fp16, where steps of a learning rate of 1e-4 would vanish.
    """

    weights: Tensor  # (tasks,) float32
    initial_losses: Tensor  # (tasks,) float32
    started: Tensor  # () bool: whether there are initial losses

    def __init__(self, tasks: int = 2):
        super().__init__()
        self.register_buffer("weights", torch.ones(tasks))
        self.register_buffer("initial_losses", torch.zeros(tasks))
        self.register_buffer("started", torch.tensor(False))
        self._silent = 0  # steps until a weight that is cut off is worth a warning again

    def _apply(self, fn, recurse: bool = True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            # follows the model to its device, not to its precision; what was without values stays so
            self._buffers[name] = after.to(buffer.dtype) if buffer.is_meta else buffer.to(after.device)
        return self

    def step(self, losses: Tensor, norms: Tensor, *, lr: float, alpha: float = 1.0) -> bool:
        """Moves the weights once; the first losses that it sees are the initial ones.

        Ranks that call it with the same values stay equal. A norm of zero moves its task's weight by nothing but the
        renormalisation. Where a loss is not above zero (a contrastive loss over a single clip) or anything is not
        finite, nothing changes.

        Args:
            losses: (tasks,), unweighted. norms: (tasks,), see `gradnorm_step`.

        Returns:
            Whether there was a step.
        """
        current, sizes = losses.double().tolist(), norms.double().tolist()
        if not all(isfinite(x) for x in (*current, *sizes)) or min(current) <= 0:
            logger.warning("no GradNorm step: losses %s, gradient norms %s", current, sizes)
            return False
        if not self.started:
            self.initial_losses.copy_(losses)
            self.started.fill_(True)
        # as they are stored, so that a resumed run computes the same
        stored = self.weights.tolist(), self.initial_losses.tolist()
        step = gradnorm_step(stored[0], current, stored[1], sizes, lr=lr, alpha=alpha)
        self.weights.copy_(torch.tensor(step.weights))
        self._silent = max(0, self._silent - 1)
        if step.clamped and not self._silent:
            self._silent = _WARN_EVERY
            logger.warning(
                "GradNorm cut a weight off at %g: one step of rate %.3g with gradient norms %s moved the weights from "
                "%s to %s, so that one loss hardly counts any more. Lower criterion.gradnorm_lr to well below 1 / norm",
                MIN_WEIGHT, lr, _short(sizes), _short(stored[0]), _short(step.weights),
            )  # fmt: skip
        return True


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
