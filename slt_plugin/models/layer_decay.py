"""Learning rates of parts, and layer-wise decay (BEiT, Bao et al., 2022): the earlier a layer, the less it changes."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import nn

from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

NAME = "adam_layer_decay"


def set_lr_scales(groups: Iterable[tuple[float, Iterable[nn.Parameter]]]) -> None:
    """Marks parameters with their share of the learning rate.

    The mark is fairseq's ``optim_overrides``, which its fp16 and bf16 optimizers copy to their fp32 weights.
    """
    for scale, group in groups:
        for parameter in group:
            parameter.optim_overrides = {"optimizer": {"lr_scale": scale}}


def lr_scale(parameter: nn.Parameter) -> float:
    """Its share of the learning rate."""
    return getattr(parameter, "optim_overrides", {}).get("optimizer", {}).get("lr_scale", 1.0)


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


@dataclass
class AdamLayerDecayConfig(FairseqAdamConfig):
    """The options of fairseq's adam."""


@register_optimizer(NAME, dataclass=AdamLayerDecayConfig)
class AdamLayerDecay(FairseqAdam):
    """fairseq's Adam (decoupled weight decay), with each parameter's learning rate multiplied by its ``lr_scale``."""

    def __init__(self, cfg: AdamLayerDecayConfig, params):
        groups = defaultdict(list)
        for parameter in params:
            groups[lr_scale(parameter)].append(parameter)
        # the full rate first: fairseq reads the learning rate from the first group
        ordered = sorted(groups.items(), reverse=True)
        super().__init__(cfg, [{"params": group, "lr_scale": scale} for scale, group in ordered])
        self.set_lr(self.optimizer_config["lr"])

    def get_lr(self) -> float:
        first = self.param_groups[0]
        return first["lr"] / first["lr_scale"]

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def load_state_dict(self, state_dict, optimizer_overrides=None) -> None:
        super().load_state_dict(state_dict, optimizer_overrides)
        if optimizer_overrides and "lr" in optimizer_overrides:
            self.set_lr(optimizer_overrides["lr"])
