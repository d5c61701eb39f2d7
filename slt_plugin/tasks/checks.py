"""What tasks check before they train, so that a mistake is an error and not a wrong number."""

import logging
from dataclasses import fields
from pathlib import Path

from fairseq.criterions.model_criterion import ModelCriterion

from slt_plugin.common.messages import did_you_mean
from slt_plugin.criterions.retrieval import NAMES as RETRIEVAL
from slt_plugin.data.dataset import SignDataset, name_rows
from slt_plugin.data.errors import DataError
from slt_plugin.models.errors import OptionError
from slt_plugin.models.parameter_groups import NAME as ADAM_GROUPS
from slt_plugin.models.parameter_groups import (
    has_lr_scales,
    has_weight_decay_scales,
    lr_scale,
    weight_decay_scale,
)
from slt_plugin.models.sign_to_text import SignToTextConfig

logger = logging.getLogger(__name__)

HIGHER_IS_BETTER = {
    "bleu": True,
    "chrf": True,
    "accuracy": True,
    "r1": True,
    "cosine": True,
    "loss": False,
    "nll_loss": False,
    "ppl": False,
    "mse": False,
    "loss_mae": False,
    "loss_contrastive": False,
    **{name: not name.endswith("_rank") for name in RETRIEVAL},
}
OF_A_TEACHER = ("r1", "cosine", "mse")
MAX_UNKNOWN = 0.1  # share of unknown tokens in the training texts


def check_best_metric(cfg) -> None:
    """Raises OptionError where the best checkpoint would be chosen by nothing, or would be the worst."""
    metric = cfg.best_checkpoint_metric
    if metric in ("bleu", "chrf") and not cfg.eval_bleu:
        raise OptionError(
            f"task.eval_bleu=false leaves no {metric} to choose the best checkpoint by: set "
            "checkpoint.best_checkpoint_metric=loss checkpoint.maximize_best_checkpoint_metric=false"
        )
    if metric in OF_A_TEACHER and not cfg.teacher:
        raise OptionError(
            f"checkpoint.best_checkpoint_metric={metric} is known of criterion sonar_distillation alone, which needs "
            "task.teacher: set it, or choose another metric"
        )
    check_best_direction(cfg)


def check_best_direction(cfg) -> None:
    """Raises OptionError where the worst checkpoint would be kept as the best."""
    metric, maximize = cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric
    if HIGHER_IS_BETTER.get(metric, maximize) != maximize:
        raise OptionError(
            f"checkpoint.best_checkpoint_metric={metric} needs checkpoint.maximize_best_checkpoint_metric="
            f"{str(not maximize).lower()}, or the worst model is kept"
        )


def check_metric_of_model(cfg, criterion) -> None:
    """Raises OptionError where fairseq's criterion ``model`` does not log what the best checkpoint is chosen by."""
    if not isinstance(criterion, ModelCriterion):
        return
    metric, logged = cfg.best_checkpoint_metric, ["loss", *criterion.log_keys]
    if metric not in logged:  # fairseq would fail at the end of the first validation
        raise OptionError(
            f"checkpoint.best_checkpoint_metric={metric} is not what criterion model logs"
            f"{did_you_mean(metric, logged)}; metrics: {', '.join(logged)}"
        )


def check_video_encoder(cfg) -> None:
    """Raises OptionError where options of the SignHiera have no effect, or a frozen one would have random weights."""
    if cfg.source_encoder != "signhiera":
        defaults = {f.name: f.default for f in fields(SignToTextConfig) if f.name.startswith("signhiera_")}
        given = [f"model.{name}" for name, default in defaults.items() if getattr(cfg, name, default) != default]
        if given:
            raise OptionError(
                f"model.source_encoder={cfg.source_encoder} has no use for {', '.join(given)}: leave them out, or set "
                "model.source_encoder=signhiera (task.source=video)"
            )
        return
    if cfg.signhiera_trainable_blocks == 0 and cfg.signhiera_drop_path:
        raise OptionError(
            f"model.signhiera_drop_path={cfg.signhiera_drop_path} has no effect on a frozen SignHiera: leave it at "
            "0, or set model.signhiera_trainable_blocks"
        )
    if cfg.signhiera_trainable_blocks != -1 and not cfg.signhiera_pretrained:
        raise OptionError(
            f"model.signhiera_trainable_blocks={cfg.signhiera_trainable_blocks} freezes a SignHiera of random weights: "
            "set model.signhiera_pretrained, or train all of it with model.signhiera_trainable_blocks=-1"
        )


