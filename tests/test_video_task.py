"""Task sign_to_text on raw video: batches, memory limits, the dry run, and agreement with extracted features."""

import logging

import numpy as np
import pytest
import torch
from fairseq.tasks.fairseq_task import FairseqTask
from omegaconf import OmegaConf
from test_task import run_training, setup

from slt_plugin.data import clips as clips_module
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.transforms import normalise
from slt_plugin.models.errors import OptionError
from slt_plugin.models.sign_to_text import TinyConfig
from slt_plugin.modules.hiera import VARIANTS

CLIPS = {"clip_frames": 32, "clip_sampling_rate": 1, "clip_stride": 16, "clip_size": 64}
VIDEO = {"source": "video", **CLIPS}
POSE_AUGMENT = ("speed", "rotation", "scale", "shear", "noise", "frame_drop", "landmark_drop")
OVERRIDES = (  # what turns the quickstart's configuration of poses into one of video
    "task.source=video", *(f"task.{name}={value}" for name, value in CLIPS.items()),
    'task.pose_parts="body,left_hand,right_hand,face"', *(f"task.augment_{name}=0" for name in POSE_AUGMENT),
    "task.eval_max_len=5", "dataset.max_tokens=400",
    "model.source_encoder=signhiera", "model.signhiera_variant=tiny_32x64", "model.signhiera_trainable_blocks=-1",
)  # fmt: skip


NO_SIGNHIERA = {"signhiera_variant": "base_128x224", "signhiera_trainable_blocks": 0}  # the defaults


def video_task(corpus, spm, **options):
    return setup(corpus, spm, **VIDEO, **options)


def model_config(**options):
    small = {"max_target_positions": 64, "encoder_layers": 1, "decoder_layers": 1, "source_encoder": "signhiera",
             "signhiera_variant": "tiny_32x64", "signhiera_trainable_blocks": -1}  # fmt: skip
    return OmegaConf.merge(OmegaConf.structured(TinyConfig), {"_name": "sign_to_text_tiny"}, small, options)


def test_batch_and_model_fit_together(video_corpus, spm_model):
    task = video_task(video_corpus, spm_model)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batch = dataset.collater([dataset[i] for i in range(5)])
    tokens, lengths = batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"]
    assert tokens.dtype == torch.uint8 and tokens.shape[2:] == (3, 64, 64)
    assert lengths.tolist() == dataset.source_lengths.tolist() == batch["net_input"]["src_clips"].sum(1).tolist()
    model = task.build_model(model_config()).eval()
    logits, extra = model(**batch["net_input"])
    assert logits.shape[:2] == batch["target"].shape
    mask = extra["encoder_out"]["encoder_padding_mask"][0]
    assert (~mask).sum(1).tolist() == [n // 2 for n in lengths.tolist()]
    assert model.max_positions()[0] == 2 * model.encoder.text_encoder.max_positions()


def test_video_and_extracted_features_give_the_same_text_model_output(video_corpus, spm_model, tmp_path):
    """The same weights, once on video and once on the features of each window, stored one behind the other."""
    torch.manual_seed(0)
    hiera = VARIANTS["tiny_32x64"]().eval()
    weights = tmp_path / "hiera.pt"
    torch.save({"model": hiera.state_dict()}, weights)
    task = video_task(video_corpus, spm_model)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    video = task.build_model(model_config(signhiera_pretrained=str(weights), signhiera_trainable_blocks=0)).eval()
    rows = []
    for i, row in enumerate(dataset.rows):
        loaded = dataset.source.load(row)
        with torch.no_grad():
            parts = [
                hiera.extract_features(normalise(clip).transpose(0, 1)[None])[0][0]
                for clip in loaded.frames.split(loaded.lengths)
            ]
        np.save(tmp_path / f"{i}.npy", torch.cat(parts).numpy())
        rows.append(Row(row.id, f"{i}.npy", row.text))
    write_manifest(tmp_path / "valid.tsv", rows)
    other = setup(tmp_path, spm_model, source="features", feature_channels=hiera.feature_dim)
    other.load_dataset("valid")
    features = other.build_model(model_config(source_encoder="none", **NO_SIGNHIERA)).eval()
    shared = {k: v for k, v in video.state_dict().items() if not k.startswith("encoder.source_encoder")}
    features.load_state_dict(shared)
    batches = [data.collater([data[i] for i in range(5)]) for data in (dataset, other.dataset("valid"))]
    with torch.no_grad():
        a, b = (m(**batch["net_input"])[0] for m, batch in zip((video, features), batches, strict=True))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_batch_holds_at_most_max_clips_and_every_row(video_corpus, spm_model):
    task = video_task(video_corpus, spm_model, max_clips=5)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=100_000)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(12))
    counts = [int(dataset.clip_counts[batch].sum()) for batch in batches]
    assert max(counts) <= 5 and len(batches) > 3
    few = video_task(video_corpus, spm_model, max_clips=1)
    few.load_dataset("train")
    with pytest.raises(DataError, match=r"task\.max_clips=1: train-.*task\.truncate_clips"):
        few.dataset("train").batch_by_size(np.arange(12), max_tokens=100_000)


