"""Task ``sign_to_text``: manifests of poses, features or videos in, text out."""

import logging
import math
from argparse import Namespace
from enum import Enum
from pathlib import Path

import torch
from fairseq.tasks import register_task
from omegaconf import OmegaConf

from slt_plugin.data.clips import VideoSource
from slt_plugin.data.dataset import SignDataset, name_rows
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.data.sources import FeatureSource, Source
from slt_plugin.models.errors import OptionError
from slt_plugin.models.precision import check_autocast
from slt_plugin.tasks.checks import (
    check_best_metric,
    check_ctc_lengths,
    check_parameter_groups,
    check_spelling,
    check_video_encoder,
)
from slt_plugin.tasks.feature_origin import FeatureOrigin
from slt_plugin.tasks.manifest_task import ManifestTask
from slt_plugin.tasks.options import (
    LANGUAGES,
    SOURCE_OPTIONS,
    SignToTextTaskConfig,
    build_source,
    refuse_unused_options,
)
from slt_plugin.tasks.samples import Sample, ValidationSamples
from slt_plugin.tasks.teacher import build_teacher, check_teacher
from slt_plugin.tasks.validation import log_sample, log_scores, score_counts
from slt_plugin.text.codec import CodecError, build_codec, empty_codec
from slt_plugin.text.languages import MBART_CC25, code_of_family

logger = logging.getLogger(__name__)


