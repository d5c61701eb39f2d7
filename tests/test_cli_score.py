"""slt-score: the three kinds of input, completeness against the manifest, every refusal."""

import json
import math
import time

import pytest

from slt_plugin.cli.score import main
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.scoring.columns import read_columns
from slt_plugin.scoring.errors import ScoringError
from slt_plugin.scoring.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from slt_plugin.scoring.report import DEFAULT_METRICS, score
from slt_plugin.scoring.settings import Settings

REFERENCES = ["The Cat sat on the mat .", "HELLO, world!", "He paid 3,000.50 $."]
HYPOTHESES = ["The cat sat on a mat.", "Hello, world!", "He paid 3,000.50 $."]


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "test.tsv"
    rows = [Row(f"clip{i}", f"{i}.pose", text, text_lang="en") for i, text in enumerate(REFERENCES)]
    write_manifest(path, rows)
    return path


def generate_file(tmp_path, ids=(2, 0, 1), name="generate-test.txt"):
    """As fairseq writes it: sorted by length, references lower-cased by the round trip, scores in base 2."""
    blocks = []
    for i in ids:
        reference, hypothesis = REFERENCES[i % 3].lower(), HYPOTHESES[i % 3]
        blocks.append(f"T-{i}\t{reference}\nH-{i}\t-1.5\t▁x\nD-{i}\t-1.5\t{hypothesis}\nP-{i}\t-1.0\n")
    path = tmp_path / name
    path.write_text("2026-01-01 | INFO | loading\n" + "".join(blocks) + "Generate test with beam=5: BLEU = 99\n")
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("slt-score: error: ")
    return err


