"""scripts/bench_memory.py measures trainings; how much memory they take is never tested."""

from argparse import Namespace

import pytest
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_memory

    monkeypatch.setattr(bench_memory, "PIECES", 1200)
    return bench_memory


TINY = {"model_type": "t5", "vocab_size": 1312, "d_model": 8, "d_ff": 16, "d_kv": 4, "num_layers": 1, "num_heads": 2,
        "decoder_start_token_id": 0}  # fmt: skip


@pytest.mark.slow
def test_a_training_is_measured(bench, tmp_path):
    args = Namespace(batch=4, updates=1, device="cpu", precision="fp32")
    model = bench.write_model(tmp_path / "model", TINY)
    corpus = bench.write_corpus(tmp_path / "corpus", 20, 6)
    ways = bench.WAYS["lora, recomputing"]
    found = bench.in_a_child([*bench.words(args, corpus, model, tmp_path / "run"), *ways])
    projection, adapters = 768 * 8 + 8, 2 * 3 * (16 * 8 + 8 * 16)  # of rank 16, in three attentions
    assert found["trained"] == f"{projection + adapters:,}"
    assert int(found["total"].replace(",", "")) > projection + adapters + 1312 * 8
    assert 100e6 < found["imports"] <= found["peak"] < 4e9
    assert found["gpu"] is None
    assert found["checkpoint"] == (tmp_path / "run" / "checkpoint_last.pt").stat().st_size
    assert bench.row("tiny", "lora", found).count("|") == 7


def test_the_text_has_as_many_tokens_as_asked_for(bench, tmp_path):
    from slt_plugin.data.manifest import read_manifest
    from slt_plugin.text.codec import build_codec

    codec = build_codec("hf", bench.write_model(tmp_path / "model", TINY))
    rows = read_manifest(bench.write_corpus(tmp_path / "corpus", 3, 9) / "train.tsv")
    assert {len(codec.encode(row.text)) for row in rows} == {9}
    assert len(codec.dictionary) == 1300


def test_a_training_that_fails_says_why(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "gone.py"))
    with pytest.raises(RuntimeError, match=r"(?s)failed with status 2:.*gone\.py"):
        bench.in_a_child([])
