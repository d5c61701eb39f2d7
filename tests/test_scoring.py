"""slt_plugin.scoring: scores against the libraries called directly, sums over sentences, every error."""

import json
import math
import random
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jiwer
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from slt_plugin.common.messages import listing
from slt_plugin.scoring import sacre
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.fairseq_output import read_generate_output
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from slt_plugin.scoring.intervals import Interval
from slt_plugin.scoring.report import DEFAULT_METRICS, format_table, score, signatures, write_metrics
from slt_plugin.scoring.settings import Settings

ALL = list(DEFAULT_METRICS)
LOWER = Settings(lowercase=True)
REFERENCES = [
    "The cat sat on the mat.",
    "Hello, world!",
    'He said "no" (twice): 3,000.50 $ – well-known.',
    "Ärger ist süß",
]
HYPOTHESES = ["The cat sat on a mat .", "", 'He said "no" twice: 3,000.50$ – well known', "ärger ist süß!"]


def random_sentences(seed: int, count: int) -> list[str]:
    """Sentences whose score depends on tokenisation: punctuation, numbers, quotes, entities, case, empty ones."""
    rng = random.Random(seed)
    words = [
        "the",
        "The",
        "cat",
        "don't",
        "3.5",
        "1,000",
        "U.S.",
        "(see",
        "below)",
        "&quot;hi&quot;",
        "süß",
        "–",
        "a-b",
    ]
    return [
        " ".join(rng.choices(words, k=rng.randint(0, 12))) + rng.choice(["", ".", " .", "?!"]) for _ in range(count)
    ]


def test_scores_are_those_of_the_libraries():
    scores = score(HYPOTHESES, REFERENCES, ALL)
    assert list(scores) == ALL
    for order in (1, 2, 3, 4):
        expected = sacrebleu.metrics.BLEU(max_ngram_order=order).corpus_score(HYPOTHESES, [REFERENCES]).score
        assert scores[f"bleu{order}"] == expected
    assert scores["bleu4"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf2"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert scores["wer"] == pytest.approx(100 * jiwer.wer(REFERENCES, HYPOTHESES))
    assert scores["cer"] == pytest.approx(100 * jiwer.cer(REFERENCES, HYPOTHESES))
    assert scores["word_accuracy"] == pytest.approx(100 - scores["wer"])
    rouge = RougeScorer(["rougeL"])  # of these texts, it cannot read the last one
    means = [rouge.score(r, h)["rougeL"].fmeasure for r, h in zip(REFERENCES[:3], HYPOTHESES[:3], strict=True)]
    assert score(HYPOTHESES[:3], REFERENCES[:3], ["rouge_l"])["rouge_l"] == pytest.approx(100 * sum(means) / 3)
    assert len({round(scores[name], 3) for name in ALL}) == len(ALL)  # the comparison can tell the metrics apart


def test_worked_by_hand():
    # "a b c d e" against "a b c d f": 4/5 words, 3/4 bigrams, 2/3 trigrams, 1/2 four-grams, no brevity penalty
    scores = score(["a b c d e"], ["a b c d f"], ["bleu1", "bleu2", "bleu4", "wer", "cer"])
    assert scores["bleu1"] == pytest.approx(80)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(4 / 5 * 3 / 4))
    assert scores["bleu4"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert scores["wer"] == pytest.approx(20)
    assert scores["cer"] == pytest.approx(100 / 9)
    # one right word, three too many
    assert score(["x a y z"], ["a"], ["wer", "word_accuracy"]) == {"wer": 300.0, "word_accuracy": -200.0}


def test_perfect_and_empty_output():
    perfect = score(REFERENCES, REFERENCES, ALL)
    assert perfect.pop("wer") == perfect.pop("cer") == 0
    assert all(value == pytest.approx(100) for value in perfect.values())
    nothing = score(["", ""], ["a b", "c"], ALL)
    assert nothing.pop("wer") == nothing.pop("cer") == 100
    assert all(value == 0 for value in nothing.values())


def test_lowercase_changes_scores_and_signatures():
    hypotheses, references = ["ICH Bin da"], ["ich bin da"]
    assert score(hypotheses, references, ALL)["wer"] == pytest.approx(200 / 3)
    lower = score(hypotheses, references, ALL, LOWER)
    assert lower["wer"] == lower["cer"] == 0
    assert score(references, hypotheses, ["wer"], LOWER) == {"wer": 0}
    assert (lower["bleu1"], lower["chrf"]) == pytest.approx((100, 100))
    mixed = [name for name, text in signatures(ALL).items() if "case:mixed" in text]
    assert mixed == [name for name in ALL if name != "rouge_l"]  # which is always lower-cased
    assert all("case:lc" in text for text in signatures(ALL, LOWER).values())


def test_signatures_are_those_of_sacrebleu():
    bleu = sacrebleu.metrics.BLEU()
    bleu.corpus_score(HYPOTHESES, [REFERENCES])
    texts = signatures(ALL)
    assert list(texts) == ALL
    assert texts["bleu4"] == str(bleu.get_signature())
    assert "tok:13a" in texts["bleu1"]
    assert "smooth:exp" in texts["bleu1"]
    assert "nw:0" in texts["chrf"]
    assert "nw:2" in texts["chrf2"]
    assert f"version:jiwer-{version('jiwer')}" in texts["wer"]
    assert "unit:char" in texts["cer"]


@pytest.mark.parametrize("seed", range(5))
def test_summed_statistics_give_the_corpus_score(seed):
    references, other = random_sentences(seed, 40), random_sentences(seed + 99, 40)
    hypotheses = [h if i % 3 else r for i, (h, r) in enumerate(zip(other, references, strict=True))]
    hypotheses[1] = ""
    bleu = [sacre.bleu_statistics(h, r) for h, r in zip(hypotheses, references, strict=True)]
    chrf = [sacre.chrf_statistics(h, r) for h, r in zip(hypotheses, references, strict=True)]
    assert {len(row) for row in bleu} == {sacre.BLEU_STATISTICS}
    assert {len(row) for row in chrf} == {sacre.CHRF_STATISTICS}
    # two ranks that saw different parts, added as floats as an all-reduce does
    bleu_sums = [float(sum(column[:13]) + sum(column[13:])) for column in zip(*bleu, strict=True)]
    chrf_sums = [float(sum(column[:13]) + sum(column[13:])) for column in zip(*chrf, strict=True)]
    assert sacre.bleu_from_statistics(bleu_sums) == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references]).score, abs=1e-9
    )
    assert sacre.chrf_from_statistics(chrf_sums) == pytest.approx(
        sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-9
    )
    assert 0 < sacre.bleu_from_statistics(bleu_sums) < 100


