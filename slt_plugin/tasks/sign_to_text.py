"""Task ``sign_to_text``: manifests of poses or features in, text out."""

import logging
from argparse import Namespace
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING, OmegaConf

from slt_plugin.data.dataset import SignDataset
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import read_manifest
from slt_plugin.data.pose import PoseAugment, PoseOptions
from slt_plugin.data.sources import FeatureSource, PoseSource, Source
from slt_plugin.models.errors import OptionError
from slt_plugin.tasks.checks import check_best_metric, check_ctc_lengths, check_spelling, refuse_pose_options
from slt_plugin.tasks.validation import log_sample, log_scores, score_counts
from slt_plugin.text.codec import CODEC_KINDS, CodecError, build_codec, empty_codec
from slt_plugin.text.languages import MBART_CC25

logger = logging.getLogger(__name__)

LANGUAGES = {"none": (), "mbart_cc25": MBART_CC25}
# what a checkpoint needs to read its input again: kept in the task's state
SOURCE_OPTIONS = ("source", "pose_parts", "pose_normalise", "step_frames", "feature_channels")


@dataclass
class SignToTextTaskConfig(FairseqDataclass):
    """Options of task ``sign_to_text``."""

    data: str = field(default=MISSING, metadata={"help": "directory with train.tsv, valid.tsv, ... (manifests)"})
    media_root: Optional[str] = field(
        default=None, metadata={"help": "directory that manifest paths start from; default: the manifest's own"}
    )
    # source
    source: ChoiceEnum(("pose", "features")) = field(
        default="pose", metadata={"help": "what the manifest's files hold"}
    )
    pose_parts: str = field(
        default="body,left_hand,right_hand,face", metadata={"help": "landmark groups that are read, comma-joined"}
    )
    pose_normalise: str = field(
        default="shoulders", metadata={"help": "'shoulders': centre and scale by the shoulders; 'none': as stored"}
    )
    step_frames: int = field(default=1, metadata={"help": "keep every n-th frame or feature step"})
    feature_channels: int = field(default=0, metadata={"help": "width C of pre-extracted features (source=features)"})
    augment_speed: float = field(default=0.0, metadata={"help": "training: speed factor within 1 +- this"})
    augment_rotation: float = field(default=0.0, metadata={"help": "training: rotation within +- degrees"})
    augment_scale: float = field(default=0.0, metadata={"help": "training: scale factor within 1 +- this"})
    augment_shear: float = field(default=0.0, metadata={"help": "training: shear within +- this"})
    augment_noise: float = field(default=0.0, metadata={"help": "training: landmark noise (std, shoulder widths)"})
    augment_frame_drop: float = field(default=0.0, metadata={"help": "training: share of frames dropped"})
    augment_landmark_drop: float = field(default=0.0, metadata={"help": "training: share of landmarks masked"})
    # text
    codec: ChoiceEnum(CODEC_KINDS) = field(default="sentencepiece", metadata={"help": "kind of vocabulary"})
    codec_path: Optional[str] = field(
        default=None, metadata={"help": "vocabulary for training; a checkpoint carries its own copy"}
    )
    dictionary_path: Optional[str] = field(
        default=None,
        metadata={"help": "fairseq dict.txt where its order differs from the SentencePiece model's (mBART)"},
    )
    codec_languages: ChoiceEnum(tuple(LANGUAGES)) = field(
        default="none",
        metadata={"help": "language tokens behind a SentencePiece vocabulary: those of an mBART release"},
    )
    lowercase: bool = field(default=False, metadata={"help": "lower-case the text before encoding"})
    target_lang: Optional[str] = field(
        default=None, metadata={"help": "mBART: language code of every target (en_XX); default: the row's text_lang"}
    )
    # limits
    max_source_positions: int = field(default=4096, metadata={"help": "longest source, in steps after step_frames"})
    max_target_positions: int = field(default=512, metadata={"help": "longest target, in tokens"})
    # validation
    eval_bleu: bool = field(default=True, metadata={"help": "generate at validation and log BLEU and chrF"})
    eval_beam: int = field(default=1, metadata={"help": "beam of the validation's generation"})
    eval_max_len: int = field(default=200, metadata={"help": "longest validation hypothesis, in tokens"})
    eval_samples: int = field(default=3, metadata={"help": "rows whose hypothesis is logged at every validation"})
    persistent_workers: bool = field(
        default=False,
        metadata={"help": "keep loader workers after their epoch, although the next one starts new ones"},
    )
    train_subset: str = II("dataset.train_subset")
    skip_invalid_size_inputs: bool = II("dataset.skip_invalid_size_inputs_valid_test")
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")
    seed: int = II("common.seed")


