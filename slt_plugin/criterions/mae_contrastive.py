"""Criterion ``mae_contrastive``: reconstruction of masked clips and matching of clips with texts, weighted by GradNorm.

The contrastive loss is that of the whole update: of all clips of all ranks and accumulation steps. Nothing of it is
differentiated across ranks: the embeddings are gathered as values, each rank computes the loss and its derivatives by
all of them, and takes its own rows of these through its towers. With ``accumulation_steps`` a first pass without
gradients computes the embeddings of all parts (as GradCache, Gao et al., 2021), and a second one, with the same
dropout, takes each part's derivatives through the towers. So one rank with 4 steps computes what 4 ranks do.
"""

import math
from dataclasses import dataclass, field
from typing import List  # noqa: UP035  fairseq reads List[int] in a config dataclass

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.optim import AMPOptimizer
from omegaconf import II
from torch import Tensor

from slt_plugin.common.messages import did_you_mean
from slt_plugin.criterions.accumulation import LossGradients, Replayed, cut_batch, hand_over
from slt_plugin.criterions.retrieval import NAMES as RETRIEVAL
from slt_plugin.criterions.retrieval import ValidationRetrieval
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import training_length
from slt_plugin.models.sign_clip import SignCLIP, SignCLIPOutput
from slt_plugin.modules.contrastive import (
    ContrastiveGradients,
    contrastive_gradients,
    contrastive_loss,
    gather_rows,
    retrieval_metrics,
    sum_over_ranks,
)

GRADNORM = ("weight_mae", "weight_contrastive", "norm_mae", "norm_contrastive")  # logged in training


