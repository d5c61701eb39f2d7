"""Task sign_pretraining on fairseq's trainer: it learns, resumes exactly, accumulates exactly and stops in time."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FPS
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from pretraining_helpers import (
    first_moments,
    last_checkpoint,
    pretrain,
    pretraining_config,
    pretraining_task,
    write_uneven_corpus,
)
from video_helpers import write_video

from slt_plugin.data import clips as clips_module
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import training_length
from slt_plugin.models.sign_mae import SignMAE, SignMAEConfig, undecayed
from slt_plugin.tasks.finite import NonFiniteError, check_finite, gradients_to_check
from slt_plugin.tasks.sign_pretraining import SignPretrainingTask

# 12 rows of 2 clips, 4 of them an update: 3 updates an epoch
CHANGES = ("task.video_randaugment_ops=1", "task.video_crop=4", "task.video_flip=0.5", "model.drop_path=0.2")
EVERY_UPDATE = ("dataset.validate_interval_updates=1", "checkpoint.save_interval_updates=1")


@pytest.fixture(scope="module")
def moving_corpus(tmp_path_factory):
    """Videos of a pattern that moves: what is hidden can be told from what is seen."""
    folder = tmp_path_factory.mktemp("moving")
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    for split, count in (("train", 16), ("valid", 4)):
        rows = []
        for i in range(count):
            speed, phase = rng.uniform(1, 3), rng.uniform(0, 60, 2)
            frames = [
                np.stack([128 + 90 * np.sin((x + speed * n + phase[0]) / 5), 128 + 90 * np.sin((y + phase[1]) / 7),
                          128 + 60 * np.sin((x + y) / 9)], -1).astype(np.uint8) for n in range(40)
            ]  # fmt: skip
            write_video(folder / f"{split}-{i}.mp4", frames, fps=FPS)
            rows.append(Row(f"{split}-{i}", f"{split}-{i}.mp4", num_frames=40, fps=FPS))
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


@pytest.fixture(scope="module")
def uneven_corpus(tmp_path_factory):
    return write_uneven_corpus(tmp_path_factory.mktemp("uneven") / "corpus", {"train": 12, "valid": 5})


def build(task: SignPretrainingTask, **options) -> SignMAE:
    cfg = OmegaConf.merge(OmegaConf.structured(SignMAEConfig), {"_name": "sign_mae", "variant": "tiny_32x64"}, options)
    return task.build_model(cfg)


def load_dataset(task, split: str):
    task.load_dataset(split)
    return task.dataset(split)


def load(task, split: str):
    dataset = load_dataset(task, split)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def test_thirty_updates_predict_better_than_the_mean_patch(moving_corpus, tmp_path):
    state = pretrain(
        moving_corpus, tmp_path, "optimization.max_update=30", "lr_scheduler.warmup_updates=5",
        "optimization.lr=[0.003]", "checkpoint.no_save=false", "model.mask_ratio=0.75",
    )  # fmt: skip
    task = pretraining_task(moving_corpus)
    model = build(task, mask_ratio=0.75).eval()
    batch = load(task, "valid")
    with torch.no_grad():
        untrained = model.reconstruct(**batch["net_input"])
        model.load_state_dict(state["model"])
        trained = model.reconstruct(**batch["net_input"])
    baseline = (trained.target - trained.target.mean(0)).square().mean()
    assert torch.equal(untrained.mask, trained.mask)
    assert 0.5 < baseline < 1  # of patches normalised by their own deviation, less what they have in common
    assert untrained.loss > baseline > 1.15 * trained.loss, trained.loss
    # what the training has logged is the same number
    assert state["extra_state"]["val_loss"] == pytest.approx(trained.loss.item(), abs=1e-4)


class Interrupted(BaseException):
    """A kill: nothing catches it."""


@pytest.fixture
def traced(monkeypatch):
    """(update, learning rate, torch's generator, batch) of every batch that is trained on."""
    trace = []
    train_step = SignPretrainingTask.train_step

    def step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        generator = torch.get_rng_state().sum().item()
        trace.append((update_num, optimizer.get_lr(), generator, tuple(sample["net_input"]["mask_seeds"].tolist())))
        return train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad)

    monkeypatch.setattr(SignPretrainingTask, "train_step", step)
    return trace


