"""The fairseq dataset over a manifest: one source tensor and one target sentence a row."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from fairseq.data import data_utils
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from slt_plugin.common.errors import SltError
from slt_plugin.common.messages import listing
from slt_plugin.data.clips import Clips, VideoSource
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.manifest_dataset import ManifestDataset, shield_worker
from slt_plugin.data.sources import Source
from slt_plugin.data.teacher import TeacherEmbeddings

logger = logging.getLogger(__name__)


def name_rows(rows: Sequence[Row], lengths: Sequence[object]) -> str:
    """'a (812), b (640) and 3 more' for messages."""
    return listing([f"{row.id} ({length})" for row, length in zip(rows, lengths, strict=True)])


def _encode(row: Row, encode: Callable[[str], Tensor]) -> Tensor:
    try:
        return encode(row.text)
    except SltError as error:
        raise DataError(f"row {row.id}: {error}") from error


class SignDataset(ManifestDataset):
    """Rows of a manifest as samples; batches are filled by source length.

    Args:
        rows: the manifest's rows; row i is sample id i.
        source: reads a row's media into (T, ...), time first.
        encode: text to token ids (U,) ending in EOS; None where rows are only decoded.
        pad, eos: dictionary indices.
        language_ids: for each row the token of its language; None: the vocabulary has none.
        language_is_prefix: whether the target is language, text, EOS after the start (SONAR, NLLB); else the language
            is the start (mBART-cc25).
        start: the token that the decoder begins with where the language is not; None: EOS.
        decoding: rows are only generated from: the length of their reference limits nothing.
        training: shuffle and augment; every draw depends on (seed, epoch, row) alone, so neither the number of loader
            workers nor a resume changes it.
        seed: of shuffling and augmentation.
        max_steps: the longest source the model takes; a clip that augmentation slows down beyond it is played at the
            speed that just fits.
        max_clips: the most clips of raw video in a batch; 0: no limit.
        teacher: embeddings of the rows' texts, where they are learned from.
    """

    def __init__(
        self,
        rows: list[Row],
        source: Source,
        *,
        encode: Callable[[str], Tensor],
        pad: int,
        eos: int,
        language_ids: list[int] | None = None,
        language_is_prefix: bool = False,
        start: int | None = None,
        training: bool = False,
        decoding: bool = False,
        seed: int = 1,
        max_steps: int | None = None,
        max_clips: int = 0,
        teacher: TeacherEmbeddings | None = None,
    ):
        super().__init__(training=training, decodes_video=isinstance(source, VideoSource))
        self.rows = rows
        self.source = source
        self.pad, self.eos = pad, eos
        self.decoding = decoding
        self.seed = seed
        self.max_steps, self.max_clips = max_steps, max_clips
        self.teacher = teacher
        self.prefix_tokens = np.array(language_ids, dtype=np.int64) if language_is_prefix else None
        fixed = language_ids is None or language_is_prefix
        starts = [eos if start is None else start] * len(rows) if fixed else language_ids
        self.start_tokens = np.array(starts, dtype=np.int64)
        self.clip_counts: np.ndarray | None = None  # of raw video, for each row
        if isinstance(source, VideoSource):
            lengths = [source.clip_lengths(row) for row in rows]
            self.clip_counts = np.array([len(clips) for clips in lengths], dtype=np.int64)
            self.source_lengths = np.array([sum(clips) for clips in lengths], dtype=np.int64)
        else:
            self.source_lengths = np.array([source.num_steps(row) for row in rows], dtype=np.int64)
        self.targets = [None if row.text is None else _encode(row, encode) for row in rows]
        if self.prefix_tokens is not None:
            prefixes = torch.from_numpy(self.prefix_tokens).unsqueeze(1)
            pairs = zip(prefixes, self.targets, strict=True)
            self.targets = [None if target is None else torch.cat([prefix, target]) for prefix, target in pairs]
        self.target_lengths = np.array([0 if t is None else len(t) for t in self.targets], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict | None:
        if not self.reads_media:
            return None
        shield_worker()
        rng = np.random.default_rng((self.seed, self.epoch, int(index))) if self.training else None
        source = self.source.load(self.rows[index], epoch=self.epoch, rng=rng)
        if isinstance(source, Clips):
            return {
                "id": int(index),
                "source": source.frames,
                "clips": torch.tensor(source.lengths, dtype=torch.int64),
                "target": self.targets[index],
            }
        if rng is not None and self.max_steps is not None and len(source) > self.max_steps:
            source = source[torch.linspace(0, len(source) - 1, self.max_steps).round().long()]
        return {"id": int(index), "source": source, "target": self.targets[index]}

    def collater(self, samples: list[dict | None]) -> dict:
        """Samples to a fairseq batch: ``src_tokens`` (B, T, C) float32 zero-padded, tokens (B, U) padded right.

        Raw video: ``src_tokens`` (B, F, 3, S, S) uint8, and ``src_clips`` (B, N), the frames of each row's clips.
        With a teacher: ``teacher`` (B, D) and ``teacher_index`` (B,), see `TeacherEmbeddings.batch`.
        """
        if not samples or not self.reads_media:
            return {}
        ids = [s["id"] for s in samples]
        lengths = torch.tensor([len(s["source"]) for s in samples], dtype=torch.int64)
        src_tokens = pad_sequence([s["source"] for s in samples], batch_first=True)  # B x T x ...
        batch = {
            "id": torch.tensor(ids, dtype=torch.int64),
            "nsentences": len(samples),
            "net_input": {"src_tokens": src_tokens, "src_lengths": lengths},
            **self.language_tokens(ids),
            "target": None,
            "ntokens": int(lengths.sum()),
            "texts": [self.rows[i].text for i in ids],
            "row_ids": [self.rows[i].id for i in ids],
        }
        if self.teacher is not None:
            embeddings, batch["teacher_index"] = self.teacher.batch(ids)
            # in double precision: fairseq rounds every float32 of a batch in fp16 and bf16 training, which these small
            # numbers do not survive as they are
            batch["teacher"], batch["teacher_name"] = embeddings.double(), self.teacher.name
        if self.clip_counts is not None:
            batch["net_input"]["src_clips"] = pad_sequence([s["clips"] for s in samples], batch_first=True)  # B x N
        if all(s["target"] is not None for s in samples):
            targets = [s["target"] for s in samples]
            prev = [torch.cat([batch["start_tokens"][i : i + 1], t[:-1]]) for i, t in enumerate(targets)]
            batch["target"] = data_utils.collate_tokens(targets, self.pad)
            batch["target_lengths"] = torch.tensor([len(t) for t in targets], dtype=torch.int64)
            batch["net_input"]["prev_output_tokens"] = data_utils.collate_tokens(prev, self.pad)
            batch["ntokens"] = int(batch["target_lengths"].sum())
        return batch

    def language_tokens(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """What a batch of these rows says of their languages: ``start_tokens`` (B,), maybe ``prefix_tokens`` (B, 1)."""
        tokens = {"start_tokens": torch.from_numpy(self.start_tokens[ids])}
        if self.prefix_tokens is not None:
            tokens["prefix_tokens"] = torch.from_numpy(self.prefix_tokens[ids]).unsqueeze(1)
        return tokens

    # sizes and order

    def num_tokens(self, index: int) -> int:
        return int(self.source_lengths[index])

    def num_tokens_vec(self, indices) -> np.ndarray:
        return self.source_lengths[indices]

    def size(self, index: int) -> tuple[int, int]:
        return int(self.source_lengths[index]), int(self.target_lengths[index])

    def ordered_indices(self) -> np.ndarray:
        """Indices by source length; rows of equal length are shuffled in training (fairseq seeds NumPy by epoch)."""
        order = np.random.permutation(len(self)) if self.training else np.arange(len(self))
        return order[np.argsort(self.source_lengths[order], kind="stable")]

    def batch_by_size(
        self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1
    ) -> list[np.ndarray]:
        """Batches of one start token each, holding every index: fairseq's own rounding to a multiple drops rows.

        Raises:
            DataError: rows longer than ``max_tokens`` (fairseq would fail on an anonymous assertion) or than
                ``max_clips``.
        """
        if self.clip_counts is not None and self.max_clips:
            long = indices[self.clip_counts[indices] > self.max_clips]
            if len(long):
                raise DataError(
                    f"{len(long)} row(s) have more clips than task.max_clips={self.max_clips}: "
                    f"{name_rows([self.rows[i] for i in long], self.clip_counts[long])}. Raise task.max_clips, cut the "
                    "rows, or keep their beginning with task.truncate_clips"
                )
        if max_tokens is not None:
            long = [i for i in indices if self.source_lengths[i] > max_tokens]
            if long:
                named = name_rows([self.rows[i] for i in long], self.source_lengths[long])
                raise DataError(
                    f"{len(long)} row(s) have more source steps than dataset.max_tokens={max_tokens}: {named}. "
                    "Raise dataset.max_tokens, or lower task.max_source_positions and set "
                    "dataset.skip_invalid_size_inputs_valid_test=true to leave them out"
                )
        batches = []
        for token in np.unique(self.start_tokens):
            # one start token a batch, because fairseq's generator takes a single one
            same = indices[self.start_tokens[indices] == token]
            batches += super().batch_by_size(same, max_tokens, max_sentences, required_batch_size_multiple=1)
        return [part for batch in batches for part in self._within_max_clips(np.asarray(batch))]

    def _within_max_clips(self, batch: np.ndarray) -> list[np.ndarray]:
        """The batch, cut where it would hold more than ``max_clips`` clips."""
        if self.clip_counts is None or not self.max_clips:
            return [batch]
        parts, clips = [[]], 0
        for index in batch:
            if clips + self.clip_counts[index] > self.max_clips:
                parts.append([])
                clips = 0
            parts[-1].append(index)
            clips += self.clip_counts[index]
        return [np.array(part) for part in parts]

    def filter_indices_by_size(self, indices, max_sizes):
        """Splits indices into those within (source steps, target tokens) and those beyond either."""
        max_source, max_target = max_sizes
        fits = self.source_lengths[indices] <= max_source
        if not self.decoding:
            fits &= self.target_lengths[indices] <= max_target
        return indices[fits], indices[~fits].tolist()

    def limit_message(self, ignored: Sequence[int], max_sizes: tuple[int, int]) -> str:
        """Names the rows beyond ``max_sizes`` for an error or a warning."""
        rows = [self.rows[i] for i in ignored]
        lengths = [f"{self.source_lengths[i]} steps, {self.target_lengths[i]} tokens" for i in ignored]
        limit = f"{max_sizes[0]} source steps or {max_sizes[1]} target tokens"
        return f"{len(rows)} row(s) exceed the limit of {limit}: {name_rows(rows, lengths)}"
