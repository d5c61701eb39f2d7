"""sacrebleu's `Metric` for scores that are one sum over sentences divided by another.

WER, ROUGE and BLEURT are of this kind. As a `Metric` they go through sacrebleu's own bootstrap and paired test.
"""

from abc import abstractmethod
from collections.abc import Sequence

from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.utils import sum_of_lists


class Ratio(Metric):
    """100 x the sum of the sentences' first number / the sum of their second, one reference a hypothesis.

    Args:
        name: of the score.
        signature: what `get_signature` tells beside the number of references, in this order; ``version`` comes last.
    """

    def __init__(self, name: str, signature: dict[str, str]):
        super().__init__()
        self.name = name
        self.num_refs = 1
        self._described = signature

    @abstractmethod
    def statistics(self, hypothesis: str, reference: str) -> tuple[float, float]:
        """The two numbers of one sentence."""

    def get_signature(self) -> Signature:
        signature = Signature(self.__dict__)
        for key, value in self._described.items():
            signature.update(key, value)
        return signature

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, str]:
        return {"reference": refs[0]}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, str]) -> list[float]:
        return list(self.statistics(hypothesis, ref_kwargs["reference"]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats(sum_of_lists(stats))

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        above, below = float(stats[0]), float(stats[1])
        return Score(self.name, 100.0 * above / below)
