"""Whole manifests decoded, by one process or by several that share the rows."""

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from slt_plugin.cli.decoding import Models
from slt_plugin.common.messages import listing
from slt_plugin.common.process_group import gather
from slt_plugin.common.slurm import Ranks
from slt_plugin.data.errors import DataError
from slt_plugin.scoring.hypotheses import Hypothesis


class Decoded(NamedTuple):
    """Of a whole manifest.

    hypotheses: in its order; tokens: of each, for what looks into the model; speed: see `Decoder.decode`.
    """

    hypotheses: list[Hypothesis]
    tokens: list[list[int]]
    speed: dict


class Decoder(Models):
    """Models that decode whole manifests; see `Models`.

    Args:
        ranks: the processes that share the work.
    """

    def __init__(self, paths: Sequence[Path], cfg, task_options: dict, ranks: Ranks):
        import torch

        if torch.cuda.is_available() and not cfg.common.cpu:
            torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
        super().__init__(paths, cfg, task_options, average=cfg.average)
        self.cfg, self.ranks = cfg, ranks

    def batches(self, subset: str):
        """fairseq's iterator over this rank's part of ``<data>/<subset>.tsv``.

        Raises:
            DataError: the manifest is wrong, or rows are too long and are not to be skipped.
        """
        cfg = self.cfg
        self.task.load_dataset(subset, task_cfg=self.task.cfg)
        dataset = self.task.dataset(subset)
        limits = self.limits()
        skip = cfg.dataset.skip_invalid_size_inputs
        kept, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if ignored and not skip:
            raise DataError(
                f"{subset}.tsv: {dataset.limit_message(ignored, limits)}. Cut them, raise "
                "dataset.max_source_positions, or leave them out with dataset.skip_invalid_size_inputs=true"
            )
        if len(kept) == 0:
            raise DataError(f"{subset}.tsv: no row is left: {dataset.limit_message(ignored, limits)}")
        longest = int(dataset.source_lengths[kept].max())
        if cfg.dataset.max_tokens is not None and longest > cfg.dataset.max_tokens:
            raise DataError(
                f"{subset}.tsv: a row has {longest} source steps, more than dataset.max_tokens="
                f"{cfg.dataset.max_tokens}: raise it"
            )
        return self.task.get_batch_iterator(
            dataset=dataset,
            max_tokens=cfg.dataset.max_tokens,
            max_sentences=cfg.dataset.batch_size,
            max_positions=limits,
            ignore_invalid_inputs=skip,
            seed=cfg.common.seed,
            num_workers=cfg.dataset.num_workers,
            num_shards=self.ranks.world_size,
            shard_id=self.ranks.rank,
        )

    def decode(self, subset: str, batches, *, hidden_channels: Sequence[int] = (), note: str = "") -> Decoded | None:
        """Every row once, whatever the number of ranks; None on all ranks but the first.

        Args:
            batches: of `batches`, may be used again.
            hidden_channels: of the source, set to 0 (for landmarks: missing).
            note: for the progress bar.

        The speed is of decoding with loading, over the slowest rank: ``seconds``, ``sentences_per_second``,
        ``signing_seconds_per_second`` (null where the manifest has no times), ``peak_memory_mb`` of one rank (of the
        GPU, or of the process), ``device``, ``ranks``, ``threads``.
        """
        import torch
        from fairseq.logging.progress_bar import progress_bar

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows = self.task.dataset(subset).rows
        found: dict[int, tuple[Hypothesis, list[int]]] = {}
        begun = time.perf_counter()
        for sample in progress_bar(
            batches.next_epoch_itr(shuffle=False),
            log_format=self.cfg.common.log_format if self.ranks.rank == 0 else "none",
            prefix=f"{subset} {note}".strip(),
            default_log_format="tqdm",
        ):
            if not sample:  # fairseq fills shorter parts up with nothing
                continue
            sample["net_input"]["src_tokens"][..., list(hidden_channels)] = 0
            for i, best in zip(sample["id"].tolist(), self.generate(sample), strict=True):
                found[i] = (self._hypothesis(rows[i], best), best[0]["tokens"].tolist())
        parts = gather((found, time.perf_counter() - begun, self._peak_memory_mb()), self.ranks)
        if parts is None:
            return None
        merged = self._merge(subset, [part[0] for part in parts], rows)
        speed = self._speed([rows[i] for i in merged], max(part[1] for part in parts), max(part[2] for part in parts))
        return Decoded([one for one, _ in merged.values()], [tokens for _, tokens in merged.values()], speed)

    def sample(self, subset: str, row_id: str) -> dict:
        """The batch of one row, on the models' device."""
        dataset = self.task.dataset(subset)
        index = next(i for i, row in enumerate(dataset.rows) if row.id == row_id)
        return self.on_device(dataset.collater([dataset[index]]))

    def _hypothesis(self, row, best: list[dict]) -> Hypothesis:
        texts = [self.task.codec.decode(one["tokens"]) for one in best]
        scores = [float(one["score"]) for one in best]
        alternatives = None
        if self.cfg.generation.nbest > 1:
            pairs = zip(texts, scores, strict=True)
            alternatives = tuple({"text": text, "score": score} for text, score in pairs if math.isfinite(score))
            alternatives = alternatives[: self.cfg.generation.nbest]
        return Hypothesis(row.id, row.text, texts[0], scores[0], row.text_lang, alternatives)

    def _merge(self, subset: str, parts: Sequence[dict], rows) -> dict:
        merged: dict = {}
        for part in parts:
            twice = sorted(merged.keys() & part.keys())
            if twice:
                raise RuntimeError(f"{subset}: rows decoded by two ranks: {listing([rows[i].id for i in twice])}")
            merged |= part
        if len(merged) != len(rows) and not self.cfg.dataset.skip_invalid_size_inputs:
            raise RuntimeError(f"{subset}: {len(merged)} hypotheses for {len(rows)} rows")
        return dict(sorted(merged.items()))

    def _speed(self, rows: Sequence, seconds: float, peak: float) -> dict:
        import torch

        from slt_plugin.data.manifest_stats import row_seconds

        lengths = [row_seconds(row) for row in rows]
        known = None not in lengths
        return {
            "seconds": seconds,
            "sentences_per_second": len(rows) / seconds,
            "signing_seconds_per_second": sum(lengths) / seconds if known else None,
            "peak_memory_mb": peak,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "ranks": self.ranks.world_size,
            "threads": torch.get_num_threads(),
        }

    def _peak_memory_mb(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