def test_statistics_tokenise_as_13a():
    # 13a splits the full stop off: 3 tokens against 3; split at spaces it would be 2 against 3 and no match of "b"
    assert sacre.bleu_statistics("a b.", "a b .") == [3, 3, 3, 2, 1, 0, 3, 2, 1, 0]
    assert sacre.bleu_statistics("", "a b .") == [0, 3, 0, 0, 0, 0, 0, 0, 0, 0]


def test_sums_of_nothing_are_zero_and_wrong_sums_are_refused():
    assert sacre.bleu_from_statistics([0] * sacre.BLEU_STATISTICS) == 0
    assert sacre.chrf_from_statistics([0] * sacre.CHRF_STATISTICS) == 0
    with pytest.raises(ValueError, match="got 9 sums, expected 10"):
        sacre.bleu_from_statistics([1] * 9)
    with pytest.raises(ValueError, match="whole numbers"):
        sacre.chrf_from_statistics([0.5] * sacre.CHRF_STATISTICS)


@pytest.mark.parametrize(
    ("hypotheses", "references", "metrics", "message"),
    [
        (["a"], ["a", "b"], ["bleu4"], "1 hypotheses but 2 references"),
        ([], [], ["bleu4"], "0 hypotheses and 0 references"),
        (["a", "b", "c"], ["a", " ", ""], ["wer"], r"2 of 3 references are empty \(sentence 2, 3\)"),
        (["a"], ["a"], ["blue4"], "unknown metric 'blue4'; did you mean 'bleu4'. Choose from bleu1 .BLEU-1., "),
        (["a"], ["a"], ["chrF++"], r"unknown metric 'chrF\+\+'.*chrf2 \(chrF\+\+\)"),
        (["a"], ["a"], [], "no metric given; valid metrics: bleu1"),
        ("a", ["a"], ["bleu4"], "hypotheses must be a list of strings"),
        (["a"], [None], ["bleu4"], "references must be a list of strings"),
    ],
)
def test_what_cannot_be_scored(hypotheses, references, metrics, message):
    with pytest.raises(ScoringError, match=message):
        score(hypotheses, references, metrics)


