"""``slt-extract what=sonar``: one sentence embedding for each row of videos, features or poses."""

import itertools
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from fairseq import checkpoint_utils, utils
from fairseq.models import BaseFairseqModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.data import video
from slt_plugin.data.clips import VideoSource
from slt_plugin.data.dataset import SignDataset
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, resolve_path
from slt_plugin.data.signer_box import large_frame_without_box
from slt_plugin.data.sources import Source
from slt_plugin.data.store import Fingerprint
from slt_plugin.extraction.device import prepare_device
from slt_plugin.extraction.embedding import Batch, batches_by_length, embed_batches
from slt_plugin.extraction.filling import Outcome, fill_store, merge_elements
from slt_plugin.extraction.merge import check_replaceable
from slt_plugin.extraction.options import loading_workers
from slt_plugin.extraction.plan import Job, find_segments
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.store_options import MediaOptions
from slt_plugin.models.errors import OptionError
from slt_plugin.tasks.options import build_source
from slt_plugin.tasks.sign_to_text import SignToTextTask

logger = logging.getLogger(__name__)

MAX_STEPS = {"video": 1024, "features": 4096, "pose": 4096}  # of a batch
_PART = 2000  # rows that are measured together


@dataclass(frozen=True)
class SonarOptions(MediaOptions):
    """See config/generate/extract.yaml."""

    max_tokens: int | None
    num_workers: int | None


def extract_sonar(options: SonarOptions) -> Outcome:
    """Embeds what is not in the store yet, and writes the manifest of the embeddings where this is the only step.

    Raises:
        SltError: options, manifest, checkpoint or store that cannot be used.
    """
    rows = read_manifest(options.manifest)
    check_replaceable(options.written_manifest, rows)
    segments = find_segments(rows, options.root)
    if options.merge:
        return merge_elements(options, rows, segments)
    if options.checkpoint is None:
        raise OptionError("checkpoint is missing: give a sonar_translator (slt-import-checkpoint sonar-asl makes one)")
    device = options.choose_device()
    mark = Fingerprint(
        {
            "encoder": "sonar_translator",
            "checkpoint_sha256": sha256_of(options.checkpoint),
            "dtype": options.dtype,
        }
    )

    def work(jobs: list[Job], sink: StoreSink) -> int | None:
        return _run(options, jobs, sink, device)

    return fill_store(options, rows, segments, mark, work, names=("segments", "embeddings"))


def load_model(options: SonarOptions, device: torch.device) -> tuple[BaseFairseqModel, SignToTextTask]:
    """The model without its text decoder, whose weights are then never read, and its task.

    Raises:
        OptionError: a model that has no sentence embedding.
    """
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [options.checkpoint], arg_overrides={"data": "", "media_root": None, "max_clips": 0}
    )
    model = models[0]
    if not hasattr(model, "embed"):
        raise OptionError(
            f"checkpoint={options.checkpoint} has no sentence embedding: give a sonar_translator "
            "(slt-import-checkpoint sonar-asl makes one)"
        )
    model.decoder = None
    if options.dtype == "fp16":
        model.half()
    elif options.dtype == "bf16":
        model.bfloat16()
    else:
        model.float()  # what the fingerprint says, whatever the checkpoint holds
    return model.to(device).eval().requires_grad_(False), task


def _run(options: SonarOptions, jobs: list[Job], sink: StoreSink, device: torch.device) -> int | None:
    """The signal that ended the work early, None where it was finished."""
    model, task = load_model(options, device)
    workers = loading_workers(options.num_workers, device)
    prepare_device(device, options.dtype, workers)

    def embed(net_input: dict) -> Tensor:
        return model.embed(utils.move_to_cuda(net_input, device) if device.type == "cuda" else net_input)

    # part after part: the rows' lengths are found out without long silence, and none is lost when the run is stopped
    parts = [jobs[i : i + _PART] for i in range(0, len(jobs), _PART)]
    batches = itertools.chain.from_iterable(_batches(options, part, task, sink, workers) for part in parts)
    progress = Progress(len(jobs), options.log_interval, part="step")
    return embed_batches(batches, embed, sink, progress, device)


def _batches(
    options: SonarOptions, jobs: Sequence[Job], task: SignToTextTask, sink: StoreSink, workers: int
) -> Iterator[Batch]:
    source = build_source(task.cfg, options.root)
    readable, failed = _measured(jobs, source, task.max_source_steps)
    if failed:
        yield Batch(None, [], 0, failed)
    if not readable:
        return
    # the language is looked at by nothing here, but the task wants one
    rows = [replace(job.segment.row, text=None, text_lang=task.codec.languages[0]) for job in readable]
    dataset = task.dataset_of(rows, options.root, options.manifest, source=source)
    steps = options.max_tokens or MAX_STEPS[str(task.cfg.source)]
    loader = DataLoader(
        SafeRows(dataset),
        batch_sampler=batches_by_length(dataset.source_lengths, steps),
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    for items in loader:
        for item in items:
            if item.boxless is not None:
                sink.boxless(readable[item.number], item.boxless)
        read = [item for item in items if item.sample is not None]
        content = dataset.collater([item.sample for item in read])["net_input"] if read else None
        yield Batch(
            content,
            [readable[item.number] for item in read],
            sum(int(dataset.source_lengths[item.number]) for item in read),
            [(readable[item.number], item.problem) for item in items if item.sample is None],
        )


def _measured(jobs: Sequence[Job], source: Source, max_steps: int) -> tuple[list[Job], list[tuple[Job, str]]]:
    """Jobs whose source has a length that the model reads, and the others with the cause."""
    readable, failed = [], []
    for job in jobs:
        row = job.segment.row
        try:
            steps = source.num_steps(row)
        except DataError as error:
            failed.append((job, str(error)))
            continue
        if steps > max_steps:
            cause = f"row {row.id!r}: {steps} source steps, the model reads {max_steps}; cut it with start and end"
            failed.append((job, cause))
        else:
            readable.append(job)
    return readable, failed


class Item(NamedTuple):
    """A sample of the dataset, or None and what is wrong.

    number: of the row in the dataset.
    boxless: a warning where frames are large and no box says where the signer is.
    """

    number: int
    sample: dict | None
    problem: str | None = None
    boxless: str | None = None


class SafeRows(Dataset):
    """A dataset's samples, where a row that cannot be read is no exception: it must not end the run."""

    def __init__(self, dataset: SignDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Item:
        row = self.dataset.rows[number]
        try:
            return Item(number, self.dataset[number], boxless=self._boxless(row))
        except DataError as error:
            return Item(number, None, str(error))
        except Exception as error:  # one odd file among 100,000; it is reported, and the exit status says so
            logger.exception("row %r", row.id)
            return Item(number, None, f"row {row.id!r}: {row.path}: {type(error).__name__}: {error}")

    def _boxless(self, row: Row) -> str | None:
        source = self.dataset.source
        if row.box is not None or not isinstance(source, VideoSource):
            return None
        info = video.probe(resolve_path(row, source.root), row.start, row.end, fps=row.fps)
        return large_frame_without_box(info.width, info.height, None, source.options.size)


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the run in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler
