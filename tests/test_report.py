"""slt-report: nearest sentences, and own scores beside published ones."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT

from slt_plugin.cli import report, score
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.store import Fingerprint, StoreWriter
from slt_plugin.report.published import PUBLISHED

FACTS = ROOT.parent / "shared" / "facts" / "published_results.md"


def run(capsys, *words) -> tuple[int, str, str]:
    """Status, stdout and stderr."""
    status = report.main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def write_embeddings(folder, name: str, vectors, *, copies: int = 1):
    """``NAME.tsv`` over ``NAME.store``."""
    with StoreWriter(folder / f"{name}.store", Fingerprint({"encoder": name})) as writer:
        for i, vector in enumerate(vectors):
            writer.add(f"k{i:04d}", 0, torch.tensor(np.asarray(vector, dtype=np.float32)).reshape(-1, len(vectors[0])))
    rows = [Row(f"{name}-{i}", f"{name}.store/k{i:04d}", f"{name} text {i}") for i in range(len(vectors))]
    write_manifest(folder / f"{name}.tsv", rows)
    return folder / f"{name}.tsv"


def test_neighbours_are_the_nearest_by_cosine(tmp_path, capsys):
    rng = np.random.default_rng(0)
    queries, corpus = rng.normal(size=(7, 5)), rng.normal(size=(40, 5)) * rng.uniform(0.1, 9, size=(40, 1))
    corpus[11] = 2 * corpus[4]  # the same direction: the first in the corpus comes first
    queries[0] = corpus[4]
    query, other = write_embeddings(tmp_path, "query", queries), write_embeddings(tmp_path, "corpus", corpus)
    status, out, _ = run(capsys, "neighbours", "--query", query, "--corpus", other, "-k", 3, "--json")
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in found] == [f"query-{i}" for i in range(7)] and found[2]["text"] == "query text 2"
    for row, vector in zip(found, queries.astype(np.float32), strict=True):
        cosines = [float(vector @ c / np.linalg.norm(vector) / np.linalg.norm(c)) for c in corpus.astype(np.float32)]
        best = sorted(range(40), key=lambda i: (-round(cosines[i], 5), i))[:3]
        assert [n["id"] for n in row["neighbours"]] == [f"corpus-{i}" for i in best]
        assert [n["cosine"] for n in row["neighbours"]] == pytest.approx([cosines[i] for i in best], abs=1e-5)
        assert row["neighbours"][0]["text"] == f"corpus text {best[0]}"
    assert [n["id"] for n in found[0]["neighbours"]][:2] == ["corpus-4", "corpus-11"]
    status, out, _ = run(capsys, "neighbours", "--query", query, "--corpus", tmp_path / "corpus.store", "-k", 1)
    lines = out.splitlines()
    assert lines[0] == "query-0\tquery text 0" and lines[1] == "  1.0000\tk0004\t" and len(lines) == 14


def test_neighbours_in_blocks_equal_those_at_once(tmp_path, capsys, monkeypatch):
    from slt_plugin.report import neighbours

    vectors = np.random.default_rng(1).normal(size=(50, 4))
    path = write_embeddings(tmp_path, "a", vectors)
    _, at_once, _ = run(capsys, "neighbours", "--query", path, "--corpus", path)
    monkeypatch.setattr(neighbours, "_BLOCK", 120)
    _, in_blocks, _ = run(capsys, "neighbours", "--query", path, "--corpus", path)
    assert at_once == in_blocks and len(at_once.splitlines()) == 50 * 6


@pytest.mark.parametrize(
    ("change", "words", "expected"),
    [
        ("", ["-k", "9"], "-k 9: {corpus} has 3 sentences; give 1 to 3"),
        ("", ["-k", "0"], "give 1 to 3"),
        ("steps", [], "1 of 3 rows have more than one step (corpus-1): they are features"),
        ("width", [], "embeddings of 4 dimensions"),
        ("zero", [], "1 embeddings are all zeros and have no direction: corpus-2"),
        ("gone", [], "gone.npy"),
    ],
)
def test_neighbours_refuse(tmp_path, capsys, change, words, expected):
    query = write_embeddings(tmp_path, "query", np.ones((2, 4)))
    vectors = np.ones((3, 5 if change == "width" else 4)).tolist()
    if change == "zero":
        vectors[2] = [0.0] * 4
    if change == "steps":
        vectors = [vectors[0], [vectors[1]] * 2, vectors[2]]
    corpus = write_embeddings(tmp_path, "corpus", vectors)
    if change == "gone":
        write_manifest(corpus, [Row("x", "gone.npy")])
    status, _, err = run(capsys, "neighbours", "--query", query, "--corpus", corpus, "-k", "1", *words)
    assert status == 1 and expected.format(corpus=corpus) in err


# ---- compare


def write_scores(folder, name: str, hypotheses, *options):
    """With slt-score itself."""
    (folder / "ref.txt").write_text("the cat sat on the mat today\na dog ran over the old bridge\n")
    (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in hypotheses))
    out = folder / f"{name}.json"
    words = ["--hyp", folder / f"{name}.txt", "--ref", folder / "ref.txt", "--json", out, *options]
    assert score.main([str(word) for word in words]) == 0
    return out


GOOD = ("the cat sat on the mat today", "a dog ran over the bridge")
BAD = ("the cat sat on a mat", "the dog walked over an old bridge")


def cells(table: str, system: str) -> list[str]:
    """The row of a system, split at columns (two spaces or more)."""
    line = next(line for line in table.splitlines() if line.startswith(f"{system}  "))
    return [cell for cell in line.split("  ") if cell.strip()]


def test_compare_puts_ours_beside_the_published_rows(tmp_path, capsys):
    good, bad = write_scores(tmp_path, "good", GOOD), write_scores(tmp_path, "bad", BAD)
    capsys.readouterr()
    status, out, _ = run(capsys, "compare", f"zero-shot={bad}", f"fine-tuned={good}", "--published", "how2sign")
    assert status == 0
    header, *_ = out.splitlines()
    assert header.split()[:9] == [
        "system",
        "training",
        "data",
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "ROUGE-L",
        "BLEURT",
    ]
    expected = json.loads(good.read_text())["metrics"]
    ours = cells(out, "fine-tuned")
    assert [cell.strip() for cell in ours[1:5]] == [f"{expected[f'bleu{n}']:.2f}" for n in range(1, 5)]
    assert ours[-1].strip() == f"{good} (2 sentences)"
    lines = out.splitlines()
    lsp = next(line for line in lines if line.startswith("SSVP-SLT-LSP"))
    assert lsp.split("  ")[-1].startswith("Rust et al., 2024") and "~49.6" in lsp and "15.5" in lsp and "38.4" in lsp
    column = header.index("BLEU-4") + len("BLEU-4")
    assert lsp[:column].endswith("15.5") and next(x for x in lines if "SHuBERT" in x)[:column].endswith("~16.2")
    assert "BLEU-4: " in out and "tok:13a" in out and "~ marks a derived" in out
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


def test_compare_says_what_is_not_comparable(tmp_path, capsys):
    good, lower = write_scores(tmp_path, "good", GOOD), write_scores(tmp_path, "lower", GOOD, "--lowercase")
    content = json.loads(good.read_text())
    content["sentences"], content["references"] = 5, "T- lines of x (ROUND TRIP through the vocabulary, not raw)"
    (tmp_path / "other.json").write_text(json.dumps(content))
    capsys.readouterr()
    status, out, _ = run(capsys, "compare", f"a={good}", f"b={lower}", f"c={tmp_path}/other.json")
    assert status == 0
    assert "both sides lower-cased, which raises scores: b." in out
    assert "not the raw texts: c." in out
    assert "different sets of sentences: a 2, b 2, c 5" in out
    assert "BLEU-4 was computed in different ways" in out and "BLEU-4 of b: " in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a={good}", "a={good}"], "a is given twice"),
        (["a={folder}/none.json"], "a={folder}/none.json cannot be read"),
        (["a={folder}/ref.txt"], "ref.txt is no JSON"),
        (["a={folder}/list.json"], "list.json holds no scores"),
        (["a={folder}/empty.json"], "empty.json holds no scores; give a file of slt-score --json"),
        (["a={good}", "--published", "how2sing"], "did you mean 'how2sign'?"),
        (["a={folder}/wer.json", "--published", "isign"], "none of wer was published for isign: score with bleu4 too"),
    ],
)
def test_compare_refuses(tmp_path, capsys, words, expected):
    good = write_scores(tmp_path, "good", GOOD)
    write_scores(tmp_path, "wer", GOOD, "--metrics", "wer")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty.json").write_text(json.dumps(json.loads(good.read_text()) | {"metrics": {}}))
    capsys.readouterr()
    status, out, err = run(capsys, "compare", *(word.format(good=good, folder=tmp_path) for word in words))
    assert (status, out) == (1, "") and err.startswith("slt-report compare: ")
    assert expected.format(folder=tmp_path) in err


def test_wrong_usage(capsys):
    for words in ([], ["compare"], ["compare", "scores.json"], ["neighbours", "--query", "a.tsv"]):
        with pytest.raises(SystemExit) as error:
            report.main(words)
        assert error.value.code == 2
