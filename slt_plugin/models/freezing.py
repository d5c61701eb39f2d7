"""Freezing parts of a model: for the whole training, or for its first updates."""

import logging
import re
from collections.abc import Mapping
from typing import ClassVar

from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import nn

from slt_plugin.models.errors import OptionError

logger = logging.getLogger(__name__)

SPEC = re.compile(r"(?P<part>[a-z_]+)(\.layers\.(?P<first>\d+)(-(?P<last>\d+))?)?")


class Freezing:
    """Mixin of models whose ``parts`` maps names that users know to submodules.

    ``borrowed`` maps parts to a submodule in them that is another part's: it is not frozen with them.
    """

    parts: ClassVar[Mapping[str, str]] = {}
    borrowed: ClassVar[Mapping[str, str]] = {}

    def freeze(self, spec: str, updates: int) -> None:
        """Freezes what ``spec`` names (see `select_parameters`): always, or with ``updates`` > 0 for so many updates.

        Raises:
            OptionError: an unknown part, or layers that the part does not have.
        """
        frozen = select_parameters(self, self.parts, spec, self.borrowed)
        self.frozen_updates = updates
        self._frozen_at_first: list[nn.Parameter] = []
        if updates > 0:
            # they stay in the optimizer, which is built once: the task drops their gradients for N updates
            self._frozen_at_first = frozen
        else:
            for parameter in frozen:
                parameter.requires_grad_(False)
        if frozen:
            duration = f"for {updates} updates" if updates > 0 else "always"
            logger.info("frozen %s: %s parameters in %s", duration, f"{sum(p.numel() for p in frozen):,}", spec)

    def drop_frozen_gradients(self, num_updates: int, optimizer) -> None:
        """Removes the gradients of what is frozen at update ``num_updates``: the optimizer then leaves it alone.

        Raises:
            OptionError: the optimizer keeps an fp32 copy of the weights, which weight decay would still change.
        """
        if num_updates >= self.frozen_updates or not self._frozen_at_first:
            return
        if isinstance(optimizer, FP16Optimizer):
            other = "fp32" if getattr(self, "overflows_in_fp16", False) else "common.amp=true"
            raise OptionError(
                "model.freeze_updates does not go with common.fp16 or common.bf16, whose optimizer decays frozen "
                f"weights too: use {other}, or train in two runs joined by checkpoint.finetune_from_model"
            )
        for parameter in self._frozen_at_first:
            parameter.grad = None


def select_parameters(
    model: nn.Module, parts: Mapping[str, str], spec: str, borrowed: Mapping[str, str] | None = None
) -> list[nn.Parameter]:
    """The parameters that ``spec`` names, without repetition.

    Args:
        parts: names that ``spec`` may hold -> submodules of the model.
        spec: comma-joined parts (``source_encoder``, ``text_decoder``, ...), each whole or narrowed to layers:
            ``text_decoder.layers.0-5``, ``text_encoder.layers.3``. Empty selects nothing.
        borrowed: submodules whose parameters their part leaves out.

    Raises:
        OptionError: an unknown part, or layers that the part does not have.
    """
    selected: dict[int, nn.Parameter] = {}
    for item in filter(None, (s.strip() for s in spec.split(","))):
        match = SPEC.fullmatch(item)
        if match is None or match["part"] not in parts:
            raise OptionError(
                f"model.freeze: cannot read {item!r}; expected one of {', '.join(parts)}, "
                "each optionally followed by layers such as text_decoder.layers.0-5"
            )
        module = model.get_submodule(parts[match["part"]])
        if match["first"] is not None:
            layers = getattr(module, "layers", getattr(module, "block", None))  # T5's layers are called block
            first, last = int(match["first"]), int(match["last"] or match["first"])
            if layers is None or not first <= last < len(layers):
                count = "no layers" if layers is None else f"layers 0-{len(layers) - 1}"
                raise OptionError(f"model.freeze: {item!r} names layers that do not exist; {match['part']} has {count}")
            module = nn.ModuleList(layers[i] for i in range(first, last + 1))
        others = set()
        if borrowed and match["part"] in borrowed:
            others = {id(p) for p in model.get_submodule(borrowed[match["part"]]).parameters()}
        selected.update((id(p), p) for p in module.parameters() if id(p) not in others)
    return list(selected.values())
