"""The teacher of a training (``task.teacher``): embeddings of each split's texts, and what made them."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from slt_plugin.criterions.sonar_distillation import SonarDistillation
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.teacher import TeacherEmbeddings, languages_of
from slt_plugin.models.errors import OptionError
from slt_plugin.tasks.feature_origin import FeatureOrigin

logger = logging.getLogger(__name__)


class Teacher:
    """The store of embeddings that a training learns from.

    Args:
        folder: the store.
        language: of all texts; None: the rows' text_lang.
    """

    def __init__(self, folder: Path, language: str | None):
        self.folder, self.language = folder, language
        self._origin = FeatureOrigin("teacher embeddings")
        self._validation: dict[str, TeacherEmbeddings] = {}
        self._candidates: dict[tuple[str, torch.device], Tensor] = {}

    def of(self, rows: Sequence[Row], name: Path | str, *, training: bool) -> TeacherEmbeddings:
        """The embeddings of a split's rows; ``name`` is its manifest.

        Raises:
            DataError: rows without language or embedding, or a store of another teacher than the checkpoint's.
        """
        embeddings = TeacherEmbeddings(
            self.folder, name, rows, languages_of(rows, self.language, name, "task.teacher_lang")
        )
        self._compare(str(self.folder), embeddings.fingerprint)
        logger.info("%s: %d teacher embeddings of %d rows", name, len(embeddings.keys), len(rows))
        if not training:
            self._validation[embeddings.name] = embeddings
        return embeddings

    def with_candidates(self, sample: dict) -> dict:
        """A validation batch with ``teacher_all``, among which retrieval finds its rows' texts; others as they are.

        All texts of the split on every rank: the rows then count one by one, whatever batches they are in.
        """
        name = sample["teacher_name"]
        if name not in self._validation:  # the stand-in of a rank without a batch
            return sample
        place = name, sample["teacher"].device
        if place not in self._candidates:
            self._candidates[place] = self._validation[name].all().to(place[1])
        return {**sample, "teacher_all": self._candidates[place]}

    def state_dict(self) -> dict | None:
        """Plain values for a checkpoint."""
        return self._origin.state_dict()

    def load_state_dict(self, state: dict | None) -> None:
        """Compares with the checkpoint's teacher, or takes note of it. Raises DataError where it is another one."""
        if state is not None:
            self._compare("the checkpoint", Fingerprint(state["fingerprint"]))

    def _compare(self, where: str, fingerprint: Fingerprint) -> None:
        try:
            self._origin.compare(where, fingerprint)
        except DataError as error:
            raise DataError(
                f"{error}. Give task.teacher with which the training began, or start another one from SONAR's weights"
            ) from error


def build_teacher(cfg) -> Teacher | None:
    """What the task's options name. Raises OptionError where a language is given without a teacher."""
    if cfg.teacher:
        return Teacher(Path(cfg.teacher), cfg.teacher_lang or cfg.target_lang)
    if cfg.teacher_lang:
        raise OptionError(f"task.teacher_lang={cfg.teacher_lang} has no effect without task.teacher: leave it out")
    return None


def check_teacher(teacher: Teacher | None, criterion) -> None:
    """Raises OptionError where teacher and criterion do not go together: one would be ignored, or miss the other."""
    learns = isinstance(criterion, SonarDistillation)
    if learns and teacher is None:
        raise OptionError(
            "criterion sonar_distillation needs task.teacher=PATH.store: slt-extract what=sonar_teacher makes it"
        )
    if teacher is not None and not learns:
        raise OptionError(
            f"task.teacher={teacher.folder} has no effect on criterion {type(criterion).__name__}: leave it out, or "
            "set criterion._name=sonar_distillation"
        )
