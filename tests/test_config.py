"""The experiment files: complete, and composed as meant."""

import subprocess
import sys
from pathlib import Path

import pytest
from fairseq.dataclass.initialize import add_defaults, hydra_init
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import slt_plugin.tasks  # noqa: F401
from slt_plugin.cli.training import CONFIGS, config_names
from slt_plugin.criterions.sonar_distillation import SonarDistillationConfig
from slt_plugin.models.sign_mae import SignMAEConfig
from slt_plugin.models.sign_to_text import PRESETS, SignToTextConfig
from slt_plugin.models.sonar import SonarTranslatorConfig
from slt_plugin.tasks.pretraining_options import SignPretrainingConfig
from slt_plugin.tasks.sign_to_text import SignToTextTaskConfig

FINETUNE, PRETRAIN = CONFIGS / "finetune", CONFIGS / "pretrain"
EXPERIMENTS = [(folder, name) for folder in (FINETUNE, PRETRAIN) for name in config_names(folder)]


def composed(name: str, *overrides: str, folder: Path = FINETUNE):
    hydra_init(name)  # as fairseq-hydra-train does: its options become the schema of the named config
    with initialize_config_dir(str(folder), version_base="1.1"):
        cfg = compose(name, overrides=["task.data=x", *overrides])
    add_defaults(cfg)
    return cfg


@pytest.mark.parametrize("override", ["common.fp16_init_scale=4", "distributed_training.distributed_world_size=2",
                                      "checkpoint.patience=3", "dataset.gen_subset=dev"])  # fmt: skip
def test_options_of_fairseq_need_no_plus(override):
    option, value = override.split("=")
    assert str(OmegaConf.select(composed("fingerspelling_pose", override), option)) == value


@pytest.mark.parametrize(("folder", "options"), [(FINETUNE, SignToTextTaskConfig), (PRETRAIN, SignPretrainingConfig)])
def test_base_lists_every_option_of_the_task_with_its_default(folder, options):
    ours = OmegaConf.to_container(OmegaConf.load(folder / "_base.yaml").task)
    theirs = OmegaConf.to_container(OmegaConf.structured(options), enum_to_str=True)
    tied = {k for k, v in vars(options()).items() if str(v).startswith("${")} | {"_name"}
    assert {k: v for k, v in ours.items() if k not in tied} == {k: v for k, v in theirs.items() if k not in tied}


def test_base_lists_the_model_options_that_no_preset_changes():
    def options(config):
        return OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)

    default = options(SignToTextConfig)
    varied = {key for config in PRESETS.values() for key, value in options(config).items() if value != default[key]}
    ours = OmegaConf.to_container(OmegaConf.load(FINETUNE / "_sign_to_text.yaml").model)
    expected = {k: v for k, v in default.items() if k not in varied | {"_name", "max_target_positions"}}
    assert {k: v for k, v in ours.items() if k != "_name"} == expected


def test_every_option_of_sonar_is_listed_with_its_default():
    def options(config, *, leave_out=("_name",)):
        container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
        return {key: value for key, value in container.items() if key not in leave_out}

    listed = OmegaConf.to_container(OmegaConf.load(FINETUNE / "_sonar_translator.yaml"))
    assert {k: v for k, v in listed["model"].items() if k != "_name"} == options(
        SonarTranslatorConfig, leave_out=("_name", "max_target_positions")
    )
    assert {k: v for k, v in listed["criterion"].items() if k != "_name"} == options(
        SonarDistillationConfig, leave_out=("_name", "sentence_avg")
    )


def test_both_bases_give_fairseqs_groups_the_same_values():
    """Hydra cannot share a file between folders; what differs on purpose is named here."""

    def groups(folder):
        base = OmegaConf.to_container(OmegaConf.load(folder / "_base.yaml"))
        return {f"{group}.{key}": value for group in ("common", "distributed_training", "dataset", "optimization",
                                                      "checkpoint") for key, value in base[group].items()}  # fmt: skip

    finetune, pretrain = groups(FINETUNE), groups(PRETRAIN)
    assert {key for key in finetune.keys() | pretrain.keys() if finetune.get(key) != pretrain.get(key)} == {
        "common.fp16_no_flatten_grads",
        "optimization.clip_norm", "checkpoint.best_checkpoint_metric", "checkpoint.maximize_best_checkpoint_metric",
    }  # fmt: skip


