"""Marks of parameters that the optimizer ``adam_groups`` follows: shares of the learning rate and of the weight decay.

Shares of the rate: parts of a model, and layer-wise decay (BEiT, Bao et al., 2022): the earlier a layer, the less it
changes. Shares of the weight decay: none on biases, norms and position embeddings (MAE, He et al., 2022, appendix A).
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import nn

from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

NAME = "adam_groups"


def _mark(parameter: nn.Parameter, name: str, value: float) -> None:
    # fairseq's optim_overrides, which its fp16 and bf16 optimizers copy to their fp32 weights
    marks = getattr(parameter, "optim_overrides", {}).get("optimizer", {})
    parameter.optim_overrides = {"optimizer": {**marks, name: value}}


def _marked(parameter: nn.Parameter, name: str) -> float:
    return getattr(parameter, "optim_overrides", {}).get("optimizer", {}).get(name, 1.0)


def set_lr_scales(groups: Iterable[tuple[float, Iterable[nn.Parameter]]]) -> None:
    """Marks parameters with their share of the learning rate."""
    for scale, group in groups:
        for parameter in group:
            _mark(parameter, "lr_scale", scale)


def lr_scale(parameter: nn.Parameter) -> float:
    """Its share of the learning rate."""
    return _marked(parameter, "lr_scale")


def no_weight_decay(parameters: Iterable[nn.Parameter]) -> None:
    """Marks parameters that weight decay leaves alone."""
    for parameter in parameters:
        _mark(parameter, "weight_decay_scale", 0.0)


def weight_decay_scale(parameter: nn.Parameter) -> float:
    """Its share of the weight decay."""
    return _marked(parameter, "weight_decay_scale")


def scale_lr(model: nn.Module, parts: Mapping[str, str], spec: str) -> None:
    """Multiplies the marks of whole parts, on top of what is marked already.

    Args:
        parts: names that ``spec`` may hold -> submodules of the model.
        spec: ``source_encoder=0.1,text_decoder=0.01``; empty changes nothing.

    Raises:
        OptionError: an unknown part, or no positive number.
    """
    for item in filter(None, (s.strip() for s in spec.split(","))):
        part, _, value = item.partition("=")
        try:
            scale = float(value)
        except ValueError:
            scale = 0.0
        if part not in parts or not 0 < scale < float("inf"):
            raise OptionError(
                f"model.lr_scales: cannot read {item!r}; expected part=number above 0, parts: {', '.join(parts)} (what "
                "is not to be trained at all goes into model.freeze)"
            )
        parameters = list(model.get_submodule(parts[part]).parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            logger.warning("model.lr_scales: %s has nothing that is trained", part)
        for parameter in parameters:
            set_lr_scales([(scale * lr_scale(parameter), [parameter])])


def has_lr_scales(optimizer) -> bool:
    """Whether the optimizer follows marks of `set_lr_scales`: fairseq's fp16 optimizer loses them when it flattens."""
    return any(group.get("lr_scale", 1.0) != 1.0 for group in optimizer.param_groups)


def has_weight_decay_scales(optimizer) -> bool:
    """Whether the optimizer follows marks of `no_weight_decay`, or decays no weights at all."""
    groups = optimizer.param_groups
    return any(group.get("weight_decay_scale", 1.0) != 1.0 for group in groups) or not any(
        group.get("weight_decay", 0.0) for group in groups
    )


@dataclass
class AdamGroupsConfig(FairseqAdamConfig):
    """The options of fairseq's adam."""


@register_optimizer(NAME, dataclass=AdamGroupsConfig)
class AdamGroups(FairseqAdam):
    """fairseq's Adam (decoupled weight decay) that follows the marks of parameters.

    Each parameter's learning rate is multiplied by its ``lr_scale``, its weight decay by its ``weight_decay_scale``.
    """

    def __init__(self, cfg: AdamGroupsConfig, params):
        groups = defaultdict(list)
        for parameter in params:
            groups[lr_scale(parameter), weight_decay_scale(parameter)].append(parameter)
        # the full rate first: fairseq reads the learning rate from the first group
        ordered = sorted(groups.items(), reverse=True)
        super().__init__(
            cfg,
            [{"params": group, "lr_scale": lr, "weight_decay_scale": decay} for (lr, decay), group in ordered],
        )
        self.set_lr(self.optimizer_config["lr"])
        self._set_weight_decay(cfg.weight_decay)

    def get_lr(self) -> float:
        first = self.param_groups[0]
        return first["lr"] / first["lr_scale"]

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _set_weight_decay(self, weight_decay: float) -> None:
        for group in self.param_groups:
            group["weight_decay"] = weight_decay * group["weight_decay_scale"]

    def load_state_dict(self, state_dict, optimizer_overrides=None) -> None:
        super().load_state_dict(state_dict, optimizer_overrides)
        # fairseq gives the overrides to all groups alike
        if optimizer_overrides and "lr" in optimizer_overrides:
            self.set_lr(optimizer_overrides["lr"])
        if optimizer_overrides and "weight_decay" in optimizer_overrides:
            self._set_weight_decay(optimizer_overrides["weight_decay"])