def interrupt_before(monkeypatch, update: int):
    train_step = Trainer.train_step

    def step(self, samples, raise_oom=False):
        if self.get_num_updates() == update:
            raise Interrupted
        return train_step(self, samples, raise_oom)

    monkeypatch.setattr(Trainer, "train_step", step)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_no_interruption(video_corpus, tmp_path, traced, workers):
    """Killed in the middle of the second epoch; weights, moments, learning rates and generators bit for bit."""
    options = (
        *CHANGES, f"dataset.num_workers={workers}", "optimization.max_update=0", "optimization.max_epoch=3",
        "lr_scheduler.warmup_updates=0", "lr_scheduler.warmup_epochs=1", "checkpoint.save_interval_updates=5",
        "dataset.validate_interval_updates=5", "optimization.clip_norm=1", 'task.train_ratios="0.75"',
    )  # fmt: skip
    once = pretrain(video_corpus, tmp_path / "once", *options)
    uninterrupted = traced[:]
    traced.clear()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(patch, 5)
        with pytest.raises(Interrupted):
            pretrain(video_corpus, tmp_path / "twice", *options)
    assert last_checkpoint(tmp_path / "twice")["extra_state"]["train_iterator"]["iterations_in_epoch"] == 2
    assert len(traced) == 5
    twice = pretrain(video_corpus, tmp_path / "twice", *options)
    assert len(uninterrupted) == 9 == training_length() and traced == uninterrupted
    assert [rate for _, rate, _, _ in traced][:3] == pytest.approx([0.001 / 3, 0.002 / 3, 0.001])
    assert traced[-1][1] == 1e-6
    for name, value in once["model"].items():
        assert torch.equal(value, twice["model"][name]), name
    for i, moments in once["last_optimizer_state"]["state"].items():
        for key, value in moments.items():
            other = twice["last_optimizer_state"]["state"][i][key]
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other
    for a, b in zip(*(s["last_optimizer_state"]["param_groups"] for s in (once, twice)), strict=True):
        assert a == b
    assert once["extra_state"]["val_loss"] == twice["extra_state"]["val_loss"]
    assert once["optimizer_history"][-1]["lr_scheduler_state"] == twice["optimizer_history"][-1]["lr_scheduler_state"]


