"""Options of task ``sign_to_text``, and the source that they describe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from fairseq.dataclass import ChoiceEnum
from omegaconf import II

from slt_plugin.data.clips import VideoSource
from slt_plugin.data.pose import PoseAugment, PoseOptions
from slt_plugin.data.sources import FeatureSource, PoseSource, Source
from slt_plugin.models.errors import OptionError
from slt_plugin.tasks.manifest_task import VIDEO_OPTIONS, ManifestTaskConfig, clip_options
from slt_plugin.text.codec import CODEC_KINDS
from slt_plugin.text.languages import MBART_CC25

LANGUAGES = {"none": (), "mbart_cc25": MBART_CC25}
# what a checkpoint needs to read its input again: kept in the task's state
SOURCE_OPTIONS = (
    "source",
    "pose_parts",
    "pose_normalise",
    "step_frames",
    "feature_channels",
    "clip_frames",
    "clip_sampling_rate",
    "clip_target_fps",
    "clip_stride",
    "clip_size",
    "truncate_clips",
)
# the options that one kind of source alone has a use for
_AUGMENT_POSE = ("speed", "rotation", "scale", "shear", "noise", "frame_drop", "landmark_drop")
OPTIONS_OF = {
    "pose": ("pose_parts", "pose_normalise", "step_frames", *(f"augment_{name}" for name in _AUGMENT_POSE)),
    "features": ("feature_channels", "step_frames"),
    "video": (*VIDEO_OPTIONS, "clip_stride", "max_clips", "truncate_clips"),
}


@dataclass
class SignToTextTaskConfig(ManifestTaskConfig):
    """Options of task ``sign_to_text``."""

    # source
    source: ChoiceEnum(tuple(OPTIONS_OF)) = field(default="pose", metadata={"help": "what the manifest's files hold"})
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
    clip_stride: int = field(default=64, metadata={"help": "video: sampled frames from one clip's start to the next's"})
    max_clips: int = field(default=0, metadata={"help": "video: at most this many clips a batch; 0: no limit"})
    truncate_clips: int = field(
        default=0, metadata={"help": "video: keep at most this many clips of a row, from its start; 0: all"}
    )
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
    # teacher
    teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "store of sentence embeddings (slt-extract what=sonar_teacher) for criterion sonar_distillation"
        },
    )
    teacher_lang: Optional[str] = field(
        default=None,
        metadata={"help": "language of their texts (eng_Latn); default: target_lang, else the row's text_lang"},
    )
    # limits
    max_source_positions: int = field(default=4096, metadata={"help": "longest source, in steps after step_frames"})
    max_target_positions: int = field(default=512, metadata={"help": "longest target, in tokens"})
    # validation
    eval_bleu: bool = field(default=True, metadata={"help": "generate at validation and log BLEU and chrF"})
    eval_beam: int = field(default=1, metadata={"help": "beam of the validation's generation"})
    eval_max_len: int = field(default=200, metadata={"help": "longest validation hypothesis, in tokens"})
    eval_samples: int = field(default=3, metadata={"help": "rows whose hypothesis is logged at every validation"})
    skip_invalid_size_inputs: bool = II("dataset.skip_invalid_size_inputs_valid_test")


def build_source(cfg: SignToTextTaskConfig, root: Path) -> Source:
    """What reads the media that manifests under ``root`` name.

    Raises:
        SltError: values that no source of that kind can have.
    """
    if cfg.source == "features":
        if cfg.feature_channels < 1:
            raise OptionError("task.feature_channels is not set: give the width C of the features (I3D: 1024)")
        return FeatureSource(root, channels=cfg.feature_channels, step=cfg.step_frames)
    if cfg.source == "video":
        return VideoSource(root, clip_options(cfg, stride=cfg.clip_stride, truncate=cfg.truncate_clips))
    parts = tuple(part.strip() for part in cfg.pose_parts.split(","))
    augment = PoseAugment(**{name: getattr(cfg, f"augment_{name}") for name in _AUGMENT_POSE})
    return PoseSource(
        root,
        PoseOptions(parts=parts, step_frames=cfg.step_frames, normalise=cfg.pose_normalise, augment=augment),
    )


def refuse_unused_options(cfg: SignToTextTaskConfig) -> None:
    """Raises OptionError where an option differs from its default that ``cfg.source`` has no use for."""
    default, source = SignToTextTaskConfig(), str(cfg.source)
    foreign = {name for names in OPTIONS_OF.values() for name in names} - set(OPTIONS_OF[source])
    given = [f"task.{name}" for name in sorted(foreign) if getattr(cfg, name) != getattr(default, name)]
    if given:
        raise OptionError(
            f"task.source={source} has no use for {', '.join(given)}: leave them out, or choose another task.source "
            f"({', '.join(OPTIONS_OF)})"
        )
