"""Criterion mae_contrastive: gradients of the whole batch, parts and ranks, GradNorm, retrieval, refusals."""

import math
import socket
from types import SimpleNamespace

import pytest
import torch
from clip_helpers import adam, clip_batch, clip_criterion, clip_model, gradients, update, write_bert
from clip_ranks import SCENARIOS, SHARES, train, validate
from conftest import ROOT, run_command
from fairseq.logging import metrics
from fairseq.optim import AMPOptimizer
from fairseq.trainer import Trainer
from torch import nn

from slt_plugin.criterions import mae_contrastive
from slt_plugin.criterions.accumulation import LossGradients, cut_batch
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import TrainingLength, announce
from slt_plugin.modules.contrastive import contrastive_loss, retrieval_metrics
from slt_plugin.modules.gradnorm import gradnorm_step

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("tower") / "bert")


@pytest.fixture(scope="module")
def ranks(tower, tmp_path_factory):
    """What the four processes of clip_ranks.py computed."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = ROOT / "tests/clip_ranks.py"
    run_command("torchrun", "--nproc-per-node", "4", "--master-port", port, script, tower, out)
    return [torch.load(out / f"{rank}.pt") for rank in range(4)]


def joined(name: str) -> dict:
    return clip_batch(sum(SHARES[name]))


def plain_losses(model, sample):
    """Both losses of a batch, through one plain forward pass."""
    output = model(**sample["net_input"])
    return output.mae_sum / output.patches, contrastive_loss(output.video, output.text, model.logit_scale)


def encoder_norm(model, loss) -> float:
    parameters = list(model.mae.encoder.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None))


def assert_same(found: dict, wanted: dict, **tolerance) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **(tolerance or CLOSE), msg=lambda m, n=name: f"{n}: {m}")


# gradients


@pytest.mark.parametrize("steps", [1, 3, 20])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.7, 0.3)])
def test_gradient_is_that_of_the_weighted_losses(tower, steps, weights):
    model, sample = clip_model(tower), clip_batch(7)
    model.gradnorm.weights.copy_(torch.tensor(weights))
    mae, contrastive = plain_losses(model, sample)
    (weights[0] * mae + weights[1] * contrastive).backward()
    wanted = gradients(model)
    logged = update(model, clip_criterion(accumulation_steps=steps), adam(model), sample, 0)
    assert_same(gradients(model), wanted)
    assert logged["size"] == 7 and logged["mae"] / logged["patches"] == pytest.approx(mae.item(), rel=1e-5)
    assert logged["contrastive"] / 7 == pytest.approx(contrastive.item(), rel=1e-5)
    assert logged["loss"] / 7 == pytest.approx(weights[0] * mae.item() + weights[1] * contrastive.item(), rel=1e-5)
    assert wanted["logit_scale"].abs() > 0 and wanted["mae.decoder_pred.weight"].abs().max() > 0
    assert {name.split(".")[0] for name in wanted} >= {"mae", "text_tower", "video_projection", "text_projection"}


def test_gradnorm_takes_norms_of_unweighted_losses_over_the_encoder(tower):
    model, sample = clip_model(tower), clip_batch(6)
    first = update(model, clip_criterion(), adam(model), sample, 0)
    losses = [first["mae"] / first["patches"], first["contrastive"] / 6]
    model.gradnorm.initial_losses.copy_(torch.tensor([0.5, 4.0]))
    model.gradnorm.weights.copy_(torch.tensor([0.8, 1.2]))
    norms = [encoder_norm(model, loss) for loss in plain_losses(model, sample)]
    criterion = clip_criterion(gradnorm_alpha=0.5, gradnorm_lr=0.02, gradnorm_min_lr=0.02)
    logged = update(model, criterion, adam(model), sample, 1)
    with metrics.aggregate() as shown:
        criterion.reduce_metrics([logged])
    values = shown.get_smoothed_values()
    assert [values["norm_mae"], values["norm_contrastive"]] == pytest.approx(norms, abs=1e-4)
    assert [values["weight_mae"], values["weight_contrastive"]] == pytest.approx([0.8, 1.2])  # before its step
    step = gradnorm_step([0.8, 1.2], losses, [0.5, 4.0], norms, lr=0.02, alpha=0.5)
    assert model.gradnorm.weights.tolist() == pytest.approx(step.weights, rel=1e-5)
    assert abs(step.weights[0] - 0.8) > 1e-3


def test_norms_of_parts_are_summed(tower):
    """Norms of what each part adds to the whole batch's losses."""
    model, sample = clip_model(tower), clip_batch(5)
    parts = cut_batch(sample["net_input"], 2)
    outputs = [model(**part) for part in parts]
    patches = sum(output.patches for output in outputs)
    videos, texts = [[getattr(output, side) for output in outputs] for side in ("video", "text")]
    mae = sum(encoder_norm(model, output.mae_sum / patches) for output in outputs)
    contrastive = 0.0
    for i in range(2):
        only = [video if j == i else video.detach() for j, video in enumerate(videos)]
        contrastive += encoder_norm(
            model, contrastive_loss(torch.cat(only), torch.cat(texts).detach(), model.logit_scale)
        )
    seen = []
    model.gradnorm.step = lambda losses, norms, **_: seen.append(norms.tolist())
    update(model, clip_criterion(accumulation_steps=2), adam(model), sample, 0)
    assert seen[0] == pytest.approx([mae, contrastive], rel=1e-5)


