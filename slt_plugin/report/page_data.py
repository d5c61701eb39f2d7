"""What the page's scripts read: one record a sentence, and the evidence, as JSON that is safe inside of HTML."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from slt_plugin.data.manifest_stats import row_seconds
from slt_plugin.report.results_folder import Results
from slt_plugin.scoring.sentences import sentence_scores, word_differences

OPERATIONS = {"substitute": "substituted", "delete": "left out", "insert": "added"}
NAMES = ("signer", "corpus")  # of the manifest, shown with a sentence


@dataclass(frozen=True)
class Sentences:
    """All sentences with their scores.

    Attributes:
        records: of the table, see `sentences`.
        reference_words, hypothesis_words: words of each.
        errors: words "substituted", "left out" and "added".
        confusions: (word of the reference, word of the output) -> how often; "" where there is none.
    """

    records: Sequence[dict]
    reference_words: Sequence[int]
    hypothesis_words: Sequence[int]
    errors: Mapping[str, int]
    confusions: Counter


def sentences(results: Results) -> Sentences:
    """Scores and word differences of every sentence, on lower-cased or truecased text where the evaluation was."""
    lowercase = bool(results.metrics.get("lowercase"))
    records, reference_words, hypothesis_words = [], [], []
    errors = dict.fromkeys(OPERATIONS.values(), 0)
    confusions: Counter = Counter()
    for hypothesis in results.hypotheses:
        hyp, ref = results.scored(hypothesis), hypothesis.ref
        if lowercase:
            hyp, ref = hyp.lower(), ref.lower()
        differences = [(op, " ".join(theirs), " ".join(ours)) for op, theirs, ours in word_differences(hyp, ref)]
        for operation, theirs, ours in _single_words(differences):
            errors[OPERATIONS[operation]] += 1
            confusions[theirs, ours] += 1
        row = results.rows.get(hypothesis.id)
        scores = sentence_scores(hyp, ref)
        reference_words.append(len(ref.split()))
        hypothesis_words.append(len(hyp.split()))
        records.append(
            {
                "id": hypothesis.id,
                "ref": hypothesis.ref,
                "hyp": results.scored(hypothesis),
                "score": rounded(hypothesis.score, 4),
                **{name: rounded(scores[name], 2) for name in ("bleu", "chrf", "wer")},
                "words": reference_words[-1],
                "seconds": rounded(row_seconds(row) if row else None, 3),
                "lang": hypothesis.text_lang,
                "diff": differences if any(op != "equal" for op, _, _ in differences) else None,
                "alternatives": _alternatives(hypothesis),
                "more": {name: value for name in NAMES if row and (value := getattr(row, name)) is not None} or None,
            }
        )
    return Sentences(records, reference_words, hypothesis_words, errors, confusions)


def _single_words(differences: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """(operation, word of the reference, word of the output) of each error."""
    for operation, theirs, ours in differences:
        if operation in OPERATIONS:
            for pair in zip_longest(theirs.split(), ours.split(), fillvalue=""):
                yield operation, *pair


def _alternatives(hypothesis) -> list[dict] | None:
    if not hypothesis.alternatives:
        return None
    return [{"text": str(a["text"]), "score": rounded(a.get("score"), 4)} for a in hypothesis.alternatives]


def rounded(value: object, digits: int) -> float | None:
    """The number with so many digits; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return round(value, digits)


def page_json(records: Sequence[Mapping], evidence: Mapping | None) -> str:
    """JSON for a ``<script type="application/json">``: no ``<`` is left that could end the element."""
    content = {"sentences": list(records), "evidence": _finite(evidence)}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: object) -> object:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
