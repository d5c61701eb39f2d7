"""A pose corpus whose texts a small random teacher has embedded, and a training of a small student on it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import write_pose_corpus
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq_cli import train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sonar_helpers import DIM, FEATURES, SPM, make_fake_release
from test_task import setup

from slt_plugin.cli import extract
from slt_plugin.cli.training import CONFIGS
from slt_plugin.criterions.sonar_distillation import SonarDistillationConfig
from slt_plugin.models.sonar import SonarTranslatorConfig

LANGUAGE = "eng_Latn"
POSES = {"pose_parts": "body,right_hand", "target_lang": LANGUAGE, "codec": "sonar"}
SMALL = (
    "common.cpu=true", "common.log_interval=20", "dataset.num_workers=0", "dataset.max_tokens=900",
    "task.source=pose", 'task.pose_parts="body,right_hand"', "task.eval_max_len=8", "task.eval_beam=1",
    "task.max_source_positions=1024", "task.max_target_positions=64",
    "model.source_encoder=pose", "model.signhiera_pretrained=null", "model.signhiera_trainable_blocks=0",
    'model.pose_strides="2,2"', "model.pose_dim=64", "model.source_dropout=0", "model.max_encoder_positions=256",
    f"model.embed_dim={DIM}", "model.sonar_encoder_layers=1", "model.sonar_decoder_layers=1",
    "model.sonar_ffn_dim=96", "model.sonar_heads=2", "model.sonar_head_dim=16", "model.sonar_dropout=0",
    "model.decoder_layers=1", "model.decoder_ffn_embed_dim=96", "model.decoder_attention_heads=1",
    "model.checkpoint_activations=false", 'model.lr_scales="source_encoder=0.5"',
    "checkpoint.finetune_from_model=null", "optimizer.weight_decay=0", "lr_scheduler.warmup_updates=10",
    "optimization.update_freq=[1]", "optimization.lr=[0.003]",
)  # fmt: skip
# the recipe as it is, from the tiny release (sonar_helpers) and on tiny videos
SMALL_VIDEO = (
    "common.cpu=true", "dataset.num_workers=0", "task.eval_max_len=8", "task.eval_beam=1",
    "task.clip_frames=32", "task.clip_size=64", "task.clip_stride=16", "model.signhiera_variant=tiny_32x64",
    "model.signhiera_trainable_blocks=1", f"model.embed_dim={DIM}", "model.sonar_encoder_layers=2",
    "model.sonar_decoder_layers=3", "model.sonar_ffn_dim=96", "model.sonar_heads=4", "model.sonar_head_dim=16",
    "model.decoder_layers=2", "model.decoder_ffn_embed_dim=96", "model.decoder_attention_heads=1",
    "dataset.max_tokens=300", "optimization.update_freq=[1]", "lr_scheduler.warmup_updates=1",
)  # fmt: skip


# sonar_how2sign_features as it is, from the tiny release and on tiny features
SMALL_FEATURES = (
    "common.cpu=true", "dataset.num_workers=0", "task.eval_max_len=8", "task.eval_beam=1",
    f"task.feature_channels={FEATURES}", f"model.embed_dim={DIM}", "model.sonar_encoder_layers=2",
    "model.sonar_decoder_layers=3", "model.sonar_ffn_dim=96", "model.sonar_heads=4", "model.sonar_head_dim=16",
    "model.decoder_layers=2", "model.decoder_ffn_embed_dim=96", "model.decoder_attention_heads=1",
    "optimization.update_freq=[1]", "lr_scheduler.warmup_updates=1",
)  # fmt: skip


def embed_texts(release: Path, manifest: Path, out: Path, *words: str) -> int:
    """slt-extract what=sonar_teacher in this process; its exit status."""
    given = {"checkpoint": release / "sonar_text_encoder.pt", "spm": release / SPM, "manifest": manifest, "out": out}
    options = [f"{name}={value}" for name, value in given.items()]
    return extract.main(["what=sonar_teacher", *options, f"lang={LANGUAGE}", "device=cpu", *words])


def train_student(
    corpus: Path,
    release: Path,
    teacher: Path,
    save_dir: Path,
    *overrides: str,
    small: Sequence[str] = SMALL,
    config: str = "sonar_how2sign",
) -> None:
    """fairseq's own training loop on the How2Sign recipe, made small and of poses, in this process.

    Args:
        small: what makes it small; options that a later word gives again are taken from there.
    """
    given = [word.split("=")[0] for word in overrides]
    small = [word for word in small if word.split("=")[0] not in given]
    hydra_init(config)
    with initialize_config_dir(str(CONFIGS / "finetune"), version_base="1.1"):
        cfg = compose(config, overrides=[
            f"task.data={corpus}", f"task.codec_path={release / SPM}", f"task.teacher={teacher}",
            f"checkpoint.save_dir={save_dir}", *small, *overrides,
        ])  # fmt: skip
    add_defaults(cfg)
    train.main(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))


def make_material(folder: Path) -> tuple[Path, Path, Path]:
    """The tiny release, a corpus of 150 and 40 rows, and the store of the teacher for both its manifests."""
    release = make_fake_release(folder / "release")
    corpus, teacher = write_pose_corpus(folder / "corpus", {"train": 150, "valid": 40}), folder / "teacher.store"
    for split in ("train", "valid"):
        assert embed_texts(release, corpus / f"{split}.tsv", teacher) == 0
    return release, corpus, teacher


def student_task(corpus, release, teacher=None, **options):
    given = {"teacher": None if teacher is None else str(teacher), **POSES, **options}
    return setup(corpus, release / SPM, **given)


def student(task, **options):
    values = {word.split("=")[0]: word.split("=")[1].strip('"') for word in SMALL if word.startswith("model.")}
    small = {name.removeprefix("model."): value for name, value in values.items()}
    fixed = {"signhiera_pretrained": None, "lr_scales": "", "max_target_positions": 64, "freeze": "text_decoder"}
    cfg = OmegaConf.merge(OmegaConf.structured(SonarTranslatorConfig), {**small, **fixed, **options})
    torch.manual_seed(0)
    return task.build_model(OmegaConf.merge(cfg, {"_name": "sonar_translator"}))


def criterion_of(task, **options):
    cfg = OmegaConf.merge(OmegaConf.structured(SonarDistillationConfig), {"sentence_avg": False, **options})
    return task.build_criterion(OmegaConf.merge(cfg, {"_name": "sonar_distillation"}))


def batch(task, split, numbers):
    dataset = task.dataset(split)
    return dataset.collater([dataset[i] for i in numbers])
