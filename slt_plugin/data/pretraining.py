"""The fairseq dataset of self-supervised pretraining: random clips of videos, and the seeds of their masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slt_plugin.common.messages import listing
from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.draws import Draw, generator
from slt_plugin.data.errors import DataError, naming_row
from slt_plugin.data.manifest import Row
from slt_plugin.data.manifest_dataset import ManifestDataset, shield_worker
from slt_plugin.data.sampling import clip_length
from slt_plugin.data.segments import known_frames
from slt_plugin.data.selection import EpochRows
from slt_plugin.data.transforms import augment_clip
from slt_plugin.data.updates import UpdatePlan

MIN_FRAMES = 4  # two time steps: of a single one a mask of 0.9 leaves the encoder next to nothing


class RandomClip(NamedTuple):
    """One clip of a row without its padding.

    frames: (T, 3, size, size) uint8, T even.
    mask_seed: what the clip's mask is drawn from.
    indices: (T,) int64, the number of each frame in the row.
    """

    frames: Tensor
    mask_seed: int
    indices: Tensor


class RandomClips:
    """Clips at random places of a row's video; all clips of a row are decoded in one pass.

    Args:
        root: directory that manifest paths start from.
        options: of the clips; stride and truncate have no part in it.
    """

    def __init__(self, root: Path, options: ClipOptions):
        self.options = options
        self.video = VideoSource(root, options)
        self._clip_frames: dict[tuple[int, float], int] = {}  # many videos are alike long

    def length_is_known(self, row: Row) -> bool:
        """Whether `length` needs the row's own fields only. Raises DataError for wrong ones."""
        with naming_row(row.id):
            return row.fps is not None and known_frames(row) is not None

    def length(self, row: Row) -> tuple[int, float]:
        """Frames of the row and their rate, from its own fields where they tell, else from the file."""
        return self.video.known_length(row)

    def clip_frames(self, num_frames: int, fps: float) -> int:
        """The most frames that a clip of a video of this length has without its padding."""
        length = num_frames, fps
        if length not in self._clip_frames:
            options = self.options
            whole = clip_length(
                fps, num_frames=options.num_frames, sampling_rate=options.sampling_rate, target_fps=options.target_fps
            )
            # a shorter video has one place for a clip only
            shortest = options.random_window(num_frames, fps, np.random.default_rng(0)).kept_frames
            self._clip_frames[length] = options.num_frames if num_frames >= whole else shortest
        return self._clip_frames[length]

    def load(self, row: Row, rngs: Sequence[np.random.Generator], *, augment: bool) -> list[RandomClip]:
        """One clip for each generator, all of its draws from that one: place, mask and augmentation.

        Raises:
            DataError: the video cannot be read, or is too short for a clip.
        """
        options = self.options
        with naming_row(row.id):
            length = self.video.file_length(row)
            windows = [options.random_window(*length, rng) for rng in rngs]
            if min(window.kept_frames for window in windows) < MIN_FRAMES:
                raise DataError(f"too short for a clip: fewer than {MIN_FRAMES} sampled frames (task.min_duration)")
            seeds = [int(rng.integers(2**63)) for rng in rngs]
            frames = self.video.decode(row, windows, options.size + (options.augment.crop if augment else 0))
        clips = frames.split([window.kept_frames for window in windows])
        if augment:
            clips = [
                augment_clip(clip, options.size, options.augment, rng) for clip, rng in zip(clips, rngs, strict=True)
            ]
        return [
            RandomClip(clip, seed, window.indices[: window.kept_frames])
            for clip, seed, window in zip(clips, seeds, windows, strict=True)
        ]


