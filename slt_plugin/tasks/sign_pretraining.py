"""Task ``sign_pretraining``: manifests of videos, with or without text, in; self-supervised losses out."""

import logging
from dataclasses import replace

from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.tasks import register_task
from omegaconf import OmegaConf
from torch import Tensor

from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.data.pretraining import PretrainingDataset, RandomClips
from slt_plugin.data.selection import within_durations
from slt_plugin.data.updates import UpdatePlan
from slt_plugin.models.errors import OptionError
from slt_plugin.models.schedule import TrainingLength, announce
from slt_plugin.tasks.checks import check_best_direction, check_metric_of_model, check_parameter_groups
from slt_plugin.tasks.finite import check_finite, gradients_to_check
from slt_plugin.tasks.manifest_task import CLIP_OPTIONS, ManifestTask, clip_options
from slt_plugin.tasks.pictures import ValidationPictures, check_picture_options
from slt_plugin.tasks.pretraining_options import (
    SignPretrainingConfig,
    check_options,
    describe,
    manifest_names,
    ratios_of,
    training_length,
    update_plan,
)

logger = logging.getLogger(__name__)

DRAWS = ("seed", "repeat_aug", "clips_per_update")  # with the epoch, they say what an update is made of
STARTS = {"pretrained": None, "pretrained_decoder": False}  # model options that a checkpoint's weights replace


