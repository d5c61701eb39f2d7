"""What ``slt-translate`` and ``slt-demo`` share: one checkpoint (or ensemble), media files in, texts out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slt_plugin.data.errors import DataError
from slt_plugin.models.errors import OptionError

if TYPE_CHECKING:
    import torch

    from slt_plugin.data.dataset import SignDataset
    from slt_plugin.data.manifest import Row

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in parts of the frame's width and height


class TooLongError(DataError):
    """More signing, or a longer text, than the model takes: a part of the file has to be chosen."""


@dataclass(frozen=True)
class ModelOptions:
    """checkpoint: one .pt file, or an ensemble joined by ':'; encoder: the SignHiera of a model that reads features."""

    checkpoint: str
    encoder: Path | None = None
    cpu: bool = False
    fp16: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Request:
    """How to translate a file.

    start, end: seconds in the file; fps: its frame rate, where it does not know it.
    box: the signer: found by the face, the frame's middle square, or a place.
    target_lang: languages of the text, for models with several; (): the one that the model was trained for.
    beam, n_best, lenpen, max_len: fairseq's, ``max_len`` in tokens.
    """

    start: float | None = None
    end: float | None = None
    fps: float | None = None
    box: Literal["none", "auto"] | Box = "none"
    detector: str = "hog"
    target_lang: tuple[str, ...] = ()
    beam: int = 5
    n_best: int = 1
    lenpen: float = 1.0
    max_len: int = 200


@dataclass
class Hypothesis:
    """score: fairseq's, log probability a token by length penalty; tokens: with the end of sentence."""

    text: str
    score: float
    tokens: "torch.Tensor"


@dataclass
class Prepared:
    """A file as the models read it: one row for each language, ``sample`` the batch of the first."""

    rows: "list[Row]"
    dataset: "SignDataset"
    box: Box | None
    face_found: bool | None  # None: not looked for

    @cached_property
    def sample(self) -> dict[str, Any]:
        """The file is read and encoded once; the rows differ in their language alone."""
        return self.dataset.collater([self.dataset[0]])


