"""slt-report compare: scores, seeds, significance, published rows, and what is said of their comparability."""

import csv
import io
import json
import os
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT
from result_helpers import METRICS, results_folder

from slt_plugin.cli import report, score
from slt_plugin.cli.output import READER_GONE
from slt_plugin.report.published import PUBLISHED
from slt_plugin.scoring.intervals import paired
from slt_plugin.scoring.report import score as score_texts

FACTS = ROOT.parent / "shared" / "facts" / "published_results.md"
GOOD = ("the cat sat on the mat today", "a dog ran over the bridge")
BAD = ("the cat sat on a mat", "the dog walked over an old bridge")
MODEL = {
    "parameters": 3_327_967,
    "trainable": 1_200_000,
    "checkpoint_mb": 40.4,
    "weights_mb": 13.3,
    "gflops_per_second_of_signing": 0.0282,
    "training": {"updates": 1200, "gpu_hours": 2.5, "cpu_hours": None, "processes": 1, "seed": 1},
    "notes": ["training time is that until the checkpoint"],
}
SPEED = {"sentences_per_second": 80.0, "signing_seconds_per_second": 650.0, "peak_memory_mb": 1087.4, "device": "H200"}


def compare(capsys, *words) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    status = report.main(["compare", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def records(capsys, *words) -> list[dict[str, str]]:
    """The rows of --format csv."""
    status, out, err = compare(capsys, *words, "--format", "csv")
    assert status == 0, err
    return list(csv.DictReader(io.StringIO(out)))


def row(text: str, system: str) -> list[str]:
    """The cells of a system's first row, split at columns (two spaces or more)."""
    line = next(line for line in text.splitlines() if line.startswith(f"{system}  "))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def texts(errors: int, sentences: int = 40) -> dict[str, tuple[str, str]]:
    """Sentences whose first ``errors`` have a wrong word."""
    references = [f"she walked to station {i} in the rain" for i in range(sentences)]
    return {f"s{i}": (ref, ref.replace("walked", "drove") if i < errors else ref) for i, ref in enumerate(references)}


def write_scores(folder, name: str, hypotheses, *options):
    """A file of slt-score --json."""
    (folder / "ref.txt").write_text("the cat sat on the mat today\na dog ran over the old bridge\n")
    (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in hypotheses))
    out = folder / f"{name}.json"
    words = ["--hyp", folder / f"{name}.txt", "--ref", folder / "ref.txt", "--json", out, *options]
    assert score.main([str(word) for word in words]) == 0
    return out


def test_ours_beside_the_published_rows(tmp_path, capsys):
    good, bad = write_scores(tmp_path, "good", GOOD), write_scores(tmp_path, "bad", BAD)
    capsys.readouterr()
    status, out, _ = compare(capsys, f"zero-shot={bad}", f"fine-tuned={good}", "--published", "how2sign")
    assert status == 0
    header, *_ = out.splitlines()
    assert header.split()[:6] == ["system", "training", "data", "BLEU-1", "BLEU-2", "BLEU-3"]
    assert header.split()[6:9] == ["BLEU-4", "ROUGE-L", "BLEURT"]
    expected = json.loads(good.read_text())["metrics"]
    ours = row(out, "fine-tuned")
    assert ours[1:5] == [f"{expected[f'bleu{n}']:.2f}" for n in range(1, 5)]
    assert ours[-1] == f"{good} (2 sentences)"
    lines = out.splitlines()
    lsp = next(line for line in lines if line.startswith("SSVP-SLT-LSP"))
    assert lsp.split("  ")[-1].startswith("†Rust et al., 2024") and "~49.6" in lsp and "15.5" in lsp and "38.4" in lsp
    column = header.index("BLEU-4") + len("BLEU-4")
    assert lsp[:column].endswith("15.5") and next(x for x in lines if "SHuBERT" in x)[:column].endswith("~16.2")
    assert "BLEU-4: " in out and "tok:13a" in out and "~ a derived" in out and "† marks what is second-hand" in out
    assert "no sentences (hypotheses.jsonl) beside the scores of zero-shot, fine-tuned" in out
    assert "lower-cased" not in out and "different" not in out


def test_published_rows_are_those_of_the_facts():
    """Read from the facts file; every row names a source."""
    if not FACTS.is_file():
        pytest.skip(f"no {FACTS}")
    table = [line.strip("| ").split("|") for line in FACTS.read_text().splitlines() if line.startswith("| ")][1:]
    facts = {}
    for system, training, *numbers in table:
        numbers += [""] * (6 - len(numbers))
        facts[(training.strip(), tuple(number.strip() for number in numbers))] = system
    ours = set()
    for row in PUBLISHED["how2sign"]:
        found = [row.scores.get(name) for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "bleurt")]
        shown = tuple("" if score is None else f"{'~' * score.approximate}{score.value}" for score in found)
        ours.add((row.training, shown))
    assert ours == set(facts)
    assert all(row.source for rows in PUBLISHED.values() for row in rows)


