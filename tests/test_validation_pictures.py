"""Pictures at validation: in TensorBoard and W&B, where fairseq's scalars are, and without a trace in the training."""

import hashlib
import inspect
import io

import numpy as np
import pytest
import torch
from conftest import run_command
from fairseq.logging import progress_bar
from fairseq_cli import train
from omegaconf import OmegaConf
from PIL import Image
from pretraining_helpers import CLIP_WORDS, pretrain, pretraining_task
from tracker_helpers import events, history

from slt_plugin.data.manifest import read_manifest, write_manifest
from slt_plugin.models.errors import OptionError
from slt_plugin.models.reconstruction import ClipPictures, clip_pictures
from slt_plugin.modules.hiera_mae import mae_tiny_32x64
from slt_plugin.tasks import pictures
from slt_plugin.tasks.pictures import check_picture_options, clip_grid

# 12 rows of 2 clips, 8 clips an update: 3 updates an epoch
FOUR_UPDATES = ("model.mask_ratio=0.75", "optimization.max_update=4", "dataset.validate_interval_updates=2")


@pytest.fixture(autouse=True)
def _own_writers(monkeypatch):
    """fairseq keeps one writer a split as long as the process lives, whatever folder a training asks for."""
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
    yield
    for writer in progress_bar._tensorboard_writers.values():
        writer.close()


