"""GradNorm against values of the reference and against autograd; its buffers through precision, device and files."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from slt_plugin.modules.gradnorm import MIN_WEIGHT, GradNorm, gradnorm_step

GOLDEN = json.loads((Path(__file__).parent / "golden/gradnorm.json").read_text())
TASKS = ("mae", "contrastive")


def of_tasks(case: dict, form: str) -> list[float]:
    return [case[form.format(task)] for task in TASKS]


def golden_step(case: dict):
    return gradnorm_step(
        of_tasks(case, "{}_weight"),
        of_tasks(case, "{}_loss"),
        of_tasks(case, "initial_{}_loss"),
        of_tasks(case, "{}_grad_norm"),
        lr=case["lr"],
        alpha=case["alpha"],
    )


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_values(case):
    step = golden_step(case)
    assert step.loss == pytest.approx(case["gradnorm_loss"], rel=1e-5)
    assert step.derivatives == pytest.approx(of_tasks(case, "d_{}_weight"), rel=1e-5)
    assert step.weights == pytest.approx(of_tasks(case, "{}_weight_after_sgd_and_rescale"), rel=1e-6)
    assert sum(step.weights) == pytest.approx(2)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_module_steps_to_the_golden_weights(case):
    module = GradNorm()
    module.initial_losses.copy_(torch.tensor(of_tasks(case, "initial_{}_loss")))
    module.weights.copy_(torch.tensor(of_tasks(case, "{}_weight")))
    module.started.fill_(True)
    losses, norms = (torch.tensor(of_tasks(case, form)) for form in ("{}_loss", "{}_grad_norm"))
    assert module.step(losses, norms, lr=case["lr"], alpha=case["alpha"])
    assert module.weights.tolist() == pytest.approx(of_tasks(case, "{}_weight_after_sgd_and_rescale"), rel=1e-6)
    assert module.initial_losses.tolist() == pytest.approx(of_tasks(case, "initial_{}_loss"))


def test_derivatives_are_those_of_a_network():
    """Three tasks: the norms of weighted losses differentiated through, the targets held (Chen et al., 2018)."""
    torch.manual_seed(0)
    shared = torch.randn(5, requires_grad=True)
    weights = torch.tensor([0.5, 1.5, 1.0], requires_grad=True)
    losses = torch.stack([(shared * torch.randn(5)).square().sum() for _ in range(3)])
    initial = torch.tensor([1.0, 9.0, 2.0])
    weighted = torch.stack(
        [
            torch.autograd.grad(w * loss, shared, create_graph=True)[0].norm()
            for w, loss in zip(weights, losses, strict=True)
        ]
    )
    relative = losses.detach() / initial
    target = weighted.detach().mean() * relative / relative.mean()  # the paper's form, alpha = 1
    plain = (weighted - target).abs().sum()
    norms = [torch.autograd.grad(loss, shared, retain_graph=True)[0].norm().item() for loss in losses]
    plain.backward()
    step = gradnorm_step(weights.tolist(), losses.tolist(), initial.tolist(), norms, lr=0.001, alpha=1.0)
    assert step.loss == pytest.approx(plain.item(), rel=1e-5)
    assert step.derivatives == pytest.approx(weights.grad.tolist(), rel=1e-5)
    moved = weights.detach() - 0.001 * weights.grad
    assert step.weights == pytest.approx((3 * moved / moved.sum()).tolist(), rel=1e-6)


def test_first_losses_are_kept_and_the_slower_task_gains():
    module = GradNorm()
    assert not module.started
    assert module.step(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0]), lr=0.1)
    assert module.weights.tolist() == [1.0, 1.0]  # alike fast, alike large
    assert module.started and module.initial_losses.tolist() == [2.0, 4.0]
    assert module.step(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]), lr=0.1)
    assert module.initial_losses.tolist() == [2.0, 4.0]
    assert module.weights[1] > 1 > module.weights[0] and module.weights.sum() == 2


@pytest.mark.parametrize(
    ("losses", "norms"),
    [([1.0, 0.0], [1.0, 1.0]), ([1.0, float("nan")], [1.0, 1.0]), ([1.0, 1.0], [float("inf"), 1.0])],
    ids=["a loss of zero", "a loss that is not finite", "a norm that is not finite"],
)
@pytest.mark.parametrize("started", [False, True])
def test_values_without_a_step(losses, norms, started, caplog):
    module = GradNorm()
    if started:
        module.step(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0]), lr=0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert not module.step(torch.tensor(losses), torch.tensor(norms), lr=0.1)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert "no GradNorm step" in caplog.text


def test_norms_of_zero_and_large_ones():
    step = gradnorm_step([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 2.0], lr=0.1, alpha=1.0)
    assert step.derivatives == [0.0, 2.0]  # nothing to learn from the first
    assert step.weights == pytest.approx([2 / 1.8, 1.6 / 1.8])
    assert gradnorm_step([0.5, 1.5], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0], lr=0.1, alpha=1.0).weights == [0.5, 1.5]
    step = gradnorm_step([1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1e6], lr=0.1, alpha=1.0)
    assert min(step.weights) > 0 and step.weights[1] == pytest.approx(2 * MIN_WEIGHT / (1.1 + MIN_WEIGHT))


def test_a_weight_that_is_cut_off_is_said_now_and_then(caplog):
    """One step of a large rate leaves a loss without weight, which nothing else in the log explains."""
    module = GradNorm()
    losses, norms = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 300.0])
    module.step(losses, torch.tensor([1.0, 2.0]), lr=0.01)
    assert not caplog.records
    for _ in range(100):
        module.weights.fill_(1.0)
        module.step(losses, norms, lr=0.01)
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelname == "WARNING" and "criterion.gradnorm_lr" in line and str(MIN_WEIGHT) in line
    assert "gradient norms 1, 300 moved the weights from 1, 1 to 2, 0.00198" in line and "rate 0.01 " in line
    module.weights.fill_(1.0)
    module.step(losses, norms, lr=0.01)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.double(),
    ],
    ids=["half", "bfloat16", "to", "double"],
)
def test_precision_of_the_model_leaves_it_alone(cast):
    model = nn.ModuleDict({"layer": nn.Linear(2, 2), "gradnorm": GradNorm()})
    gradnorm = model["gradnorm"]
    gradnorm.step(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0001]), lr=1e-4)
    gradnorm.step(torch.tensor([2.9999, 2.0]), torch.tensor([1.0, 2.0001]), lr=1e-4)
    before = {name: value.clone() for name, value in gradnorm.state_dict().items()}
    assert before["weights"][0] != 1 and before["weights"].bfloat16().float()[0] != before["weights"][0]
    cast(model)
    assert model["layer"].weight.dtype != torch.float32
    for name, value in gradnorm.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    model["layer"].to(torch.float32)
    again = nn.ModuleDict({"layer": nn.Linear(2, 2), "gradnorm": GradNorm()})
    again.load_state_dict(cast(model).state_dict())
    assert torch.equal(again["gradnorm"].weights, before["weights"]) and again["gradnorm"].started


def test_devices_without_values():
    with torch.device("meta"):
        module = GradNorm()
    assert module.bfloat16().weights.is_meta
    assert module.to_empty(device="cpu").weights.dtype == torch.float32
    assert GradNorm().to("meta").started.dtype == torch.bool


def test_nothing_for_an_optimizer():
    assert not list(GradNorm().parameters()) and set(GradNorm().state_dict()) == {
        "weights",
        "initial_losses",
        "started",
    }
