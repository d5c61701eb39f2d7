"""Model sign_clip: its parts, names and options; trained by fairseq's own loop, alone and on two ranks, and resumed."""

import math
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from clip_helpers import TASK, clip_batch, clip_criterion, clip_model, write_bert, write_t5
from conftest import run_command, write_video_corpus
from fairseq import checkpoint_utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.trainer import Trainer
from fairseq_cli import train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pretraining_helpers import CLIP_WORDS, last_checkpoint

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.importer import load_sign_hiera
from slt_plugin.cli.training import CONFIGS
from slt_plugin.criterions.mae_contrastive import MAEContrastiveConfig
from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import weight_decay_scale
from slt_plugin.models.schedule import training_length
from slt_plugin.models.sign_clip import SignCLIP, SignCLIPConfig
from slt_plugin.models.sign_mae import prepare_clips, undecayed
from slt_plugin.modules.clip import TextTowerError
from slt_plugin.modules.hiera_mae import SignHieraMAE
from slt_plugin.tasks.checks import HIGHER_IS_BETTER

PRETRAIN = CONFIGS / "pretrain"
NAME = "mae_clip_base_128x224"
# the recipe as it is, made small: 12 rows, 4 of them an update
SMALL = (
    "common.cpu=true", "common.bf16=false", "dataset.num_workers=0", *CLIP_WORDS, "task.min_duration=0.2",
    "task.clips_per_update=4", "dataset.batch_size=4", "model.variant=tiny_32x64", "model.mask_ratio=0.75",
    "model.pretrained=null", "model.pretrained_decoder=false", "model.text_max_tokens=32", "model.embed_dim=16",
    "lr_scheduler.warmup_epochs=0", "lr_scheduler.warmup_updates=1", "criterion.accumulation_steps=2",
)  # fmt: skip
RETRIEVAL = [f"{way}_{what}" for way in ("v2t", "t2v") for what in ("r1", "r5", "r10", "median_rank")]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("tower") / "bert", dropout=0.1)


def composed(*overrides: str):
    hydra_init(NAME)
    with initialize_config_dir(str(PRETRAIN), version_base="1.1"):
        cfg = compose(NAME, overrides=list(overrides))
    add_defaults(cfg)
    return cfg


def pretrain_clip(corpus: Path, save_dir: Path, tower: Path, *overrides: str) -> dict:
    """fairseq's own training loop in this process; returns the last checkpoint."""
    cfg = composed(
        f"task.data={corpus}", f"checkpoint.save_dir={save_dir}", f"model.text_tower={tower}", *SMALL, *overrides
    )
    train.main(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))
    return last_checkpoint(save_dir)


# the model


def test_parts_and_names(tower):
    model = clip_model(tower)
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"mae", "text_tower", "video_projection", "text_projection", "logit_scale", "gradnorm"}
    assert isinstance(model.mae, SignHieraMAE) and "mae.encoder.patch_embed.proj.weight" in model.state_dict()
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert not any(name.startswith("gradnorm") for name, _ in model.named_parameters())
    projection = {name: tuple(value.shape) for name, value in model.video_projection.state_dict().items()}
    assert projection == {"fc1.weight": (16, model.mae.encoder.feature_dim), "fc2.weight": (16, 16)}


def test_outputs(tower):
    model, sample = clip_model(tower).eval(), clip_batch(3)["net_input"]
    whole = model(**sample)
    for side in (whole.video, whole.text):
        assert side.shape == (3, 16) and side.dtype == torch.float32
        torch.testing.assert_close(side.norm(dim=1), torch.ones(3))
    video, padding = prepare_clips(sample["src_tokens"], sample["src_lengths"])
    plain = model.mae(video, padding=padding, seeds=sample["mask_seeds"], mask_ratio=0.75)
    assert whole.patches == len(plain.pred) and whole.mae_sum.item() == pytest.approx(
        plain.loss.item() * len(plain.pred), rel=1e-5
    )
    torch.testing.assert_close(whole.video, torch.nn.functional.normalize(model.video_projection(plain.pooled), dim=1))
    only = model(**sample, reconstruct=False)
    assert only.mae_sum is None and only.patches == 0
    torch.testing.assert_close(only.video, whole.video)
    sample.pop("texts")
    assert model(**sample, embed=False).video is None