@pytest.mark.parametrize(("folder", "name"), EXPERIMENTS)
def test_experiments_protect_the_user(folder, name):
    cfg = composed(name, folder=folder)
    assert cfg.dataset.update_epoch_batch_itr and cfg.checkpoint.load_checkpoint_on_all_dp_ranks
    metric = "bleu" if folder == FINETUNE else "loss"
    assert cfg.checkpoint.best_checkpoint_metric == metric
    assert cfg.checkpoint.maximize_best_checkpoint_metric == (metric == "bleu")
    assert folder == PRETRAIN or cfg.task.eval_bleu
    # what is validated is saved: fairseq saves nothing at validate_interval_updates alone
    assert cfg.dataset.validate_interval_updates in (0, cfg.checkpoint.save_interval_updates)


def test_differences_win_over_base_and_command_line_over_both():
    cfg = composed("fingerspelling_pose", "dataset.max_tokens=123")
    assert cfg.common.cpu is True  # the experiment's, _base says false
    assert cfg.dataset.max_tokens == 123
    assert cfg.model._name == "sign_to_text_tiny" and cfg.model.encoder_embed_dim == 192 and cfg.model.ctc


def test_preset_chosen_on_the_command_line_takes_effect():
    cfg = composed("fingerspelling_pose", "model._name=sign_to_text_base")
    assert cfg.model.encoder_embed_dim == 512


def test_sonar_on_features_is_the_recipe_without_videos():
    video, features = (OmegaConf.to_container(composed(name), resolve=False, enum_to_str=True)
                       for name in ("sonar_how2sign", "sonar_how2sign_features"))  # fmt: skip
    changed = {f"{group}.{key}" for group in ("task", "model", "criterion", "optimization", "lr_scheduler", "optimizer")
               for key in features[group] if features[group][key] != video[group][key]}  # fmt: skip
    assert changed == {
        "task.source", "task.feature_channels", "task.max_source_positions", "model.source_encoder",
        "model.signhiera_pretrained", "model.signhiera_trainable_blocks", "model.checkpoint_activations",
        "model.lr_scales", "optimizer._name",
    }  # fmt: skip
    assert features["model"]["freeze"] == "text_decoder" and features["model"]["lr_scales"] == ""


def test_every_option_of_sign_mae_is_listed_with_its_default():
    listed = OmegaConf.to_container(OmegaConf.load(PRETRAIN / "_sign_mae.yaml"))
    defaults = OmegaConf.to_container(OmegaConf.structured(SignMAEConfig))
    assert {**listed["model"], "_name": None} == {**defaults, "_name": None}


def test_the_papers_recipe_of_the_autoencoder():
    """facts/ssvp_reference.md: the numbers of Rust et al. (2024)."""
    cfg = composed("mae_base_128x224", folder=PRETRAIN)
    assert (cfg.optimization.lr, cfg.lr_scheduler.min_lr, cfg.optimizer.weight_decay) == ([8e-4], 1e-6, 0.05)
    assert (cfg.task.clips_per_update, cfg.task.repeat_aug) == (256, 2)
    assert (cfg.lr_scheduler.warmup_epochs, cfg.optimization.max_epoch, cfg.optimization.max_update) == (120, 400, 0)
    assert cfg.optimizer.adam_betas == "(0.9, 0.95)" and cfg.common.bf16 and not cfg.common.fp16
    assert (cfg.task.min_duration, cfg.task.max_duration) == (1, 40)
    assert (cfg.task.video_randaugment_ops, cfg.task.video_randaugment_magnitude, cfg.task.video_flip) == (4, 7, 0.5)
    assert (cfg.model.mask_ratio, cfg.model.drop_path, cfg.model.norm_pix_loss) == (0.9, 0.2, True)
    # 8 GPUs as the config stands
    assert 8 * cfg.optimization.update_freq[0] * cfg.dataset.batch_size * cfg.task.repeat_aug == 256


@pytest.mark.parametrize(("folder", "name"), EXPERIMENTS)
def test_working_directory_stays_and_the_log_is_beside_the_checkpoints(folder, name):
    """A named config would make Hydra change directory, and a relative user_dir would not be found."""
    hydra = OmegaConf.load(folder / f"{name}.yaml").hydra
    assert OmegaConf.to_container(hydra, resolve=False) == {
        "run": {"dir": "${checkpoint.save_dir}"},
        "job": {"name": "train", "chdir": False},
    }


def test_configs_are_installed_with_the_package():
    script = "import slt_plugin, pathlib; print(pathlib.Path(slt_plugin.__path__[0]) / 'config')"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    for name in ("finetune/fingerspelling_pose.yaml", "pretrain/mae_tiny_cpu.yaml"):
        assert (Path(found.stdout.strip()) / name).is_file()
