"""slt-score: tables, comparing two systems in every dialect, intervals, groups, reduced BLEU, truecasing."""

import json
import re

import pytest

from slt_plugin.cli.score import main
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.scoring.breakdown import breakdown
from slt_plugin.scoring.hypotheses import Hypothesis, write_hypotheses
from slt_plugin.scoring.intervals import bootstrap_signature, confidence, paired
from slt_plugin.scoring.reduced_bleu import Blacklist
from slt_plugin.scoring.report import DEFAULT_METRICS, score
from slt_plugin.scoring.settings import Settings
from slt_plugin.scoring.truecase import Truecaser

REFERENCES = [f"Anna met person {i} in the city of Paris ." for i in range(12)]
GOOD = [text.replace("city", "town") if i % 3 else text for i, text in enumerate(REFERENCES)]
BAD = [text.replace("met person", "person").replace("the city", "a town") for text in REFERENCES]
IDS = [f"clip{i}" for i in range(12)]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "test.tsv"
    rows = [
        Row(name, "x.pose", text, signer="Bo" if i < 5 else "Al", fps=25.0, text_lang="en")
        for i, (name, text) in enumerate(zip(IDS, REFERENCES, strict=True))
    ]
    write_manifest(path, rows)
    return path


def jsonl(path, hypotheses, ids=IDS, references=REFERENCES):
    records = zip(ids, references, hypotheses, strict=True)
    write_hypotheses(path, [Hypothesis(name, r, h, -1.0, "en") for name, r, h in records])
    return path


def table(path, hypotheses, *, ids: bool):
    lines = ["id\thyp\tref" if ids else "hyp\tref"]
    records = zip(IDS, hypotheses, REFERENCES, strict=True)
    lines += [f"{name}\t{h}\t{r}" if ids else f"{h}\t{r}" for name, h, r in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def generated(path, hypotheses):
    path.write_text("".join(f"T-{i}\tx\nH-{i}\t-1\t_\nD-{i}\t-1.0\t{text}\n" for i, text in enumerate(hypotheses)))
    return path


def run(capsys, *arguments) -> tuple[str, dict]:
    out_json = arguments[0].parent / "out.json" if hasattr(arguments[0], "parent") else arguments[1].parent / "out.json"
    code = main([str(argument) for argument in (*arguments, "--json", out_json)])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out, json.loads(out_json.read_text())


def refused(capsys, *arguments) -> str:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    return captured.err


def bad_usage(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_every_dialect_gives_the_same_scores(tmp_path, capsys, manifest):
    expected = score(GOOD, REFERENCES, list(DEFAULT_METRICS))
    hyp, ref = tmp_path / "h.txt", tmp_path / "r.txt"
    hyp.write_text("\n".join(GOOD) + "\n")
    ref.write_text("\n".join(REFERENCES))
    bare = tmp_path / "bare.txt"
    bare.write_text("".join(f"{r}\t{h}\n" for h, r in zip(GOOD, REFERENCES, strict=True)))
    for arguments in (
        [jsonl(tmp_path / "hypotheses.jsonl", GOOD)],
        [generated(tmp_path / "generate-test.txt", GOOD), "--manifest", manifest],
        ["--hyp", hyp, "--ref", ref],
        [table(tmp_path / "table.tsv", GOOD, ids=False)],
        [table(tmp_path / "ids.tsv", GOOD, ids=True), "--manifest", manifest],
        [bare, "--columns", "ref,hyp"],
    ):
        out, document = run(capsys, *arguments)
        assert document["metrics"] == expected
        assert "12 sentences" in out
        assert list(document) == ["metrics", "signatures", "sentences", "lowercase", "references"]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", None, "no sentences in it"),
        ("hyp\tref\n", None, "a header and no sentences"),
        ("a\tb\nc\td\n", None, "line 1 must name the columns.*found a, b.*--columns hyp,ref"),
        ("hyp\treff\na\tb\n", None, "found hyp, reff; did you mean 'ref'"),
        ("hyp\tref\thyp\na\tb\tc\n", None, "each once"),
        ("hyp\ttext\na\tb\n", None, "line 1 must name the columns"),
        ("hyp\tref\na\tb\nc\nd\te\tf\n", None, "2 of 3 lines do not have 2 .*: line 3 has 1, line 4 has 3"),
        ("hyp\tref\na\t\nb\tc\n", None, r"1 of 2 references are empty \(sentence line 2\)"),
        ("id\thyp\tref\nx\ta\tb\nx\ta\tb\n\ta\tb\n", None, r"ids that are empty or repeat \(2\): '', 'x'"),
        ("hyp\tref\na\tb\n", "hyp,ref", "line 1 is a header"),
        ("a\tb\n", "hyp", "--columns: hyp and ref"),
        ("a\tb\tc\n", "hyp,ref", "1 of 1 lines do not have 2 tab-separated cells"),
    ],
)
def test_tables_that_are_none(tmp_path, capsys, text, columns, message):
    path = tmp_path / "table.tsv"
    path.write_text(text)
    err = refused(capsys, path, *(["--columns", columns] if columns else []))
    assert re.search(message, err), err


