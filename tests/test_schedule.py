"""Learning rate warmup_cosine: its curve, warm-up in epochs, and what a checkpoint keeps of it."""

import logging
import math
from itertools import pairwise

import pytest
from fairseq.optim import FairseqOptimizer
from omegaconf import OmegaConf

from slt_plugin.models import schedule
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import TrainingLength, WarmupCosine, WarmupCosineConfig, announce, training_length


@pytest.fixture(autouse=True)
def not_announced():
    announce(TrainingLength())
    yield
    announce(TrainingLength())


class Optimizer(FairseqOptimizer):
    def __init__(self):
        self.lr = None

    def set_lr(self, lr):
        self.lr = lr

    def get_lr(self):
        return self.lr


def scheduler(**options) -> WarmupCosine:
    values = {"lr": [0.8], "max_update": 0, "max_epoch": 0, **options}
    return WarmupCosine(OmegaConf.merge(OmegaConf.structured(WarmupCosineConfig), values), Optimizer())


def test_curve():
    """Update k of T, counted from 1, is made after k - 1: rising to W, a half cosine to the minimum at T."""
    lr = scheduler(max_update=50, warmup_updates=10, min_lr=0.01)
    rates = [lr.step_update(n) for n in range(80)]
    assert rates[:10] == pytest.approx([0.08 * k for k in range(1, 11)])
    for k in range(11, 50):
        assert rates[k - 1] == pytest.approx(0.01 + 0.79 * 0.5 * (1 + math.cos(math.pi * (k - 10) / 40)))
    assert all(a > b for a, b in pairwise(rates[9:50]))
    assert rates[49:] == [0.01] * 31  # exactly, and without a restart
    assert lr.optimizer.lr == 0.01


def test_several_rates():
    with pytest.raises(
        OptionError, match=r"^optimization\.lr=\[0\.1,0\.2\] are 2 rates.*write optimization\.lr=\[0\.1\]"
    ):
        scheduler(lr=[0.1, 0.2], max_update=4)


def test_without_warmup():
    lr = scheduler(max_update=4)
    assert lr.step_update(0) == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr.step_update(3) == 0


def test_epochs_become_updates_once_the_task_tells(caplog):
    lr = scheduler(max_epoch=400, warmup_epochs=120, min_lr=1e-6)
    assert lr.step_update(0) == 1e-6  # fairseq asks before anything is known
    with pytest.raises(OptionError, match=r"optimization\.max_update and lr_scheduler\.warmup_updates"):
        lr.step_begin_epoch(1)
    announce(TrainingLength((25,), 0, 400))
    assert training_length() == 10_000
    with caplog.at_level(logging.INFO):
        lr.step_begin_epoch(1)
        lr.step_begin_epoch(2)
    assert caplog.text.count("to 0.8 in 3000 updates (120 epochs), then along a cosine to 1e-06 at update 10000") == 1
    assert lr.step_update(1499) == pytest.approx(0.4) and lr.step_update(2999) == 0.8
    assert lr.step_update(9999) == 1e-6 < lr.step_update(9998)


def test_the_first_limit_ends_the_training():
    assert TrainingLength((10,), 55, 8).total == 55
    assert TrainingLength((10,), 550, 8).total == 80
    assert TrainingLength((10,), 0, 0).total is None
    assert TrainingLength((), 0, 8).total is None
    assert TrainingLength((), 55, 8).total == 55


def test_epochs_of_different_lengths():
    """update_freq may change from epoch to epoch; its last value holds."""
    length = TrainingLength((40, 20, 10), 0, 5)
    assert [length.after(epochs) for epochs in range(6)] == [0, 40, 60, 70, 80, 90]
    assert length.total == 90


def test_a_training_that_is_all_warm_up(caplog):
    """A short trial of a long recipe runs."""
    lr = scheduler(max_update=9, warmup_updates=20)
    with caplog.at_level(logging.WARNING):
        lr.step_begin_epoch(1)
    assert "a warm-up of 20 updates leaves none of 9" in caplog.text
    assert [lr.step_update(n) for n in (0, 8)] == pytest.approx([0.04, 0.36])


def test_tasks_that_count_no_epochs():
    assert training_length() is None
    lr = scheduler(max_update=20, warmup_updates=2)
    lr.step_begin_epoch(1)
    assert lr.step_update(1) == 0.8 and lr.step_update(19) == 0
    with pytest.raises(OptionError, match=r"warmup_updates \(this task counts no epochs\)"):
        scheduler(max_update=20, warmup_epochs=2).step_begin_epoch(1)


def test_a_checkpoint_tells_before_the_task_does(caplog):
    announce(TrainingLength((10,), 0, 6))
    before = scheduler(max_epoch=6, warmup_epochs=2)
    state, rates = before.state_dict(), [before.step_update(n) for n in range(60)]
    assert state["updates_of_epochs"] == [10]
    announce(TrainingLength())
    resumed = scheduler(max_epoch=6, warmup_epochs=2)
    resumed.load_state_dict(state)
    assert [resumed.step_update(n) for n in range(60)] == rates
    announce(TrainingLength((30,), 0, 6))  # fewer ranks, for example
    with caplog.at_level(logging.WARNING):
        resumed.step_begin_epoch(3)
    assert "trained with [10] updates an epoch, now there are [30]" in caplog.text
    assert resumed.step_update(59) == 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": [0.1, 0.2], "max_update": 9}, r"optimization\.lr=\[0\.1\]"),
        ({"min_lr": 1.0, "max_update": 9}, r"lr_scheduler\.min_lr=1\.0"),
        ({"warmup_updates": 1, "warmup_epochs": 1, "max_update": 9}, "give one of them"),
        ({"warmup_updates": 9}, r"set optimization\.max_update"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        scheduler(**options).step_begin_epoch(1)


def test_it_is_registered():
    from fairseq.optim.lr_scheduler import build_lr_scheduler

    cfg = OmegaConf.merge(
        OmegaConf.structured(WarmupCosineConfig),
        {"_name": schedule.NAME, "lr": [0.1], "max_update": 5, "max_epoch": 0},
    )
    assert isinstance(build_lr_scheduler(cfg, Optimizer()), WarmupCosine)
