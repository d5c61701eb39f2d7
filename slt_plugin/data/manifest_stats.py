"""What `slt-manifest stats` prints about one manifest: lengths, texts, vocabulary, languages."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from slt_plugin.data.manifest import Row

UNKNOWN = "unknown"
QUANTILES = {"min": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "99%": 99, "max": 100}
SHOWN_NAMES = 10


def row_seconds(row: Row) -> float | None:
    """Length in seconds from the row alone; None where the manifest does not say."""
    if row.end is not None:
        return row.end - (row.start or 0.0)
    if row.num_frames is not None and row.fps is not None:
        return row.num_frames / row.fps
    return None


def row_frames(row: Row) -> int | None:
    """Length in frames (or feature steps) from the row alone; None where the manifest does not say."""
    if row.num_frames is not None:
        return row.num_frames
    if row.end is not None and row.fps is not None:
        return round((row.end - (row.start or 0.0)) * row.fps)
    return None


def words(rows: Iterable[Row], *, lowercase: bool) -> Counter[str]:
    """Words between whitespace, and how often each occurs."""
    count: Counter[str] = Counter()
    for row in rows:
        if row.text is not None:
            count.update((row.text.lower() if lowercase else row.text).split())
    return count


def describe(rows: Sequence[Row], *, train_rows: Sequence[Row] | None = None) -> list[tuple[str, str]]:
    """(what, value) lines; out-of-vocabulary rates against `train_rows` where given. Unknown is never shown as 0."""
    seconds = [value for row in rows if (value := row_seconds(row)) is not None]
    frames = [value for row in rows if (value := row_frames(row)) is not None]
    texts = [row.text for row in rows if row.text is not None]
    lines = [
        ("rows", str(len(rows))),
        ("media files", str(len({row.path for row in rows}))),
        ("hours", _known(f"{sum(seconds) / 3600:.4g}", len(seconds), len(rows))),
        ("seconds", _quantiles(seconds, len(rows))),
        ("frames", _quantiles(frames, len(rows))),
        ("rows with text", str(len(texts))),
        ("words a text", _quantiles([len(text.split()) for text in texts], len(texts))),
        ("characters a text", _quantiles([len(text) for text in texts], len(texts))),
        ("vocabulary", _vocabulary(rows, _vocabulary_size)),
    ]
    if train_rows is not None:
        lines.append(("out of vocabulary", _vocabulary(rows, _out_of_vocabulary, train_rows)))
    names = {"signers": "signer", "sign languages": "sign_lang", "text languages": "text_lang", "corpora": "corpus"}
    return lines + [(label, _names(rows, column)) for label, column in names.items()]


def _known(value: str, known: int, total: int) -> str:
    if known == 0:
        return UNKNOWN
    return value if known == total else f"{value} ({known} rows; {UNKNOWN} for {total - known})"


def _quantiles(values: Sequence[float], total: int) -> str:
    if not values:
        return UNKNOWN
    points = np.percentile(values, list(QUANTILES.values()))
    shown = ", ".join(f"{name} {point:.4g}" for name, point in zip(QUANTILES, points, strict=True))
    return _known(f"{shown}, mean {np.mean(values):.4g}", len(values), total)


def _vocabulary(rows: Sequence[Row], show: Callable[..., str], *others: Sequence[Row]) -> str:
    parts = []
    for label, lowercase in (("cased", False), ("lower-cased", True)):
        parts.append(f"{label} {show(*(words(group, lowercase=lowercase) for group in (rows, *others)))}")
    return "; ".join(parts)


def _vocabulary_size(count: Counter[str]) -> str:
    return f"{len(count)} types of {count.total()} tokens" if count else UNKNOWN


def _out_of_vocabulary(count: Counter[str], train: Counter[str]) -> str:
    """Tokens: share of running words that training never shows; types: share of distinct words."""
    if not count or not train:
        return UNKNOWN
    unseen = {word: number for word, number in count.items() if word not in train}
    tokens, types = sum(unseen.values()), len(unseen)
    return (
        f"{100 * tokens / count.total():.2f}% of tokens ({tokens} of {count.total()}), "
        f"{100 * types / len(count):.2f}% of types ({types} of {len(count)})"
    )


def _names(rows: Sequence[Row], column: str) -> str:
    count = Counter(name for row in rows if (name := getattr(row, column)) is not None)
    if not count:
        return UNKNOWN
    shown = ", ".join(f"{name} ({number})" for name, number in count.most_common(SHOWN_NAMES))
    if len(count) > SHOWN_NAMES:
        shown += ", ..."
    return _known(f"{len(count)}: {shown}", count.total(), len(rows))
