"""Intervals and paired tests against sacrebleu called directly; groups of sentences; scores of single ones."""

import os
import random
import time

import jiwer
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from slt_plugin.scoring.breakdown import Group, breakdown
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.intervals import Comparison, bootstrap_signature, confidence, paired
from slt_plugin.scoring.reduced_bleu import Blacklist
from slt_plugin.scoring.report import DEFAULT_METRICS, format_breakdown, format_comparison, score
from slt_plugin.scoring.sentences import sentence_scores, word_differences
from slt_plugin.scoring.settings import Settings

ALL = list(DEFAULT_METRICS)
VOCABULARY = [f"w{i}" for i in range(200)]


def corpus(seed: int, count: int, *errors: float) -> list[list[str]]:
    """References, and for each of ``errors`` hypotheses with that share of their words replaced."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(VOCABULARY, k=rng.randint(3, 20))) + "." for _ in range(count)]
    systems = [
        [
            " ".join(word if rng.random() > share else rng.choice(VOCABULARY) for word in text.split())
            for text in references
        ]
        for share in errors
    ]
    return [references, *systems]


def test_intervals_are_sacrebleus(monkeypatch):
    references, hypotheses = corpus(1, 80, 0.4)
    found = confidence(hypotheses, references, ["bleu2", "bleu4", "chrf2"], samples=200, seed=7)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    metrics = {"bleu2": BLEU(max_ngram_order=2), "bleu4": BLEU(), "chrf2": CHRF(word_order=2)}
    for name, metric in metrics.items():
        direct = metric.corpus_score(hypotheses, [references], n_bootstrap=200)
        low, high = found[name].low, found[name].high
        assert (high - low) / 2 == pytest.approx(direct._ci)
        assert low < direct.score < high
        assert low < direct._mean < high


@pytest.mark.parametrize("metric", ALL)
def test_every_metric_has_an_interval_around_its_score(metric):
    references, hypotheses = corpus(2, 60, 0.4)
    found = confidence(hypotheses, references, [metric], samples=200)[metric]
    value = score(hypotheses, references, [metric])[metric]
    assert found.low < value < found.high
    assert found.high - found.low < 20
    more = confidence(hypotheses * 9, references * 9, [metric], samples=200)[metric]
    assert (more.high - more.low) == pytest.approx((found.high - found.low) / 3, rel=0.3)  # width ~ 1 / sqrt(sentences)


def test_the_seed_decides_and_is_put_back(monkeypatch):
    references, hypotheses = corpus(3, 40, 0.4)
    first = confidence(hypotheses, references, ["chrf"], samples=100)
    assert confidence(hypotheses, references, ["chrf"], samples=100, seed=12345) == first
    assert confidence(hypotheses, references, ["chrf"], samples=100, seed=0) != first
    assert "SACREBLEU_SEED" not in os.environ
    monkeypatch.setenv("SACREBLEU_SEED", "9")
    assert confidence(hypotheses, references, ["chrf"], samples=100) == first
    assert os.environ["SACREBLEU_SEED"] == "9"
    assert bootstrap_signature(100, 3) == f"bs:100|seed:3|ci:0.95|version:{sacrebleu.__version__}"


def test_identical_systems_and_clearly_better_ones():
    references, baseline, better = corpus(4, 120, 0.5, 0.2)
    shouted = [text.replace("w", "W") for text in baseline]
    found = paired(baseline, {"same": list(baseline), "better": better}, references, ALL, samples=200)
    assert list(found) == ["same", "better"]
    assert [comparison.p_value for comparison in found["same"].values()] == [1.0] * len(ALL)
    assert all(comparison.p_value < 0.01 for comparison in found["better"].values())
    for name, systems in (("same", baseline), ("better", better)):
        scores = score(systems, references, ALL)
        assert {metric: comparison.score for metric, comparison in found[name].items()} == scores
        intervals = confidence(systems, references, ALL, samples=200)
        assert {m: (c.low, c.high) for m, c in found[name].items()} == {
            m: (i.low, i.high) for m, i in intervals.items()
        }
    lower = Settings(lowercase=True)  # what a metric does not see is no difference
    assert paired(baseline, {"x": shouted}, references, ["wer"], lower)["x"]["wer"].p_value == 1
    assert paired(baseline, {"x": shouted}, references, ["wer"])["x"]["wer"].p_value < 0.01


def test_p_values_are_sacrebleus(monkeypatch):
    references, baseline, other, third = corpus(5, 60, 0.40, 0.38, 0.42)
    monkeypatch.setenv("SACREBLEU_SEED", "3")
    systems = [("baseline", baseline), ("other", other), ("third", third)]
    _, direct = PairedTest(systems, {"BLEU": BLEU(), "chrF": CHRF()}, [references], "bs", 300)()
    monkeypatch.delenv("SACREBLEU_SEED")
    metrics = ["bleu1", "bleu4", "chrf"]  # two that sacrebleu calls BLEU
    found = paired(baseline, dict(systems[1:]), references, metrics, samples=300, seed=3)
    for i, name in ((1, "other"), (2, "third")):
        assert found[name]["bleu4"].p_value == direct["BLEU"][i].p_value
        assert found[name]["chrf"].p_value == direct["chrF2"][i].p_value
        assert 0.01 < found[name]["bleu4"].p_value < 0.7
    assert len({found[name][metric].p_value for name in ("other", "third") for metric in metrics}) == 6


def test_reduced_bleu_is_resampled_over_the_sentences_it_counts():
    references, baseline, better = corpus(6, 60, 0.5, 0.2)
    references += ["w0 w1"] * 40
    baseline, better = baseline + ["w5"] * 40, better + ["w7"] * 40
    settings = Settings(blacklist=Blacklist(frozenset(["w0", "w1"])))
    found = paired(baseline, {"b": better}, references, ["reduced_bleu", "reduced_bleu_kept"], settings, samples=200)[
        "b"
    ]
    assert found["reduced_bleu"].p_value < 0.01
    assert found["reduced_bleu"].score > found["reduced_bleu_kept"].score  # which counts 40 words too many
    alone = paired(baseline[:60], {"b": better[:60]}, references[:60], ["reduced_bleu"], settings, samples=200)["b"]
    assert found["reduced_bleu"] == alone["reduced_bleu"]


def test_five_hundred_sentences_take_seconds():
    references, baseline, other = corpus(7, 500, 0.4, 0.3)
    start = time.process_time()
    paired(baseline, {"other": other}, references, ALL)
    assert time.process_time() - start < 20  # 2 to 3 measured


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confidence(["a"], ["a"], ["wer"], samples=39), "39 bootstrap samples: give at least 40"),
        (lambda: confidence(["a"], ["a"], ["wer"], seed=-1), "bootstrap seed -1"),
        (lambda: paired(["a"], {"b": ["a"]}, ["a"], ["wer"], seed=0), "bootstrap seed 0"),
        (lambda: paired(["a"], {"b": ["a", "b"]}, ["a"], ["wer"]), "1 references, but b has 2 hypotheses"),
        (lambda: paired(["a", "b"], {"b": ["a"]}, ["a"], ["wer"]), "2 hypotheses but 1 references"),
        (lambda: confidence(["a"], [""], ["wer"]), "1 of 1 references are empty"),
        (lambda: breakdown(["a"], ["a"], [], ["length"], ["wer"]), "attributes of 0 sentences, but 1 references"),
        (
            lambda: breakdown(["a"], ["a"], [{"signer": "x", "corpus": None}], ["singer"], ["wer"]),
            "no breakdown by 'singer': no sentence has a value; did you mean 'signer'.* length, signer$",
        ),
        (lambda: breakdown(["a"], ["a"], [{"corpus": None}], ["corpus"], ["wer"]), "no breakdown by 'corpus'"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ScoringError, match=message):
        call()


def test_no_system_is_nothing_to_compare():
    assert paired(["a"], {}, ["a"], ["wer"]) == {}


def test_groups_score_as_their_sentences_alone():
    references, hypotheses = corpus(8, 50, 0.3)
    signers = [{"signer": ["Bo", "Al", None][i % 3], "fps": 25.0 + i % 2} for i in range(50)]
    groups = breakdown(hypotheses, references, signers, ["signer", "fps"], ["bleu4", "wer"])
    assert [(g.by, g.value, g.sentences) for g in groups] == [
        ("signer", "Al", 17),
        ("signer", "Bo", 17),
        ("signer", "(none)", 16),
        ("fps", "25", 25),
        ("fps", "26", 25),
    ]
    assert groups[0].scores == score(hypotheses[1::3], references[1::3], ["bleu4", "wer"])
    assert groups[2].scores == score(hypotheses[2::3], references[2::3], ["bleu4", "wer"])


def test_bins_of_length():
    counts = [1, 4, 5, 9, 10, 19, 20, 29, 30, 49, 50, 200]
    references = [" ".join(["w"] * count) for count in counts]
    groups = breakdown(references, references, [{}] * len(counts), ["length"], ["wer"])
    assert [(group.value, group.sentences) for group in groups] == [
        (value, 2) for value in ("1 to 4", "5 to 9", "10 to 19", "20 to 29", "30 to 49", "50 or more")
    ]
    assert [g.value for g in breakdown(["a"], ["x " * 7], [{}], ["length"], ["wer"])] == ["5 to 9"]


def test_bins_of_numbers():
    seconds = [{"end": float(i)} for i in (1, 2, 3, 4, 5, 6, 7, 8)] + [{"end": None}]
    groups = breakdown(["a"] * 9, ["a"] * 9, seconds, ["end"], ["wer"])
    assert [(group.value, group.sentences) for group in groups] == [
        ("1 to under 3", 2),
        ("3 to under 5", 2),
        ("5 to under 7", 2),
        ("7 to 8", 2),
        ("(none)", 1),
    ]
    boxes = breakdown(["a"] * 2, ["a"] * 2, [{"box": (0.0, 1.0)}, {"box": None}], ["box"], ["wer"])
    assert [group.value for group in boxes] == ["(0.0, 1.0)", "(none)"]


def test_a_group_that_a_metric_leaves_out_has_no_score():
    settings = Settings(blacklist=Blacklist(frozenset(["w"])))
    groups = breakdown(
        ["w", "x y"], ["w", "x y"], [{"signer": "b"}, {"signer": "a"}], ["signer"], ["reduced_bleu"], settings
    )
    assert groups[1] == Group("signer", "b", 1, {"reduced_bleu": None})
    assert groups[0].scores["reduced_bleu"] is not None
    lines = format_breakdown(groups).split("\n")
    assert lines[0].split() == ["signer", "sentences", "reduced_bleu"]
    assert lines[2].split() == ["b", "1", "-"]


def test_comparison_table_says_which_way_is_worse():
    numbers = {"bleu4": 20.0, "wer": 60.0, "chrf": 40.0}
    before = {"bleu4": 21.5, "wer": 58.0, "chrf": 39.0}
    compared = {name: Comparison(value, 0.0, 0.0, 0.0314) for name, value in numbers.items()}
    rows = [line.split() for line in format_comparison(numbers, before, compared).split("\n")]
    assert rows[0] == ["metric", "baseline", "score", "difference", "p"]
    assert rows[1] == ["bleu4", "21.50", "20.00", "-1.50", "worse", "0.031"]
    assert rows[2] == ["wer", "58.00", "60.00", "+2.00", "worse", "0.031"]
    assert rows[3] == ["chrf", "39.00", "40.00", "+1.00", "0.031"]


def test_sentence_scores_are_the_libraries():
    hypothesis, reference = "the cat sat", "the cat sat on a mat"
    assert sentence_scores(hypothesis, reference) == {
        "bleu": sacrebleu.sentence_bleu(hypothesis, [reference], use_effective_order=True).score,
        "chrf": sacrebleu.sentence_chrf(hypothesis, [reference]).score,
        "wer": 100 * jiwer.wer(reference, hypothesis),
    }
    assert sentence_scores("hi", "hi")["bleu"] == pytest.approx(100)  # one word has no pairs that it could get wrong
    assert sentence_scores("", "hi") == {"bleu": 0, "chrf": 0, "wer": 100}
    assert sentence_scores("a b c", "d")["wer"] == 300


def test_word_differences_by_hand():
    assert word_differences("the big  cat sat on the mat", "the cat sat on a mat right now") == [
        ("equal", ["the"], ["the"]),
        ("insert", [], ["big"]),
        ("equal", ["cat", "sat", "on"], ["cat", "sat", "on"]),
        ("substitute", ["a"], ["the"]),
        ("equal", ["mat"], ["mat"]),
        ("delete", ["right", "now"], []),
    ]
    assert word_differences("", "a b") == [("delete", ["a", "b"], [])]
    assert word_differences("a", "a") == [("equal", ["a"], ["a"])]
    rng = random.Random(1)
    for _ in range(50):
        ours, theirs = (rng.choices("abcd", k=rng.randint(1, 8)) for _ in range(2))
        parts = word_differences(" ".join(ours), " ".join(theirs))
        assert [word for _, _, hyp in parts for word in hyp] == ours
        assert [word for _, ref, _ in parts for word in ref] == theirs
        wrong = sum(max(len(ref), len(hyp)) for operation, ref, hyp in parts if operation != "equal")
        assert 100 * wrong / len(theirs) == pytest.approx(sentence_scores(" ".join(ours), " ".join(theirs))["wer"])