@register_task("sign_to_text", dataclass=SignToTextTaskConfig)
class SignToTextTask(ManifestTask):
    """Trains and decodes models that read poses, features or raw video and write text.

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
        refuse_unused_options(cfg)
        self.feature_origin = FeatureOrigin()
        # of a training; what decodes has no use for it
        self.teacher = None if from_checkpoint else build_teacher(cfg)
        self.sequence_generator = None
        self._samples = ValidationSamples(cfg)
        self.weights_follow = False  # whether the model that is built gets its values from a checkpoint at once
        # of the model, once it is built
        self.ctc_stride: int | None = None
        self.start_id: int | None = None  # None: EOS, with which fairseq's decoders begin
        self.decodes_prefix_languages = False
        self.models_built = False
        self.max_source_steps = cfg.max_source_positions

    # state

    def _source_options(self) -> dict:
        # fairseq's choices are enums here and strings there; a checkpoint holds strings
        values = {name: getattr(self.cfg, name) for name in SOURCE_OPTIONS}
        return {name: str(value) if isinstance(value, Enum) else value for name, value in values.items()}

    def state_dict(self) -> dict:
        return {
            "codec": self.codec.state_dict(),
            "source": self._source_options(),
            "features": self.feature_origin.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes vocabulary and source options from a checkpoint.

        Raises:
            CodecError: this task has another vocabulary already.
            OptionError: this task, or another model of the ensemble, reads its source in another way.
            DataError: this task reads features that were extracted in another way, or learns from another teacher.
        """
        self.feature_origin.load_state_dict(state_dict.get("features"))
        if self.teacher is not None:
            self.teacher.load_state_dict(state_dict.get("teacher"))
        self.codec.load_state_dict(state_dict["codec"])
        default = SignToTextTaskConfig()
        # an option that is newer than the checkpoint had its default's meaning
        theirs = {name: state_dict["source"].get(name, getattr(default, name)) for name in SOURCE_OPTIONS}
        ours = self._source_options()
        changed = [name for name in ours if ours[name] != theirs[name]]
        if not self.source_is_fixed:
            # decoding: what was not given on the command line stands at its default
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
        return build_source(self.cfg, Path()).channels

    def max_positions(self) -> tuple[int, int]:
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    # data

    def load_dataset(self, split: str, combine: bool = False, task_cfg=None, **kwargs) -> None:
        """Reads ``<data>/<split>.tsv``. Texts are required, except where ``fairseq-generate`` (task_cfg) decodes.

        Raises:
            DataError: the manifest or a language is missing or wrong; the message says how to mend it.
        """
        self._refuse_combined(split, combine)
        path = self._manifest(split)
        decoding = task_cfg is not None
        rows = read_manifest(path, require_text=not decoding)
        with_text = sum(row.text is not None for row in rows)
        if 0 < with_text < len(rows):
            first = next(row.id for row in rows if row.text is None)
            raise DataError(
                f"{path}: {len(rows) - with_text} of {len(rows)} rows have no text (first: {first}), so a score would "
                "leave them out: fill them in, or remove the text column to decode without scores"
            )
        training = split == self.cfg.train_subset and not decoding
        dataset = self.dataset_of(rows, self._media_root, path, training=training, decoding=decoding)
        if not decoding:
            check_spelling(path, dataset, self.codec.dictionary.unk())
            if self.ctc_stride is not None:
                check_ctc_lengths(path, dataset, self.ctc_stride, self.cfg.augment_speed)
        self.datasets[split] = dataset
        self._prepare_dry_run(combine)

    def dataset_of(
        self,
        rows: list[Row],
        root: Path,
        name: Path | str,
        *,
        training: bool = False,
        decoding: bool = True,
        source: Source | None = None,
    ) -> SignDataset:
        """The dataset of rows whose media lie under ``root``; ``name`` is what messages call their manifest.

        Args:
            source: what reads the media, where it is not the task's own.

        Raises:
            DataError: media or a language that cannot be used.
        """
        dataset = SignDataset(
            rows,
            source or build_source(self.cfg, root),
            encode=self.codec.encode,
            pad=self.codec.dictionary.pad(),
            eos=self.codec.dictionary.eos(),
            language_ids=self._language_ids(rows, name),
            language_is_prefix=bool(self.codec.languages) and self.codec.language_is_prefix,
            start=self.start_id,
            training=training,
            decoding=decoding,
            seed=self.cfg.seed,
            max_steps=self.max_source_steps,
            max_clips=self.cfg.max_clips,
            teacher=None if decoding or self.teacher is None else self.teacher.of(rows, name, training=training),
        )
        logger.info("%s: %d rows, %d source steps", name, len(rows), dataset.source_lengths.sum())
        self._check_source(name, dataset)
        return dataset

    def _check_source(self, path: Path | str, dataset: SignDataset) -> None:
        """Says what ``truncate_clips`` leaves out, and refuses features of another extraction than seen before."""
        source = dataset.source
        if isinstance(source, FeatureSource):
            self.feature_origin.compare(str(path), source.fingerprint(dataset.rows))
        if isinstance(source, VideoSource):
            lost = [source.truncated_clips(row) for row in dataset.rows]
            cut = [row for row, count in zip(dataset.rows, lost, strict=True) if count]
            if cut:
                logger.warning(
                    "%s: task.truncate_clips=%d leaves out %d clips of %d rows: %s",
                    path, self.cfg.truncate_clips, sum(lost), len(cut), name_rows(cut, [n for n in lost if n]),
                )  # fmt: skip

    def _language_ids(self, rows, path: Path | str) -> list[int] | None:
        """The token of each row's language, for vocabularies with languages (mBART, SONAR); else None."""
        if not self.codec.languages:
            if self.cfg.target_lang:
                raise OptionError(
                    f"task.target_lang={self.cfg.target_lang}: the vocabulary has no language tokens; leave it out, or "
                    "choose a vocabulary with languages (task.codec_languages=mbart_cc25, task.codec=sonar)"
                )
            return None
        if not self._knows_languages():
            # mBART-50, NLLB and M2M-100 begin with </s> and take the language for their first target token
            raise OptionError(
                "the vocabulary's languages are not those of mBART-cc25, the only multilingual model whose targets "
                "begin with the language token as here: use an mBART-cc25 vocabulary, or one without languages, or "
                "model sign_to_text_hf, which writes them as the pretrained model does"
            )
        ids, renamed = [], {}
        for row in rows:
            language = self.cfg.target_lang or row.text_lang
            if language is None:
                raise DataError(
                    f"{path}: row {row.id} has no text_lang, and the vocabulary marks languages: fill the column "
                    f"or set task.target_lang (for example {self.example_language()})"
                )
            code = code_of_family(language, self.codec.languages) or language
            if code != language:
                renamed[language] = code
            try:
                ids.append(self.codec.language_id(code))
            except CodecError as error:
                raise DataError(f"{path}: row {row.id}: {error}") from error
        if renamed:
            logger.info("%s: languages as the vocabulary has them: %s", path, renamed)
        return ids

    def _knows_languages(self) -> bool:
        """Whether the model puts this vocabulary's languages where its targets were pretrained to have them."""
        if self.codec.language_is_prefix:
            return self.codec.kind == "sonar" or self.decodes_prefix_languages
        return set(self.codec.languages) <= set(MBART_CC25)

    def example_language(self) -> str:
        """A language of the vocabulary to show in messages: English where it has it."""
        return next((code for code in self.codec.languages if code.startswith("en")), self.codec.languages[0])

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
        asked = cfg
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
            check_video_encoder(cfg)
        else:
            starts = {name: None for name in ("text_pretrained", "signhiera_pretrained") if getattr(cfg, name, None)}
            cfg = OmegaConf.merge(cfg, starts)
        self.weights_follow = from_checkpoint
        model = super().build_model(cfg, from_checkpoint)
        self._take_notes(model, asked)
        self.max_source_steps = min(self.cfg.max_source_positions, model.max_positions()[0])
        self.ctc_stride = model.encoder.stride if getattr(cfg, "ctc", False) else None
        if self.cfg.eval_bleu:
            max_len = min(self.cfg.eval_max_len, self.cfg.max_target_positions - 1)
            self.sequence_generator = self.build_generator(
                [model], Namespace(beam=self.cfg.eval_beam, max_len_a=0, max_len_b=max_len)
            )
        return model

    def _take_notes(self, model, cfg) -> None:
        """What the model found in its pretrained files: how decoding begins, and what its checkpoints have to hold."""
        start = getattr(model, "start_id", None)
        if self.models_built and start != self.start_id:
            raise OptionError(
                "the models of an ensemble begin in different ways (start tokens "
                f"{self.start_id} and {start}): decode them one by one"
            )
        self.models_built, self.start_id = True, start
        self.decodes_prefix_languages = getattr(model, "decodes_prefix_languages", False)
        if getattr(model.cfg, "hf_config", None):
            cfg.hf_config, cfg.hf_model = model.cfg.hf_config, model.cfg.hf_model

    def build_criterion(self, cfg, from_checkpoint: bool = False):
        criterion = super().build_criterion(cfg, from_checkpoint)
        check_teacher(self.teacher, criterion)
        return criterion

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        check_autocast(model, optimizer)
        check_parameter_groups(model, optimizer)
        output = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        model.drop_frozen_gradients(update_num, optimizer)  # so that they do not count in the gradient's norm
        return output

    def optimizer_step(self, optimizer, model, update_num):
        # once more: summing over ranks turns missing gradients into zeros, and weight decay then moves the weights
        model.drop_frozen_gradients(update_num, optimizer)
        super().optimizer_step(optimizer, model, update_num)

    def valid_step(self, sample, model, criterion):
        if self.teacher is not None:
            sample = self.teacher.with_candidates(sample)
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
                    self._samples.add(Sample(sample_id, sample["row_ids"][i], references[i], hypotheses[i]))
        return loss, sample_size, logging_output

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        self._samples.begin()

    def post_validate(self, model, stats, agg):
        """fairseq's training calls it behind each validation subset."""
        self._samples.finish_subset(stats["num_updates"])

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        if any(key.startswith("_bleu") for output in logging_outputs for key in output):
            log_scores(logging_outputs)

    # decoding

    def build_bpe(self, args):
        """fairseq-generate turns symbols into text through this object's ``decode``; no ``--bpe`` is needed."""
        return Namespace(decode=self.codec.decode_symbols, encode=None)

    def build_generator(self, models, args, seq_gen_cls=None, extra_gen_cls_kwargs=None, prefix_allowed_tokens_fn=None):
        generator = super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn)
        if any(getattr(model, "never_unknown", False) for model in models):
            generator.unk_penalty = math.inf
        return generator

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        start = sample["start_tokens"]
        if prefix_tokens is None:
            prefix_tokens = sample.get("prefix_tokens")  # the language
        if prefix_tokens is None and self.codec.prepend_bos:
            # BART's targets begin with <s>
            prefix_tokens = torch.full_like(start, self.codec.dictionary.bos()).unsqueeze(1)  # B x 1
        with torch.no_grad():
            return generator.generate(
                models, sample, prefix_tokens=prefix_tokens, constraints=constraints, bos_token=int(start[0])
            )