def test_accumulated_batches_equal_one(uneven_corpus, tmp_path):
    # Adam would make steps of a whole learning rate of the rounding of gradients near zero
    options = ("optimization.max_update=4", "model.drop_path=0", "optimizer.adam_eps=0.01", "task.min_duration=0")
    whole = pretrain(uneven_corpus, tmp_path / "1", *options)
    parts = pretrain(uneven_corpus, tmp_path / "2", *options, "dataset.batch_size=2", "optimization.update_freq=[2]")
    uneven = pretrain(uneven_corpus, tmp_path / "3", *options, "dataset.batch_size=2", "optimization.update_freq=[3]")
    largest = max(float(moments.abs().max()) for moments in first_moments(whole))
    for other in (parts, uneven):
        for a, b in zip(first_moments(other), first_moments(whole), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * largest, rtol=1e-3)
        for name, value in whole["model"].items():
            torch.testing.assert_close(other["model"][name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_no_video_is_decoded_before_training_begins(video_corpus, tmp_path, monkeypatch):
    """fairseq's dry run over the validation data, and its first batch in the main process, read nothing."""
    events = []
    decode = clips_module.video.decode_clip
    monkeypatch.setattr(
        clips_module.video, "decode_clip", lambda path, *a, **k: events.append(path.stem) or decode(path, *a, **k)
    )
    begin = FairseqTask.begin_epoch
    monkeypatch.setattr(FairseqTask, "begin_epoch", lambda *a: events.append("begin") or begin(*a))
    pretrain(video_corpus, tmp_path, "optimization.max_update=3", "task.repeat_aug=2")
    assert events[0] == "begin" and sorted(events[1:13]) == sorted(f"train-{i}" for i in range(12))
    assert set(events[13:]) == {f"valid-{i}" for i in range(5)}


class TestPrecision:
    def groups(self, video_corpus, tmp_path, monkeypatch, *overrides):
        """Weight decay of each parameter in the optimizer, by name."""
        found = {}
        step = SignPretrainingTask.optimizer_step

        def spy(self, optimizer, model, update_num):
            names = [name for name, _ in model.named_parameters()]
            own = getattr(optimizer, "fp32_params", None) or list(model.parameters())
            name_of = {id(parameter): name for parameter, name in zip(own, names, strict=True)}
            for group in optimizer.param_groups:
                found.update({name_of[id(parameter)]: group["weight_decay"] for parameter in group["params"]})
            exempt = {id(parameter) for parameter in undecayed(model)}
            found["exempt"] = {name for name, p in model.named_parameters() if id(p) in exempt}
            found["dtypes"] = {p.dtype for p in model.parameters()}, {p.dtype for p in own}
            return step(self, optimizer, model, update_num)

        monkeypatch.setattr(SignPretrainingTask, "optimizer_step", spy)
        state = pretrain(video_corpus, tmp_path, "optimization.max_update=3", "optimizer.weight_decay=0.05", *overrides)
        return found, state

    @pytest.mark.parametrize(
        ("dtype", "words"),
        [
            (torch.float32, ()),
            (torch.bfloat16, ("common.bf16=true",)),
            (torch.float16, ("common.fp16=true", "common.fp16_init_scale=1")),
        ],
    )
    def test_biases_norms_and_positions_do_not_decay(self, video_corpus, tmp_path, monkeypatch, dtype, words):
        found, state = self.groups(video_corpus, tmp_path, monkeypatch, *words)
        exempt, dtypes = found.pop("exempt"), found.pop("dtypes")
        assert dtypes == ({dtype}, {torch.float32})
        assert {name for name, decay in found.items() if decay == 0} == exempt
        assert {decay for name, decay in found.items() if name not in exempt} == {0.05}
        assert {"mae.encoder.pos_embed_spatial", "mae.mask_token", "mae.encoder.blocks.0.norm1.weight"} <= exempt
        assert "mae.encoder.blocks.0.attn.qkv.weight" not in exempt
        assert 0 < state["extra_state"]["val_loss"] < 2
        assert all(torch.isfinite(value).all() for value in state["model"].values())

    def test_an_optimizer_that_decays_them_is_refused(self, video_corpus, tmp_path):
        with pytest.raises(OptionError, match=r"decay biases.*optimizer\._name=adam_groups"):
            pretrain(
                video_corpus, tmp_path, "optimization.max_update=1", "optimizer._name=adam",
                "optimizer.weight_decay=0.05",
            )  # fmt: skip
        pretrain(
            video_corpus, tmp_path, "optimization.max_update=1", "optimizer._name=adam", "optimizer.weight_decay=0"
        )


class TestNonFinite:
    def broken(self, monkeypatch, at: str):
        """Breaks the third update: its loss, or the gradient of a finite loss; or the validation after it."""
        forward = SignMAE.forward

        def step(self, *args, **options):
            output = forward(self, *args, **options)
            loss = output["losses"]["mae"]
            if at == "valid" and not self.training:
                output["losses"]["mae"] = loss * float("inf")
            elif self.training and self.updates == 2:
                if at == "loss":
                    output["losses"]["mae"] = loss * float("nan")
                elif at == "gradient":
                    loss.register_hook(lambda gradient: gradient * float("nan"))
            return output

        monkeypatch.setattr(SignMAE, "forward", step)
        monkeypatch.setattr(SignMAE, "set_num_updates", lambda self, n: setattr(self, "updates", n))

    @pytest.mark.parametrize(
        ("at", "message"),
        [
            ("loss", r"update 3: the loss is nan, for rows train-\d+, train-"),
            ("gradient", r"update 3: the loss is finite, but its gradient is not, for rows train-\d+"),
            ("valid", r"validation after update 3: the loss is inf, for rows valid-\d"),
        ],
    )
    def test_training_stops_before_the_weights_change(
        self, video_corpus, tmp_path, monkeypatch, caplog, traced, at, message
    ):
        options = ("checkpoint.save_interval_updates=1", "optimization.max_update=9")
        with pytest.MonkeyPatch.context() as patch:
            interrupt_before(patch, 2)
            with pytest.raises(Interrupted):
                pretrain(video_corpus, tmp_path, *options)
        before = (tmp_path / "checkpoint_last.pt").read_bytes()
        files = sorted(path.name for path in tmp_path.iterdir())
        self.broken(monkeypatch, at)
        with caplog.at_level(logging.ERROR), pytest.raises(NonFiniteError, match=message):
            pretrain(video_corpus, tmp_path, *options)
        assert "train-" in caplog.text or "valid-" in caplog.text
        assert traced[-1][0] == 2
        assert (tmp_path / "checkpoint_last.pt").read_bytes() == before
        assert last_checkpoint(tmp_path)["optimizer_history"][-1]["num_updates"] == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == files  # no crash.pt either

    def test_a_loss_scale_may_overflow_until_it_is_at_its_minimum(self):
        model = torch.nn.Linear(1, 1)
        model.weight.grad = torch.full((1, 1), float("inf"))
        searching = SimpleNamespace(scaler=SimpleNamespace(loss_scale=4.0, scale_factor=2.0, min_loss_scale=1.0))
        lowest = SimpleNamespace(scaler=SimpleNamespace(loss_scale=2.0, scale_factor=2.0, min_loss_scale=1.0))
        sample = {"row_ids": ["a", "a", "b"]}
        check_finite(sample, 1.0, "update 1", gradients_to_check(model, searching))
        with pytest.raises(NonFiniteError, match="gradient is not, for rows a, b"):
            check_finite(sample, 1.0, "update 1", gradients_to_check(model, lowest))


class TestCriterion:
    def test_one_that_computes_gradients_itself(self, video_corpus):
        task = pretraining_task(video_corpus, repeat_aug=2)
        model, batch = build(task), load(task, "train")
        calls = []

        class Criterion:
            def accumulate_gradients(self, model, sample, optimizer, *, update_num, ignore_grad):
                calls.append((update_num, ignore_grad, model.training))
                return torch.tensor(float("nan") if update_num == 5 else 1.0), 2, {"loss": torch.tensor(1.0), "n": 3}

        optimizer = SimpleNamespace(param_groups=[{"weight_decay": 0.0}])
        model.eval()
        output = task.train_step(batch, model, Criterion(), optimizer, 4, ignore_grad=True)
        assert calls == [(4, True, True)] and output[2] == {"loss": 1.0, "n": 3}
        assert type(output[2]["loss"]) is float
        with pytest.raises(NonFiniteError, match="update 6"):
            task.train_step(batch, model, Criterion(), optimizer, 5)

    def test_the_worst_checkpoint_is_not_kept_as_the_best(self, video_corpus):
        task = pretraining_task(video_corpus, maximize_best_checkpoint_metric=True)
        with pytest.raises(OptionError, match="maximize_best_checkpoint_metric=false"):
            build(task)

    def test_a_metric_that_is_not_logged(self, video_corpus):
        cfg = OmegaConf.create({"_name": "model"})
        for metric in ("loss_mae", "v2t_r1"):
            task = pretraining_task(
                video_corpus, best_checkpoint_metric=metric, maximize_best_checkpoint_metric=metric == "v2t_r1"
            )
            with pytest.raises(OptionError, match=rf"best_checkpoint_metric={metric} is not.*criterion model.*: loss$"):
                task.build_criterion(cfg)
        SignPretrainingTask(task.cfg, from_checkpoint=True).build_criterion(cfg)  # of another training
        pretraining_task(video_corpus).build_criterion(cfg)

    def test_clips_of_another_size_than_the_model_reads(self, video_corpus):
        with pytest.raises(OptionError, match=r"model\.variant=tiny_32x64.*task\.clip_size=64"):
            build(pretraining_task(video_corpus, clip_size=32))


def test_validation_is_the_mean_over_patches_whatever_the_batches(uneven_corpus, tmp_path):
    """5 rows: as one batch, and in batches of 2, 2 and 1 with other numbers of patches."""
    options = (
        "optimization.max_update=1",
        "optimization.lr=[0.0]",
        "lr_scheduler.min_lr=0",
        "dataset.batch_size=4",
        "task.min_duration=0",
    )
    states = [
        pretrain(uneven_corpus, tmp_path / size, *options, f"dataset.batch_size_valid={size}") for size in ("5", "2")
    ]
    losses = [state["extra_state"]["val_loss"] for state in states]
    task = pretraining_task(uneven_corpus)
    model, dataset = build(task, mask_ratio=0.5).eval(), load_dataset(task, "valid")
    model.load_state_dict(states[0]["model"])
    with torch.no_grad():
        outputs = [model(**dataset.collater([dataset[i]])["net_input"]) for i in range(5)]
    sums, patches = [float(o["losses"]["mae"]) for o in outputs], [o["sample_size"] for o in outputs]
    expected, over_clips = sum(sums) / sum(patches), np.mean(np.divide(sums, patches))
    assert losses == pytest.approx([expected] * 2, abs=2e-5) and losses[0] != round(losses[0], 3)
    assert len(set(patches)) > 3 and abs(expected - over_clips) > 0.01


def test_frames_fill_batches_too(video_corpus, tmp_path):
    cfg = pretraining_config(
        video_corpus, tmp_path, "task.clips_per_update=0", "dataset.batch_size=null", "dataset.max_tokens=200",
        "optimization.max_epoch=1",
    )  # fmt: skip
    task = pretraining_task(video_corpus, repeat_aug=2, max_epoch=4)
    task.load_dataset("train")
    iterator = task.get_batch_iterator(task.dataset("train"), max_tokens=cfg.dataset.max_tokens)
    assert sorted(int(i) for batch in iterator.frozen_batches for i in batch) == list(range(12))
    assert training_length() == 4 * len(iterator) and 4 <= len(iterator) <= 12
