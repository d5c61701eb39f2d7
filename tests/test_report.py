"""slt-report: nearest sentences (compare: test_report_compare.py, sweep and reconstruct: files of their own)."""

import json

import numpy as np
import pytest
import torch

from slt_plugin.cli import report
from slt_plugin.data.manifest import Row, write_manifest
from slt_plugin.data.store import Fingerprint, StoreWriter


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


def test_wrong_usage(capsys):
    for words in (
        [],
        ["compare"],
        ["compare", "a/test,b/test"],
        ["compare", "=a/test"],
        ["compare", "a="],
        ["neighbours", "--query", "a.tsv"],
    ):
        with pytest.raises(SystemExit) as error:
            report.main(words)
        assert error.value.code == 2