def test_every_corpus_and_its_short_name(tmp_path, capsys):
    results_folder(tmp_path / "a", texts(3))
    for name in (*PUBLISHED, "dailymoth"):
        rows = records(capsys, f"a={tmp_path / 'a'}", "--published", name)
        theirs = PUBLISHED["dailymoth70h" if name == "dailymoth" else name]
        published = [found for found in rows if found["kind"] == "published"]
        assert [found["system"] for found in published] == [known.system for known in theirs]
        assert all(found["source"] and found["second_hand"] == "1" for found in published)
        assert [found["bleu4"] for found in published] == [str(known.scores["bleu4"].value) for known in theirs]
    sonar = records(capsys, f"a={tmp_path / 'a'}", "--published", "dailymoth")[1]
    assert sonar["bleu4_approximate"] == "1" and sonar["chrf"] == ""


def test_three_runs_with_seeds(tmp_path, capsys):
    """Means and deviations are Python's own, the p-values those of scoring.intervals on the first seeds."""
    errors = {"base": (20, 18, 22), "same": (20,), "better": (2, 4)}
    words = []
    for name, counts in errors.items():
        for seed, count in enumerate(counts, start=1):
            model = MODEL | {"training": MODEL["training"] | {"seed": seed, "gpu_hours": float(seed)}}
            results_folder(tmp_path / f"{name}{seed}", texts(count), model=model, speed=SPEED)
        words.append(f"{name}=" + ",".join(str(tmp_path / f"{name}{seed + 1}") for seed in range(len(counts))))
    rows = {found["system"]: found for found in records(capsys, *words)}
    scores = [
        score_texts([h for _, h in texts(n).values()], [r for r, _ in texts(n).values()], METRICS)
        for n in errors["base"]
    ]
    for metric in METRICS:
        values = [found[metric] for found in scores]
        assert float(rows["base"][metric]) == pytest.approx(statistics.fmean(values))
        assert float(rows["base"][f"{metric}_std"]) == pytest.approx(statistics.stdev(values))
    assert rows["same"]["bleu4_std"] == "" and rows["base"]["bleu4_p"] == "" and rows["same"]["bleu4_p"] == "1.0"
    first, better = ([hyp for _, hyp in texts(n).values()] for n in (20, 2))
    expected = paired(first, {"x": better}, [ref for ref, _ in texts(0).values()], METRICS)["x"]
    for metric in METRICS:
        assert float(rows["better"][f"{metric}_p"]) == expected[metric].p_value < 0.005
    assert (rows["base"]["gpu_hours"], rows["base"]["gpu_hours_std"], rows["base"]["runs"]) == ("2.0", "1.0", "3")
    status, out, _ = compare(capsys, *words, "--metrics", "wer,bleu4")
    assert status == 0
    base = row(out, "base")
    assert base[1].startswith(f"{statistics.fmean([f['wer'] for f in scores]):.2f} ± ")
    assert row(out, "same")[2] == f"{scores[0]['bleu4']:.2f}" and row(out, "better")[2].endswith("**")
    assert "Mean ± standard deviation (n - 1) over runs: base 3, same 1, better 2." in out
    assert f"p of better (40 sentences): WER {expected['wer'].p_value:.3f}, BLEU-4" in out and "the first runs" in out
    assert "seed:12345" in out
    costs = out.split("\n\n")[1]
    cells = row(costs, "base")
    assert cells[1:] == [
        "3.33 M", "1.20 M", "40.4", "13.3", "0.0282", "80.0", "650.0", "1,087", "1,200", "2.00 ± 1.00", "H200",
    ]  # fmt: skip
    assert "base, same, better: training time is that until the checkpoint." in out
    assert "p of" not in compare(capsys, *words, "--samples", "0")[1]


