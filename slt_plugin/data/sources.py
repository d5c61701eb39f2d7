"""Sources: one manifest row -> one float32 tensor with time first. Only this module knows what the media are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from slt_plugin.data import features, pose_files, video
from slt_plugin.data.arrays import open_array
from slt_plugin.data.errors import DataError, naming_file, naming_row
from slt_plugin.data.features import FeatureError
from slt_plugin.data.landmarks import PARTS, SHOULDERS, PoseError, part_names
from slt_plugin.data.manifest import Row, resolve_path
from slt_plugin.data.pose import (
    NO_SHOULDERS,
    PoseOptions,
    channels,
    normalise,
    prepare,
    read_for_model,
    read_frames,
)
from slt_plugin.data.segments import agreed_fps, check_num_frames, known_frames, segment_frames
from slt_plugin.data.store import Fingerprint

_INSPECTED_AT_ONCE = 20_000  # frames: files of many hours are not held in memory as a whole


class Source(Protocol):
    """What the dataset asks of every kind of media. Every error is a DataError that names row, path and remedy."""

    channels: int

    def num_steps(self, row: Row) -> int:
        """Steps that `load` gives without augmentation; the file is opened only where the row does not tell.

        From the row's times alone, up to 1 % too many or too few where the file's own rate is not quite the row's.
        """
        ...

    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> torch.Tensor:
        """(T, channels) float32. A generator means training: augmentation, and the extraction copy of the epoch."""
        ...


@dataclass(frozen=True)
class MediaInfo:
    """num_frames of the row's segment (steps for features), fps if known, shape of the whole stored array."""

    kind: str
    num_frames: int
    fps: float | None
    shape: tuple[int, ...]


class PoseSource:
    """Landmarks of pose files: (T, 3 * landmarks), per landmark x, y, present (see `pose.prepare`)."""

    def __init__(self, root: Path, options: PoseOptions):
        self.root, self.options = Path(root), options
        self.channels = channels(options)

    def num_steps(self, row: Row) -> int:
        with naming_row(row.id):
            with naming_file(row.path):
                frames = known_frames(row)
            if frames is None:
                path = resolve_path(row, self.root)
                file = pose_files.open_pose(path)
                frames = _segment_length(path, row, file.fps, file.num_frames)
            return _ceil_div(frames, self.options.step_frames)

    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> torch.Tensor:
        """See `Source.load`; poses have one copy, so the epoch makes no difference."""
        with naming_row(row.id):
            path = resolve_path(row, self.root)
            sequence = read_for_model(path, self.options, start=row.start, end=row.end, fps=row.fps)
            with naming_file(path):
                check_num_frames(row, len(sequence.points), sequence.fps)
                return torch.from_numpy(prepare(sequence, self.options, rng))