class Translator:
    """The model of a checkpoint, and how media files become its input.

    Raises:
        SltError: a checkpoint or options that cannot be used.
    """

    def __init__(self, options: ModelOptions):
        from omegaconf import OmegaConf

        import slt_plugin.tasks  # noqa: F401  registers everything
        from slt_plugin.cli.decoding import Models
        from slt_plugin.cli.evaluation_checks import check_checkpoints

        self.checkpoint, self.encoder = options.checkpoint, options.encoder
        self._generation = _generation(Request())
        cfg = OmegaConf.create({
            "generation": self._generation,
            "common": {"cpu": options.cpu, "fp16": options.fp16, "bf16": options.bf16},
        })  # fmt: skip
        self.models = Models(check_checkpoints(options.checkpoint), cfg, {"data": "", "media_root": None})
        self.task = self.models.task
        self.language = self.task.cfg.target_lang
        self.task.cfg.target_lang = None  # the rows that are made here name theirs
        self.kind = str(self.task.cfg.source)
        self.source = self._encoded_video() if options.encoder is not None else None
        if self.source is not None:
            self.kind = "video"

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model can be asked for; () where it has one."""
        return self.task.codec.languages

    def check(self, request: Request) -> None:
        """Raises an SltError where this model cannot do what is asked, whatever the file."""
        given = request.target_lang
        if given and not self.languages:
            raise OptionError(f"--target-lang: {self.checkpoint} has no language tokens: leave it out")
        if self.languages and not given and not self.language:
            raise OptionError(
                f"{self.checkpoint} writes {len(self.languages)} languages: choose with --target-lang "
                f"({self.task.example_language()}, ...)"
            )
        for language in given:
            self.task.codec.language_id(language)
        if request.box != "none" and self.kind != "video":
            raise OptionError(f"--box {request.box}: {self.checkpoint} reads {self.kind}, which have no box")

    def find(self, paths: Sequence[Path]) -> list[Path]:
        """The media files that the arguments name, those of a folder in order of their names.

        Raises:
            OptionError: a folder without any.
        """
        found = []
        for path in paths:
            if not path.is_dir() or self.is_medium(path):
                found.append(path)
                continue
            inside = sorted(child for child in path.iterdir() if self.is_medium(child))
            if not inside:
                raise OptionError(f"{path} is a folder without {self.media_names()}")
            found += inside
        return found

    def prepare(self, path: Path, request: Request) -> Prepared:
        """Finds the signer, and checks what the models take; the file is read when ``sample`` is asked for.

        Raises:
            TooLongError: more than the models take.
            SltError: the file cannot be read.
        """
        from slt_plugin.data.manifest import Row

        if not self.is_medium(path):
            if not path.exists():
                raise DataError("does not exist")
            raise DataError(f"not what this checkpoint reads: give {self.media_names()}")
        box, face_found = self._box(path, request)
        rows = [
            Row(
                path.name,
                str(path.resolve()),
                start=request.start,
                end=request.end,
                fps=request.fps,
                box=box,
                text_lang=language or self.language,
            )
            for language in request.target_lang or (None,)
        ]
        dataset = self.task.dataset_of(rows, Path("/"), path, source=self.source)
        limits = self.models.limits()
        _, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if ignored:
            raise TooLongError(dataset.limit_message(ignored[:1], limits))
        return Prepared(rows, dataset, box, face_found)

    def decode(self, prepared: Prepared, request: Request) -> list[list[Hypothesis]]:
        """Hypotheses, best first, for each row (language) of ``prepared``."""
        from omegaconf import OmegaConf

        wanted = _generation(request)
        if wanted != self._generation:
            self.models.generator = self.task.build_generator(self.models.models, OmegaConf.create(wanted))
            self._generation = wanted
        tokens = [prepared.dataset.language_tokens([index]) for index in range(len(prepared.rows))]
        return [
            [
                Hypothesis(self.task.codec.decode(h["tokens"]), round(float(h["score"]), 4), h["tokens"])
                for h in hypotheses[0][: request.n_best]
            ]
            for hypotheses in self.models.generate_each(prepared.sample, tokens)
        ]

    def _encoded_video(self):
        """Videos as the features that a checkpoint of ``task.source=features`` reads."""
        from slt_plugin.extraction.encoded_video import EncodedVideo

        if self.kind != "features":
            raise OptionError(
                f"--encoder {self.encoder}: {self.checkpoint} reads {self.kind}, not features: leave it out"
            )
        return EncodedVideo(
            Path("/"),
            self.encoder,
            fingerprint=self.task.feature_origin.fingerprint,
            channels=self.task.cfg.feature_channels,
            step=self.task.cfg.step_frames,
            device=self.models.device,
        )

    def is_medium(self, path: Path) -> bool:
        """Whether this is, by its name, a file (or folder) that the model reads."""
        from slt_plugin.data import features, pose_files, video

        if self.kind == "video":
            return video.is_video(path) and path.exists()
        if self.kind == "features":
            return features.is_features(path) or path.suffix.lower() == ".npy"
        if path.is_dir():
            return any(path.glob("*_keypoints.json"))
        return path.suffix.lower() in pose_files.SUFFIXES

    def media_names(self) -> str:
        """What the model reads, for messages."""
        from slt_plugin.data import features, pose_files, video

        if self.kind == "video":
            return f"videos ({' '.join(sorted(video.VIDEO_SUFFIXES))}) or folders of images"
        if self.kind == "features":
            return f"features ({features.KINDS}), or videos together with --encoder"
        return f"poses ({pose_files.KINDS})"

    def _box(self, path: Path, request: Request) -> tuple[Box | None, bool | None]:
        """The signer's box, and whether a face was found (None: not looked for)."""
        from slt_plugin.data import video
        from slt_plugin.data.signer_box import large_frame_without_box, signer_box

        if self.kind != "video":
            return None, None
        if request.box == "auto":
            found = signer_box(path, request.start, request.end, detector=request.detector, fps=request.fps)
            if found.faces_found == 0:
                logger.warning("%s: no face found; the box is the middle of the frame", path)
            return found.box, found.faces_found > 0
        if request.box != "none":
            return request.box, None
        info = video.probe(path, request.start, request.end, fps=request.fps)
        options = self.source.options if self.source is not None else None
        size = self.task.cfg.clip_size if options is None else options.size
        warning = large_frame_without_box(info.width, info.height, None, size)
        if warning is not None:
            logger.warning("%s: %s; here: --box auto", path, warning)
        return None, None


def _generation(request: Request) -> dict:
    return {
        "beam": request.beam,
        "nbest": request.n_best,
        "lenpen": request.lenpen,
        "max_len_a": 0.0,
        "max_len_b": request.max_len,
    }