@pytest.fixture
def corpus(video_corpus, tmp_path):
    """The corpus with another validation manifest."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "videos").symlink_to(video_corpus / "videos")
    rows = {split: read_manifest(video_corpus / f"{split}.tsv") for split in ("train", "valid")}
    for name, part in (("train", rows["train"]), ("valid", rows["valid"]), ("other", rows["valid"][3:])):
        write_manifest(folder / f"{name}.tsv", part)
    return folder


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def expected_grids(corpus, state, count: int) -> dict[str, np.ndarray]:
    """What the model of a checkpoint makes of the first validation clips."""
    task = pretraining_task(corpus)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    mae = mae_tiny_32x64()
    mae.load_state_dict({name.removeprefix("mae."): value for name, value in state["model"].items()})
    batch = dataset.collater([dataset[i] for i in range(count)])
    clips = clip_pictures(mae, batch["net_input"], 0.75)
    return {name: clip_grid(clip).permute(1, 2, 0).numpy() for name, clip in zip(batch["row_ids"], clips, strict=True)}


def test_tensorboard_has_the_first_clips_at_every_validation(corpus, tmp_path):
    state = pretrain(
        corpus, tmp_path / "run", *FOUR_UPDATES, "task.picture_clips=2",
        f"common.tensorboard_logdir={tmp_path / 'tb'}", 'dataset.valid_subset="valid,other"',
    )  # fmt: skip
    valid, other = events(tmp_path / "tb" / "valid"), events(tmp_path / "tb" / "other")
    steps = [event.step for event in valid.Scalars("loss")]
    assert steps == [2, 3, 4] == [event.step for event in other.Scalars("loss")]
    assert sorted(valid.Tags()["images"]) == ["reconstruction/valid-0", "reconstruction/valid-1"]
    assert other.Tags()["images"] == []
    assert len(list((tmp_path / "tb" / "valid").iterdir())) == 1  # fairseq's own writer, no second one
    for row_id, grid in expected_grids(corpus, state, 2).items():
        images = valid.Images(f"reconstruction/{row_id}")
        assert [image.step for image in images] == steps
        first, last = (pixels(images[i].encoded_image_string) for i in (0, -1))
        height, width = 3 * 66 + 2, 8 * 66 + 2
        assert last.shape == (height, width, 3)
        assert np.abs(last.astype(int) - grid).max() <= 1
        rows = [slice(2 + 66 * i, 66 + 66 * i) for i in range(3)]
        assert (first[rows[0]] == last[rows[0]]).all() and (first[rows[2]] == last[rows[2]]).all()  # clip and mask
        assert (first[rows[1]] != last[rows[1]]).any()  # what the model makes of them


def test_pictures_change_nothing_of_the_training(corpus, tmp_path):
    options = (*FOUR_UPDATES, "model.drop_path=0.3")
    plain = pretrain(corpus, tmp_path / "plain", *options)
    drawn = pretrain(
        corpus, tmp_path / "drawn", *options, "task.picture_clips=9", f"common.tensorboard_logdir={tmp_path / 'tb'}"
    )
    assert len(events(tmp_path / "tb" / "valid").Tags()["images"]) == 5  # there are no more rows
    assert plain["extra_state"]["val_loss"] == drawn["extra_state"]["val_loss"]
    for name, value in plain["model"].items():
        assert torch.equal(value, drawn["model"][name]), name


def test_the_first_rank_alone_draws(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.distributed_utils, "get_global_rank", lambda: 1)
    pretrain(
        corpus, tmp_path / "run", *FOUR_UPDATES, "task.picture_clips=2", f"common.tensorboard_logdir={tmp_path}/tb"
    )
    valid = events(tmp_path / "tb" / "valid")
    assert valid.Tags()["images"] == [] and len(valid.Scalars("loss")) == 3


@pytest.mark.slow
def test_wandb_has_them_with_captions(corpus, tmp_path, monkeypatch):
    """Offline, in a process of its own: wandb leaves a service running beside the one that began a run."""
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", tmp_path), ("SILENT", "true"), ("DISABLE_GIT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    run_command(
        "slt-pretrain", "--config-name", "mae_tiny_cpu", f"task.data={corpus}", *CLIP_WORDS,
        f"checkpoint.save_dir={tmp_path / 'run'}", "dataset.num_workers=0", "task.clips_per_update=8",
        "dataset.batch_size=4", "lr_scheduler.warmup_updates=1", *FOUR_UPDATES,
        "task.picture_clips=2", "common.wandb_project=tests", "checkpoint.no_save=false",
    )  # fmt: skip
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")  # every later init() leaves an empty folder
    files = sorted((log.parent / "files/media/images/valid").glob("reconstruction_*.png"))
    assert len(files) == 6  # 2 clips at 3 validations
    state = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=True)
    grids = expected_grids(corpus, state, 2)
    found = [pixels(path.read_bytes()) for path in files]
    for grid in grids.values():
        assert any(np.abs(image.astype(int) - grid).max() <= 1 for image in found)
    logged = [item for item in history(log) if "valid/reconstruction/captions" in item]
    assert [item["_step"] for item in logged] == [2, 3, 4]
    assert all("valid/loss" in item for item in logged)  # at the step of the scalars
    captions = logged[-1]["valid/reconstruction/captions"]
    assert [caption.split(": ")[0] for caption in captions] == ["valid-0", "valid-1"]
    assert all("masked, reconstruction, original; loss" in caption for caption in captions)


def test_pictures_have_evenly_spaced_steps():
    rows = torch.zeros(3, 20, 3, 4, 4, dtype=torch.uint8)
    rows += torch.arange(20, dtype=torch.uint8)[None, :, None, None, None] + torch.tensor([0, 50, 100])[
        :, None, None, None, None
    ].to(torch.uint8)
    grid = clip_grid(ClipPictures(rows, 0.5, 1.0))
    assert grid.shape == (3, 3 * 6 + 2, 8 * 6 + 2) and grid.dtype == torch.uint8
    wanted = [[step + offset for step in (0, 3, 5, 8, 11, 14, 16, 19)] for offset in (0, 50, 100)]
    assert grid[0, 2::6, 2::6].tolist() == wanted
    assert (grid[:, ::6] == 255).all()


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({"picture_clips": -1}, {}, "picture_clips=-1: give the number"),
        ({"picture_clips": 2}, {}, "neither is on: set common.tensorboard_logdir or common.wandb_project"),
        ({"picture_clips": 2, "wandb_project": "x"}, {"no_mae": True}, "trains no reconstruction"),
    ],
)
def test_options_without_effect_are_refused(video_corpus, options, model, message):
    places = {"tensorboard_logdir": None, "wandb_project": None, "valid_subset": "valid"}
    task = pretraining_task(video_corpus, **{**places, **options})
    with pytest.raises(OptionError, match=message):
        check_picture_options(task.cfg, OmegaConf.create(model))
    with pytest.raises(OptionError, match=message):
        task.build_model(OmegaConf.create({"_name": "sign_mae", **model}))


def test_without_the_packages_nothing_is_written(tmp_path, monkeypatch):
    clip = ClipPictures(torch.zeros(3, 1, 3, 4, 4, dtype=torch.uint8), 0.5, 1.0)
    monkeypatch.setattr(progress_bar, "SummaryWriter", None)
    pictures.to_tensorboard(str(tmp_path), "valid", ["a"], [clip], 1)
    monkeypatch.setattr(progress_bar, "wandb", None)
    pictures.to_wandb("valid", ["a"], [clip], 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "digest"),
    [
        (progress_bar.TensorboardProgressBarWrapper, "de194e3710ba0b63"),
        (progress_bar.WandBProgressBarWrapper, "bf3089048fbe81e9"),
        (train.validate, "7a721818350f1d06"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fairseq_is_the_version_that_was_read(function, digest):
    """Where writers are kept, which run is used, and that ``post_validate`` comes before a subset's numbers."""
    source = inspect.getsource(inspect.unwrap(function))
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, (
        f"{function.__qualname__} has changed: read it again, and see whether tasks/trackers.py still fits"
    )