def test_truncated_rows_are_counted(video_corpus, spm_model, caplog):
    task = video_task(video_corpus, spm_model, truncate_clips=1)
    with caplog.at_level(logging.WARNING):
        task.load_dataset("valid")
    assert "task.truncate_clips=1 leaves out" in caplog.text and "valid-0 (" in caplog.text
    assert task.dataset("valid").source_lengths.max() == 32


def test_options_of_a_signhiera_are_refused_where_there_is_none(pose_corpus, spm_model):
    task = setup(pose_corpus, spm_model)
    with pytest.raises(OptionError, match=r"source_encoder=pose has no use for model\.signhiera_pretrained"):
        task.build_model(model_config(source_encoder="pose", signhiera_pretrained="x.pt", **NO_SIGNHIERA))


@pytest.mark.parametrize(
    ("task_options", "model_options", "message"),
    [
        ({}, {"signhiera_trainable_blocks": 0, "signhiera_drop_path": 0.1, "signhiera_pretrained": "x"}, "no effect"),
        ({}, {"source_encoder": "pose", **NO_SIGNHIERA}, "raw video is read by signhiera"),
        ({}, {"signhiera_trainable_blocks": 0}, "freezes a SignHiera of random weights"),
        ({"clip_frames": 16}, {}, "set task.clip_frames=32"),
        ({}, {"signhiera_pretrained": "missing.pt"}, "missing.pt"),
    ],
)
def test_mistakes_are_named(video_corpus, spm_model, task_options, model_options, message):
    task = setup(video_corpus, spm_model, **{**VIDEO, **task_options})
    with pytest.raises(ValueError, match=message):
        task.build_model(model_config(**model_options))


def test_options_of_other_sources_are_refused(video_corpus, spm_model):
    with pytest.raises(OptionError, match=r"no use for task\.augment_noise"):
        video_task(video_corpus, spm_model, augment_noise=0.1)
    with pytest.raises(OptionError, match=r"task\.source=pose has no use for task\.video_flip"):
        setup(video_corpus, spm_model, video_flip=0.5)


def test_no_video_is_decoded_before_training_begins(video_corpus, spm_model, tmp_path, monkeypatch):
    """fairseq's dry run over the validation data, and its first batch in the main process, read nothing."""
    events = []
    decode = clips_module.video.decode_clip
    monkeypatch.setattr(
        clips_module.video, "decode_clip", lambda path, *a, **k: events.append(path.stem) or decode(path, *a, **k)
    )
    begin = FairseqTask.begin_epoch
    monkeypatch.setattr(FairseqTask, "begin_epoch", lambda *a: events.append("begin") or begin(*a))
    run_training(video_corpus, spm_model, tmp_path, *OVERRIDES, "optimization.max_update=2")
    assert events[0] == "begin"
    seen = set(events)
    assert {row.path.split("/")[1][:-4] for row in read_manifest(video_corpus / "valid.tsv")} <= seen
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["task_state"]["source"]["source"] == "video" and state["task_state"]["source"]["clip_frames"] == 32
    assert any(name.startswith("encoder.source_encoder.hiera.blocks.0") for name in state["model"])


def test_stand_in_batch_of_ranks_without_one(video_corpus, spm_model):
    """fairseq keeps the first batch for ranks that have none: never an empty one, and before training it reads none."""
    task = video_task(video_corpus, spm_model)
    task.load_dataset("valid")
    task.load_dataset("train", combine=True)  # as fairseq's trainer does; its dry run is next
    first = {split: task.get_batch_iterator(task.dataset(split), max_tokens=400).first_batch for split in task.datasets}
    assert first == {"valid": "DUMMY", "train": "DUMMY"}
    model = task.build_model(model_config())
    task.begin_epoch(1, model)
    batch = task.get_batch_iterator(task.dataset("valid"), max_tokens=400).first_batch
    assert batch["net_input"]["src_tokens"].ndim == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_no_interruption(video_corpus, spm_model, tmp_path, workers):
    """With augmentation, over the border of an epoch."""
    options = (
        *OVERRIDES, f"dataset.num_workers={workers}", "task.video_randaugment_ops=2", "task.video_crop=4",
        "task.video_flip=0.5", "lr_scheduler._name=fixed", "~lr_scheduler.warmup_updates", "dataset.max_tokens=200",
        "optimizer._name=adam_groups", "model.signhiera_lr_decay=0.7", "model.signhiera_drop_path=0.2",
    )  # fmt: skip
    for name, stops in (("once", (8,)), ("twice", (3, 8))):
        for updates in stops:
            run_training(video_corpus, spm_model, tmp_path / name, *options, f"optimization.max_update={updates}")
    once, twice = (torch.load(tmp_path / n / "checkpoint_last.pt", weights_only=True) for n in ("once", "twice"))
    assert once["extra_state"]["train_iterator"]["epoch"] > 1
    for name, value in once["model"].items():
        assert torch.equal(value, twice["model"][name]), name
    rates = [group["lr"] for group in once["last_optimizer_state"]["param_groups"]]
    assert rates == [group["lr"] for group in twice["last_optimizer_state"]["param_groups"]] and len(rates) == 6