@dataclass
class MAEContrastiveConfig(FairseqDataclass):
    """Options of ``mae_contrastive``."""

    no_mae: bool = field(default=False, metadata={"help": "the contrastive loss alone; the decoder is not run"})
    no_contrastive: bool = field(default=False, metadata={"help": "the reconstruction alone; texts are not read"})
    gradnorm: bool = field(
        default=True, metadata={"help": "weigh the two losses by GradNorm; false: both by 1. One alone has weight 1"}
    )
    gradnorm_alpha: float = field(
        default=1.0, metadata={"help": "how much more weight the loss gets that has fallen less; 0: gradients alike"}
    )
    gradnorm_lr: float = field(default=1e-2, metadata={"help": "learning rate of the weights at the first update"})
    gradnorm_min_lr: float = field(default=1e-4, metadata={"help": "and at the last one, along a cosine"})
    accumulation_steps: int = field(
        default=1, metadata={"help": "compute a rank's batch in so many parts, one after the other, to save memory"}
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    update_freq: List[int] = II("optimization.update_freq")  # noqa: UP006, RUF009


@register_criterion("mae_contrastive", dataclass=MAEContrastiveConfig)
class MAEContrastive(FairseqCriterion):
    """w_mae * L_mae + w_con * L_con, for model ``sign_clip`` and task ``sign_pretraining``.

    L_mae is the mean over all predicted patches of the update, L_con the symmetric contrastive loss over all its clips.
    What fairseq makes of the gradients, their sum over ranks divided by the sum of sample sizes, is the gradient of
    this, however the clips were shared out. ``sample_size`` is the number of clips; without the contrastive loss that
    of predicted patches, so that ``optimization.update_freq`` is exact too.

    GradNorm takes the two losses of the update as above, and as norm of a loss's gradient the sum over ranks and parts
    of |gradient of what the rank's part adds to the loss|, by the parameters of ``mae.encoder``. For n parts of one
    size that is the mean over them of the norm of n times their share, what each of n ranks has before gradients are
    averaged; it has the scale of the gradient of one whole batch, whatever n. The weights of an update are those from
    before its own GradNorm step.

    Validation logs the unweighted ``loss_mae`` and ``loss_contrastive``, and as ``loss`` the mean over clips of each
    batch's sum of them, because the weights change with training. Its ``loss_contrastive`` is that among the clips of
    each batch of each rank, so compare it at one dataset.batch_size. Retrieval (``v2t_r1`` ...) is among all clips of
    the validation set; in training it is among those of each update.
    """

    def __init__(
        self,
        task,
        no_mae: bool,
        no_contrastive: bool,
        gradnorm: bool,
        gradnorm_alpha: float,
        gradnorm_lr: float,
        gradnorm_min_lr: float,
        accumulation_steps: int,
        best_checkpoint_metric: str,
        update_freq: list[int],
    ):
        super().__init__(task)
        if no_mae and no_contrastive:
            raise OptionError("criterion.no_mae and criterion.no_contrastive leave no loss: set one of them to false")
        if accumulation_steps < 1:
            raise OptionError(f"criterion.accumulation_steps={accumulation_steps}: give 1 or more")
        if not no_contrastive and any(n > 1 for n in update_freq):
            raise OptionError(
                f"optimization.update_freq={list(update_freq)} would make contrastive losses of small batches: set it "
                "to [1], dataset.batch_size to all clips of a rank and update, and criterion.accumulation_steps to the "
                "number of parts that fit into memory, which gives the loss of the whole update"
            )
        if not (gradnorm_alpha >= 0 and 0 <= gradnorm_min_lr <= gradnorm_lr < math.inf):
            raise OptionError(
                f"criterion.gradnorm_alpha={gradnorm_alpha:g} gradnorm_lr={gradnorm_lr:g} gradnorm_min_lr="
                f"{gradnorm_min_lr:g}: give an alpha of 0 or more, and rates with 0 <= gradnorm_min_lr <= gradnorm_lr"
            )
        self.reconstructs, self.matches = not no_mae, not no_contrastive
        logged = ["loss", *["loss_mae"] * self.reconstructs, *["loss_contrastive", *RETRIEVAL] * self.matches]
        if best_checkpoint_metric not in logged:  # fairseq would fail at the end of the first validation
            raise OptionError(
                f"checkpoint.best_checkpoint_metric={best_checkpoint_metric} is not what this criterion logs"
                f"{did_you_mean(best_checkpoint_metric, logged)}; metrics: {', '.join(logged)}"
            )
        self.weighs = gradnorm and self.reconstructs and self.matches
        self.alpha, self.lr, self.min_lr = gradnorm_alpha, gradnorm_lr, gradnorm_min_lr
        self.accumulation_steps = accumulation_steps
        self.needs_texts = self.matches  # the task asks
        self._retrieval = ValidationRetrieval()

    # training

    def accumulate_gradients(
        self, model, sample: dict, optimizer, update_num: int, ignore_grad: bool = False
    ) -> tuple[Tensor, int, dict]:
        """Forward and backward passes of one update on one rank; to be called by all ranks at once.

        Args:
            model: a `SignCLIP`, or its wrapper for several ranks.
            optimizer: fairseq's; its ``backward`` is called once.
            update_num: updates so far.
            ignore_grad: the batch is a stand-in: nothing of it counts.

        Returns:
            The loss times ``sample_size``, the sample size, and sums for `reduce_metrics`.

        Raises:
            OptionError: another model, or options of the training that do not go with it.
        """
        clip = self._model(model)
        if isinstance(optimizer, AMPOptimizer):
            raise OptionError("criterion mae_contrastive needs common.bf16=true or fp32; common.amp computes in fp16")
        lr = self.gradnorm_lr(update_num) if self.weighs else 0.0
        net_input = sample["net_input"]
        parts = cut_batch(net_input, 1 if ignore_grad else self.accumulation_steps)
        clips = 0 if ignore_grad else len(net_input["src_lengths"])

        draws, output, full, first = Replayed(), None, None, 0
        if self.matches:
            if len(parts) == 1:
                output = self._forward(model, parts[0])
                embeddings = [output]
            else:
                embeddings = self._embed(model, parts, draws)
            full, first, retrieved = self._full_batch(embeddings, clips, clip)
        trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
        mae, contrastive = (LossGradients(trained, list(clip.mae.encoder.parameters())) for _ in range(2))
        counts = torch.zeros(3, dtype=torch.float64, device=mae.norm.device)  # clips, mae_sum, patches
        for number, part in enumerate(parts):
            if output is None:
                if self.matches:
                    draws.replay(number)
                output = self._forward(model, part)
            if ignore_grad:
                break
            size = len(part["src_lengths"])
            if self.matches:
                derivatives = full.video[first : first + size], full.text[first : first + size]
                contrastive.add((output.video, output.text), derivatives, keep_graph=self.reconstructs)
                first += size
            if self.reconstructs:
                mae.add([output.mae_sum], [torch.ones_like(output.mae_sum)], keep_graph=False)
                counts += counts.new_tensor([0, float(output.mae_sum.detach()), output.patches])
            output = None
        counts[0] = clips

        totals = sum_over_ranks(torch.stack([*counts, mae.norm, contrastive.norm]))
        all_clips, mae_sum, all_patches, mae_norm, contrastive_norm = totals.tolist()
        weights = clip.gradnorm.weights.tolist() if self.weighs else [1.0, 1.0]
        losses = [mae_sum / all_patches if self.reconstructs else 0.0, float(full.loss) if self.matches else 0.0]
        loss = sum(weight * value for weight, value in zip(weights, losses, strict=True))
        if self.matches:
            # every rank knows the whole derivative: each takes its part
            contrastive.add_directly(clip.logit_scale, full.log_scale * (clips / all_clips))
        size, all_size = (clips, all_clips) if self.matches else (int(counts[2]), all_patches)
        factors = [all_size * weights[0] / (all_patches or 1.0), all_size * weights[1]]
        loss = torch.tensor(loss, device=mae.norm.device)
        hand_over(loss, (mae, contrastive), factors, optimizer.backward)
        if self.weighs:
            norms = [mae_norm / all_patches, contrastive_norm]
            clip.gradnorm.step(torch.tensor(losses), torch.tensor(norms), lr=lr, alpha=self.alpha)

        logged = {"sample_size": size, "nsentences": clips, "ntokens": sample["ntokens"], "loss": float(loss) * size}
        if self.reconstructs:
            logged |= {"mae": float(counts[1]), "patches": float(counts[2])}
        if self.matches:
            logged |= {"contrastive": losses[1] * clips, "logit_scale": math.exp(clip.log_scale()) * clips}
            logged |= {name: value * clips for name, value in retrieved.items()}
        if self.weighs:
            logged |= {"weight_mae": weights[0] * clips, "weight_contrastive": weights[1] * clips}
            logged |= {"norm_mae": norms[0] * clips, "norm_contrastive": norms[1] * clips}
        return loss * size, size, logged

    def gradnorm_lr(self, update_num: int) -> float:
        """The learning rate of the weights after ``update_num`` updates: a cosine over the whole training.

        Raises:
            OptionError: a training without end.
        """
        if self.lr == self.min_lr:
            return self.lr
        total = training_length()
        if total is None:
            raise OptionError(
                "criterion.gradnorm_lr falls until the last update, which is not known: set optimization.max_update or "
                "max_epoch, or criterion.gradnorm_min_lr to the same rate"
            )
        progress = min(update_num / max(total - 1, 1), 1.0)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * progress)) / 2

    def _forward(self, model, part: dict) -> SignCLIPOutput:
        return model(**part, reconstruct=self.reconstructs, embed=self.matches)

    @torch.no_grad()
    def _embed(self, model, parts: list[dict], draws: Replayed) -> list[SignCLIPOutput]:
        outputs = []
        for part in parts:
            draws.record()
            outputs.append(model(**part, reconstruct=False, embed=True))
        return outputs

    def _full_batch(
        self, outputs: list[SignCLIPOutput], clips: int, clip: SignCLIP
    ) -> tuple[ContrastiveGradients, int, dict[str, float]]:
        """The contrastive loss of all ranks and its derivatives, this rank's first row in it, and retrieval in it."""
        video, first = gather_rows(torch.cat([output.video for output in outputs])[:clips])
        text, _ = gather_rows(torch.cat([output.text for output in outputs])[:clips])
        return contrastive_gradients(video, text, clip.logit_scale), first, retrieval_metrics(video, text)

    # validation

    def forward(self, model, sample: dict, reduce: bool = True) -> tuple[Tensor, int, dict]:
        """Losses of a validation batch; its clips join the validation's retrieval. To be called by all ranks at once.

        Returns:
            The loss times the number of clips, this number, and sums for `reduce_metrics`.

        Raises:
            OptionError: in training, of which `accumulate_gradients` takes care, or for another model.
        """
        if self.training:
            raise OptionError("criterion mae_contrastive trains in one task alone: set task._name=sign_pretraining")
        clip = self._model(model)
        net_input = sample["net_input"]
        clips = len(net_input["src_lengths"])
        output = self._forward(model, net_input)
        logged: dict[str, float] = {"sample_size": clips, "nsentences": clips, "ntokens": sample["ntokens"]}
        loss = torch.zeros((), device=net_input["src_lengths"].device)
        if self.reconstructs:
            logged |= {"mae": float(output.mae_sum.detach()), "patches": output.patches}
            loss = loss + output.mae_sum / output.patches
        if self.matches:
            contrastive = contrastive_loss(output.video, output.text, clip.logit_scale)
            logged["contrastive"] = float(contrastive.detach()) * clips
            loss = loss + contrastive
            self._retrieval.add(sample["id"], output.video, output.text)
        logged["loss"] = float(loss.detach()) * clips
        return loss * clips, clips, logged

    def _model(self, model) -> SignCLIP:
        found = next((module for module in model.modules() if isinstance(module, SignCLIP)), None)
        if found is None:
            raise OptionError("criterion mae_contrastive needs model._name=sign_clip")
        return found

    # logging

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict]) -> None:
        """Logs what the class's docstring names; ``logit_scale`` is what cosines are multiplied by.

        ``norm_mae`` and ``norm_contrastive`` are the norms that GradNorm takes, of the unweighted losses.
        """

        def total(key: str) -> float:
            return float(sum(output.get(key, 0) for output in logging_outputs))

        def log(name: str, key: str, count: str) -> None:
            if any(key in output for output in logging_outputs) and total(count):
                metrics.log_scalar(name, total(key) / total(count), total(count), round=4)

        log("loss_mae", "mae", "patches")
        log("loss_contrastive", "contrastive", "nsentences")
        for name in (*GRADNORM, "logit_scale", *RETRIEVAL):
            log(name, name, "nsentences")
        log("loss", "loss", "sample_size")

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
