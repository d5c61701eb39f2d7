"""Shares of learning rate and weight decay: fairseq's Adam follows them, through schedules, bf16 and resume."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf
from torch import nn

from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import (
    NAME,
    AdamGroups,
    AdamGroupsConfig,
    lr_scale,
    no_weight_decay,
    scale_lr,
    set_lr_scales,
    weight_decay_scale,
)
from slt_plugin.tasks.checks import check_parameter_groups


def layers() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(3, 3) for _ in range(4))


def config(cls=AdamGroupsConfig, lr: float = 0.1):
    return OmegaConf.merge(OmegaConf.structured(cls), {"lr": [lr], "tpu": False, "weight_decay": 0.01})


def marked() -> tuple[nn.ModuleList, AdamGroups]:
    """Layers 0 to 2 are an encoder with decay 0.5, layer 3 is the rest of the model."""
    model = layers()
    set_lr_scales(zip((0.25, 0.5, 1.0), (layer.parameters() for layer in model[:3]), strict=True))
    return model, AdamGroups(config(), list(model.parameters()))


def one_step(model: nn.ModuleList, optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.3)
    optimizer.step()


def test_each_layer_moves_by_its_rate():
    model, optimizer = marked()
    before = copy.deepcopy(model)
    optimizer.set_lr(0.2)
    assert optimizer.get_lr() == pytest.approx(0.2)
    one_step(model, optimizer)
    for i, rate in enumerate((0.05, 0.1, 0.2, 0.2)):
        alone = before[i]
        reference = FairseqAdam(config(FairseqAdamConfig, rate), list(alone.parameters()))
        one_step(nn.ModuleList([alone]), reference)
        torch.testing.assert_close(model[i].weight, alone.weight)


def test_without_marks_it_is_fairseqs_adam():
    model, other = layers(), layers()
    one_step(model, AdamGroups(config(), list(model.parameters())))
    one_step(other, FairseqAdam(config(FairseqAdamConfig), list(other.parameters())))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_continues_with_the_rates():
    model, optimizer = marked()
    one_step(model, optimizer)
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    one_step(model, optimizer)
    resumed, again = marked()
    resumed.load_state_dict(weights)
    again.load_state_dict(state, {"lr": 0.1})
    assert [group["lr"] for group in again.param_groups] == pytest.approx([0.1, 0.05, 0.025])
    one_step(resumed, again)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("precision", "no_flatten"), [("bf16", False), ("fp16", True)])
def test_half_precision_keeps_the_rates(precision, no_flatten):
    model, _ = marked()
    model.bfloat16()  # fp16 has no CPU kernels; the optimizer does not mind
    common = {"bf16": precision == "bf16", "fp16": precision == "fp16", "amp": False}
    cfg = OmegaConf.create({
        "common": {**common, "fp16_no_flatten_grads": no_flatten, "fp16_init_scale": 4, "fp16_scale_window": 128,
                   "fp16_scale_tolerance": 0.0, "threshold_loss_scale": None, "min_loss_scale": 1e-4,
                   "model_parallel_size": 1},
        "optimizer": {**config(), "_name": NAME},
        "distributed_training": {"distributed_world_size": 1}, "optimization": {"update_freq": [1]},
    })  # fmt: skip
    optimizer = FP16Optimizer.build_optimizer(cfg, list(model.parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05, 0.025])
    model.cfg = SimpleNamespace(signhiera_lr_decay=0.5)
    check_parameter_groups(model, optimizer)


def test_flattened_half_precision_is_refused():
    """fairseq joins all fp16 weights to one without marks (on a GPU, which is why it is made by hand here)."""
    flat = AdamGroups(config(), [nn.Parameter(torch.zeros(36))])
    model, _ = marked()
    model.cfg = SimpleNamespace(signhiera_lr_decay=0.5)
    with pytest.raises(OptionError, match="fp16_no_flatten_grads=true"):
        check_parameter_groups(model, flat)


def test_an_optimizer_that_would_ignore_the_decay_is_refused():
    model, _ = marked()
    plain = SimpleNamespace(param_groups=[{"lr": 0.1, "params": list(model.parameters())}])
    unmarked = layers()
    check_parameter_groups(unmarked, plain)
    model.cfg = SimpleNamespace(lr_scales="source_encoder=0.1", signhiera_lr_decay=0.9)
    with pytest.raises(OptionError, match=rf"lr_scales=source_encoder=0.1 needs optimizer._name={NAME}"):
        check_parameter_groups(model, plain)
    model.requires_grad_(False)  # what is not trained needs no rate
    check_parameter_groups(model, plain)


def test_rates_of_parts():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    parts = {"first": "a", "second": "b"}
    set_lr_scales([(0.5, model["a"].parameters())])
    scale_lr(model, parts, "first=0.1, second=2")
    assert [lr_scale(p) for p in model.parameters()] == pytest.approx([0.05, 0.05, 2, 2])
    for spec in ("third=1", "first=0", "first=x", "first"):
        with pytest.raises(
            OptionError, match=f"cannot read '{spec}'; expected part=number above 0, parts: first, second"
        ):
            scale_lr(model, parts, spec)


def exempt() -> nn.ModuleList:
    """All biases without weight decay, on top of the learning rates of `marked`."""
    model, _ = marked()
    no_weight_decay(layer.bias for layer in model)
    return model


def test_marks_add_up():
    model = exempt()
    assert [lr_scale(layer.bias) for layer in model] == [0.25, 0.5, 1, 1]
    assert [weight_decay_scale(layer.bias) for layer in model] == [0] * 4
    assert [weight_decay_scale(layer.weight) for layer in model] == [1] * 4
    set_lr_scales([(0.1, [model[3].bias])])
    assert (lr_scale(model[3].bias), weight_decay_scale(model[3].bias)) == (0.1, 0)


def test_exempt_parameters_do_not_decay():
    """With no gradient the weights shrink by rate * decay, and the biases stay."""
    model = exempt()
    before = copy.deepcopy(model)
    optimizer = AdamGroups(config(), list(model.parameters()))
    assert len(optimizer.param_groups) == 6
    optimizer.set_lr(0.2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, old, rate in zip(model, before, (0.05, 0.1, 0.2, 0.2), strict=True):
        assert torch.equal(layer.bias, old.bias)
        torch.testing.assert_close(layer.weight, old.weight * (1 - 0.01 * rate))


def test_overriding_the_weight_decay_at_a_resume_keeps_the_exemption():
    optimizer = AdamGroups(config(), list(exempt().parameters()))
    again = AdamGroups(config(), list(exempt().parameters()))
    again.load_state_dict(optimizer.state_dict(), {"weight_decay": 0.5})
    assert sorted(group["weight_decay"] for group in again.param_groups) == [0, 0, 0, 0.5, 0.5, 0.5]


def test_an_optimizer_that_would_decay_everything_is_refused():
    model = layers()
    no_weight_decay(layer.bias for layer in model)
    check_parameter_groups(model, AdamGroups(config(), list(model.parameters())))
    flat = AdamGroups(config(), [nn.Parameter(torch.zeros(48))])  # as fairseq's flattened fp16
    for optimizer in (FairseqAdam(config(FairseqAdamConfig), list(model.parameters())), flat):
        with pytest.raises(OptionError, match=rf"\(4 parameters\).*_name={NAME}.*fp16_no_flatten_grads=true"):
            check_parameter_groups(model, optimizer)
    no_decay = OmegaConf.merge(config(FairseqAdamConfig), {"weight_decay": 0.0})
    check_parameter_groups(model, FairseqAdam(no_decay, list(model.parameters())))
