"""Training in bf16 and fp16 resumes exactly: float32 weights and loss scale are part of the checkpoint."""

import hashlib
import inspect
import shutil

import pytest
import torch
from conftest import write_video_corpus
from fairseq.optim import fp16_optimizer
from pretraining_helpers import pretrain

from slt_plugin.checkpoints import half_precision
from slt_plugin.checkpoints.errors import CheckpointError

LENGTH = (
    "optimization.max_epoch=0", "checkpoint.save_interval_updates=3", "dataset.validate_interval_updates=3",
    "checkpoint.keep_interval_updates=-1",
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_video_corpus(tmp_path_factory.mktemp("videos"), {"train": 8, "valid": 2})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_resume_equals_no_interruption(corpus, tmp_path, precision):
    words = (*LENGTH, f"common.{precision}=true", "common.fp16_scale_window=2", "task.clips_per_update=4")
    words += ("dataset.batch_size=2",)
    once = pretrain(corpus, tmp_path / "once", *words, "optimization.max_update=6")
    # what a kill behind update 3 leaves
    (tmp_path / "twice").mkdir()
    [third] = (tmp_path / "once").glob("checkpoint_*_3.pt")
    shutil.copy(third, tmp_path / "twice" / "checkpoint_last.pt")
    twice = pretrain(corpus, tmp_path / "twice", *words, "optimization.max_update=6")
    for name, value in once["model"].items():
        assert torch.equal(value, twice["model"][name]), name
    a, b = (state["last_optimizer_state"] for state in (once, twice))
    assert all(torch.equal(x, y) for x, y in zip(a["fp32_weights"], b["fp32_weights"], strict=True))
    assert any((x != x.bfloat16().float()).any() for x in a["fp32_weights"])  # they hold more than the rounded weights
    assert a.get("loss_scaler") == b.get("loss_scaler") and a.get("loss_scale") == b.get("loss_scale")
    assert (precision == "fp16") == ("loss_scaler" in a)


def test_another_form_of_the_weights_is_refused(corpus, tmp_path):
    state = pretrain(corpus, tmp_path, *LENGTH, "common.bf16=true", "optimization.max_update=1")
    optimizer = type("Optimizer", (fp16_optimizer._FP16OptimizerMixin,), {})()
    optimizer.fp32_optimizer = type("Stub", (), {"load_state_dict": lambda *_: None})()
    optimizer.fp32_params, optimizer.scaler = [torch.nn.Parameter(torch.zeros(3))], None
    with pytest.raises(CheckpointError, match=r"common\.fp16_no_flatten_grads"):
        optimizer.load_state_dict(state["last_optimizer_state"])
    optimizer.load_state_dict({})  # of an older checkpoint: the weights stay as they are
    assert not optimizer.fp32_params[0].any()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("state_dict", "5da060f6579a98bf"),
        ("load_state_dict", "04a88bf4795eb98f"),
        ("build_fp32_params", "996ea9a3b883df02"),
    ],
)
def test_fairseq_is_the_version_that_was_hooked(name, digest):
    source = inspect.getsource(inspect.unwrap(getattr(fp16_optimizer._FP16OptimizerMixin, name)))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, (
        f"{name} of the installed fairseq differs from 0.12.3: read it, then adapt half_precision.py"
    )


def test_install_twice_changes_nothing():
    half_precision.install()
    assert fp16_optimizer._FP16OptimizerMixin.state_dict is half_precision.state_dict
    assert inspect.unwrap(half_precision.state_dict) is not half_precision.state_dict
