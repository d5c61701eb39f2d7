"""The manifest of the extracted features, once every row is in the store."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slt_plugin.common.messages import listing
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.store import FeatureStore, StoreError
from slt_plugin.extraction.errors import ExtractionError
from slt_plugin.extraction.failures import all_failures, read_failures, write_failures
from slt_plugin.extraction.plan import Segment, owners

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What is in the store for a manifest: ``written`` rows, without those that failed, in the manifest ``path``."""

    path: Path | None
    written: int
    failed: tuple[str, ...]


def merge(
    rows: Sequence[Row], segments: Sequence[Segment], folder: Path, out: Path | None, *, epochs: int, num_shards: int
) -> Merged:
    """Writes the feature manifest: the rows of ``rows``, in order, with the path of their features.

    A frame of it is a step of the features: start, end, fps and box are of the video and are left out. Rows whose
    video failed are left out and named; they must be listed as failed by an element that tried. Without ``out`` nothing
    is written: the rows are checked.

    Raises:
        ExtractionError: rows are missing that no element has tried, or ``out`` holds other rows.
    """
    key_of = {row_id: segment.key for segment in segments for row_id in segment.ids}
    try:
        store = FeatureStore(folder)
    except StoreError as error:
        failed = sorted(map(str, folder.glob("failed*.tsv")))
        if not failed:
            raise
        raise ExtractionError(f"no row could be extracted; the causes are in {listing(failed)}") from error
    epochs = max(epochs, store.num_copies)  # rows with fewer copies than others would be seen less often in training
    wanted = set(range(epochs))
    lacking = [row.id for row in rows if not (key_of[row.id] in store and wanted <= set(store.copies(key_of[row.id])))]
    failures = all_failures(folder)
    untried = [row_id for row_id in lacking if row_id not in failures]
    if untried:
        copies = f" ({epochs} copies each)" if epochs > 1 else ""
        shards = _shards_of(untried, segments, num_shards)
        raise ExtractionError(
            f"{folder}: {len(untried)} of {len(rows)} rows{copies} were not extracted yet: {listing(untried)}. Run "
            f"num_shards={num_shards} shard={listing(shards, shown=50)} again, then merge"
        )
    _clear_failures(folder, set(lacking))
    check_replaceable(out, rows)
    missing = set(lacking)
    if out is not None:
        written = [_feature_row(row, folder, out, key_of[row.id], store) for row in rows if row.id not in missing]
        out.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(out, written)
    return Merged(out, len(rows) - len(lacking), tuple(lacking))


def _shards_of(ids: Sequence[str], segments: Sequence[Segment], num_shards: int) -> list[int]:
    wanted = set(ids)
    numbers = zip(segments, owners(segments, num_shards), strict=True)
    return sorted({number for segment, number in numbers if not wanted.isdisjoint(segment.ids)})


def _feature_row(row: Row, folder: Path, out: Path, key: str, store: FeatureStore) -> Row:
    # relative to the feature manifest, where a reader starts without a media_root
    place = Path(os.path.relpath(folder.resolve(), out.parent.resolve())).as_posix()
    return Row(
        id=row.id,
        path=f"{place}/{key}",
        text=row.text,
        num_frames=store.num_steps(key),
        sign_lang=row.sign_lang,
        text_lang=row.text_lang,
        signer=row.signer,
        corpus=row.corpus,
    )


def _clear_failures(folder: Path, lacking: set[str]) -> None:
    """Another element may have extracted since what one failed with (other num_shards, a mended disk)."""
    for path in folder.glob("failed*.tsv"):
        before = read_failures(path)
        after = [failure for failure in before if failure.id in lacking]
        if len(after) < len(before):
            write_failures(path, after)


def check_replaceable(out: Path | None, rows: Sequence[Row]) -> None:
    """Raises ExtractionError where the feature manifest would replace a file with other rows."""
    if out is None or not out.is_file():
        return
    ours = {row.id for row in rows}
    others = [row.id for row in read_manifest(out) if row.id not in ours]
    if others:
        raise ExtractionError(
            f"{out} exists and has rows that the manifest has not: {listing(others)}. Name another file with "
            "out_manifest=..., or remove it"
        )
