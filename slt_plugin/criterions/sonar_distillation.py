"""Criterion ``sonar_distillation``: the sentence embedding of signing follows that of its text by a frozen teacher.

The loss of a sentence is the sum over dimensions of the squared differences. Components of SONAR's embeddings are about
5e-3, so everything is computed in fp32: their squares, or a mean of them, vanish in fp16.
"""

import math
from dataclasses import dataclass, field

from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from slt_plugin.models.errors import OptionError


@dataclass
class SonarDistillationConfig(LabelSmoothedCrossEntropyCriterionConfig):
    """Options of ``sonar_distillation``; those of the cross-entropy are fairseq's."""

    ce_weight: float = field(
        default=0.0,
        metadata={
            "help": "adds so much of the cross-entropy of the text (summed over tokens) by the text decoder; 0: the "
            "decoder is not used in training"
        },
    )
    ignore_prefix_size: int = field(
        default=1, metadata={"help": "cross-entropy: the first N tokens, of which the language is given, do not count"}
    )


@register_criterion("sonar_distillation", dataclass=SonarDistillationConfig)
class SonarDistillation(LabelSmoothedCrossEntropyCriterion):
    """Squared distance to the teacher, and optionally cross-entropy through the model's text decoder.

    Samples are those of a dataset with a teacher: ``teacher`` (B, D), ``teacher_index`` (B,); at validation also
    ``teacher_all`` (K, D), the embeddings of all distinct texts of the split, among which row i's is number
    ``teacher_index[i]``. ``sample_size`` is the number of sentences.
    """

    def __init__(
        self,
        task,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int,
        report_accuracy: bool,
        ce_weight: float,
    ):
        super().__init__(task, sentence_avg, label_smoothing, ignore_prefix_size, report_accuracy)
        if not 0 <= ce_weight < float("inf"):
            raise OptionError(f"criterion.ce_weight={ce_weight}: give 0 (no cross-entropy) or a number above it")
        given = {"label_smoothing": label_smoothing, "report_accuracy": report_accuracy}
        ignored = [f"criterion.{name}={value}" for name, value in given.items() if value]
        if not ce_weight and ignored:
            raise OptionError(
                f"{' and '.join(ignored)} has no effect without cross-entropy: leave it out, or set criterion.ce_weight"
            )
        self.ce_weight = ce_weight
        self._model_fits = False

    def forward(self, model, sample: dict, reduce: bool = True) -> tuple[Tensor, int, dict]:
        """The loss summed over the batch's sentences, their number, and sums for `reduce_metrics`."""
        self._check_model(model)
        net_input = sample["net_input"]
        if not self.ce_weight:  # nothing is decoded then
            net_input = {name: value for name, value in net_input.items() if name != "prev_output_tokens"}
        net_output = model(**net_input)  # once, and through the wrapper that sums gradients over ranks
        student, teacher = net_output[1]["embedding"].float(), sample["teacher"].float()  # B x D
        if student.shape != teacher.shape:
            raise OptionError(
                f"the model's embeddings have {student.size(1)} dimensions, those of task.teacher {teacher.size(1)}: "
                "give the store of the teacher that the model's text decoder reads"
            )
        squared = (student - teacher).square().sum()
        loss, sentences = squared, len(student)
        logged = {
            "ntokens": sample["ntokens"],
            "nsentences": sentences,
            "sample_size": sentences,
            "squared": squared.detach(),
            "values": student.numel(),
            "cosine": cosine_similarity(student, teacher).sum().detach(),
        }
        if self.ce_weight:
            cross_entropy, nll = self.compute_loss(model, net_output, sample)
            loss = loss + self.ce_weight * cross_entropy
            logged |= {"nll": nll.detach(), "tokens": sample["ntokens"] - sentences * self.ignore_prefix_size}
            if self.report_accuracy:
                correct, total = self.compute_accuracy(model, net_output, sample)
                logged |= {"n_correct": utils.item(correct), "total": utils.item(total)}
        if not self.training:  # the same keys on every rank, also where a rank's stand-in batch is of the training data
            found = _first_is_right(student, sample) if "teacher_all" in sample else student.new_zeros(0)
            logged |= {"r1_rows": len(found), "r1_hits": found.sum()}
        return loss, sentences, {"loss": loss.detach(), **logged}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict]) -> None:
        """Logs loss (a sentence), mse (a dimension), cosine, r1 (percent) and those of the cross-entropy.

        Each batch counts by its rows, so that a validation's values are those of all its rows over all ranks.
        """

        def total(key: str) -> float:
            return float(sum(output.get(key, 0) for output in logging_outputs))

        def log(name: str, value: str, count: str, factor: float = 1.0) -> None:
            if total(count):
                metrics.log_scalar(name, factor * total(value) / total(count), total(count))

        log("loss", "loss", "sample_size")
        log("mse", "squared", "values")
        log("cosine", "cosine", "nsentences")
        log("r1", "r1_hits", "r1_rows", 100)
        log("nll_loss", "nll", "tokens", 1 / math.log(2))  # in bits, as fairseq's
        log("accuracy", "n_correct", "total", 100)

    def _check_model(self, model) -> None:
        if self._model_fits:
            return
        if not hasattr(model, "embed"):
            raise OptionError(
                "criterion sonar_distillation needs a model with a sentence embedding: model._name=sonar_translator"
            )
        if self.training and not self.ce_weight and any(p.requires_grad for p in model.decoder.parameters()):
            raise OptionError(
                "criterion.ce_weight=0 gives the text decoder no gradient, but weight decay would change it: set "
                "model.freeze=text_decoder (model.freeze_updates=0), or train it with criterion.ce_weight"
            )
        self._model_fits = self.training


def _first_is_right(student: Tensor, sample: dict) -> Tensor:
    """For each row (B,) whether the nearest of all teacher embeddings, by cosine, is that of its own text."""
    similarity = normalize(student) @ normalize(sample["teacher_all"].float()).T  # B x K
    return similarity.argmax(1).eq(sample["teacher_index"])
