"""Task ``sign_pretraining`` in this process, and its training by fairseq's own loop."""

from pathlib import Path

import numpy as np
import torch
from conftest import FPS
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq_cli import train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from video_helpers import write_video

import slt_plugin.tasks  # noqa: F401
from slt_plugin.cli.training import CONFIGS
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.tasks.sign_pretraining import SignPretrainingConfig, SignPretrainingTask

CLIPS = {"clip_frames": 32, "clip_sampling_rate": 1, "clip_target_fps": 25.0, "clip_size": 64}
CLIP_WORDS = tuple(f"task.{name}={value}" for name, value in CLIPS.items())


def write_uneven_corpus(folder: Path, sizes: dict[str, int]) -> Path:
    """Manifests ``<split>.tsv`` of videos of 8 to 28 frames, so that clips have other numbers of hidden patches.

    The short ones are of one colour, whose patches are easily predicted: a mean over clips is not one over patches.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, size in sizes.items():
        rows = []
        for i in range(size):
            length = 8 + 20 * i // (size - 1)
            still = np.full((64, 64, 3), 40 + 15 * i, np.uint8)
            frames = [still if length < 18 else rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)] * length
            write_video(folder / f"{split}-{i}.mp4", frames, fps=FPS)
            rows.append(Row(f"{split}-{i}", f"{split}-{i}.mp4", num_frames=length, fps=FPS))
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


def first_moments(state: dict) -> list[torch.Tensor]:
    """Adam's, of each parameter: after one update its gradient, up to a factor."""
    return [moments["exp_avg"] for moments in state["last_optimizer_state"]["state"].values()]


def pretraining_task(corpus: Path, **options) -> SignPretrainingTask:
    interpolated = {
        "train_subset": "train", "seed": 1, "best_checkpoint_metric": "loss", "maximize_best_checkpoint_metric": False,
        "update_freq": [1], "max_update": 0, "max_epoch": 0, "tensorboard_logdir": None, "wandb_project": None,
    }  # fmt: skip
    values = {"data": str(corpus), **interpolated, **CLIPS, **options}
    return SignPretrainingTask.setup_task(OmegaConf.merge(OmegaConf.structured(SignPretrainingConfig), values))


def pretraining_config(corpus: Path, save_dir: Path, *overrides: str):
    hydra_init("mae_tiny_cpu")
    with initialize_config_dir(str(CONFIGS / "pretrain"), version_base="1.1"):
        cfg = compose("mae_tiny_cpu", overrides=[
            f"task.data={corpus}", f"checkpoint.save_dir={save_dir}", "dataset.num_workers=0", *CLIP_WORDS,
            "task.clips_per_update=8", "dataset.batch_size=4", "lr_scheduler.warmup_updates=1", *overrides,
        ])  # fmt: skip
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def pretrain(corpus: Path, save_dir: Path, *overrides: str) -> dict:
    """fairseq's own training loop on mae_tiny_cpu; returns the last checkpoint."""
    train.main(pretraining_config(corpus, save_dir, *overrides))
    return last_checkpoint(save_dir)


def last_checkpoint(save_dir: Path) -> dict:
    return torch.load(save_dir / "checkpoint_last.pt", weights_only=True)
