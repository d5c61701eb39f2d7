"""Published scores of other systems, in percent, to be shown beside one's own.

Every row says where the numbers were found, as far as that was noted, and whether that is second-hand. Those of
How2Sign come from comparison tables of later papers, not from the papers of the systems themselves, and which later
paper was not noted; those of DailyMoth-70h from a run by others; of iSign's nothing but the numbers was noted.
"""

from typing import NamedTuple

from slt_plugin.common.messages import did_you_mean
from slt_plugin.report.errors import ReportError

_LATER = "as quoted in a later paper"
_NOT_NOTED = "source not noted"

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "bleurt")  # the columns below, under slt-score's names


class Score(NamedTuple):
    """A number in percent; ``approximate``: derived, or less certain than the others."""

    value: float
    approximate: bool = False


class Published(NamedTuple):
    """One row of a comparison; of ``scores`` those are missing that were not reported.

    ``second_hand``: not read in a publication of the system's authors, or not known to have been.
    """

    system: str
    training: str
    scores: dict[str, Score]
    source: str
    second_hand: bool


def _row(system: str, training: str, scores: str, source: str, *, second_hand: bool = True) -> Published:
    """``scores``: one word for each of METRICS, ``~`` before what is approximate, ``-`` for what was not reported."""
    words = zip(METRICS, scores.split(), strict=True)
    known = {name: Score(float(word.lstrip("~")), word.startswith("~")) for name, word in words if word != "-"}
    return Published(system, training, known, source, second_hand)


_TARRES = f"Tarres et al., 2023, arXiv 2304.06371, {_LATER}"
_UTHUS = f"Uthus et al., 2023, arXiv 2306.15162, {_LATER}"
_RUST = f"Rust et al., 2024, arXiv 2402.09611, {_LATER}"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "how2sign": (
        _row("I3D + Transformer", "How2Sign", "34.0 19.3 12.2 8.0 - -", _TARRES),
        _row("pose + T5", "How2Sign", "15.0 5.1 2.3 1.2 - ~30.0", _UTHUS),
        _row("pose + T5", "YT-ASL -> How2Sign", "37.8 24.1 16.9 12.4 - ~46.6", _UTHUS),
        _row("SSVP-SLT base", "How2Sign", "38.1 23.7 16.3 11.7 - -", _RUST),
        _row("SSVP-SLT base", "YT-ASL -> How2Sign", "- - - ~14.7 - -", _RUST),
        _row("SSVP-SLT-LSP (MAE + CLIP)", "YT-ASL + How2Sign", "43.2 28.8 20.8 15.5 38.4 ~49.6", _RUST),
        _row("SignMusketeers", "YT-ASL -> How2Sign", "41.5 27.2 19.3 14.3 - -", f"SignMusketeers, {_LATER}"),
        _row("Uni-Sign", "multi-stage", "40.2 27.1 19.7 14.9 36.0 ~49.4", f"Uni-Sign, {_LATER}"),
        _row("SHuBERT", "YT-ASL", "- - - ~16.2 - -", f"SHuBERT, arXiv 2411.16765, {_LATER}"),
    ),
    "dailymoth70h": (
        _row("SONAR pipeline", "not noted", "- - - ~30.8 ~57.2 ~52.4", f"a run by a third party, {_NOT_NOTED}"),
    ),
    "isign": (
        _row("PoseStitch", "not noted", "- - - 3.43 - -", _NOT_NOTED),
        _row("earlier work on poses", "not noted", "- - - 0.55 - -", _NOT_NOTED),
    ),
}
ALIASES = {"dailymoth": "dailymoth70h"}
NOTES = {
    "how2sign": "test set. No released weights of SSVP-SLT were trained on How2Sign; its BLEU-4 is 15.5 at best: "
    "numbers of 38 to 40 that circulate as its BLEU-4 are near its BLEU-1",
    "dailymoth70h": "test set",
    "isign": "which split the numbers are of was not noted",
}


def corpus_name(corpus: str) -> str:
    """The name under which a corpus is recorded. Raises ReportError where nothing is known of it."""
    name = ALIASES.get(corpus, corpus)
    if name not in PUBLISHED:
        known = [*PUBLISHED, *ALIASES]
        raise ReportError(
            f"--published {corpus}: nothing is recorded of it{did_you_mean(corpus, known)}; give {' or '.join(known)}"
        )
    return name
