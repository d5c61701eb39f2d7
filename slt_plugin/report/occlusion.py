"""How the probability of a translation's words changes when stretches of the signing are hidden.

Hiding asks the model itself what it needs (Zeiler and Fergus, 2014, "Visualizing and Understanding Convolutional
Networks", section 4.2, for pictures), unlike cross-attention, whose states each mix many moments.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slt_plugin.data.step_times import steps_within

Stretch = tuple[float, float]  # start and end, in seconds from the row's start


class Timeline(NamedTuple):
    """times: (T,) seconds of each source step; seconds: of the whole row."""

    times: Tensor
    seconds: float


def hide_by_mean(source: Tensor, hidden: Tensor) -> Tensor:
    """``source`` (T, ...) with the steps of ``hidden`` (T,) as the mean of the others: no sign, but a usual signer."""
    if hidden.all():
        raise ValueError("nothing is left of the source")
    mean = source[~hidden].double().mean(0)
    return _filled(source, hidden, mean)


def hide_by_holding(source: Tensor, hidden: Tensor) -> Tensor:
    """``source`` with the hidden steps as the last visible one before each (at the start: the first after)."""
    visible = (~hidden).nonzero().squeeze(1)
    if len(visible) == 0:
        raise ValueError("nothing is left of the source")
    steps = torch.arange(len(source), device=source.device)
    before = torch.searchsorted(visible, steps, right=True) - 1
    return source[visible[before.clamp(min=0)]]


def _filled(source: Tensor, hidden: Tensor, value: Tensor) -> Tensor:
    filled = source.clone()
    filled[hidden] = (value if source.is_floating_point() else value.round()).to(source.dtype)
    return filled


class Occlusion:
    """One translation of one row.

    Args:
        models: of an ensemble, whose probabilities are averaged as in decoding.
        sample: a batch of this row alone, on the models' device.
        tokens: (U,) the hypothesis, with its end of sentence.
        owners: of each token, see `words_of_tokens`.
        timeline: of the source.
        max_steps: source steps of a batch of copies.
    """

    def __init__(
        self,
        models: Sequence,
        sample: dict,
        tokens: Tensor,
        owners: Sequence[int | None],
        timeline: Timeline,
        max_steps: int = 12_000,
    ):
        self.models, self.net_input = models, sample["net_input"]
        self.source = self.net_input["src_tokens"][0]
        self.timeline = Timeline(timeline.times.to(self.source.device), timeline.seconds)
        self.tokens = tokens.long().to(self.source.device)
        self.previous = torch.cat([sample["start_tokens"][:1].to(self.tokens), self.tokens[:-1]])
        self.owners, self.words = owners, 1 + max((owner for owner in owners if owner is not None), default=-1)
        self.copies = max(1, max_steps // len(self.source))
        self.whole = self._score(self.source.unsqueeze(0))[0]

    def drops(self, stretches: Sequence[Stretch], hide: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(stretches, words) nats of log probability that each word loses where a stretch is hidden."""
        found = []
        for first in range(0, len(stretches), self.copies):
            sources = [
                hide(self.source, steps_within(self.timeline.times, *stretch))
                for stretch in stretches[first : first + self.copies]
            ]
            found.append(self.whole - self._score(torch.stack(sources)))
        return torch.cat(found) if found else self.whole.new_zeros(0, self.words)

    def _score(self, sources: Tensor) -> Tensor:
        """(copies, words) log probabilities, the tokens before each word given."""
        count = len(sources)
        net_input = {
            name: value.expand(count, *value.shape[1:])
            for name, value in self.net_input.items()
            if name != "prev_output_tokens"
        }
        net_input["src_tokens"] = sources
        with torch.no_grad():
            scores = token_log_probabilities(
                self.models, net_input, self.previous.expand(count, -1), self.tokens.expand(count, -1)
            )
        words = scores.new_zeros(count, self.words)
        for position, owner in enumerate(self.owners):
            if owner is not None:
                words[:, owner] += scores[:, position]
        return words.cpu()


def token_log_probabilities(models: Sequence, net_input: dict, previous: Tensor, tokens: Tensor) -> Tensor:
    """(B, U) float64: log p(token | source, tokens before), the mean of the models' probabilities as in decoding.

    Args:
        net_input: source of fairseq's batch, without ``prev_output_tokens``.
        previous: (B, U) what the decoder is given.
        tokens: (B, U) what it is asked for.
    """
    of_models = []
    for model in models:
        encoder_out = model.encoder.forward_torchscript(net_input)
        output = model.decoder(previous, encoder_out=encoder_out)
        scores = model.get_normalized_probs(output, log_probs=True)
        of_models.append(scores.gather(2, tokens.unsqueeze(2)).squeeze(2).double())
    return torch.logsumexp(torch.stack(of_models), 0) - torch.log(torch.tensor(float(len(models)), dtype=torch.double))