def test_seeds_that_come_twice_are_noted(tmp_path, capsys):
    folders = [results_folder(tmp_path / name, texts(3), model=MODEL) for name in "ab"]
    assert "x: seed 1 more than once." in compare(capsys, f"x={folders[0]},{folders[1]}")[1]


def test_systems_with_different_sentences(tmp_path, capsys):
    """As they stand they are told apart; --common scores all again, on what all have."""
    many, few = results_folder(tmp_path / "many", texts(20)), results_folder(tmp_path / "few", texts(10, 15))
    status, out, _ = compare(capsys, f"many={many}", f"few={few}")
    assert status == 0 and "different sets of sentences: many 40, few 15. With --common" in out
    assert "p of few (15 sentences)" in out
    rows = {found["system"]: found for found in records(capsys, f"many={many}", f"few={few}", "--common")}
    both = list(texts(20).values())[:15]
    expected = score_texts([hyp for _, hyp in both], [ref for ref, _ in both], METRICS)
    assert {metric: float(rows["many"][metric]) for metric in METRICS} == pytest.approx(expected)
    assert rows["many"]["sentences"] == rows["few"]["sentences"] == "15"
    assert float(rows["few"]["bleu4"]) == pytest.approx(
        json.loads((few / "metrics.json").read_text())["metrics"]["bleu4"]
    )
    assert (
        "All scores are of the 15 sentences that all have." in compare(capsys, f"a={many}", f"b={few}", "--common")[1]
    )


