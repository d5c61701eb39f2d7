"""Training stops at the first loss or gradient that is no finite number, and says which rows it came from.

The error is raised before any weight is changed. It is a RuntimeError too, because fairseq's trainer writes a
``crash.pt`` for other errors, and for its own FloatingPointError repeats the update to look for the module: here the
last checkpoint is the one to go on from.
"""

import logging
import math
from collections.abc import Sequence

from fairseq.optim import AMPOptimizer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import listing

logger = logging.getLogger(__name__)


class NonFiniteError(SltError, RuntimeError):
    """A loss or gradient is NaN or infinite: the message names the rows of the batch and the update."""


def check_finite(sample: dict, loss: Tensor | float, when: str, gradients: Sequence[Tensor] = ()) -> None:
    """Raises NonFiniteError, and logs it, where the loss or a gradient is not finite.

    Args:
        sample: the batch, with ``row_ids``.
        when: of which update, for the message.
        gradients: also looked at, where the loss is finite.
    """
    value = float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
    if not math.isfinite(value):
        what = f"the loss is {value}"
    elif gradients and not math.isfinite(float(get_total_norm(gradients))):
        what = "the loss is finite, but its gradient is not"
    else:
        return
    rows = listing(list(dict.fromkeys(sample["row_ids"])), shown=64)
    message = (
        f"{when}: {what}, for rows {rows}. The weights are as before this batch, and the last checkpoint is not "
        "touched. Look at these rows; else lower optimization.lr or set optimization.clip_norm, and in half "
        "precision prefer common.bf16 to common.fp16"
    )
    logger.error(message)
    raise NonFiniteError(message)


def gradients_to_check(model: nn.Module, optimizer) -> list[Tensor]:
    """Gradients that have to be finite: none where a loss scale is still searched for, which overflows on purpose."""
    scaler = getattr(optimizer, "scaler", None)
    if isinstance(optimizer, AMPOptimizer):
        return []
    if scaler is not None and scaler.loss_scale / scaler.scale_factor > scaler.min_loss_scale:
        return []
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