def check_parameter_groups(model, optimizer) -> None:
    """Raises OptionError where the optimizer would ignore marks of the model's parameters (`parameter_groups`)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    remedy = f"optimizer._name={ADAM_GROUPS}, and with common.fp16 also common.fp16_no_flatten_grads=true"
    if any(lr_scale(parameter) != 1 for parameter in trained) and not has_lr_scales(optimizer):
        names = ("signhiera_lr_decay", "lr_scales")
        given = [f"model.{name}={getattr(model.cfg, name)}" for name in names if hasattr(model.cfg, name)]
        raise OptionError(f"{' and '.join(given)} needs {remedy}")
    exempt = [parameter for parameter in trained if weight_decay_scale(parameter) != 1]
    if exempt and not has_weight_decay_scales(optimizer):
        raise OptionError(
            f"optimizer.weight_decay would decay biases, norms and position embeddings as well ({len(exempt)} "
            f"parameters): it needs {remedy}"
        )


def check_spelling(path: Path, dataset: SignDataset, unk: int) -> None:
    """Warns of texts that the vocabulary cannot spell, which would train on <unk> without a word.

    Raises:
        DataError: more than MAX_UNKNOWN of the tokens are unknown.
    """
    counts = [int((target == unk).sum()) for target in dataset.targets]
    share = sum(counts) / max(1, int(dataset.target_lengths.sum()))
    if not share:
        return
    rows = [row for row, count in zip(dataset.rows, counts, strict=True) if count]
    message = (
        f"{path}: the vocabulary cannot spell {share:.1%} of the tokens, in {len(rows)} of {len(dataset)} rows, "
        f"for example {rows[0].id}: {rows[0].text!r}"
    )
    if share > MAX_UNKNOWN:
        raise DataError(f"{message}. Check task.codec_path, and that task.lowercase is as in its training")
    logger.warning("%s: they are trained and decoded as unknown", message)


def check_ctc_lengths(path: Path, dataset: SignDataset, stride: int, augment_speed: float) -> None:
    """Names the rows that CTC ignores (zero_infinity), having fewer encoder steps than their text needs.

    Args:
        stride: source steps per encoder step.
        augment_speed: training clips are played up to 1 + this times as fast.

    Raises:
        DataError: all rows would be ignored.
    """
    short, lengths, hopeless = [], [], 0
    fastest = 1 + augment_speed if dataset.training else 1
    for row, steps, target in zip(dataset.rows, dataset.source_lengths, dataset.targets, strict=True):
        needed = len(target) - 1 + int((target[1:] == target[:-1]).sum())  # a blank between equal neighbours
        hopeless += -(-int(steps) // stride) < needed
        encoder_steps = -(-int(steps / fastest) // stride)
        if encoder_steps < needed:
            short.append(row)
            lengths.append(f"{encoder_steps} steps, {needed} needed")
    if not short:
        return
    message = (
        f"{path}: CTC ignores {len(short)} of {len(dataset)} rows, whose encoder steps are fewer than their text needs"
        f"{' when augmentation plays them fastest' if fastest > 1 else ''}: {name_rows(short, lengths)}. "
        "Lower the strides or task.step_frames, or check the segments"
    )
    if hopeless == len(dataset):
        raise DataError(message)
    logger.warning(message)
