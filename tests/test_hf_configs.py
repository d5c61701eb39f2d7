"""The configs hf_*: small differences over one base, sizes as published, and the scripts that start them."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_config import FINETUNE
from test_config import composed as compose

from slt_plugin.cli.training import config_names
from slt_plugin.models.sign_to_text_hf import SignToTextHFConfig
from slt_plugin.text.languages import MBART_50

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
import hf_parameters  # noqa: E402

composed = functools.cache(compose)  # nothing here changes what it gives
ISIGN = [f"hf_{name}_isign_pose" for name in ("t5_small", "t5_base", "t5_large", "t5_3b_lora", "bart_large", "mbart50",
                                               "mt5_large", "mt5_xl_lora", "m2m100")]  # fmt: skip
NAMES = [*ISIGN, "hf_t5_how2sign_features"]
# parameters of the pretrained models, as the hub counts them in their safetensors files; tied tables once
PUBLISHED = {
    "google-t5/t5-small": 60_506_624,
    "google-t5/t5-base": 222_903_552,
    "google-t5/t5-large": 737_668_096,
    "google-t5/t5-3b": 2_851_598_336,
    "google/t5-v1_1-base": 247_577_856,
    "google/mt5-large": 1_229_581_312,
    "google/mt5-xl": 3_742_619_648,
    "facebook/bart-large": 406_291_456,
    "facebook/mbart-large-50": 610_879_488,
    "facebook/m2m100_418M": 483_905_536,
}
WARM_UP = {0.05, 0.1, 0.15}


def test_all_of_them_are_there():
    assert {name for name in config_names(FINETUNE) if name.startswith("hf_")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_configs_compose(name):
    cfg = composed(name)
    assert cfg.model._name == "sign_to_text_hf" and cfg.task.codec == "hf"
    assert cfg.task.codec_path == cfg.model.hf_model  # the tokenizer beside the model
    assert cfg.checkpoint.save_dir == f"runs/{name}"
    assert cfg.common.bf16 and not cfg.common.fp16  # T5 and its kin overflow in fp16
    assert cfg.model.use_lora == ("lora" in name)
    assert cfg.task.source == ("features" if "features" in name else "pose")
    assert cfg.model.source_encoder == ("none" if "features" in name else "pose")
    assert cfg.dataset.max_tokens >= cfg.task.max_source_positions  # the longest row makes a batch
    assert cfg.model.max_encoder_positions * 4 >= cfg.task.max_source_positions


def test_each_isign_config_is_a_few_differences():
    """An update sees as many steps in all of them, and nothing but these options differs."""
    may_differ = {
        "task": {"target_lang"},
        "model": {"hf_model", "use_lora", "checkpoint_activations"},
        "dataset": {"max_tokens"},
        "optimization": {"lr", "update_freq"},
        "optimizer": {"weight_decay"},
        "checkpoint": {"save_dir"},
    }
    for name in ISIGN:
        differences = OmegaConf.to_container(OmegaConf.load(FINETUNE / "experiment" / f"{name}.yaml"))
        assert {group: set(values) - may_differ[group] for group, values in differences.items()} == {
            group: set() for group in differences
        }
        cfg = composed(name)
        assert cfg.dataset.max_tokens * cfg.optimization.update_freq[0] == 16384
        assert OmegaConf.load(FINETUNE / f"{name}.yaml").defaults[:-1] == [
            "_self_", "_base", "_hf", "experiment/_hf_isign_pose",
        ]  # fmt: skip


def test_languages_are_codes_of_the_models():
    """iSign's rows say "en": mBART-50 has another code for it."""
    assert composed("hf_mbart50_isign_pose").task.target_lang == "en_XX" and "en_XX" in MBART_50
    assert composed("hf_m2m100_isign_pose").task.target_lang == "en"
    for name in set(NAMES) - {"hf_mbart50_isign_pose", "hf_m2m100_isign_pose"}:
        assert composed(name).task.target_lang is None


def test_the_papers_recipe_for_features():
    """facts/ssvp_reference.md: the numbers of Rust et al. (2024), with both of its text models."""
    for name in ("hf_t5_how2sign_features", "how2sign_features"):
        cfg = composed(name, *["model.text_pretrained=x"] * (name == "how2sign_features"))
        assert (cfg.criterion.label_smoothing, cfg.model.dropout, cfg.optimizer.weight_decay) == (0.2, 0.3, 0.1)
        assert (cfg.optimization.lr, cfg.lr_scheduler._name, cfg.lr_scheduler.min_lr) == ([5e-4], "cosine", 1e-7)
        assert (cfg.task.max_source_positions, cfg.task.max_target_positions, cfg.task.eval_beam) == (1024, 128, 5)
        assert cfg.optimization.clip_norm == 1.0 and cfg.checkpoint.patience == 10
    assert cfg.model._name == "sign_to_text_bart_base" and cfg.task.codec == "gpt2_bpe"
    assert composed("hf_t5_how2sign_features").model.hf_model == "google/t5-v1_1-base"