def test_gradients_of_parts_that_share_memory():
    """Autograd hands out one tensor for both terms of a sum, and the caller's own derivative: neither is added to."""
    a, b = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    found, derivative = LossGradients([a, b], [a]), torch.tensor([1.0, 2.0, 3.0])
    for times in range(1, 5):
        found.add([a + b], [derivative], keep_graph=False)
        for one in found.sums:
            assert one.tolist() == [times * x for x in (1.0, 2.0, 3.0)]
    found.add_directly(b, torch.ones(3))
    assert found.sums[0].tolist() == [4, 8, 12] and found.sums[1].tolist() == [5, 9, 13]
    assert derivative.tolist() == [1, 2, 3] and found.norm.item() == pytest.approx(4 * 14**0.5)


def test_a_batch_is_cut_without_its_padding():
    sample = clip_batch(7)["net_input"]
    parts = cut_batch(sample, 3)
    assert [len(part["texts"]) for part in parts] == [3, 2, 2]
    assert [part["src_tokens"].shape[1] for part in parts] == [int(part["src_lengths"].max()) for part in parts]
    assert [text for part in parts for text in part["texts"]] == sample["texts"]
    assert torch.equal(torch.cat([part["mask_seeds"] for part in parts]), sample["mask_seeds"])
    assert len(cut_batch(sample, 20)) == 7


def test_both_passes_drop_the_same(tower, tmp_path):
    dropping = write_bert(tmp_path / "bert", dropout=0.3)
    model, sample = clip_model(dropping, drop_path=0.5), clip_batch(6)
    seen = []
    model.register_forward_hook(lambda _, __, output: seen.append(output))
    criterion = clip_criterion(accumulation_steps=2)
    update(model, criterion, adam(model), sample, 0)
    first, second = seen[:2], seen[2:]
    assert len(second) == 2 and not first[0].video.requires_grad and second[0].video.requires_grad
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.video, b.video, **CLOSE)
        torch.testing.assert_close(a.text, b.text, **CLOSE)
    update(model, criterion, adam(model), sample, 1)  # another draw: else there was nothing to repeat
    assert (seen[4].video - first[0].video).abs().max() > 1e-3 and (seen[4].text - first[0].text).abs().max() > 1e-3
    assert first[0].mae_sum is None  # the first pass decodes nothing