def test_against_a_baseline_in_any_dialect(tmp_path, capsys, manifest):
    system = jsonl(tmp_path / "hypotheses.jsonl", GOOD)
    (tmp_path / "other").mkdir()
    baselines = [
        jsonl(tmp_path / "other" / "h.jsonl", BAD[::-1], IDS[::-1], REFERENCES[::-1]),  # matched by id, not by place
        generated(tmp_path / "other" / "generate.txt", BAD),
        table(tmp_path / "other" / "table.tsv", BAD, ids=True),
    ]
    metrics = ["bleu4", "wer"]
    expected = paired(BAD, {"system": GOOD}, REFERENCES, metrics)["system"]
    for baseline in baselines:
        options = ["--metrics", "bleu4,wer", "--against", baseline, "--manifest", manifest]
        out, document = run(capsys, system, *options)
        assert document["metrics"] == score(GOOD, REFERENCES, metrics)
        assert document["against"]["baseline"] == str(baseline)
        assert document["against"]["metrics"] == score(BAD, REFERENCES, metrics)
        assert document["against"]["p_values"] == {name: found.p_value for name, found in expected.items()}
        assert document["bootstrap"] == bootstrap_signature()
        assert f"against the baseline {baseline}:" in out
        assert "in effect one-sided" in out
    assert expected["wer"].p_value < 0.01
    # without a manifest the ids decide as well
    _, document = run(capsys, system, "--metrics", "bleu4,wer", "--against", baselines[0])
    assert document["against"]["metrics"] == score(BAD, REFERENCES, metrics)
    # and with plain files
    hyp, ref, other = (tmp_path / name for name in ("h.txt", "r.txt", "o.txt"))
    for path, lines in ((hyp, GOOD), (ref, REFERENCES), (other, BAD)):
        path.write_text("\n".join(lines))
    _, document = run(capsys, "--hyp", hyp, "--ref", ref, "--against", other, "--metrics", "bleu4,wer")
    assert document["against"]["p_values"] == {name: found.p_value for name, found in expected.items()}


def test_only_equal_sentences_are_compared(tmp_path, capsys):
    system = jsonl(tmp_path / "a.jsonl", GOOD)
    other = jsonl(tmp_path / "b.jsonl", [*BAD[2:], "x"], [*IDS[2:], "new"], [*REFERENCES[2:], "x"])
    err = refused(capsys, system, "--against", other)
    assert f"2 of 12 ids of {system} are not in {other}: clip0, clip1" in err
    assert f"1 of 11 ids of {other} are not in {system}: new" in err
    jsonl(other, BAD, IDS, [REFERENCES[0].lower(), *REFERENCES[1:]])
    assert "different references for 1 of 12 ids: clip0" in refused(capsys, system, "--against", other)
    short = tmp_path / "o.txt"
    short.write_text("one\n")
    (tmp_path / "r.txt").write_text("a\nb\n")
    (tmp_path / "h.txt").write_text("a\nb\n")
    plain = ["--hyp", tmp_path / "h.txt", "--ref", tmp_path / "r.txt"]
    assert "o.txt has 1 lines but" in refused(capsys, *plain, "--against", short)


def test_intervals(tmp_path, capsys):
    path = jsonl(tmp_path / "h.jsonl", GOOD)
    out, document = run(capsys, path, "--confidence", "--samples", 100, "--seed", 7, "--metrics", "chrf,cer")
    found = confidence(GOOD, REFERENCES, ["chrf", "cer"], samples=100, seed=7)
    assert document["intervals"] == {name: [interval.low, interval.high] for name, interval in found.items()}
    assert f"{found['chrf'].low:.2f} to {found['chrf'].high:.2f}" in out
    assert "bs:100|seed:7" in out
    assert document["bootstrap"].startswith("bs:100|seed:7|")


