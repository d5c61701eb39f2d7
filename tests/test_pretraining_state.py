"""What a checkpoint of task sign_pretraining keeps of it, and what may change when a training goes on."""

import logging

import pytest
import torch
from fairseq import checkpoint_utils
from pretraining_helpers import pretrain, pretraining_task

from slt_plugin.models.errors import OptionError
from slt_plugin.models.sign_mae import SignMAE
from slt_plugin.tasks.sign_pretraining import SignPretrainingTask


def test_checkpoint_brings_the_options_of_clips(video_corpus, tmp_path):
    state = pretrain(video_corpus, tmp_path, "optimization.max_update=2")
    assert state["task_state"] == {
        "clips": {"clip_frames": 32, "clip_sampling_rate": 1, "clip_target_fps": 25.0, "clip_size": 64},
        "draws": {"seed": 1, "repeat_aug": 2, "clips_per_update": 8},
    }
    assert state["extra_state"]["metrics"]
    # what training started from need not be there any more
    state["cfg"]["model"]["pretrained"] = "gone.pth"
    torch.save(state, tmp_path / "moved.pt")
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "moved.pt")])
    assert task.cfg.clip_size == 64 and isinstance(models[0], SignMAE)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, state["model"][name])


def test_a_training_does_not_go_on_with_other_clips(video_corpus, tmp_path, caplog):
    first = pretrain(video_corpus, tmp_path / "a", "optimization.max_update=1")
    expected = r"another source: task\.clip_sampling_rate=2 \(checkpoint: 1\)\. Give the checkpoint's options"
    other = ("optimization.max_update=2", "task.clip_sampling_rate=2")
    with pytest.raises(OptionError, match=expected):
        pretrain(video_corpus, tmp_path / "a", *other)
    with pytest.raises(OptionError, match=expected):
        pretrain(
            video_corpus, tmp_path / "b", *other,
            f"checkpoint.finetune_from_model={tmp_path / 'a' / 'checkpoint_last.pt'}",
        )  # fmt: skip
    # what only reads it takes them over
    reading = SignPretrainingTask(pretraining_task(video_corpus, clip_sampling_rate=2).cfg, from_checkpoint=True)
    reading.load_state_dict(first["task_state"])
    assert reading.cfg.clip_sampling_rate == 1
    # draws may change, with a word
    with caplog.at_level(logging.WARNING):
        pretrain(
            video_corpus, tmp_path / "a", "optimization.max_update=2", "common.seed=2", "task.repeat_aug=1",
            "task.clips_per_update=4",
        )  # fmt: skip
    (told,) = [record.getMessage() for record in caplog.records if "other draws" in record.getMessage()]
    assert "common.seed=2 (checkpoint: 1), task.repeat_aug=1 (checkpoint: 2), task.clips_per_update=4" in told
    assert "checkpoint.reset_meters=true" in told
    caplog.clear()
    pretraining_task(video_corpus).load_state_dict({"clips": first["task_state"]["clips"]})  # from before
    assert not caplog.records