def test_no_loss_is_left_out_of_the_model(tower):
    for options in ({"no_mae": True}, {"no_contrastive": True}):
        model, sample = clip_model(tower, **options), clip_batch(4)
        mae, contrastive = plain_losses(clip_model(tower), sample)
        full = clip_model(tower)
        losses = plain_losses(full, sample)
        losses[0 if options.get("no_contrastive") else 1].backward()
        logged = update(model, clip_criterion(**options), adam(model), sample, 0)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        found, wanted = gradients(model), gradients(full)
        assert set(found) == trained == set(wanted)
        assert_same(found, wanted)
        assert model.gradnorm.weights.tolist() == [1, 1] and not model.gradnorm.started
        assert not {"weight_mae", "weight_contrastive"} & set(logged)
        loss = mae if options.get("no_contrastive") else contrastive
        assert logged["loss"] / logged["size"] == pytest.approx(loss.item(), rel=1e-5)
        decoder = any(name.startswith("mae.decoder") for name in trained)
        text = any(name.startswith("text_") or name == "logit_scale" for name in trained)
        assert (decoder, text) == ((False, True) if options.get("no_mae") else (True, False))


def test_without_contrastive_loss_it_is_sign_mae(tower):
    """The same sums as those that fairseq's criterion ``model`` takes from sign_mae: update_freq is exact too."""
    model, sample = clip_model(tower, no_contrastive=True), clip_batch(4)
    criterion = clip_criterion(no_contrastive=True, update_freq=[2])
    assert not criterion.needs_texts and clip_criterion().needs_texts
    sample["net_input"].pop("texts")
    _, size, _ = criterion.accumulate_gradients(model.train(), sample, adam(model), update_num=0)
    output = model(**sample["net_input"], embed=False)
    assert size == output.patches
    found = gradients(model)
    model.zero_grad()
    output.mae_sum.backward()
    assert_same(found, gradients(model), rtol=1e-4, atol=1e-4)


def test_no_mae_does_not_decode(tower, monkeypatch):
    model = clip_model(tower, no_mae=True)
    monkeypatch.setattr(model.mae, "_decode", lambda *_: pytest.fail("decoded"))
    update(model, clip_criterion(no_mae=True), adam(model), clip_batch(3), 0)