class FeatureSource:
    """Pre-extracted features: (T, channels), every step-th of the file's steps.

    A frame of the manifest (num_frames, fps) is one step of the file here. A path into a store, or with the folder
    `{epoch}`, may have several extraction copies: training epoch e, from 1, uses copy (e - 1) mod n, evaluation always
    the first.
    """

    def __init__(self, root: Path, *, channels: int, step: int = 1):
        for name, value in (("feature_channels", channels), ("step_frames", step)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FeatureError(f"task.{name}={value!r}: give a whole number from 1 up")
        self.root, self.channels, self.step = Path(root), channels, step

    def num_steps(self, row: Row) -> int:
        with naming_row(row.id):
            with naming_file(row.path):
                frames = known_frames(row)
            if frames is None:
                path = features.choose_copy(resolve_path(row, self.root), None)
                frames = _segment_length(path, row, None, features.feature_steps(path))
            return _ceil_div(frames, self.step)

    def load(self, row: Row, *, epoch: int = 1, rng: np.random.Generator | None = None) -> torch.Tensor:
        """See `Source.load`. Raises FeatureError also where the file has another number of channels."""
        with naming_row(row.id):
            path = features.choose_copy(resolve_path(row, self.root), None if rng is None else epoch)
            array = features.open_features(path)
            if array.shape[1] != self.channels:
                raise FeatureError(
                    f"{path}: {array.shape[1]} channels, but the model is set up for {self.channels}; set "
                    "task.feature_channels to the file's number, or extract the features again"
                )
            with naming_file(path):
                first, last = segment_frames(row.start, row.end, row.fps, len(array))
                check_num_frames(row, last - first, row.fps)
            return torch.from_numpy(features.checked_features(path, array, first, last, self.step))

    def fingerprint(self, rows: Sequence[Row]) -> Fingerprint | None:
        """What made the features of the rows' stores; None where all rows are plain files, which do not tell.

        Raises FeatureError where rows mix stores of different fingerprints, or stores and plain files.
        """
        return features.common_fingerprint(rows, self.root)


def inspect_media(row: Row, root: Path) -> MediaInfo:
    """Open a row's media and read all of its segment, every extraction copy included.

    Raises DataError, naming row, path, cause and remedy, for what training would stumble over: unreadable files, NaN,
    segments outside the file, a num_frames or fps that is not the file's, poses that never show both shoulders.
    """
    with naming_row(row.id):
        path = resolve_path(row, Path(root))
        if features.is_features(path):
            return _inspect_features(row, path)
        if path.suffix.lower() == ".npy" and open_array(path, DataError).ndim == 2:
            return _inspect_features(row, path)
        if video.is_video(path):
            return _inspect_video(row, path)
        if path.suffix.lower() not in ("", *pose_files.SUFFIXES) and not path.is_dir():
            kinds = f"videos ({', '.join(sorted(video.VIDEO_SUFFIXES))} or a folder of images)"
            raise DataError(
                f"{path}: {path.suffix} is not a supported kind of media; give {kinds}, poses ({pose_files.KINDS}) or "
                f"features ({features.KINDS})"
            )
        return _inspect_pose(row, path)


def _inspect_pose(row: Row, path: Path) -> MediaInfo:
    file = pose_files.open_pose(path)
    left, right = (PARTS["body"].index(name) for name in SHOULDERS)
    shoulders_seen = False
    with naming_file(path):
        fps = agreed_fps(row.fps, file.fps)
        first, last = segment_frames(row.start, row.end, fps, file.num_frames)
        check_num_frames(row, last - first, fps)
    for at in range(first, last, _INSPECTED_AT_ONCE):
        points, present = read_frames(file, part_names(PARTS), at, min(last, at + _INSPECTED_AT_ONCE))
        with naming_file(path):
            if (present[:, left] & present[:, right]).any():
                shoulders_seen = True
                normalise(points, present, left, right)
    if not shoulders_seen:
        raise PoseError(f"{path}: {NO_SHOULDERS}")
    return MediaInfo(file.kind, last - first, fps, file.shape)


def _inspect_video(row: Row, path: Path) -> MediaInfo:
    info = video.probe(path, row.start, row.end, fps=row.fps)
    frames = video.check_segment(path, row.start, row.end, fps=row.fps)
    with naming_file(path):
        check_num_frames(row, frames, info.fps)
    return MediaInfo("video", frames, info.fps, (info.height, info.width, 3))


def _inspect_features(row: Row, path: Path) -> MediaInfo:
    copies = features.feature_copies(path)
    features.check_all_copies(copies)
    for copy in reversed(copies):
        array = features.open_features(copy)
        with naming_file(copy):
            first, last = segment_frames(row.start, row.end, row.fps, len(array))
            check_num_frames(row, last - first, row.fps)
        for at in range(first, last, _INSPECTED_AT_ONCE):
            features.checked_features(copy, array, at, min(last, at + _INSPECTED_AT_ONCE))
    return MediaInfo("features", last - first, row.fps, array.shape)  # of the first copy, which was read last


def _segment_length(path: Path, row: Row, file_fps: float | None, num_frames: int) -> int:
    with naming_file(path):
        first, last = segment_frames(row.start, row.end, agreed_fps(row.fps, file_fps), num_frames)
        return last - first


def _ceil_div(count: int, step: int) -> int:
    return -(-count // step)