def pose_augment(cfg: SignToTextTaskConfig) -> PoseAugment:
    """The task's ``augment_*`` options."""
    return PoseAugment(
        speed=cfg.augment_speed,
        rotation=cfg.augment_rotation,
        scale=cfg.augment_scale,
        shear=cfg.augment_shear,
        noise=cfg.augment_noise,
        frame_drop=cfg.augment_frame_drop,
        landmark_drop=cfg.augment_landmark_drop,
    )


@register_task("sign_to_text", dataclass=SignToTextTaskConfig)
class SignToTextTask(FairseqTask):
    """Trains and decodes models that read poses or features and write text.

    The vocabulary and the source options are task state: a checkpoint decodes by itself.
    """

    def __init__(self, cfg: SignToTextTaskConfig, *, from_checkpoint: bool = False):
        super().__init__(cfg)
        # fixed: by the options of a training, or by the first checkpoint that is loaded
        self.source_is_fixed = cfg.codec_path is not None and not from_checkpoint
        if self.source_is_fixed:
            self.codec = build_codec(
                str(cfg.codec),
                cfg.codec_path,
                lowercase=cfg.lowercase,
                dictionary_path=cfg.dictionary_path,
                languages=LANGUAGES[str(cfg.codec_languages)],
            )
        else:
            # fairseq-generate asks for the dictionary before it reads the checkpoint, which then fills it in place
            self.codec = empty_codec()
        if cfg.source == "features":
            refuse_pose_options(cfg, SignToTextTaskConfig())
        self.sequence_generator = None
        # of the model, once it is built
        self.ctc_stride: int | None = None
        self.max_source_steps = cfg.max_source_positions

    # state

    def _source_options(self) -> dict:
        # fairseq's choices are enums here and strings there; a checkpoint holds strings
        values = {name: getattr(self.cfg, name) for name in SOURCE_OPTIONS}
        return {name: str(value) if isinstance(value, Enum) else value for name, value in values.items()}

    def state_dict(self) -> dict:
        return {"codec": self.codec.state_dict(), "source": self._source_options()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes vocabulary and source options from a checkpoint.

        Raises:
            CodecError: this task has another vocabulary already.
            OptionError: this task, or another model of the ensemble, reads its source in another way.
        """
        self.codec.load_state_dict(state_dict["codec"])
        theirs, ours = state_dict["source"], self._source_options()
        changed = [name for name in ours if ours[name] != theirs[name]]
        if not self.source_is_fixed:
            # decoding: what was not given on the command line stands at its default
            default = SignToTextTaskConfig()
            changed = [name for name in changed if ours[name] != getattr(default, name)]
        if changed:
            named = ", ".join(f"task.{name}={ours[name]} (checkpoint: {theirs[name]})" for name in changed)
            raise OptionError(f"the checkpoint was trained on another source: {named}. Give the checkpoint's options")
        self.source_is_fixed = True
        for name, value in theirs.items():
            setattr(self.cfg, name, value)

    @property
    def source_dictionary(self) -> None:
        return None

    @property
    def target_dictionary(self):
        return self.codec.dictionary

    @property
    def source_channels(self) -> int:
        """Values of one source step."""
        return self._build_source(Path()).channels

    def max_positions(self) -> tuple[int, int]:
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # data

    def _build_source(self, root: Path) -> Source:
        cfg = self.cfg
        if cfg.source == "features":
            if cfg.feature_channels < 1:
                raise OptionError("task.feature_channels is not set: give the width C of the features (I3D: 1024)")
            return FeatureSource(root, channels=cfg.feature_channels, step=cfg.step_frames)
        parts = tuple(part.strip() for part in cfg.pose_parts.split(","))
        options = PoseOptions(
            parts=parts, step_frames=cfg.step_frames, normalise=cfg.pose_normalise, augment=pose_augment(cfg)
        )
        return PoseSource(root, options)

    def _manifest_directory(self) -> Path:
        directory = Path(self.cfg.data)
        if not directory.is_dir():
            found = "is a file: give its directory" if directory.is_file() else "does not exist"
            raise DataError(f"task.data={directory} {found}; expected a directory with train.tsv, valid.tsv, ...")
        return directory

    def load_dataset(self, split: str, combine: bool = False, task_cfg=None, **kwargs) -> None:
        """Reads ``<data>/<split>.tsv``. Texts are required, except where ``fairseq-generate`` (task_cfg) decodes.

        Raises:
            DataError: the manifest or a language is missing or wrong; the message says how to mend it.
        """
        if combine and split != self.cfg.train_subset:  # fairseq sets it for training, where we have one manifest
            raise OptionError(
                "dataset.combine_valid_subsets is not supported: write one manifest, or list several in "
                "dataset.valid_subset"
            )
        directory = self._manifest_directory()
        path = directory / f"{split}.tsv"
        if not path.is_file():
            found = ", ".join(sorted(p.stem for p in directory.glob("*.tsv"))) or "none"
            raise DataError(f"{path} does not exist; manifests in {directory}: {found}")
        decoding = task_cfg is not None
        rows = read_manifest(path, require_text=not decoding)
        with_text = sum(row.text is not None for row in rows)
        if 0 < with_text < len(rows):
            first = next(row.id for row in rows if row.text is None)
            raise DataError(
                f"{path}: {len(rows) - with_text} of {len(rows)} rows have no text (first: {first}), so a score would "
                "leave them out: fill them in, or remove the text column to decode without scores"
            )
        root = Path(self.cfg.media_root) if self.cfg.media_root else directory
        dataset = SignDataset(
            rows,
            self._build_source(root),
            encode=self.codec.encode,
            pad=self.codec.dictionary.pad(),
            eos=self.codec.dictionary.eos(),
            language_ids=self._language_ids(rows, path),
            training=split == self.cfg.train_subset and not decoding,
            decoding=decoding,
            seed=self.cfg.seed,
            max_steps=self.max_source_steps,
        )
        logger.info("%s: %d rows, %d source steps", path, len(rows), dataset.source_lengths.sum())
        if not decoding:
            check_spelling(path, dataset, self.codec.dictionary.unk())
            if self.ctc_stride is not None:
                check_ctc_lengths(path, dataset, self.ctc_stride, self.cfg.augment_speed)
        self.datasets[split] = dataset

    def _language_ids(self, rows, path: Path) -> list[int] | None:
        """The token that starts each row's target, for vocabularies with languages (mBART); else None."""
        if not self.codec.languages:
            if self.cfg.target_lang:
                raise OptionError(
                    f"task.target_lang={self.cfg.target_lang}: the vocabulary has no language tokens; leave it out, or "
                    "choose a vocabulary with languages (mBART: task.codec_languages=mbart_cc25)"
                )
            return None
        if not set(self.codec.languages) <= set(MBART_CC25):
            # mBART-50, NLLB and M2M-100 begin with </s> and take the language for their first target token
            raise OptionError(
                "the vocabulary's languages are not those of mBART-cc25, the only multilingual model whose targets "
                "begin with the language token as here: use an mBART-cc25 vocabulary, or one without languages"
            )
        ids = []
        for row in rows:
            language = self.cfg.target_lang or row.text_lang
            if language is None:
                raise DataError(
                    f"{path}: row {row.id} has no text_lang, and the vocabulary marks languages: fill the column "
                    "or set task.target_lang (for example en_XX)"
                )
            try:
                ids.append(self.codec.language_id(language))
            except CodecError as error:
                raise DataError(f"{path}: row {row.id}: {error}") from error
        return ids

    def filter_indices_by_size(self, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
        """Rows within ``max_positions``; the others are an error, or skipped and named where that was asked for."""
        if dataset.training:
            # fairseq's trainer asks to ignore them, whatever the user said
            ignore_invalid_inputs = self.cfg.skip_invalid_size_inputs
        kept, ignored = dataset.filter_indices_by_size(indices, max_positions)
        if ignored:
            message = dataset.limit_message(ignored, max_positions)
            if not ignore_invalid_inputs:
                raise DataError(
                    f"{message}. Cut them, raise what limits them (dataset.max_tokens, task.max_source_positions, "
                    "task.max_target_positions, the model's positions) or task.step_frames, or set "
                    "dataset.skip_invalid_size_inputs_valid_test=true to leave them out"
                )
            logger.warning("%s: skipped", message)
        return kept

    # model and training

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Builds the model; weights that training starts from (``text_pretrained``) are not read for a checkpoint."""
        if not self.codec.kind:
            if from_checkpoint:
                raise OptionError(
                    "the checkpoint holds no vocabulary (task_state): it was not trained with slt_plugin; other "
                    "projects' checkpoints are imported with slt-import-checkpoint"
                )
            raise OptionError(
                "task.codec_path is not set: give the vocabulary (sentencepiece: a .model file, "
                "scripts/train_sentencepiece.py makes one; gpt2_bpe: a directory with encoder.json, vocab.bpe and "
                "dict.txt; hf: a tokenizer directory)"
            )
        if not from_checkpoint:
            self._manifest_directory()  # fairseq lists it before it asks for a dataset
            check_best_metric(self.cfg)
        if from_checkpoint and getattr(cfg, "text_pretrained", None):
            cfg = OmegaConf.merge(cfg, {"text_pretrained": None})
        model = super().build_model(cfg, from_checkpoint)
        self.max_source_steps = min(self.cfg.max_source_positions, model.max_positions()[0])
        self.ctc_stride = model.encoder.stride if getattr(cfg, "ctc", False) else None
        if self.cfg.eval_bleu:
            max_len = min(self.cfg.eval_max_len, self.cfg.max_target_positions - 1)
            self.sequence_generator = self.build_generator(
                [model], Namespace(beam=self.cfg.eval_beam, max_len_a=0, max_len_b=max_len)
            )
        return model

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        output = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        model.drop_frozen_gradients(update_num, optimizer)  # so that they do not count in the gradient's norm
        return output

    def optimizer_step(self, optimizer, model, update_num):
        # once more: summing over ranks turns missing gradients into zeros, and weight decay then moves the weights
        model.drop_frozen_gradients(update_num, optimizer)
        super().optimizer_step(optimizer, model, update_num)

    def valid_step(self, sample, model, criterion):
        loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        if self.cfg.eval_bleu:
            hypotheses = [
                self.codec.decode(best[0]["tokens"])
                for best in self.inference_step(self.sequence_generator, [model], sample)
            ]
            # a lower-cased model cannot spell capitals: they must not decide which checkpoint is best
            references = [text.lower() if self.codec.lowercase else text for text in sample["texts"]]
            logging_output.update(score_counts(hypotheses, references))
            for i, sample_id in enumerate(sample["id"].tolist()):
                if sample_id < self.cfg.eval_samples:  # the manifest's first rows: the same at every validation
                    log_sample(sample["row_ids"][i], hypotheses[i], references[i])
        return loss, sample_size, logging_output

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        if any(key.startswith("_bleu") for output in logging_outputs for key in output):
            log_scores(logging_outputs)

    # decoding

    def build_bpe(self, args):
        """fairseq-generate turns symbols into text through this object's ``decode``; no ``--bpe`` is needed."""
        return Namespace(decode=self.codec.decode_symbols, encode=None)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        start = sample["start_tokens"]
        if prefix_tokens is None and self.codec.prepend_bos:
            # BART's targets begin with <s>
            prefix_tokens = torch.full_like(start, self.codec.dictionary.bos()).unsqueeze(1)  # B x 1
        with torch.no_grad():
            return generator.generate(
                models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=int(start[0])
            )
