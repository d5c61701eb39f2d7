"""``slt-extract what=features``: a manifest of videos and a SignHiera checkpoint -> features and their manifest."""

import logging
import shutil
from pathlib import Path

import torch

from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.checkpoints.sign_hiera import load_sign_hiera, read_file
from slt_plugin.data.clips import VideoSource
from slt_plugin.data.manifest import read_manifest
from slt_plugin.extraction.decoding import Decoders
from slt_plugin.extraction.device import prepare_device
from slt_plugin.extraction.encoding import Encoder
from slt_plugin.extraction.filling import Outcome, fill_store, merge_elements
from slt_plugin.extraction.merge import check_replaceable
from slt_plugin.extraction.options import ExtractOptions, fingerprint
from slt_plugin.extraction.pipeline import Pipeline
from slt_plugin.extraction.plan import Job, find_segments
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.signals import stop_signals
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.staging import Stager
from slt_plugin.extraction.store_options import DTYPES
from slt_plugin.models.errors import OptionError
from slt_plugin.modules.hiera import VARIANTS

logger = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps what processes share; other systems have no such folder


def extract(options: ExtractOptions) -> Outcome:
    """Extracts what is not in the store yet, and writes the feature manifest where this is the only or last step.

    Raises:
        SltError: options, manifest, checkpoint or store that cannot be used; a GPU or shared memory that is too small.
    """
    rows = read_manifest(options.manifest)
    check_replaceable(options.written_manifest, rows)
    segments = find_segments(rows, options.root)
    if options.merge:
        return merge_elements(options, rows, segments, copies=options.epochs)
    if options.checkpoint is None:
        raise OptionError("checkpoint is missing: give a SignHiera checkpoint (checkpoint=PATH)")
    device = options.choose_device()
    file = read_file(options.checkpoint, options.variant)
    variant = file.variant
    with torch.device("meta"):
        input_size = VARIANTS[variant]().input_size
    clips = options.clip_options(input_size, file.clips)
    mark = fingerprint(options, clips, sha256=sha256_of(options.checkpoint), variant=variant)

    def work(jobs: list[Job], sink: StoreSink) -> int | None:
        return _run(options, VideoSource(options.root, clips), jobs, sink, device, variant)

    return fill_store(options, rows, segments, mark, work, copies=options.epochs)


def _run(
    options: ExtractOptions, source: VideoSource, jobs: list[Job], sink: StoreSink, device: torch.device, variant: str
) -> int | None:
    """The signal that ended the work early, None where it was finished."""
    model = load_sign_hiera(options.checkpoint, variant)
    workers = options.workers(device)
    prepare_device(device, options.dtype, workers)
    encoder = Encoder(model, device, DTYPES[options.dtype], compile=options.compile)
    progress = Progress(len(jobs), options.log_interval)
    with (
        stop_signals() as received,
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