def test_unknown_metric_in_signatures():
    with pytest.raises(ScoringError, match="unknown metric 'rouge'"):
        signatures(["rouge"])


def test_table():
    table = format_table({"bleu4": 7.126, "word_accuracy": -20.0}, signatures(["bleu4", "word_accuracy"]))
    lines = table.split("\n")
    assert lines[0].split() == ["metric", "score", "signature"]
    assert lines[1].split()[:3] == ["bleu4", "BLEU-4", "7.13"]
    assert lines[1].endswith(signatures(["bleu4"])["bleu4"])
    assert "-20.00" in lines[2]
    assert len({line.index(text) for line, text in zip(lines, ["signature", "nrefs:1", "nrefs:1"], strict=True)}) == 1


def test_table_with_intervals():
    table = format_table({"bleu4": 7.126}, {"bleu4": "s"}, {"bleu4": Interval(6.1, 8.234)})
    header, row = table.split("\n")
    assert "95 % interval" in header
    assert row.split() == ["bleu4", "BLEU-4", "7.13", "6.10", "to", "8.23", "s"]


def test_metrics_file(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_metrics(path, {"bleu4": 1.5}, {"bleu4": "s"}, sentences=3, references="text of x.tsv", lowercase=True)
    assert json.loads(path.read_text()) == {
        "metrics": {"bleu4": 1.5},
        "signatures": {"bleu4": "s"},
        "sentences": 3,
        "lowercase": True,
        "references": "text of x.tsv",
    }


def test_hypotheses_round_trip(tmp_path):
    path = tmp_path / "deep" / "hypotheses.jsonl"
    sentences = [
        Hypothesis("a", 'Tab\t, "quotes", \\ and\nline\r\n end', "", -1.25),
        Hypothesis("b", "U+2028 \u2028 and \x85 and Ärger 你好", "hyp", 0.0, "de"),
        Hypothesis("c", "", "no score", None),
    ]
    write_hypotheses(path, sentences)
    assert read_hypotheses(path) == sentences
    assert [p.name for p in path.parent.iterdir()] == ["hypotheses.jsonl"]  # no temporary file stays
    first, second, _ = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert list(json.loads(first)) == ["id", "ref", "hyp", "score"]
    assert json.loads(second)["text_lang"] == "de"


def test_alternatives_round_trip(tmp_path):
    path = tmp_path / "hypotheses.jsonl"
    others = ({"text": "Ärger", "score": -1.5}, {"text": "", "score": None})
    sentences = [Hypothesis("a", "r", "h", -1.0, None, others), Hypothesis("b", "r", "h", -1.0, "de", ())]
    write_hypotheses(path, sentences)
    assert read_hypotheses(path) == sentences
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["alternatives"] == list(others)
    assert "text_lang" not in first
    assert second["alternatives"] == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "hypotheses.jsonl"
    write_hypotheses(path, [Hypothesis("a", "r", "h", -1.0)])
    before = path.read_bytes()
    with pytest.raises(ScoringError, match=r"not written, 1 problem.*\n.*'b': score must be a finite number"):
        write_hypotheses(path, [Hypothesis("a", "r", "h", -1.0), Hypothesis("b", "r", "h", math.nan)])
    with pytest.raises(ScoringError, match=r"1 id\(s\) more than once: a"):
        write_hypotheses(path, [Hypothesis("a", "r", "h", -1.0), Hypothesis("a", "r", "h", -1.0)])
    with pytest.raises(ScoringError, match="no sentences given"):
        write_hypotheses(path, [])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScoringError, match="cannot be written"):
        write_hypotheses(tmp_path / "file" / "x.jsonl", [Hypothesis("a", "r", "h", -1.0)])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ScoringError, match=r"folder\.jsonl: cannot be written"):
        write_hypotheses(tmp_path / "folder.jsonl", [Hypothesis("a", "r", "h", -1.0)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.jsonl"]  # the temporary file is gone


def test_read_lists_every_bad_line(tmp_path):
    path = tmp_path / "h.jsonl"
    good = '{"id": "a", "ref": "r", "hyp": "h", "score": -1, "extra": 1}'
    bad = [
        "",
        "not json",
        "[1]",
        '{"id": "b", "ref": "r", "hyp": "h"}',
        '{"id": "b", "reference": "r", "hyp": "h", "score": 1}',
        '{"id": 7, "ref": "r", "hyp": "h", "score": 1}',
        '{"id": "b", "ref": "r", "hyp": null, "score": 1}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": NaN}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": true}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1' + "0" * 400 + "}",
        '{"id": "b", "ref": "r", "hyp": "\\ud800", "score": 1}',
        '{"id": "", "ref": "r", "hyp": "h", "score": 1}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "text_lang": 3}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "alternatives": "x"}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "alternatives": ["x"]}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "alternatives": [{"text": 1, "score": 1}]}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "alternatives": [{"text": "x", "score": Infinity}]}',
        '{"id": "b", "ref": "r", "hyp": "h", "score": 1, "alternatives": [{"text": "x"}]}',
    ]
    path.write_text("\n".join([good, *bad, good]) + "\n")
    with pytest.raises(ScoringError) as caught:
        read_hypotheses(path)
    message = str(caught.value)
    assert str(path) in message
    for number in range(2, 2 + len(bad)):
        assert f"line {number}: " in message
    assert "line 1:" not in message
    assert "line 6: missing ref (write 'ref' for 'reference'?)" in message
    assert "id(s) more than once: a" in message


def test_read_refuses_unreadable_files(tmp_path):
    with pytest.raises(ScoringError, match=r"none\.jsonl: cannot be read"):
        read_hypotheses(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ScoringError, match="no sentences"):
        read_hypotheses(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "ä"}'.encode("latin-1"))
    with pytest.raises(ScoringError, match="not UTF-8 at byte 8"):
        read_hypotheses(tmp_path / "latin.jsonl")


def test_generate_output(tmp_path):
    path = tmp_path / "generate-test.txt"
    path.write_text(
        "2026-01-01 10:00:00 | INFO | fairseq_cli.generate | loading D-0\n"
        "T-1\tref one\nH-1\t-2.0\t▁hyp ▁one\nD-1\t-2.0\thyp\tone\nP-1\t-0.1 -0.2\n"
        "T-0\t\nH-0\t-0.5\t\nD-0\t-0.5\t\nP-0\t-0.1\n"
        "Generate test with beam=5: BLEU4 = 1\n"
    )
    output = read_generate_output(path)
    assert output.hypotheses == {1: "hyp\tone", 0: ""}
    assert output.references == {1: "ref one", 0: ""}
    assert output.scores[1] == pytest.approx(-2 * math.log(2))  # fairseq prints base 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "D-3\t-1.0\ta\nD-3\t-1.5\tb\nD-3\t-2\tc\nD-4\t-1\td\n",
            r"1 sample id\(s\) have several D- lines: 3 \(3 times\)",
        ),
        ("D-3\t-1.0\n", "1 D- line.* without score and text.*line 1"),
        ("D-3\tnan\ta\n", "1 D- line"),
        ("H-3\t-1.0\ta\n", "no D- lines"),
        ("", "no D- lines"),
    ],
)
def test_generate_output_errors(tmp_path, text, message):
    path = tmp_path / "generate-test.txt"
    path.write_text(text)
    with pytest.raises(ScoringError, match=message):
        read_generate_output(path)


def test_listing_is_short():
    assert listing(["a", "b"]) == "a, b"
    assert listing([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_scoring_needs_no_torch():
    code = "import sys, slt_plugin.scoring.report; sys.exit('torch' in sys.modules or 'fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_files_that_use_private_methods_of_sacrebleu_are_named():
    private = r"\b_(extract_corpus_statistics|aggregate_and_compute|compute_score_from_stats|bootstrap_resample)\b"
    folder = Path(sacre.__file__).parent
    users = {path.name for path in folder.glob("*.py") if re.search(private, path.read_text(encoding="utf-8"))}
    (said,) = re.findall(r"# Statistics of sentences are behind.*?noticed\.", Path(sacre.__file__).read_text(), re.S)
    assert set(re.findall(r"(?<!_)\b[a-z]+\.py", said)) | {"sacre.py"} == users
