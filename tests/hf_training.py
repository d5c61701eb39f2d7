"""Tiny corpora, tasks and trainings of model sign_to_text_hf, around ``hf_helpers.tiny_model``."""

from pathlib import Path

import numpy as np
import torch
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq_cli import train
from hf_helpers import LANGUAGES
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import slt_plugin.tasks  # noqa: F401
from slt_plugin.cli.training import CONFIGS
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.models.sign_to_text_hf import SignToTextHF, SignToTextHFConfig
from slt_plugin.tasks.sign_to_text import SignToTextTask, SignToTextTaskConfig

CHANNELS = 6
WORDS = ("cat", "dog", "mat", "sat", "hello")
# what every configuration of these tests has: features, a small model around, a few updates
SMALL = (
    "task.source=features", f"task.feature_channels={CHANNELS}", "task.max_target_positions=40", "task.eval_max_len=12",
    "dataset.num_workers=0", "dataset.max_tokens=80", "optimization.lr=[0.005]", "common.log_interval=1",
    "checkpoint.save_interval_updates=20", "dataset.validate_interval_updates=20",
)  # fmt: skip


def write_corpus(folder: Path, family: str, sizes: dict[str, int] | None = None) -> Path:
    """``<split>.tsv`` over one .npy a row, whose steps spell its words; languages of the family take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    codes = LANGUAGES.get(family, ("en",))
    meaning = {word: rng.normal(size=(3, CHANNELS)) for word in WORDS}
    for split, size in (sizes or {"train": 16, "valid": 4, "test": 6}).items():
        rows = []
        for i in range(size):
            words = [WORDS[i % len(WORDS)], *rng.choice(WORDS, size=i % 2)]
            steps = np.concatenate([meaning[word] for word in words]) + 0.05 * rng.normal(size=(3 * len(words), 1))
            np.save(folder / f"{split}-{i}.npy", steps.astype(np.float32))
            code = codes[i % len(codes)]
            rows.append(Row(f"{split}-{i}", f"{split}-{i}.npy", " ".join(words), text_lang=code, num_frames=len(steps)))
        write_manifest(folder / f"{split}.tsv", rows)
    return folder


def hf_task(corpus: Path, codec_path: Path, **options) -> SignToTextTask:
    fixed = {"train_subset": "train", "seed": 1, "skip_invalid_size_inputs": False, "eval_max_len": 12,
             "best_checkpoint_metric": "bleu", "maximize_best_checkpoint_metric": True}  # fmt: skip
    values = {"data": str(corpus), "source": "features", "feature_channels": CHANNELS, "codec": "hf",
              "codec_path": str(codec_path), **fixed, **options}  # fmt: skip
    return SignToTextTask.setup_task(OmegaConf.merge(OmegaConf.structured(SignToTextTaskConfig), values))


def model_config(hf_model: Path | str, **options):
    values = {"_name": "sign_to_text_hf", "hf_model": str(hf_model), "max_target_positions": 40, **options}
    return OmegaConf.merge(OmegaConf.structured(SignToTextHFConfig), values)


def hf_model(task: SignToTextTask, folder: Path | str, **options) -> SignToTextHF:
    """A model that does not drop out."""
    torch.manual_seed(1)
    return task.build_model(model_config(folder, **options)).eval()


def whole_batch(task: SignToTextTask, split: str = "test") -> dict:
    """All rows of a split."""
    task.load_dataset(split)
    dataset = task.dataset(split)
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def train_hf(corpus: Path, hf_model: Path | str, save_dir: Path, *overrides: str) -> None:
    """fairseq's own training loop on _base.yaml and _hf.yaml, in this process."""
    folder = save_dir.parent / "config"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("_base", "_hf"):
        (folder / f"{name}.yaml").write_text((CONFIGS / "finetune" / f"{name}.yaml").read_text())
    (folder / "tiny.yaml").write_text("defaults: [_self_, _base, _hf]\nlr_scheduler: {_name: fixed}\n")
    hydra_init("tiny")
    with initialize_config_dir(str(folder), version_base="1.1"):
        cfg = compose("tiny", overrides=[
            f"task.data={corpus}", f"model.hf_model={hf_model}", f"checkpoint.save_dir={save_dir}", *SMALL, *overrides,
        ])  # fmt: skip
    add_defaults(cfg)
    train.main(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))