class PretrainingDataset(ManifestDataset):
    """Rows of one or several manifests; a sample is one row, which gives ``copies`` clips in training.

    Every draw depends on (seed, epoch, row, copy) alone, so neither the number of loader workers nor a resume changes
    it. For validation each row gives one clip, drawn from (seed, row): clip and mask are the same every time.

    Args:
        manifests: the rows of each manifest; their ids differ. All rows are numbered through.
        clips: reads them.
        lengths: frames and rate of each row.
        ratios: how often an epoch of training sees each row of each manifest.
        copies: clips that training takes from a row.
        training: shuffle and augment.
        seed: of all draws.
        with_texts: batches hold the rows' texts.

    Raises:
        DataError: rows too short for a clip.
    """

    def __init__(
        self,
        manifests: Sequence[Sequence[Row]],
        clips: RandomClips,
        lengths: Sequence[tuple[int, float]],
        *,
        ratios: Sequence[float] = (1.0,),
        copies: int = 1,
        training: bool = False,
        seed: int = 1,
        with_texts: bool = False,
    ):
        super().__init__(training=training, decodes_video=True)
        self.rows = [row for rows in manifests for row in rows]
        self.clips = clips
        self.copies = copies if training else 1
        self.seed, self.with_texts = seed, with_texts
        self.clip_frames = np.array(
            [self._clip_frames(row, length) for row, length in zip(self.rows, lengths, strict=True)], dtype=np.int64
        )
        short = [row.id for row, frames in zip(self.rows, self.clip_frames, strict=True) if frames < MIN_FRAMES]
        if short:
            raise DataError(
                f"{len(short)} of {len(self.rows)} rows are too short for a clip (fewer than {MIN_FRAMES} sampled "
                f"frames): {listing(short)}. Leave them out with task.min_duration"
            )
        sizes = [len(rows) for rows in manifests]
        self.epoch_rows = EpochRows(sizes, ratios if training else [1.0] * len(sizes), seed)
        self.plan = UpdatePlan()  # of training; the task sets it when it knows the ranks
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._row_numbers, self._times = self.epoch_rows.of_epoch(epoch if self.training else 1)

    def __len__(self) -> int:
        return len(self.epoch_rows)

    def __getitem__(self, index: int) -> dict | None:
        """Item ``index`` of the epoch: the row's number and its clips."""
        if not self.reads_media:
            return None
        shield_worker()
        row = int(self._row_numbers[index])
        first = int(self._times[index]) * self.copies
        if self.training:
            copies = range(first, first + self.copies)
            rngs = [generator(Draw.CLIP, self.seed, self.epoch, row, copy) for copy in copies]
        else:
            rngs = [generator(Draw.VALIDATION_CLIP, self.seed, row)]
        return {"id": row, "clips": self.clips.load(self.rows[row], rngs, augment=self.training)}

    def collater(self, samples: list[dict | None]) -> dict:
        """Samples to a fairseq batch of B clips, a row's clips side by side.

        ``net_input``: ``src_tokens`` (B, T, 3, S, S) uint8, zeros behind each clip; ``src_lengths`` (B,) int64 frames;
        ``mask_seeds`` (B,) int64; with texts also ``texts``, B strings.
        """
        if not samples or not self.reads_media:
            return {}
        rows = [sample["id"] for sample in samples for _ in sample["clips"]]
        clips = [clip for sample in samples for clip in sample["clips"]]
        lengths = torch.tensor([len(clip.frames) for clip in clips], dtype=torch.int64)
        net_input = {
            "src_tokens": pad_sequence([clip.frames for clip in clips], batch_first=True),  # B x T x 3 x S x S
            "src_lengths": lengths,
            "mask_seeds": torch.tensor([clip.mask_seed for clip in clips], dtype=torch.int64),
        }
        if self.with_texts:
            net_input["texts"] = [self.rows[row].text for row in rows]
        return {
            "id": torch.tensor(rows, dtype=torch.int64),
            "nsentences": len(clips),
            "ntokens": int(lengths.sum()),
            "row_ids": [self.rows[row].id for row in rows],
            "net_input": net_input,
        }

    # sizes and order

    def _clip_frames(self, row: Row, length: tuple[int, float]) -> int:
        with naming_row(row.id):
            return self.clips.clip_frames(*length)

    def num_tokens(self, index: int) -> int:
        """Frames of all clips of an item, at most."""
        return int(self.clip_frames[self._row_numbers[index]]) * self.copies

    def num_tokens_vec(self, indices) -> np.ndarray:
        return self.clip_frames[self._row_numbers[indices]] * self.copies

    def size(self, index: int) -> int:
        return self.num_tokens(index)

    def filter_indices_by_size(self, indices, max_sizes):
        """Clips have the model's length, so every row fits (and `batch_by_size` names those beyond max_tokens)."""
        return indices, []

    def ordered_indices(self) -> np.ndarray:
        """In training another random order each epoch, else the manifest's."""
        if not self.training:
            return np.arange(len(self))
        return generator(Draw.ORDER, self.seed, self.epoch).permutation(len(self))

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ) -> list[np.ndarray]:
        """Batches that hold every index: fairseq's own rounding to a multiple drops rows.

        In training they are in the order in which they are trained on, see `UpdatePlan`.

        Raises:
            DataError: ``max_tokens`` is less than the clips of one row have, or an epoch has fewer rows than ranks.
        """
        if max_tokens is not None and (longest := int(self.num_tokens_vec(indices).max())) > max_tokens:
            raise DataError(
                f"dataset.max_tokens={max_tokens} is less than the {longest} frames of one row's {self.copies} "
                f"clip(s): give at least {longest}, or batches by rows (dataset.batch_size)"
            )
        if self.training and self.plan.rows is not None:
            return self.plan.split(indices)
        by_length = indices[np.argsort(self.num_tokens_vec(indices), kind="stable")]
        batches = super().batch_by_size(by_length, max_tokens, max_sentences, required_batch_size_multiple=1)
        batches = [np.asarray(batch) for batch in batches]
        if not self.training:
            return batches
        order = generator(Draw.BATCHES, self.seed, self.epoch).permutation(len(batches))
        return self.plan.level([batches[i] for i in order], self.num_tokens_vec(np.arange(len(self))))
