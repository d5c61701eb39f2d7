"""``slt-extract what=sonar_teacher``: embeddings of a manifest's texts by SONAR's text encoder, the teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fairseq.data import data_utils
from torch import Tensor

from slt_plugin.checkpoints.importer import load_sonar_text_encoder
from slt_plugin.checkpoints.provenance import sha256_of
from slt_plugin.checkpoints.sonar_text import MAX_POSITIONS
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest
from slt_plugin.data.store import Fingerprint
from slt_plugin.data.teacher import ENCODER, languages_of, teacher_key
from slt_plugin.extraction.device import prepare_device
from slt_plugin.extraction.embedding import Batch, batches_by_length, embed_batches
from slt_plugin.extraction.filling import Outcome, fill_store, merge_elements
from slt_plugin.extraction.merge import check_replaceable
from slt_plugin.extraction.plan import Job, Segment
from slt_plugin.extraction.progress import Progress
from slt_plugin.extraction.sink import StoreSink
from slt_plugin.extraction.store_options import DTYPES, StoreOptions
from slt_plugin.models.errors import OptionError
from slt_plugin.text.codec import TextCodec, build_codec
from slt_plugin.text.errors import CodecError

MAX_TOKENS = 4096  # of a batch


@dataclass(frozen=True)
class TeacherOptions(StoreOptions):
    """See config/generate/extract.yaml."""

    spm: str | None
    lang: str | None
    max_tokens: int | None

    @property
    def written_manifest(self) -> Path | None:
        """Only where one is asked for: the store serves several manifests."""
        return None if self.out_manifest is None else Path(self.out_manifest)


def extract_teacher(options: TeacherOptions) -> Outcome:
    """Embeds each distinct pair of text and language of the manifest that is not in the store yet.

    Raises:
        SltError: options, manifest, languages, checkpoint or store that cannot be used.
    """
    rows = read_manifest(options.manifest, require_text=True)
    check_replaceable(options.written_manifest, rows)
    languages = languages_of(rows, options.lang, options.manifest, "lang")
    rows = [replace(row, text_lang=language) for row, language in zip(rows, languages, strict=True)]
    segments = find_texts(rows)
    if options.merge:
        return merge_elements(options, rows, segments)
    for name, file in (("checkpoint", "sonar_text_encoder.pt"), ("spm", "sentencepiece.source.256000.model")):
        path = getattr(options, name)
        if path is None or not Path(path).is_file():
            said = "is missing" if path is None else f"{path} does not exist"
            raise OptionError(f"{name} {said}: give SONAR's {file} (scripts/download_pretrained.py fetches it)")
    device = options.choose_device()
    check_languages(segments, build_codec("sonar", options.spm), options.manifest)
    mark = Fingerprint(
        {
            "encoder": ENCODER,
            "checkpoint_sha256": sha256_of(options.checkpoint),
            "spm_sha256": sha256_of(options.spm),
            "dtype": options.dtype,
        }
    )

    def work(jobs: list[Job], sink: StoreSink) -> int | None:
        return _run(options, jobs, sink, device)

    return fill_store(options, rows, segments, mark, work, names=("texts", "embeddings"))


def find_texts(rows: Sequence[Row]) -> list[Segment]:
    """The distinct pairs of text and language, in the order of the manifest; their keys do not depend on it."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(teacher_key(row.text, row.text_lang), []).append(row)
    return [
        # without the video's times: elements share the texts by their number
        Segment(key, Row(group[0].id, group[0].path, group[0].text, text_lang=group[0].text_lang),
                tuple(row.id for row in group))
        for key, group in found.items()
    ]  # fmt: skip


def check_languages(segments: Sequence[Segment], codec: TextCodec, manifest: str) -> None:
    """Raises DataError for the first language that the teacher does not know."""
    known = set()
    for segment in segments:
        language = segment.row.text_lang
        if language not in known:
            try:
                codec.language_id(language)
            except CodecError as error:
                raise DataError(f"{manifest}: row {segment.row.id!r}: {error}") from error
            known.add(language)


def _run(options: TeacherOptions, jobs: list[Job], sink: StoreSink, device: torch.device) -> int | None:
    """The signal that ended the work early, None where it was finished."""
    encoder, codec = load_sonar_text_encoder(options.checkpoint, options.spm)
    prepare_device(device, options.dtype, workers=0)
    encoder.to(device)
    dtype = DTYPES[options.dtype]

    def embed(tokens: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return encoder(tokens.to(device))

    progress = Progress(len(jobs), options.log_interval, unit="text", part="token")
    return embed_batches(_batches(jobs, codec, options.max_tokens or MAX_TOKENS), embed, sink, progress, device)


def _batches(jobs: Sequence[Job], codec: TextCodec, max_tokens: int) -> Iterator[Batch]:
    tokens, failed, kept = [], [], []
    for job in jobs:
        row = job.segment.row
        ids = torch.cat([torch.tensor([codec.language_id(row.text_lang)]), codec.encode(row.text)])
        if len(ids) > MAX_POSITIONS:
            cause = f"row {row.id!r}: a text of {len(ids)} tokens, the teacher reads {MAX_POSITIONS}; split the row"
            failed.append((job, cause))
        else:
            kept.append(job)
            tokens.append(ids)
    if failed:
        yield Batch(None, [], 0, failed)
    for batch in batches_by_length([len(ids) for ids in tokens], max_tokens):
        content = data_utils.collate_tokens([tokens[i] for i in batch], codec.dictionary.pad())  # B x U
        yield Batch(content, [kept[i] for i in batch], sum(len(tokens[i]) for i in batch))