def test_groups(tmp_path, capsys, manifest):
    path = jsonl(tmp_path / "h.jsonl", GOOD)
    out, document = run(capsys, path, "--by", "signer,length", "--manifest", manifest, "--metrics", "wer")
    signers = [{"signer": "Bo" if i < 5 else "Al"} for i in range(12)]
    expected = breakdown(GOOD, REFERENCES, signers, ["signer", "length"], ["wer"])
    assert document["breakdown"] == [
        {"by": group.by, "value": group.value, "sentences": group.sentences, "scores": group.scores}
        for group in expected
    ]
    assert [(group["value"], group["sentences"]) for group in document["breakdown"]] == [
        ("Al", 7), ("Bo", 5), ("10 to 19", 12),
    ]  # fmt: skip
    assert "signer  sentences" in out
    _, document = run(capsys, path, "--by", "length,text_lang", "--metrics", "wer")  # these need no manifest
    assert [group["value"] for group in document["breakdown"]] == ["10 to 19", "en"]
    assert "no breakdown by 'corpus'" in refused(capsys, path, "--by", "corpus", "--manifest", manifest)


def test_reduced_bleu_and_truecasing_from_the_training_manifest(tmp_path, capsys):
    train = tmp_path / "train.tsv"
    texts = ["Yesterday Anna met the people of Paris .", "The city of Paris and Anna .", "A town in the city ."]
    write_manifest(train, [Row(f"t{i}", "x", text) for i, text in enumerate(texts)])
    path = jsonl(tmp_path / "h.jsonl", [text.lower() for text in GOOD])
    options = ["--train-manifest", train, "--blacklist-size", 2, "--truecase", "--metrics", "bleu4,reduced_bleu"]
    out, document = run(capsys, path, *options)
    settings = Settings(blacklist=Blacklist.from_texts(texts, 2), truecaser=Truecaser.from_texts(texts))
    lowered = [text.lower() for text in GOOD]
    assert document["metrics"] == score(lowered, REFERENCES, ["bleu4", "reduced_bleu"], settings)
    assert document["metrics"]["bleu4"] > score(lowered, REFERENCES, ["bleu4"])["bleu4"] + 10
    assert "reduced:dropped|blacklist:4-" in document["signatures"]["reduced_bleu"]
    assert "truecased:sacremoses-" in document["signatures"]["bleu4"]
    assert "(--truecase)" in out
    listed = tmp_path / "words.txt"
    listed.write_text("in\nthe\n")
    _, document = run(capsys, path, "--blacklist", listed)  # by default all that is possible
    assert list(document["metrics"]) == [*DEFAULT_METRICS, "reduced_bleu", "reduced_bleu_kept"]
    _, document = run(capsys, path, "--train-manifest", train, "--truecase")
    assert list(document["metrics"]) == list(DEFAULT_METRICS)
    err = refused(capsys, path, "--train-manifest", train, "--metrics", "reduced_bleu")
    assert "a blacklist of the 145 most frequent ones would hold them all" in err
    assert "a blacklist of 0 words" in refused(
        capsys, path, "--train-manifest", train, "--metrics", "reduced_bleu", "--blacklist-size", 0
    )


def test_missing_means_are_named_before_reading(tmp_path, capsys):
    nowhere = tmp_path / "not_there.jsonl"
    assert "--train-manifest TSV or --blacklist FILE" in refused(capsys, nowhere, "--metrics", "reduced_bleu")
    assert "bleurt needs a local checkpoint" in refused(capsys, nowhere, "--metrics", "bleurt")


def test_options_that_would_be_ignored_are_refused(tmp_path, capsys):
    nowhere = tmp_path / "not_there.jsonl"
    bleu = ["--metrics", "bleu4"]
    assert "--blacklist has no effect" in refused(capsys, nowhere, *bleu, "--blacklist", "w.txt")
    assert "--bleurt has no effect" in refused(capsys, nowhere, *bleu, "--bleurt", "folder")
    assert "--train-manifest has no effect" in refused(capsys, nowhere, *bleu, "--train-manifest", "t.tsv")
    assert "--blacklist-size has no effect" in refused(capsys, nowhere, *bleu, "--blacklist-size", 3)
    assert "--truecase needs --train-manifest" in bad_usage(capsys, nowhere, "--truecase")
    both = ["--truecase", "--lowercase", "--train-manifest", "t.tsv"]
    assert "give one of them" in bad_usage(capsys, nowhere, *both)
    assert "--samples and --seed are for" in bad_usage(capsys, nowhere, "--samples", 50)
    assert "--columns has no use" in bad_usage(capsys, "--hyp", "h", "--ref", "r", "--columns", "hyp,ref")
    err = bad_usage(capsys, nowhere, "--by", "singer")
    assert "no such property; did you mean 'signer'?" in err
    assert "length" in err
    assert "--by signer needs --manifest" in bad_usage(capsys, nowhere, "--by", "signer")