def test_warm_up_is_a_share_of_the_updates():
    cfg = composed("hf_t5_base_isign_pose")
    assert cfg.lr_scheduler.warmup_updates / cfg.optimization.max_update == 0.1
    assert cfg.lr_scheduler.total_num_update == cfg.optimization.max_update


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    """Around the published model stand the sign encoder and the adapter; LoRA trains these and r x (in + out)."""
    row = hf_parameters.count(name)
    channels, dim, kernel, blocks = 216, 256, 5, 3
    width = hf_parameters.SIZES[row.hf_model]["d_model"]
    sign = 0
    if "features" in name:
        dim = 768
    else:  # frame embedding; norm and convolution of each block; norm
        sign = (channels + 1) * dim + blocks * (2 * dim + (kernel * dim + 1) * 2 * dim) + 2 * dim
    sign += (dim + 1) * width  # adapter
    adapters = 0
    if row.lora:
        size = hf_parameters.SIZES[row.hf_model]
        attentions = 3 * size["num_layers"]  # of the encoder, and two kinds in the decoder; queries and values
        adapters = attentions * 2 * SignToTextHFConfig().lora_config.r * (width + size["num_heads"] * size["d_kv"])
    assert row.total - PUBLISHED[row.hf_model] - adapters == sign
    assert row.trained == (sign + adapters if row.lora else row.total)
    of_trained, of_other = (20, 2)
    assert row.gigabytes == pytest.approx((row.trained * of_trained + (row.total - row.trained) * of_other) / 1e9)


def test_options_change_the_counts_and_the_table_is_markdown(capsys):
    name = "hf_t5_small_isign_pose"
    assert hf_parameters.main([name]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert line == f"| `{name}` | `google-t5/t5-small` | 62.7 M | 62.7 M | 1.3 GB | 8192 x 2 | 1, 2 |"
    frozen = hf_parameters.count(name, ["model.freeze_encoder=true", "model.freeze_decoder=true"])
    assert frozen.total == hf_parameters.count(name).total and frozen.trained < 0.1 * frozen.total
    assert hf_parameters.main([name, "model.hf_model=google-t5/t5-smal"]) == 1
    assert "did you mean 'google-t5/t5-small'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        hf_parameters.main(["t5_small"])
    assert "did you mean" in capsys.readouterr().err


def test_the_sweeps_grid_is_every_rate_with_every_warm_up():
    lines = [line for line in (ROOT / "slurm/grid_lr_warmup.txt").read_text().splitlines() if not line.startswith("#")]
    found = set()
    updates = composed("hf_t5_base_isign_pose").optimization.max_update
    for line in lines:
        options = OmegaConf.from_dotlist(line.split())
        (rate,) = options.optimization.lr
        found.add((rate, options.lr_scheduler.warmup_updates / updates))
    assert len(lines) == 9
    assert found == {(rate, share) for rate in (1e-4, 3e-4, 5e-4) for share in WARM_UP}


# the scripts, with commands that write down their words


@pytest.fixture
def start(tmp_path):
    """Runs a training script on a machine with so many GPUs."""
    (tmp_path / "slt-finetune").write_text('#!/bin/bash\nprintf "started:"; printf " %s" "$@"; echo\n')
    (tmp_path / "python").write_text(
        f'#!/bin/bash\nif [ "$1" = -c ]; then echo "$GPUS"; else exec {sys.executable} "$@"; fi\n'
    )
    for name in ("slt-finetune", "python"):
        (tmp_path / name).chmod(0o755)

    def run(script: str, *words: str, gpus: int = 4) -> subprocess.CompletedProcess:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": str(gpus)}
        command = ["bash", str(SCRIPTS / script), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    return run


def started(run: subprocess.CompletedProcess) -> str:
    assert run.returncode == 0, run.stderr
    return next(line for line in run.stdout.splitlines() if line.startswith("started: ")).removeprefix("started: ")


def test_one_gpu(start):
    words = started(start("train_single_gpu.sh", "hf_t5_base_isign_pose", "task.data=data/my isign"))
    world = "distributed_training.distributed_world_size=1"
    assert words == f"--config-name hf_t5_base_isign_pose {world} task.data=data/my isign"


@pytest.mark.parametrize(
    ("config", "gpus", "given", "expected"),
    [
        ("hf_mt5_large_isign_pose", 4, "task.data=x", "=4 optimization.update_freq=[1] task.data=x"),
        ("hf_mt5_large_isign_pose", 2, "task.data=x", "=2 optimization.update_freq=[2] task.data=x"),
        ("hf_t5_base_isign_pose", 3, "task.data=x", "=3 task.data=x"),  # 2 batches
        ("how2sign_i3d", 2, "task.data=x", "=2 task.data=x"),  # no update_freq
        ("hf_t5_base_isign_pose", 2, "optimization.update_freq=[8]", "=2 optimization.update_freq=[8]"),
    ],
)
def test_several_gpus_share_the_batches_of_an_update(start, config, gpus, given, expected):
    run = start("train_multi_gpu.sh", config, str(gpus), given)
    assert started(run) == f"--config-name {config} distributed_training.distributed_world_size{expected}"
    assert ("is not divided" in run.stdout) == ("update_freq" not in expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train_single_gpu.sh",), "the first word is the CONFIG"),
        (("train_single_gpu.sh", "task.data=x"), "the first word is the CONFIG"),
        (("train_single_gpu.sh", "hf_t5"), "there are:  boston104_pose"),
        (("train_single_gpu.sh", "_base"), "no configuration _base"),
        (("train_multi_gpu.sh", "hf_t5_base_isign_pose"), "the second word is the number of GPUs, not ''"),
        (("train_multi_gpu.sh", "hf_t5_base_isign_pose", "0"), "the number of GPUs, not '0'"),
        (("train_multi_gpu.sh", "hf_t5_base_isign_pose", "8"), "8 GPUs are asked for, PyTorch sees 4"),
    ],
)
def test_wrong_words_are_explained(start, words, message):
    run = start(*words)
    assert run.returncode == 1 and message in run.stderr
    assert "started" not in run.stdout


@pytest.mark.parametrize("name", ["train_single_gpu.sh", "train_multi_gpu.sh", "boston104.sh"])
def test_help(name):
    run = subprocess.run(["bash", str(SCRIPTS / name), "--help"], capture_output=True, text=True, check=True)
    assert f"bash scripts/{name}" in run.stdout and "set -" not in run.stdout