def bad_usage(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_generate_output_is_scored_against_the_raw_text(tmp_path, capsys, manifest):
    out_json, out_lines = tmp_path / "metrics.json", tmp_path / "hypotheses.jsonl"
    code, out, _ = run(
        capsys, generate_file(tmp_path), "--manifest", manifest, "--json", out_json, "--save-hypotheses", out_lines
    )
    assert code == 0
    expected = score(HYPOTHESES, REFERENCES, list(DEFAULT_METRICS))
    document = json.loads(out_json.read_text())
    assert document["metrics"] == expected
    assert document["signatures"]["bleu4"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert (document["sentences"], document["lowercase"]) == (3, False)
    assert document["references"] == f"text of {manifest}"
    assert f"3 sentences; references: text of {manifest}" in out
    for name, value in expected.items():
        assert any(line.startswith(name) and f" {value:.2f} " in line for line in out.split("\n"))
    sentences = read_hypotheses(out_lines)
    assert [s.id for s in sentences] == ["clip0", "clip1", "clip2"]  # the manifest's ids and order
    assert [s.hyp for s in sentences] == HYPOTHESES
    assert [s.ref for s in sentences] == REFERENCES
    assert sentences[0].score == pytest.approx(-1.5 * math.log(2))
    assert sentences[0].text_lang == "en"
    # what was saved scores the same
    assert run(capsys, out_lines, "--json", tmp_path / "again.json")[0] == 0
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == expected


def test_lowercase_is_said(tmp_path, capsys, manifest):
    out_json = tmp_path / "m.json"
    code, out, _ = run(
        capsys,
        generate_file(tmp_path),
        "--manifest",
        manifest,
        "--lowercase",
        "--metrics",
        "bleu1,wer",
        "--json",
        out_json,
    )
    assert code == 0
    assert "both sides were lower-cased" in out
    assert "case:lc" in out
    assert "case:mixed" not in out
    document = json.loads(out_json.read_text())
    assert document["lowercase"] is True
    assert document["metrics"] == score(HYPOTHESES, REFERENCES, ["bleu1", "wer"], Settings(lowercase=True))
    assert document["metrics"]["bleu1"] > score(HYPOTHESES, REFERENCES, ["bleu1"])["bleu1"]


def test_missing_rows_are_listed(tmp_path, capsys, manifest):
    err = refused(capsys, generate_file(tmp_path, ids=(1,)), "--manifest", manifest)
    assert "2 of its 3 rows have no hypothesis" in err
    assert "0 (clip0), 2 (clip2)" in err


def test_unknown_ids_are_listed(tmp_path, capsys, manifest):
    err = refused(capsys, generate_file(tmp_path, ids=(0, 1, 2, 3, 7)), "--manifest", manifest)
    assert "2 hypothesis id(s) are not in it (is it another split?): 3, 7" in err


def test_duplicate_ids_are_listed(tmp_path, capsys, manifest):
    err = refused(capsys, generate_file(tmp_path, ids=(0, 1, 2, 1)), "--manifest", manifest)
    assert "1 sample id(s) have several D- lines: 1 (2 times)" in err
    assert "--nbest 1" in err


def test_manifest_without_text(tmp_path, capsys):
    path = tmp_path / "notext.tsv"
    write_manifest(path, [Row(f"clip{i}", f"{i}.pose") for i in range(3)])
    err = refused(capsys, generate_file(tmp_path), "--manifest", path)
    assert str(path) in err
    assert "text" in err


def test_round_trip_references_only_on_request(tmp_path, capsys):
    path = generate_file(tmp_path)
    err = refused(capsys, path)
    assert "--manifest" in err
    assert "round trip" in err
    assert "--allow-roundtrip-references" in err
    out_json = tmp_path / "m.json"
    code, out, _ = run(capsys, path, "--allow-roundtrip-references", "--metrics", "bleu1", "--json", out_json)
    assert code == 0
    assert "ROUND TRIP" in out
    document = json.loads(out_json.read_text())
    assert "ROUND TRIP" in document["references"]
    assert document["metrics"] == score(HYPOTHESES, [text.lower() for text in REFERENCES], ["bleu1"])
    without_t = tmp_path / "no_t.txt"
    without_t.write_text("".join(line for line in path.open() if not line.startswith("T-2")))
    assert "1 sample id(s) have no T- line: 2" in refused(capsys, without_t, "--allow-roundtrip-references")


def test_hypotheses_file_checked_against_the_manifest(tmp_path, capsys, manifest):
    path = tmp_path / "hypotheses.jsonl"
    sentences = [
        Hypothesis(f"clip{i}", r, h, -1.0) for i, (r, h) in enumerate(zip(REFERENCES, HYPOTHESES, strict=True))
    ]
    write_hypotheses(path, reversed(sentences))
    assert run(capsys, path, "--manifest", manifest)[0] == 0
    write_hypotheses(path, [*sentences[:2], Hypothesis("other", "r", "h", -1.0)])
    err = refused(capsys, path, "--manifest", manifest)
    assert "1 of its 3 rows have no hypothesis" in err
    assert "clip2" in err
    assert "1 hypothesis id(s) are not in it (is it another split?): other" in err
    write_hypotheses(path, [*sentences[:2], Hypothesis("clip2", "he paid", "h", -1.0)])
    assert "the ref of 1 sentence(s) differs" in refused(capsys, path, "--manifest", manifest)


def test_empty_reference_names_the_sentence(tmp_path, capsys):
    path = tmp_path / "hypotheses.jsonl"
    write_hypotheses(path, [Hypothesis("a", "text", "h", -1.0), Hypothesis("the-empty-one", "", "h", -1.0)])
    assert "1 of 2 references are empty (sentence the-empty-one)" in refused(capsys, path)


def test_plain_files(tmp_path, capsys):
    hyp, ref, out_json = tmp_path / "h.txt", tmp_path / "r.txt", tmp_path / "m.json"
    hyp.write_bytes("\ufeffa b\u2028c d\r\n\r\nlast".encode())  # byte order mark, CRLF, an empty line, no end
    ref.write_text("a b\u2028c d\nnot empty\nlast\n")
    code, out, _ = run(capsys, "--hyp", hyp, "--ref", ref, "--metrics", "wer,bleu1", "--json", out_json)
    assert code == 0
    assert "3 sentences" in out
    assert json.loads(out_json.read_text())["metrics"]["wer"] == pytest.approx(100 * 2 / 6)
    ref.write_text("only one\n")
    err = refused(capsys, "--hyp", hyp, "--ref", ref)
    assert "has 3 lines but" in err
    assert "has 1;" in err
    ref.write_text("a\n\nb\n")
    assert "1 of 3 references are empty (sentence line 2)" in refused(capsys, "--hyp", hyp, "--ref", ref)
    hyp.write_text("")
    ref.write_text("")
    assert "nothing to score" in refused(capsys, "--hyp", hyp, "--ref", ref)
    assert "none.txt: cannot be read" in refused(capsys, "--hyp", tmp_path / "none.txt", "--ref", ref)


def test_unknown_metric_is_found_before_reading(tmp_path, capsys):
    err = refused(capsys, tmp_path / "not_there.jsonl", "--metrics", "bleu4,crf")
    assert "unknown metric 'crf'; did you mean 'chrf'?" in err
    assert "word_accuracy" in err
    assert "no metric given" in refused(capsys, tmp_path / "not_there.jsonl", "--metrics", ",")


def test_other_files_are_refused(tmp_path, capsys, manifest):
    err = refused(capsys, manifest, "--manifest", manifest)
    assert "line 1 must name the columns" in err
    assert "found id, path, text, text_lang" in err
    (tmp_path / "table.txt").write_text("hyp\tref\na\ta\n")
    err = refused(capsys, tmp_path / "table.txt", "--manifest", manifest)
    assert "no D- lines" in err
    assert "--columns" in err
    assert "cannot be read" in refused(capsys, tmp_path / "not_there.txt", "--manifest", manifest)
    assert "cannot be read" in refused(capsys, generate_file(tmp_path), "--manifest", tmp_path / "not_there.tsv")


def test_a_large_table_is_read_in_linear_time(tmp_path):
    rows = 60_000  # counting each id among all takes minutes
    (tmp_path / "large.tsv").write_text("id\thyp\tref\n" + "".join(f"r{i}\ta\tb\n" for i in range(rows)))
    started = time.process_time()
    assert len(read_columns(tmp_path / "large.tsv")) == rows
    assert time.process_time() - started < 10
    (tmp_path / "twice.tsv").write_text("id\thyp\tref\nb\ta\tb\na\ta\tb\nb\ta\tb\na\ta\tb\n\ta\tb\n\ta\tb\nc\ta\tb\n")
    with pytest.raises(ScoringError, match=r"ids that are empty or repeat \(3\): '', 'a', 'b'"):
        read_columns(tmp_path / "twice.tsv")


def test_options_that_would_be_ignored_are_refused(tmp_path, capsys):
    assert "one input file or --hyp and --ref" in bad_usage(capsys)
    assert "--hyp and --ref go together" in bad_usage(capsys, "--hyp", "h.txt")
    assert "one input file or --hyp and --ref" in bad_usage(capsys, "x.jsonl", "--hyp", "h.txt", "--ref", "r.txt")
    assert "no use with --hyp" in bad_usage(capsys, "--hyp", "h", "--ref", "r", "--manifest", "m.tsv")
    for arguments in (["x.jsonl"], ["g.txt", "--manifest", "m.tsv"], ["--hyp", "h", "--ref", "r"]):
        assert "only for fairseq-generate" in bad_usage(capsys, *arguments, "--allow-roundtrip-references")