def test_a_frozen_text_tower_stays(tower, tmp_path):
    dropping = write_bert(tmp_path / "bert", dropout=0.3)
    model = clip_model(dropping, freeze_text_tower=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adam(model, lr=0.1)
    update(model, clip_criterion(), optimizer, clip_batch(3), 0)
    optimizer.step()
    moved = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "text_projection" in moved and "text_tower" not in moved
    assert not model.train().text_tower.training and model.mae.training


def test_a_single_clip_has_no_contrastive_gradient(tower, caplog):
    model = clip_model(tower)
    update(model, clip_criterion(), adam(model), clip_batch(1), 0)
    found = gradients(model)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert not found["text_projection.fc1.weight"].any() and found["mae.decoder_pred.weight"].any()
    assert not model.gradnorm.started and "no GradNorm step" in caplog.text


def test_bf16_keeps_gradnorm_in_float32(tower):
    model = clip_model(tower).bfloat16()
    logged = update(model, clip_criterion(), adam(model), clip_batch(4), 0)
    update(model, clip_criterion(), adam(model), clip_batch(4), 1)
    assert math.isfinite(logged["loss"]) and model.gradnorm.weights.dtype == torch.float32
    assert model.logit_scale.grad.dtype == torch.bfloat16
    assert model.gradnorm.weights.bfloat16().float().tolist() != model.gradnorm.weights.tolist()


# ranks


@pytest.mark.parametrize("name", SCENARIOS)
def test_four_ranks_compute_what_one_does(ranks, tower, name, monkeypatch):
    """Loss, gradients, and after several updates the weights of model and GradNorm."""
    shares, options = SCENARIOS[name]
    of_model = {key: value for key, value in options.items() if key != "gradnorm"}
    model = clip_model(tower, **of_model)
    if shares == "uneven":  # accumulation steps are alike large; here as many clips as the ranks had
        sizes = [size for size in SHARES[shares] if size]

        def cut(net_input, _):
            first = [sum(sizes[:i]) for i in range(len(sizes))]
            return [
                {key: value[at : at + size] for key, value in net_input.items()}
                for at, size in zip(first, sizes, strict=True)
            ]

        monkeypatch.setattr(mae_contrastive, "cut_batch", cut)
    alone = train(model, model, clip_criterion(accumulation_steps=4, **options), joined(shares))
    for rank, found in enumerate(ranks):
        assert_same(found[name]["first"], alone["first"])
        assert_same(found[name]["state"], alone["state"])
        for one, other in zip(found[name]["logged"], alone["logged"], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-5), rank
    weights = alone["state"]["gradnorm.weights"]
    assert (weights.tolist() != [1, 1]) is (not options)
    for found in ranks[1:]:  # to the last bit
        assert all(torch.equal(found[name]["state"][key], value) for key, value in ranks[0][name]["state"].items())


def test_validation_retrieves_among_all_clips_of_all_ranks(ranks, tower):
    model, criterion = clip_model(tower), clip_criterion()
    alone = validate(model, criterion, [clip_batch(16)])
    assert set(alone) == {f"{way}_{k}" for way in ("v2t", "t2v") for k in ("r1", "r5", "r10", "median_rank")}
    for found in ranks:
        assert found["validation"] == pytest.approx(alone)
    with torch.no_grad():
        output = model(**clip_batch(16)["net_input"])
    assert alone == pytest.approx(retrieval_metrics(output.video, output.text), abs=0.006)
    assert alone["v2t_r10"] < 100  # more clips than any batch has


# validation and logging


def test_each_validation_has_its_own_clips(tower):
    model, criterion = clip_model(tower), clip_criterion()
    whole = validate(model, criterion, [clip_batch(16)])
    small = validate(model, criterion, [clip_batch(8, first=4), clip_batch(2, first=0)])
    assert small["v2t_r10"] == 100 and whole["v2t_r10"] < 100
    assert validate(model, criterion, [clip_batch(9), clip_batch(7, first=9)]) == pytest.approx(whole, abs=0.006)


def test_validation_losses_are_unweighted(tower):
    model, sample, criterion = clip_model(tower).eval(), clip_batch(5), clip_criterion().eval()
    model.gradnorm.weights.copy_(torch.tensor([1.9, 0.1]))
    with torch.no_grad():
        loss, size, logged = criterion(model, sample)
        mae, contrastive = plain_losses(model, sample)
    assert size == 5 and loss.item() == pytest.approx(5 * (mae + contrastive).item(), rel=1e-5)
    assert logged["mae"] / logged["patches"] == pytest.approx(mae.item(), rel=1e-5)
    assert logged["contrastive"] / 5 == pytest.approx(contrastive.item(), rel=1e-5)
    assert all(isinstance(value, int | float) for value in logged.values())


def test_training_logs_plain_numbers_and_retrieval_of_the_update(tower):
    model, sample = clip_model(tower).train(), clip_batch(12)
    _, _, logged = clip_criterion(accumulation_steps=5).accumulate_gradients(model, sample, adam(model), update_num=0)
    assert all(type(value) in (int, float) for value in logged.values())
    with torch.no_grad():
        output = model(**sample["net_input"])
    for name, value in retrieval_metrics(output.video, output.text).items():
        assert logged[name] / 12 == pytest.approx(value)
    assert logged["logit_scale"] / 12 == pytest.approx(1 / 0.07, rel=1e-5)
    assert logged["weight_mae"] == logged["weight_contrastive"] == 12


def test_losses_that_are_not_finite_leave_gradnorm_alone(tower, caplog):
    """The task stops the training at such a loss."""
    model = clip_model(tower)
    update(model, clip_criterion(), adam(model), clip_batch(3), 0)
    before = {name: value.clone() for name, value in model.gradnorm.state_dict().items()}
    model.video_projection.fc1.weight.data[0, 0] = float("nan")
    logged = update(model, clip_criterion(), adam(model), clip_batch(3), 1)
    assert math.isnan(logged["loss"]) and logged["v2t_r1"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.gradnorm.state_dict().items())
    assert "no GradNorm step: losses [" in caplog.text


def test_matching_is_learned(tower):
    """Twelve clips with texts of their own: retrieval rises from chance to nearly all."""
    model, sample = clip_model(tower), clip_batch(12)
    criterion, optimizer = clip_criterion(), adam(model, lr=3e-4, eps=1e-8)
    first = update(model, criterion, optimizer, sample, 0)
    for number in range(1, 34):
        optimizer.step()
        last = update(model, criterion, optimizer, sample, number)
    assert first["v2t_r1"] / 12 < 40 and last["v2t_r1"] / 12 > 80 and last["t2v_r1"] / 12 > 80
    assert last["contrastive"] < 0.5 * first["contrastive"]


# options


def test_the_rate_of_the_weights_falls_along_a_cosine():
    criterion = clip_criterion(gradnorm_lr=1e-2, gradnorm_min_lr=1e-4)
    announce(TrainingLength())
    with pytest.raises(OptionError, match=r"gradnorm_lr falls until the last update, .*max_update"):
        criterion.gradnorm_lr(0)
    announce(TrainingLength(max_update=101))
    rates = [criterion.gradnorm_lr(update) for update in (0, 25, 50, 100, 300)]
    middle = (1e-2 + 1e-4) / 2
    assert rates == pytest.approx([1e-2, middle + (1e-2 - middle) / 2**0.5, middle, 1e-4, 1e-4])
    announce(TrainingLength())
    assert clip_criterion(gradnorm_lr=1e-2, gradnorm_min_lr=1e-2).gradnorm_lr(7) == 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_mae": True, "no_contrastive": True}, "leave no loss"),
        ({"accumulation_steps": 0}, r"accumulation_steps=0: give 1 or more"),
        ({"update_freq": [1, 4]}, r"update_freq=\[1, 4\] .*criterion\.accumulation_steps"),
        ({"gradnorm_alpha": -1.0}, r"gradnorm_alpha=-1 "),
        ({"gradnorm_lr": 0.001, "gradnorm_min_lr": 0.01}, r"gradnorm_min_lr=0\.01.*gradnorm_min_lr <= gradnorm_lr"),
        ({"gradnorm_lr": float("nan")}, r"gradnorm_lr=nan"),
        ({"best_checkpoint_metric": "v2t_r11"}, r"did you mean 'v2t_r1'.; metrics: loss, loss_mae, .*t2v_median_rank"),
        ({"best_checkpoint_metric": "t2v_r1", "no_contrastive": True}, r"metrics: loss, loss_mae$"),
        ({"best_checkpoint_metric": "loss_mae", "no_mae": True}, r"best_checkpoint_metric=loss_mae is not what"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        clip_criterion(**options)


def test_what_it_does_not_go_with(tower):
    model, sample, criterion = clip_model(tower), clip_batch(2), clip_criterion()
    with pytest.raises(OptionError, match=r"needs model\._name=sign_clip"):
        criterion.accumulate_gradients(nn.Linear(1, 1), sample, adam(model), update_num=0)
    with pytest.raises(OptionError, match=r"set task\._name=sign_pretraining"):
        criterion.train()(model, sample)
    with pytest.raises(OptionError, match=r"common\.bf16=true or fp32"):
        criterion.accumulate_gradients(model, sample, AMPOptimizer.__new__(AMPOptimizer), update_num=0)


def test_texts_survive_the_trainer(tower):
    """fairseq casts and moves what is in a batch."""
    cfg = SimpleNamespace(common=SimpleNamespace(fp16=False, bf16=True))
    sample = Trainer._fp_convert_sample(SimpleNamespace(cfg=cfg), clip_batch(3))
    assert sample["net_input"]["texts"] == clip_batch(3)["net_input"]["texts"]
    assert sample["net_input"]["src_tokens"].dtype == torch.uint8
