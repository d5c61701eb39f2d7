"""ROUGE-L against rouge_score called directly, by hand, and on scripts that rouge_score's own tokeniser cannot read."""

import random
import subprocess
import sys
from importlib.metadata import version

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from slt_plugin.scoring.report import METRICS, score, signatures
from slt_plugin.scoring.rouge import Words

PIECES = ["the", "Cat", "don't", "3.50", "$", "U.S.", "e-mail", "(so)", "", "a_b", "'s", "\tx\n", "100%"]


def rouge(hypothesis: str, reference: str) -> float:
    return score([hypothesis], [reference], ["rouge_l"])["rouge_l"]


def test_ascii_texts_score_as_rouge_score_does():
    rng = random.Random(3)
    references = [" ".join(rng.choices(PIECES, k=rng.randint(1, 9))) + " end" for _ in range(60)]
    hypotheses = [" ".join(rng.choices(PIECES, k=rng.randint(0, 9))) for _ in range(60)]
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    direct = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hypotheses, references, strict=True)]
    assert score(hypotheses, references, ["rouge_l"])["rouge_l"] == pytest.approx(100 * sum(direct) / 60)
    assert 5 < 100 * sum(direct) / 60 < 95
    for text in [*references, *hypotheses]:
        assert Words().tokenize(text) == DefaultTokenizer().tokenize(text)


def test_worked_by_hand():
    # longest common subsequence "the cat on mat": 4 of 5 and 4 of 6 words
    assert rouge("The cat was on mat", "the cat sat on the mat!") == pytest.approx(
        100 * 2 * (4 / 5) * (4 / 6) / (22 / 15)
    )
    both = score(["a b", "x"], ["a b", "y z"], ["rouge_l"])  # the mean over sentences, not over words
    assert both["rouge_l"] == pytest.approx(50)
    assert rouge("", "a") == 0


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Ärger ist süß.", ["ärger", "ist", "süß"]),
        ("un café, l’été", ["un", "café", "l", "été"]),
        ("Это кот.", ["это", "кот"]),
        ("हिन्दी में है।", ["हिन्दी", "में", "है"]),  # the vowel signs belong to their words
        ("مرحبا بك", ["مرحبا", "بك"]),
        ("我爱你, OK 3次", ["我", "爱", "你", "ok", "3", "次"]),  # no spaces: characters
        ("手話です", ["手", "話", "で", "す"]),
        ("수화 통역", ["수화", "통역"]),
    ],
)
def test_other_scripts(text, tokens):
    assert Words().tokenize(text) == tokens
    assert rouge(text, text) == 100
    half = tokens[: len(tokens) // 2]
    assert rouge(" ".join(half), text) == pytest.approx(100 * 2 * len(half) / (len(half) + len(tokens)))


def test_the_package_is_named():
    assert METRICS["rouge_l"] == "ROUGE-L (rouge_score)"
    text = signatures(["rouge_l"])["rouge_l"]
    assert text == f"nrefs:1|case:lc|stem:no|tok:unicode|score:f1|version:rouge_score-{version('rouge_score')}"


def test_a_redirected_stderr_survives_the_import():
    """absl, which rouge_score imports, would close it when logging is set up anew."""
    code = (
        "import io, logging, sys\n"
        "sys.stderr = held = io.StringIO()\n"
        "import slt_plugin.scoring.rouge\n"
        "sys.stderr = sys.__stderr__\n"
        "logging.shutdown()\n"
        "held.write('still open')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
