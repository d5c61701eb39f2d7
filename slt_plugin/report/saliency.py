"""What the landmarks of a pose do for a translation: each one over time, and whole parts taken away."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slt_plugin.data.landmarks import part_names
from slt_plugin.report.occlusion import token_log_probabilities

VALUES = 3  # of a landmark: x, y, present
GROUPS = {"hands": ("left_hand", "right_hand"), "face": ("face",), "body": ("body",)}


def landmark_saliency(models: Sequence, sample: dict, tokens: Tensor) -> Tensor:
    """(T, landmarks): how much each landmark at each step speaks for or against a translation, as an absolute value.

    Gradient times input (Shrikumar et al., 2016, "Not Just a Black Box") of the translation's log probability, added
    up over a landmark's values. A missing landmark is all zeros, so this is the first-order estimate of what would be
    lost if it were missing at that moment.

    Args:
        sample: a batch of one row on the models' device; tokens: (U,) the hypothesis with its end of sentence.
    """
    source = sample["net_input"]["src_tokens"].detach().clone().requires_grad_()  # 1 x T x 3P
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    tokens = tokens.long().to(source.device)
    previous = torch.cat([sample["start_tokens"][:1].to(tokens), tokens[:-1]])
    with torch.enable_grad():
        scores = token_log_probabilities(
            models, {**net_input, "src_tokens": source}, previous.unsqueeze(0), tokens.unsqueeze(0)
        )
        (gradient,) = torch.autograd.grad(scores.sum(), source)
    products = (gradient * source.detach())[0].float()  # T x 3P
    return products.unflatten(1, (-1, VALUES)).sum(2).abs().cpu()


def saliency_over_time(values: Tensor, times: Tensor, parts: Sequence[str], bins: int = 48) -> dict:
    """What the report draws: means over at most ``bins`` equal spans of time.

    Args:
        values: (T, landmarks), see `landmark_saliency`; times: (T,) seconds; parts: of the model's poses.
    """
    spans = torch.arange(len(values)) * min(bins, len(values)) // len(values)
    means = [values[spans == span].mean(0).tolist() for span in spans.unique()]
    starts = [float(times[int((spans == span).nonzero()[0])]) for span in spans.unique()]
    names = part_names(parts)
    return {
        "times": [round(start, 3) for start in starts],
        "landmarks": [name.partition(".")[2] for name in names],
        "parts": [name.partition(".")[0] for name in names],
        "values": [[float(f"{value:.3g}") for value in row] for row in means],
    }


def hidden_channels(parts: Sequence[str]) -> Mapping[str, list[int]]:
    """Channels of the source that belong to each of GROUPS; without groups that a model of these parts does not see, or
    sees alone."""
    names = part_names(parts)
    of_group = {}
    for group, members in GROUPS.items():
        numbers = [i for i, name in enumerate(names) if name.partition(".")[0] in members]
        if 0 < len(numbers) < len(names):
            of_group[group] = [VALUES * i + value for i in numbers for value in range(VALUES)]
    return of_group