@register_task("sign_pretraining", dataclass=SignPretrainingConfig)
class SignPretrainingTask(ManifestTask):
    """Trains models on random clips of videos.

    fairseq seeds torch alike on all ranks before each update: DropPath falls alike on the n-th clips of all ranks.
    Everything else that is drawn (clips, augmentation, masks) comes with the batch, and is different for each clip.

    A criterion with ``needs_texts = True`` gets the rows' texts. One with ``accumulate_gradients`` is called for that
    in training instead of ``forward``: ``accumulate_gradients(model, sample, optimizer, update_num=, ignore_grad=)``
    computes gradients itself and returns (loss, sample_size, logging_output).
    """

    def __init__(self, cfg: SignPretrainingConfig, *, from_checkpoint: bool = False):
        super().__init__(cfg)
        check_options(cfg)
        self._trains = not from_checkpoint  # and not only reads one
        self.needs_texts = False  # of the criterion, once it is built
        self.weights_follow = False  # whether the model that is built gets its values from a checkpoint at once
        self._pictures = ValidationPictures(cfg)
        self._update = 0
        self._described = ""

    # state

    def state_dict(self) -> dict:
        groups = {"clips": CLIP_OPTIONS, "draws": DRAWS}
        return {group: {name: getattr(self.cfg, name) for name in names} for group, names in groups.items()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Where a checkpoint is only read: takes its options of clips, so that they are cut as in its training.

        Raises:
            OptionError: this task trains, and cuts clips in another way.
        """
        clips = state_dict["clips"]
        if not self._trains:
            for name, value in clips.items():
                setattr(self.cfg, name, value)
            return
        # validation data is loaded already: what is taken over now would hold for training alone
        if changed := self._changes(clips):
            raise OptionError(
                f"the checkpoint was trained on another source: {', '.join(changed.values())}. Give the checkpoint's "
                "options"
            )
        # a checkpoint of before has no draws
        changed = self._changes(state_dict.get("draws", {}))
        if changed and distributed_utils.get_global_rank() == 0:
            told = (
                ". Validation draws other clips and masks for another seed, so that its losses do not compare with the "
                "best one so far: checkpoint.reset_meters=true forgets that"
            )
            logger.warning(
                "the checkpoint was trained with other draws: %s%s",
                ", ".join(changed.values()), told if "seed" in changed else "",
            )  # fmt: skip

    def _changes(self, theirs: dict) -> dict[str, str]:
        """For each option that a checkpoint has another value of: 'task.clip_size=64 (checkpoint: 32)'."""
        ours = {name: getattr(self.cfg, name) for name in theirs}
        return {
            name: f"{'common' if name == 'seed' else 'task'}.{name}={ours[name]} (checkpoint: {value})"
            for name, value in theirs.items()
            if ours[name] != value
        }

    # data

    def load_dataset(self, split: str, combine: bool = False, **kwargs) -> None:
        """Reads ``<data>/<split>.tsv``; for training each of the manifests that ``dataset.train_subset`` joins.

        Raises:
            DataError: a manifest is missing or wrong, or the criterion needs texts that are missing.
            OptionError: names or ratios that do not fit together.
        """
        self._refuse_combined(split, combine)
        training = split == self.cfg.train_subset
        names = manifest_names(split)
        ratios = ratios_of(self.cfg.train_ratios, names) if training else [1.0] * len(names)
        clips = RandomClips(self._media_root, clip_options(self.cfg))
        manifests, lengths = [], []
        for name in names:
            rows, of_rows = self._rows(name, clips)
            # an id of one manifest may be in another as well
            manifests.append(rows if len(names) == 1 else [replace(row, id=f"{name}:{row.id}") for row in rows])
            lengths += of_rows
        self.datasets[split] = dataset = PretrainingDataset(
            manifests,
            clips,
            lengths,
            ratios=ratios,
            copies=self.cfg.repeat_aug,
            training=training,
            seed=self.cfg.seed,
            with_texts=self.needs_texts,
        )
        for name, rows, ratio in zip(names, manifests, ratios, strict=True):
            logger.info("%s: %d rows%s", name, len(rows), "" if ratio == 1 else f", each {ratio:g} times an epoch")
        if training:
            logger.info("%d rows an epoch, %d clips each", len(dataset), dataset.copies)
        self._prepare_dry_run(combine)

    def _rows(self, name: str, clips: RandomClips) -> tuple[list[Row], list[tuple[int, float]]]:
        """The rows of a manifest that have a fitting duration, with their frames and rates."""
        rows = read_manifest(self._manifest(name), require_text=self.needs_texts)
        if unknown := sum(not clips.length_is_known(row) for row in rows):
            logger.info(
                "%s: opening the files of %d of %d rows for their length; columns num_frames and fps of the manifest "
                "would tell it",
                name, unknown, len(rows),
            )  # fmt: skip
        lengths = [clips.length(row) for row in rows]
        kept = within_durations(
            name,
            rows,
            [frames / rate for frames, rate in lengths],
            shortest=self.cfg.min_duration,
            longest=self.cfg.max_duration,
        )
        return [rows[i] for i in kept], [lengths[i] for i in kept]

    def get_batch_iterator(self, dataset, **options):
        """See fairseq; in training the batches of whole updates, in the dataset's own order (`UpdatePlan`).

        Raises:
            OptionError: ``task.clips_per_update`` does not go into the batches that the options allow.
            DataError: an epoch has fewer rows than there are ranks.
        """
        if dataset.training:
            self._plan_updates(dataset, options)
            options["skip_remainder_batch"] = False  # the plan has dropped it
        iterator = super().get_batch_iterator(dataset, **options)
        if dataset.training:
            iterator.disable_shuffling, iterator.shuffle = True, False  # fairseq would take updates apart
        return iterator

    def _plan_updates(self, dataset: PretrainingDataset, options: dict) -> None:
        """Gives the dataset its plan, and tells the learning rate how long the training is."""
        max_tokens, max_sentences = options.get("max_tokens"), options.get("max_sentences")

        def plan(epoch: int) -> UpdatePlan:
            return update_plan(
                self.cfg,
                ranks=options.get("num_shards", 1),
                epoch=epoch,
                max_rows=max_sentences,
                max_frames=max_tokens,
                drop_last=options.get("skip_remainder_batch", False),
            )

        epochs = [plan(epoch) for epoch in range(1, len(self.cfg.update_freq) + 1)]
        dataset.plan, batches = epochs[0], 0
        if dataset.plan.rows is None:
            # how many batches frames fill may differ a little from epoch to epoch: the first one's count for all
            dataset.set_epoch(1)
            batches = len(dataset.batch_by_size(dataset.ordered_indices(), max_tokens, max_sentences))
        length = training_length(self.cfg, epochs, len(dataset), batches)
        if not min(length.updates_of_epochs):
            raise OptionError(
                f"{len(dataset)} rows make no whole update, and optimization.skip_remainder_batch=true leaves the rest "
                "out: set it to false, or lower task.clips_per_update, dataset.batch_size or optimization.update_freq"
            )
        announce(length)
        dataset.plan = plan(options.get("epoch", 1))
        description = describe(dataset.plan, self.cfg.repeat_aug, max_tokens, length)
        if description != self._described:
            self._described = description
            logger.info(description)

    # model and training

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model; weights that training starts from are not read for a checkpoint."""
        self.weights_follow = from_checkpoint
        if from_checkpoint:
            cfg = OmegaConf.merge(cfg, {name: value for name, value in STARTS.items() if name in cfg})
        else:
            self._manifest_directory()  # fairseq lists it before it asks for a dataset
            check_best_direction(self.cfg)
            check_picture_options(self.cfg, cfg)
            announce(TrainingLength())  # that of an earlier training of this process does not hold
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg, from_checkpoint: bool = False):
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self._trains:
            check_metric_of_model(self.cfg, criterion)
        self.needs_texts = getattr(criterion, "needs_texts", False)
        if self.needs_texts and self.cfg.repeat_aug > 1:
            raise OptionError(
                f"task.repeat_aug={self.cfg.repeat_aug} with a contrastive loss: the clips of a row would be wrong "
                "answers for each other's text; set task.repeat_aug=1"
            )
        if self.needs_texts:
            self._refuse_repeated_rows()
        return criterion

    def _refuse_repeated_rows(self) -> None:
        """Raises OptionError where an epoch, and so one update, may have a row more than once."""
        ratios = ratios_of(self.cfg.train_ratios, manifest_names(self.cfg.train_subset))
        if max(ratios) > 1:
            lower = ",".join(f"{ratio / max(ratios):.4g}" for ratio in ratios)
            raise OptionError(
                f"task.train_ratios={self.cfg.train_ratios} with a contrastive loss: an update could hold a row twice, "
                f"and its clips would be wrong answers for each other's text; give ratios of at most 1, such as "
                f"'task.train_ratios=\"{lower}\"', and more epochs"
            )

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        check_parameter_groups(model, optimizer)
        self._update = update_num + 1
        if hasattr(criterion, "accumulate_gradients"):
            model.train()
            model.set_num_updates(update_num)
            loss, sample_size, logging_output = criterion.accumulate_gradients(
                model, sample, optimizer, update_num=update_num, ignore_grad=ignore_grad
            )
        else:
            loss, sample_size, logging_output = super().train_step(
                sample, model, criterion, optimizer, update_num, ignore_grad
            )
        check_finite(sample, loss, f"update {self._update}", gradients_to_check(model, optimizer))
        return loss, sample_size, _plain(logging_output)

    def valid_step(self, sample, model, criterion):
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        check_finite(sample, loss, f"validation after update {self._update}")
        return loss, sample_size, _plain(logging_output)

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        self._pictures.begin()

    def post_validate(self, model, stats, agg):
        """fairseq's training calls it behind each validation subset."""
        self._pictures.finish_subset(self.datasets, model, stats["num_updates"])

    def reduce_metrics(self, logging_outputs, criterion):
        # the first to name a metric sets its digits: fairseq's three are few to choose the best checkpoint by
        metrics.log_scalar("loss", 0.0, weight=0, round=5)
        super().reduce_metrics(logging_outputs, criterion)


def _plain(logging_output: dict) -> dict:
    """Numbers instead of tensors, which would end up in the checkpoint's meters."""
    return {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in logging_output.items()
    }
