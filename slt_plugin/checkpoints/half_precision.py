"""Exact resume in bf16 and fp16: a hook onto fairseq 0.12.3's optimizers, put in place by ``install()``.

With ``common.bf16`` or ``common.fp16`` the optimizer works on float32 copies of the weights, and a checkpoint holds the
rounded weights alone: after a resume the copies start from these, and what was too small to show in them is lost. So
the copies, and the counters of the loss scale, become part of the optimizer's state. ``tests/test_half_precision.py``
pins the source of what is wrapped and fails when another fairseq is installed.
"""

import functools

import torch
from fairseq.optim import fp16_optimizer
from torch import Tensor

from slt_plugin.checkpoints.errors import CheckpointError

WEIGHTS, SCALER = "fp32_weights", "loss_scaler"  # keys in the optimizer's state
SCALER_COUNTERS = ("_iter", "_last_overflow_iter", "_last_rescale_iter", "_overflows_since_rescale")

_Mixin = fp16_optimizer._FP16OptimizerMixin
_fairseq_state_dict = _Mixin.state_dict
_fairseq_load_state_dict = _Mixin.load_state_dict


def install() -> None:
    """Puts the hooks in place; calling it again changes nothing."""
    _Mixin.state_dict = state_dict
    _Mixin.load_state_dict = load_state_dict


def _copies(optimizer) -> list[Tensor]:
    """The float32 weights: one for each parameter, or one flat tensor a device."""
    weights = optimizer.fp32_params
    if isinstance(weights, dict):
        return list(weights.values())
    return [weights] if torch.is_tensor(weights) else list(weights)


@functools.wraps(_fairseq_state_dict)
def state_dict(self):
    """Adds the float32 weights and the loss scale's counters."""
    state = _fairseq_state_dict(self)
    state[WEIGHTS] = [weight.detach() for weight in _copies(self)]
    if self.scaler is not None:
        state[SCALER] = {name: getattr(self.scaler, name) for name in SCALER_COUNTERS}
    return state


@functools.wraps(_fairseq_load_state_dict)
def load_state_dict(self, state_dict, optimizer_overrides=None):
    """Sets them again; a checkpoint without them leaves the copies of the rounded weights.

    Raises:
        CheckpointError: weights of other shapes, as after a change of ``common.fp16_no_flatten_grads``.
    """
    _fairseq_load_state_dict(self, state_dict, optimizer_overrides)
    stored = state_dict.get(WEIGHTS)
    if stored is not None:
        own = _copies(self)
        if [weight.shape for weight in own] != [weight.shape for weight in stored]:
            raise CheckpointError(
                "the checkpoint's optimizer holds float32 weights in another form: resume with its "
                "common.fp16_no_flatten_grads, or start from its weights with checkpoint.finetune_from_model"
            )
        with torch.no_grad():
            for weight, value in zip(own, stored, strict=True):
                weight.copy_(value)
    if self.scaler is not None:
        for name, value in state_dict.get(SCALER, {}).items():
            setattr(self.scaler, name, value)