def test_scores_that_cannot_be_repeated_get_no_p_value(tmp_path, capsys):
    """BLEURT needs its model, and a truecased score its training texts: neither is in a results folder."""
    for name, errors in (("a", 5), ("b", 9)):
        folder = results_folder(tmp_path / name, texts(errors))
        content = json.loads((folder / "metrics.json").read_text())
        content["metrics"]["bleurt"], content["signatures"]["bleurt"] = 50.0 + errors, "some checkpoint"
        (folder / "metrics.json").write_text(json.dumps(content))
    status, out, _ = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b", "--metrics", "bleu4,bleurt")
    assert status == 0 and row(out, "b")[2] == "59.00"
    assert "No p-values for b: bleurt (computed with a list or model that is not at hand)." in out
    assert "p of b (40 sentences): BLEU-4 " in out and "BLEURT 0" not in out
    assert [found["bleurt_p"] for found in records(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b")] == ["", ""]
    status, _, err = compare(capsys, f"a={tmp_path}/a", "--common", "--metrics", "bleurt")
    assert status == 1 and "--metrics bleurt was left out under --common (needs a list or model that is not at" in err


def test_what_common_leaves_out_is_said(tmp_path, capsys):
    """With the reason, whether something is left or nothing."""
    for name in "ab":
        folder = results_folder(tmp_path / name, texts(5))
        content = json.loads((folder / "metrics.json").read_text())
        content["metrics"]["bleurt"], content["signatures"]["bleurt"] = 50.0, "some checkpoint"
        if name == "b":
            content["signatures"]["wer"] += "|truecased:sacremoses-1"
        (folder / "metrics.json").write_text(json.dumps(content))
    status, out, _ = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b", "--common")
    reason = "needs a list or model that is not at hand"
    assert status == 0 and "BLEURT" not in out.splitlines()[1]
    assert f"Left out under --common: BLEURT ({reason}), WER ({tmp_path}/b: truecased with texts that are" in out
    status, out, _ = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b", "--common", "--metrics", "bleu4")
    assert status == 0 and "Left out" not in out  # nobody asked for them

    content["signatures"] = dict.fromkeys(content["signatures"], "odd")
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(content))
    status, _, err = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b", "--common")
    assert status == 1 and "no metric that can be computed again without further files; there is bleu4 (computed" in err
    assert "bleurt (needs a list or model that is not at hand)" in err


def test_numbers_that_a_seed_lacks_are_said(tmp_path, capsys):
    runs = [results_folder(tmp_path / str(i), texts(5 + i), model=MODEL) for i in range(3)]
    content = json.loads((runs[1] / "metrics.json").read_text())
    del content["metrics"]["chrf"], content["model"]["parameters"]
    (runs[1] / "metrics.json").write_text(json.dumps(content))
    status, out, _ = compare(capsys, "a=" + ",".join(map(str, runs)))
    assert status == 0 and "a: not all of its 3 runs have every number: chrF of 2, parameters of 2." in out
    assert "every number" not in compare(capsys, f"a={runs[0]},{runs[2]}")[1]


def test_runs_without_a_name_are_called_by_their_folder(tmp_path, capsys, monkeypatch):
    for name in ("old", "new"):
        results_folder(tmp_path / name / "test", texts(5))
    file = write_scores(tmp_path, "scored", GOOD)
    capsys.readouterr()
    runs = [tmp_path / "old/test", tmp_path / "new/test/metrics.json", file]
    assert [found["system"] for found in records(capsys, *runs)] == ["old", "new", "scored"]
    monkeypatch.chdir(tmp_path / "old" / "test")
    assert [found["system"] for found in records(capsys, ".")] == ["old"]
    status, _, err = compare(capsys, tmp_path / "old/test", ".")
    assert status == 1 and "old is given twice: give each system a name of its own" in err


def test_scores_beside_another_run_s_sentences_are_refused(tmp_path, capsys):
    folder = results_folder(tmp_path / "a", texts(5))
    with (folder / "hypotheses.jsonl").open("a") as file:
        file.write('{"id": "s99", "ref": "a", "hyp": "a", "score": null}\n')
    for run in (folder, folder / "metrics.json"):
        status, out, err = compare(capsys, f"a={run}", "--samples", "0")
        assert (status, out) == (1, "")
        assert f"{folder}: metrics.json is of 40 sentences, and hypotheses.jsonl has 41: they are of two runs" in err


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    """As with ``| head``; the pipe is closed beforehand, so that no race decides."""
    folder = results_folder(tmp_path / "a", texts(5))
    for words in (["compare", f"a={folder}"], ["html", str(folder)]):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            command = [sys.executable, "-m", "slt_plugin.cli.report", *words]
            done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (READER_GONE, "")


def test_no_source_is_claimed_that_the_facts_do_not_give():
    """Of iSign and DailyMoth-70h the facts give numbers alone, and that a third party ran the latter."""
    for corpus in ("isign", "dailymoth70h"):
        for known in PUBLISHED[corpus]:
            assert known.source.endswith("source not noted") and known.second_hand and "paper" not in known.source
            assert known.training == "not noted"
    assert PUBLISHED["dailymoth70h"][0].source.startswith("a run by a third party")
    assert all("later paper" in known.source for known in PUBLISHED["how2sign"])


def test_other_references_are_not_compared(tmp_path, capsys):
    results_folder(tmp_path / "a", texts(5))
    results_folder(tmp_path / "b", {key: (ref.upper(), hyp) for key, (ref, hyp) in texts(5).items()})
    status, out, _ = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b")
    assert status == 0 and "No p-values for b: the references of 40 of 40 sentences differ: s0, s1" in out
    status, _, err = compare(capsys, f"a={tmp_path}/a", f"b={tmp_path}/b", "--common")
    assert status == 1 and "the references of 40 of 40 sentences differ" in err


def test_what_is_not_comparable_is_said(tmp_path, capsys):
    good = results_folder(tmp_path / "good", texts(5))
    results_folder(tmp_path / "lower", texts(5), lowercase=True)
    content = json.loads((good / "metrics.json").read_text())
    content["sentences"], content["references"] = 5, "T- lines of x (ROUND TRIP through the vocabulary, not raw)"
    (tmp_path / "other.json").write_text(json.dumps(content))
    status, out, _ = compare(capsys, f"a={good}/metrics.json", f"b={tmp_path}/lower", f"c={tmp_path}/other.json")
    assert status == 0
    assert "both sides lower-cased, which raises scores: b." in out
    assert "not the raw texts: c." in out
    assert "different sets of sentences: a 40, b 40, c 5" in out
    assert "BLEU-4 was computed in different ways" in out and "BLEU-4 of b: " in out
    # rouge_score lower-cases by itself, so that its scores are the same thing and are compared
    assert "No p-values for c: no sentences (hypotheses.jsonl) beside the scores of c." in out
    assert "p of b (40 sentences): ROUGE-L" in out
    _, out, _ = compare(capsys, f"a={good}", f"b={tmp_path}/lower", "--metrics", "bleu4,wer")
    assert "No p-values for b: the two have no metric that was computed in one way." in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a={good}", "a={good}"], "a is given twice: give each system a name of its own, and seeds"),
        (["a={folder}/none"], "a={folder}/none cannot be read"),
        (["a={folder}/ref.txt"], "ref.txt is no JSON"),
        (["a={folder}/list.json"], "a={folder}/list.json holds a JSON list, not an object; give a results folder"),
        (["a={folder}/empty.json"], "empty.json holds no scores; give a results folder of slt-evaluate"),
        (
            ["a={folder}"],
            "a={folder} is a folder without metrics.json; there is {folder}/good, {folder}/wer: choose one",
        ),
        (["a={good}", "--published", "how2sing"], "did you mean 'how2sign'?"),
        (["a={folder}/wer", "--published", "isign"], "none of wer was published for isign: score with bleu4 too"),
        (["a={good}", "--metrics", "blue4"], "--metrics blue4: no system has it; did you mean 'bleu4'?"),
        (["a={good}", "b={folder}/alone.json", "--common"], "no hypotheses.jsonl beside the scores of {folder}/alone"),
        (["a={good}", "b={folder}/x/others", "--common"], "--common: no sentence is in all of them"),
        (["a={good}", "b={folder}/wer", "--samples", "3"], "3 bootstrap samples: give at least 40"),
        (["a={good}", "--out", "{folder}/ref.txt/x.md"], "ref.txt/x.md cannot be written"),
    ],
)
def test_refusals(tmp_path, capsys, words, expected):
    good = results_folder(tmp_path / "good", texts(5))
    results_folder(tmp_path / "wer", texts(4), metrics={"wer": 3.0})
    results_folder(tmp_path / "x/others", {f"o{key}": pair for key, pair in texts(4).items()})
    (tmp_path / "ref.txt").write_text("a text\n")
    (tmp_path / "list.json").write_text("[1]")
    content = json.loads((good / "metrics.json").read_text())
    (tmp_path / "alone.json").write_text(json.dumps(content))
    (tmp_path / "empty.json").write_text(json.dumps(content | {"metrics": {}}))
    status, out, err = compare(capsys, *(word.format(good=good, folder=tmp_path) for word in words))
    assert (status, out) == (1, "") and err.startswith("slt-report compare: ")
    assert expected.format(folder=tmp_path) in err


def test_files_of_slt_score_and_old_results(tmp_path, capsys):
    """Without model, speed and sentences: scores alone."""
    path = write_scores(tmp_path, "good", GOOD)
    capsys.readouterr()
    status, out, _ = compare(capsys, f"a={path}")
    assert status == 0 and "parameters" not in out and "\n\n\n" not in out
    assert records(capsys, f"a={path}")[0]["parameters"] == ""
