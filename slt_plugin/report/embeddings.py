"""Sentence embeddings of a manifest, or of a whole store, in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slt_plugin.common.messages import listing
from slt_plugin.data import features
from slt_plugin.data.errors import DataError, naming_row
from slt_plugin.data.manifest import Row, read_manifest, resolve_path
from slt_plugin.data.store import FeatureStore
from slt_plugin.report.errors import ReportError


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (N, D) float32, their names, and their texts where a manifest tells them."""

    where: Path
    ids: list[str]
    texts: list[str | None]
    vectors: np.ndarray


def read_embeddings(path: Path) -> Embeddings:
    """Embeddings of the rows of a manifest (slt-extract what=sonar), or of all keys of a ``.store``.

    Raises:
        ReportError: no rows, rows of several steps (features, not embeddings), widths that differ, or zeros.
        DataError: manifest, store or file that cannot be read; the message names the row.
    """
    path = Path(path)
    if path.suffix.lower() == ".store":
        store = FeatureStore(path)
        ids = store.keys()
        found = [(key, None, np.asarray(store.read(key), dtype=np.float32)) for key in ids]
    else:
        found = [(row.id, row.text, _array(row, path.parent)) for row in read_manifest(path)]
    if not found:
        raise ReportError(f"{path} has no rows")
    longer = [name for name, _, array in found if len(array) != 1]
    if longer:
        raise ReportError(
            f"{path}: {len(longer)} of {len(found)} rows have more than one step ({listing(longer)}): they are "
            "features, not sentence embeddings; slt-extract what=sonar makes those"
        )
    widths = {array.shape[1]: name for name, _, array in found}
    if len(widths) > 1:
        named = ", ".join(f"{width} ({name})" for width, name in widths.items())
        raise ReportError(f"{path}: embeddings of different widths: {named}; they are of different models")
    vectors = np.concatenate([array for _, _, array in found])  # N x D
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    zero = [found[i][0] for i in np.flatnonzero(norms[:, 0] == 0)]
    if zero:
        raise ReportError(f"{path}: {len(zero)} embeddings are all zeros and have no direction: {listing(zero)}")
    return Embeddings(path, [name for name, _, _ in found], [text for _, text, _ in found], vectors / norms)


def _array(row: Row, root: Path) -> np.ndarray:
    """(steps, D) float32, checked for NaN."""
    with naming_row(row.id):
        copy = features.choose_copy(resolve_path(row, root), None)
        array = features.open_features(copy)
        if (row.start, row.end) != (None, None):
            raise DataError(f"{row.path}: start and end make no sense for an embedding; leave them out")
        return features.checked_features(copy, array, 0, len(array))
