"""Guards against half precision where it is known to overflow."""

from fairseq.optim import AMPOptimizer
from torch import nn

from slt_plugin.models.errors import OptionError


class Fp16Guard:
    """Mixin of models: refuses ``common.fp16`` when ``overflows_in_fp16`` is true (T5 and its relatives)."""

    overflows_in_fp16 = False

    def half(self):
        """Casts to fp16, as the trainer and fairseq-generate do under ``common.fp16``.

        Raises:
            OptionError: this model's activations are known to leave the range of fp16.
        """
        if self.overflows_in_fp16:
            raise OptionError(_message(type(self).__name__, "common.fp16=true"))
        return super().half()


def check_autocast(model: nn.Module, optimizer) -> None:
    """Raises OptionError where fairseq's mixed precision (``common.amp``), which is fp16, would overflow."""
    if isinstance(optimizer, AMPOptimizer) and getattr(model, "overflows_in_fp16", False):
        raise OptionError(_message("this model", "common.amp=true"))


def _message(model: str, option: str) -> str:
    return (
        f"{model} overflows in fp16 (its loss becomes NaN after some updates): "
        f"use bf16 (common.bf16=true) or fp32 instead of {option}"
    )
