"""Gradients of several losses of a batch that is computed in parts: kept apart, then handed to the optimizer as one."""

from collections.abc import Callable, Sequence

import torch
from fairseq import utils
from torch import Tensor, nn


def cut_batch(net_input: dict, parts: int) -> list[dict]:
    """A batch in up to ``parts`` batches of consecutive clips that differ by one clip at most.

    Padding that a part does not need is cut off. Values are tensors or lists of B rows; ``src_tokens`` has time in
    dimension 1 and ``src_lengths`` steps of it.
    """
    lengths = net_input["src_lengths"]
    bounds = [len(piece) for piece in lengths.tensor_split(parts) if len(piece)]
    cut, first = [], 0
    for count in bounds:
        part = {name: value[first : first + count] for name, value in net_input.items()}
        part["src_tokens"] = part["src_tokens"][:, : int(part["src_lengths"].max())]
        cut.append(part)
        first += count
    return cut


class LossGradients:
    """The gradient of one loss: summed over parts of the batch, in float32.

    Attributes:
        sums: of each parameter; None where the loss has none.
        norm: of the gradients of ``shared`` parameters, the sum over parts: () float64.

    Args:
        parameters: all that are trained.
        shared: those of them that count for ``norm``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], shared: Sequence[nn.Parameter]):
        self.parameters = parameters
        self.sums: list[Tensor | None] = [None] * len(parameters)
        self.norm = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
        self._own: set[int] = set()  # sums that nothing else holds: autograd's may be each other's views
        self._number = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._shared = [self._number[id(parameter)] for parameter in shared]

    def add(self, outputs: Sequence[Tensor], derivatives: Sequence[Tensor], *, keep_graph: bool) -> None:
        """Adds the gradient of a part, whose ``outputs`` have these derivatives.

        Hooks of the parameters do not run, so nothing is reduced over ranks yet.
        """
        derivatives = [d.to(x.dtype) for x, d in zip(outputs, derivatives, strict=True)]
        found = torch.autograd.grad(
            list(outputs), list(self.parameters), derivatives, retain_graph=keep_graph, allow_unused=True
        )
        found = [None if gradient is None else gradient.float() for gradient in found]
        shared = [found[i] for i in self._shared if found[i] is not None]
        if shared:
            self.norm += torch.stack(torch._foreach_norm(shared)).double().norm()
        for i, gradient in enumerate(found):
            if gradient is not None:
                self._add(i, gradient)

    def add_directly(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Adds a gradient of one parameter that is known already."""
        self._add(self._number[id(parameter)], gradient.reshape(parameter.shape).float())

    def _add(self, i: int, gradient: Tensor) -> None:
        """Allocates at the second part of a batch only."""
        if self.sums[i] is None:
            self.sums[i] = gradient
        elif i in self._own:
            self.sums[i] += gradient
        else:
            self.sums[i] = self.sums[i] + gradient
            self._own.add(i)


def hand_over(
    loss: Tensor, losses: Sequence[LossGradients], factors: Sequence[float], backward: Callable[[Tensor], None]
) -> None:
    """Adds ``sum_i factors[i] * losses[i]`` to the gradients of all parameters, zeros where a loss has none.

    By a backward pass of the optimizer's own, because its loss scaling, and the hooks with which PyTorch's
    DistributedDataParallel sums over ranks, are in there.

    Args:
        loss: what the pass starts from, (); its value does not matter.
        backward: the optimizer's.
    """
    parameters = losses[0].parameters
    gradients = []
    for i, parameter in enumerate(parameters):
        parts = [factor * one.sums[i] for one, factor in zip(losses, factors, strict=True) if one.sums[i] is not None]
        gradients.append(sum(parts[1:], parts[0]).to(parameter.dtype) if parts else torch.zeros_like(parameter))
    backward(_WithGradients.apply(loss, gradients, *parameters))


class _WithGradients(torch.autograd.Function):
    """A scalar whose derivatives by the parameters are given."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        del parameters
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, derivative: Tensor):
        return (None, None, *(gradient * derivative for gradient in ctx.gradients))


class Replayed:
    """Random draws of a first pass, to be made again in a second one."""

    def __init__(self) -> None:
        self._states: list[dict] = []

    def record(self) -> None:
        """Before a part of the first pass."""
        self._states.append(utils.get_rng_state())

    def replay(self, part: int) -> None:
        """Before a part of the second pass."""
        utils.set_rng_state(self._states[part])
