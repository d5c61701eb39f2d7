"""``slt-extract``: a manifest of videos and a SignHiera checkpoint -> a feature store and its manifest."""

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.checkpoints.sign_hiera import load_sign_hiera, read_file
from slt_plugin.data.clips import VideoSource
from slt_plugin.data.manifest import read_manifest
from slt_plugin.data.store import StoreWriter
from slt_plugin.extraction.decoding import Decoders
from slt_plugin.extraction.encoding import Encoder
from slt_plugin.extraction.failures import FailureList
from slt_plugin.extraction.merge import Merged, check_replaceable, merge
from slt_plugin.extraction.options import DTYPES, STORE_DTYPES, ExtractOptions, fingerprint, model_threads
from slt_plugin.extraction.pipeline import Pipeline
from slt_plugin.extraction.plan import Job, Segment, find_segments, owners
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.staging import Stager
from slt_plugin.models.errors import OptionError
from slt_plugin.modules.hiera import VARIANTS

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share; other systems have no such folder


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    failed: ids of the rows that have no features: of all where the manifest was written, else of this element.
    merged: the feature manifest, where it was written.
    stopped: the signal that ended the run early.
    """

    failed: tuple[str, ...] = ()
    merged: Merged | None = None
    stopped: int | None = None


def extract(options: ExtractOptions) -> Outcome:
    """Extracts what is not in the store yet, and writes the feature manifest where this is the only or last step.

    Raises:
        SltError: options, manifest, checkpoint or store that cannot be used; a GPU or shared memory that is too small.
    """
    rows = read_manifest(options.manifest)
    check_replaceable(options.feature_manifest, rows)
    segments = find_segments(rows, options.root)
    if options.merge:
        return _merged(options, rows, segments)
    if options.checkpoint is None:
        raise OptionError("checkpoint is missing: give a SignHiera checkpoint (checkpoint=PATH)")
    device = options.choose_device()
    variant = read_file(options.checkpoint, options.variant).variant
    with torch.device("meta"):
        input_size = VARIANTS[variant]().input_size
    clips = options.clip_options(input_size)
    mark = fingerprint(options, clips, sha256=sha256_of(options.checkpoint), variant=variant)

    places = zip(segments, owners(segments, options.num_shards), strict=True)
    mine = [segment for segment, owner in places if owner == options.element]
    stopped = None
    with StoreWriter(options.folder, mark, part=options.part, dtype=STORE_DTYPES[options.store_dtype]) as writer:
        jobs = [Job(segment, copy) for segment in mine for copy in range(options.epochs)]
        todo = [job for job in jobs if job.name not in writer.done]
        logger.info(
            "%s: %d rows show %d segments, %d of them for this element (%s); %d features to extract, %d in the store",
            options.manifest, len(rows), len(segments), len(mine), options.part, len(todo), len(jobs) - len(todo),
        )  # fmt: skip
        failures = FailureList(options.folder, options.part, {row_id for job in todo for row_id in job.segment.ids})
        sink = StoreSink(writer, failures, 60 * options.flush_minutes)
        if todo:
            stopped = _run(options, VideoSource(options.root, clips), todo, sink, device, variant)
        sink.flush()
    sink.warn_boxless()
    if stopped is None and options.num_shards == 1:
        return _merged(options, rows, segments)
    return Outcome(failures.ids, None, stopped)


def _merged(options: ExtractOptions, rows: list, segments: list[Segment]) -> Outcome:
    merged = merge(
        rows, segments, options.folder, options.feature_manifest, epochs=options.epochs, num_shards=options.num_shards
    )
    return Outcome(merged.failed, merged)


def _run(
    options: ExtractOptions, source: VideoSource, jobs: list[Job], sink: StoreSink, device: torch.device, variant: str
) -> int | None:
    """The signal that ended the work early, None where it was finished."""
    model = load_sign_hiera(options.checkpoint, variant)
    if device.type == "cuda" and options.dtype == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, with 10 bits of mantissa
        logger.info("dtype=fp32 leaves the GPU's matrix units unused; dtype=bf16 uses them")
    workers = options.workers(device)
    if device.type == "cpu":
        torch.set_num_threads(model_threads(workers, torch.get_num_threads()))
    encoder = Encoder(model, device, DTYPES[options.dtype], compile=options.compile)
    progress = Progress(len(jobs), options.log_interval)
    with (
        _signals() as received,
        Stager(jobs, options.root, options.staging_folder, int(options.staging_gb * 1e9)) as stager,
        Decoders(source, workers=workers, budget=_budget(options, workers), seed=options.seed) as decoders,
        progress,
    ):
        pipeline = Pipeline(stager, decoders, encoder, sink, progress, batch=options.batch_size(device))
        pipeline.run(lambda: received() is not None)
    logger.info(progress.summary())
    return received()


def _budget(options: ExtractOptions, workers: int) -> int:
    """Bytes of decoded frames; at most half of the shared memory, through which they come from the workers."""
    budget = options.prefetch_mb << 20
    if workers and _SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(_SHARED_MEMORY).free // 2
        if free < budget:
            logger.warning("%s has little room: prefetch_mb=%d instead of %d", _SHARED_MEMORY, free >> 20,
                           options.prefetch_mb)  # fmt: skip
            return free
    return budget


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Ctrl-C and SIGTERM end the run in order (a second one at once): gives the signal that came, None so far."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python lets only the main thread set handlers
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