def test_padding_and_company_do_not_matter(tower):
    """A clip with its text has one embedding, alone and beside longer ones."""
    model = clip_model(tower).eval()
    together = model(**clip_batch(4)["net_input"])
    for i in range(4):
        alone = model(**clip_batch(1, first=i)["net_input"])
        torch.testing.assert_close(alone.video[0], together.video[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.text[0], together.text[i], rtol=1e-4, atol=1e-5)


def test_t5_is_a_tower_too(tmp_path):
    model = clip_model(write_t5(tmp_path / "t5"))
    assert model.text_projection.fc1.in_features == 24
    model(**clip_batch(2)["net_input"]).text.sum().backward()
    assert model.text_tower.encoder.shared.weight.grad.abs().sum() > 0


def test_fp16_is_refused(tower):
    with pytest.raises(OptionError, match=r"SignCLIP overflows in fp16.*common\.bf16=true"):
        clip_model(tower).half()


def test_what_is_exempt_from_weight_decay(tower, tmp_path):
    """Of parameters that are no vectors (biases, norms): position embeddings of all kinds, and nothing else."""
    of_tower = {
        clip_model(tower): {"text_tower.encoder.embeddings.position_embeddings.weight"},
        clip_model(write_t5(tmp_path / "t5")): {
            "text_tower.encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        },
    }
    for model, positions in of_tower.items():
        parameters = dict(model.named_parameters())
        exempt = {name for name, parameter in parameters.items() if weight_decay_scale(parameter) == 0}
        assert {name for name, parameter in parameters.items() if parameter.ndim == 1} <= exempt
        assert {name for name in exempt if parameters[name].ndim != 1} == positions | {
            "logit_scale", "mae.mask_token", "mae.decoder_pos_embed", "mae.encoder.pos_embed_spatial",
            "mae.encoder.pos_embed_temporal",
        }  # fmt: skip
    fairseqs = torch.nn.ModuleDict({"embed_positions": torch.nn.Embedding(4, 2), "fc1": torch.nn.Linear(2, 2)})
    assert {id(p) for p in undecayed(fairseqs)} == {
        id(fairseqs["embed_positions"].weight), id(fairseqs["fc1"].bias)
    }  # fmt: skip


def test_options_that_are_refused(tower, tmp_path):
    with pytest.raises(OptionError, match=r"embed_dim=0"):
        clip_model(tower, embed_dim=0)
    with pytest.raises(TextTowerError, match=r"nowhere does not exist"):
        clip_model(tmp_path / "nowhere")
    with pytest.raises(OptionError, match=r"model\.variant=tiny"):
        clip_model(tower, variant="tiny")


# configuration


def test_every_option_is_listed_with_its_default():
    listed = OmegaConf.to_container(OmegaConf.load(PRETRAIN / "_sign_clip.yaml"))
    for group, config in (("model", SignCLIPConfig), ("criterion", MAEContrastiveConfig)):
        options = OmegaConf.to_container(OmegaConf.structured(config))
        tied = {key for key, value in options.items() if str(value).startswith("${")}
        expected = {key: value for key, value in options.items() if key not in tied | {"_name"}}
        assert {key: value for key, value in listed[group].items() if key != "_name"} == expected


def test_the_recipe():
    cfg = composed("task.data=x", "model.pretrained=x", "model.text_tower=y")
    assert cfg.model._name == "sign_clip" and cfg.criterion._name == "mae_contrastive"
    assert (cfg.optimization.lr, cfg.optimization.max_epoch, cfg.optimization.clip_norm) == ([0.0001], 200, 1.0)
    assert (cfg.lr_scheduler.warmup_epochs, cfg.model.mask_ratio, cfg.task.repeat_aug) == (10, 0.9, 1)
    assert (cfg.criterion.gradnorm_lr, cfg.criterion.gradnorm_min_lr, cfg.criterion.gradnorm_alpha) == (0.01, 1e-4, 1.0)
    assert (cfg.model.embed_dim, list(cfg.optimization.update_freq), cfg.common.bf16) == (768, [1], True)
    assert cfg.model.no_mae is False and composed("criterion.no_mae=true", "task.data=x").model.no_mae is True


def test_directions_of_the_metrics():
    assert HIGHER_IS_BETTER["t2v_r1"] and not HIGHER_IS_BETTER["v2t_median_rank"]
    assert not HIGHER_IS_BETTER["loss_contrastive"] and set(RETRIEVAL) <= set(HIGHER_IS_BETTER)


# training by fairseq


class Interrupted(BaseException):
    """A kill: nothing catches it."""


def test_resume_equals_no_interruption(video_corpus, tower, tmp_path):
    """Killed in the second epoch; weights, moments and GradNorm's buffers bit for bit, with dropout in both towers."""
    options = (
        "optimization.max_epoch=3", "checkpoint.save_interval_updates=4", "dataset.validate_interval_updates=4",
        "model.drop_path=0.2", "checkpoint.best_checkpoint_metric=t2v_r1",
        "checkpoint.maximize_best_checkpoint_metric=true",
    )  # fmt: skip
    once = pretrain_clip(video_corpus, tmp_path / "once", tower, *options)
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.train_step

        def interrupted(self, samples, raise_oom=False):
            if self.get_num_updates() == 5:
                raise Interrupted
            return step(self, samples, raise_oom)

        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(Interrupted):
            pretrain_clip(video_corpus, tmp_path / "twice", tower, *options)
    middle = last_checkpoint(tmp_path / "twice")["model"]
    twice = pretrain_clip(video_corpus, tmp_path / "twice", tower, *options)
    assert training_length() == 9 == once["optimizer_history"][-1]["num_updates"]
    for name, value in once["model"].items():
        assert torch.equal(value, twice["model"][name]), name
    for i, moments in once["last_optimizer_state"]["state"].items():
        for key, value in moments.items():
            other = twice["last_optimizer_state"]["state"][i][key]
            assert torch.equal(value, other) if torch.is_tensor(value) else value == other
    assert once["model"]["gradnorm.started"] and once["model"]["gradnorm.weights"].sum() == pytest.approx(2)
    assert torch.equal(middle["gradnorm.initial_losses"], once["model"]["gradnorm.initial_losses"])
    assert once["extra_state"]["val_loss"] == twice["extra_state"]["val_loss"]
    assert once["extra_state"]["best"] == twice["extra_state"]["best"] > 0  # of 5 clips, a percentage


def test_a_checkpoint_is_read_without_the_towers_weights(video_corpus, tower, tmp_path):
    folder = shutil.copytree(tower, tmp_path / "tower")
    state = pretrain_clip(video_corpus, tmp_path / "run", folder, "optimization.max_update=2")
    (folder / "model.safetensors").unlink()
    path = tmp_path / "run/checkpoint_last.pt"
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert isinstance(model, SignCLIP) and task.cfg.clip_size == 64
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["model"][name]), name
    encoder = load_sign_hiera(path, "tiny_32x64")  # for feature extraction and fine-tuning
    assert torch.equal(encoder.patch_embed.proj.weight, model.mae.encoder.patch_embed.proj.weight)


@pytest.mark.parametrize("left_out", ["no_mae", "no_contrastive"])
def test_one_loss_alone(video_corpus, tower, tmp_path, left_out):
    state = pretrain_clip(
        video_corpus, tmp_path, tower, "optimization.max_update=3", f"criterion.{left_out}=true", "model.drop_path=0.1"
    )
    torch.manual_seed(1)
    cfg = OmegaConf.merge(
        OmegaConf.structured(SignCLIPConfig), {k: v for k, v in state["cfg"]["model"].items() if k[0] != "_"}
    )
    assert getattr(cfg, left_out) is True
    before = SignCLIP.build_model(cfg, TASK).state_dict()
    moved = {name.split(".")[0] for name, value in state["model"].items() if not torch.equal(value, before[name])}
    decoder = not torch.equal(state["model"]["mae.decoder_pred.weight"], before["mae.decoder_pred.weight"])
    # what is not trained is not even decayed
    expected = {"mae"} if left_out == "no_contrastive" else {"mae", "text_tower", "video_projection", "text_projection"}
    assert moved - {"logit_scale"} == expected and decoder is (left_out == "no_contrastive")


def test_bf16_trains(video_corpus, tower, tmp_path):
    state = pretrain_clip(video_corpus, tmp_path, tower, "optimization.max_update=3", "common.bf16=true")
    weights = state["model"]["gradnorm.weights"]
    assert weights.dtype == torch.float32 and weights.tolist() != [1, 1] and weights.sum() == pytest.approx(2)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_update_freq_is_refused_with_the_remedy(video_corpus, tower, tmp_path):
    with pytest.raises(OptionError, match=r"update_freq=\[2\] .*criterion\.accumulation_steps"):
        pretrain_clip(video_corpus, tmp_path, tower, "optimization.update_freq=[2]", "task.clips_per_update=8")
    assert clip_criterion(no_contrastive=True, update_freq=[2]).accumulation_steps == 1


def test_several_clips_of_a_row_are_refused(video_corpus, tower, tmp_path):
    with pytest.raises(OptionError, match=r"task\.repeat_aug=2 with a contrastive loss"):
        pretrain_clip(video_corpus, tmp_path, tower, "task.repeat_aug=2", "task.clips_per_update=8")


def test_a_row_twice_an_epoch_is_refused(video_corpus, tower, tmp_path):
    shutil.copytree(video_corpus, tmp_path / "corpus")
    shutil.copy(tmp_path / "corpus/train.tsv", tmp_path / "corpus/more.tsv")
    words = ("dataset.train_subset='train,more'", "optimization.max_update=1")
    with pytest.raises(OptionError, match=r"task\.train_ratios=1,2 with a contrastive loss.*train_ratios=\"0\.5,1\"'"):
        pretrain_clip(tmp_path / "corpus", tmp_path / "run", tower, *words, "task.train_ratios='1,2'")
    pretrain_clip(tmp_path / "corpus", tmp_path / "run", tower, *words, "task.train_ratios='0.5,1'")
    words = (*words, "checkpoint.save_dir=" + str(tmp_path / "mae"), "task.train_ratios='1,2'")
    pretrain_clip(tmp_path / "corpus", tmp_path / "mae", tower, *words, "criterion.no_contrastive=true")


def test_resuming_another_model_names_tensor_and_options(video_corpus, tower, tmp_path):
    pretrain_clip(video_corpus, tmp_path, tower, "optimization.max_update=1")
    # fairseq puts its own exception in the place of any other; checkpoints/safe.py brings ours back
    with pytest.raises(CheckpointError, match=r"model\.text_tower, model\.embed_dim and model\.variant") as caught:
        pretrain_clip(video_corpus, tmp_path, tower, "optimization.max_update=2", "model.embed_dim=24")
    error, width = caught.value, clip_model(tower).mae.encoder.feature_dim
    assert f"video_projection.fc1.weight is (16, {width}) in the file and (24, {width}) in the model" in str(error)


def test_state_of_another_tower_is_refused(tower, tmp_path):
    state = clip_model(write_t5(tmp_path / "t5")).state_dict()
    with pytest.raises(CheckpointError, match=r"missing names: text_tower\.encoder\..* and \d+ more"):
        clip_model(tower).load_state_dict(state)
    state = clip_model(tower).state_dict()
    with pytest.raises(CheckpointError, match=r"unexpected names: extra \(1 in all\)\. Give"):
        clip_model(tower).load_state_dict({**state, "extra": torch.zeros(1)})
    model = clip_model(tower, seed=1)
    model.load_state_dict(state)
    assert torch.equal(model.mae.mask_token, state["mae.mask_token"])


def test_two_ranks_of_fairseq_equal_one(tower, tmp_path):
    """14 rows, 4 an update: the last one of an epoch is smaller; in validation a rank has no batch of its own."""
    corpus = write_video_corpus(tmp_path / "corpus", {"train": 14, "valid": 5})
    options = (
        "optimization.max_epoch=1",
        "dataset.batch_size_valid=2",
        "model.drop_path=0",
        "optimizer.adam_eps=0.01",
    )
    bert = write_bert(tmp_path / "bert")  # without dropout, which falls alike on both ranks
    one = pretrain_clip(corpus, tmp_path / "one", bert, *options)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # as many parts, so that GradNorm sees the same norms
    small = [word.replace("accumulation_steps=2", "accumulation_steps=1") for word in SMALL]
    result = run_command(
        "torchrun", "--nproc-per-node", "2", "--master-port", port,
        Path(sys.executable).parent / "fairseq-hydra-train", "--config-dir", PRETRAIN, "--config-name", NAME,
        "common.user_dir=slt_plugin", f"task.data={corpus}", f"checkpoint.save_dir={tmp_path / 'two'}",
        f"model.text_tower={bert}", *small, *options,
        "distributed_training.distributed_init_method=env://", "distributed_training.distributed_world_size=2",
        "distributed_training.distributed_backend=gloo", "distributed_training.distributed_rank=${oc.env:RANK}",
        "distributed_training.distributed_no_spawn=true",
    )  # fmt: skip
    two = last_checkpoint(tmp_path / "two")
    assert two["optimizer_history"][-1]["num_updates"] == 4 == one["optimizer_history"][-1]["num_updates"]
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    lines = [line for line in (result.stdout + result.stderr).splitlines() if "valid on 'valid' subset" in line]
    assert all(f"| {name} " in lines[-1] for name in ("loss_mae", "loss_contrastive", *RETRIEVAL))
    assert two["extra_state"]["val_loss"] == pytest.approx(one["extra_state"]["val_loss"], rel=1e-3)
    ranks = {float(found) for found in re.findall(r"v2t_r1 (\S+)", lines[-1])}
    assert ranks <= {20.0 * i for i in range(6)}  # of all 5 clips, whatever the batches
