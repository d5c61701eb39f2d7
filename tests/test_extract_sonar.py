"""slt-extract what=sonar_teacher and what=sonar: the numbers, shared keys, resume, elements, failures, refusals."""

import logging
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_pose_corpus
from distillation_helpers import LANGUAGE, embed_texts, train_student
from extract_helpers import assert_same, contents, write_moving
from fairseq import checkpoint_utils
from sonar_helpers import DIM, FEATURES, make_fake_release, sonar_codec, text_encoder
from test_sonar_translator import imported

from slt_plugin.cli import extract
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.store import FeatureStore, Fingerprint, StoreWriter, split_path
from slt_plugin.data.teacher import teacher_key
from slt_plugin.extraction.failures import read_failures
from slt_plugin.extraction.plan import find_segments, segment_key
from slt_plugin.extraction.sink import StoreSink

ROUNDING = 2e-6  # the order of sums depends on what shares a batch


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_fake_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def texts(tmp_path):
    """Two manifests that share texts; one text stands in two languages."""
    rows = [
        Row("a", "a.mp4", "hello world", text_lang="eng_Latn"),
        Row("b", "b.mp4", "the cat sat on a mat", text_lang="eng_Latn"),
        Row("c", "c.mp4", "hello world", text_lang="eng_Latn"),
        Row("d", "a.mp4", "hello world", text_lang="fra_Latn"),
    ]
    write_manifest(tmp_path / "one.tsv", rows)
    write_manifest(tmp_path / "two.tsv", [rows[1], Row("z", "z.mp4", "zebra quiz", text_lang="eng_Latn")])
    return tmp_path


def embed(release, manifest, out, *words) -> int:
    """With the rows' own languages."""
    return embed_texts(release, manifest, out, "lang=null", *words)


def refused(capsys, status: int) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slt-extract: ")]
    assert status == 1 and len(lines) == 1
    return lines[0]


# ---- teacher


def test_embeddings_are_the_teachers_one_for_each_text_and_language(release, texts, capsys):
    out = texts / "t.store"
    assert embed(release, texts / "one.tsv", out) == 0
    assert f"{out}: 4 rows" in capsys.readouterr().out
    codec = sonar_codec(release)
    teacher = text_encoder(codec)
    store = FeatureStore(out)
    rows = read_manifest(texts / "one.tsv")
    assert len(store) == 3 and store.channels == DIM
    found = {}
    for row in rows:
        tokens = torch.cat([torch.tensor([codec.language_id(row.text_lang)]), codec.encode(row.text)])
        with torch.no_grad():
            expected = teacher(tokens[None]).numpy()
        found[row.id] = store.read(teacher_key(row.text, row.text_lang))
        np.testing.assert_allclose(found[row.id], expected, atol=ROUNDING, rtol=0)
    assert np.array_equal(found["a"], found["c"]) and np.abs(found["a"] - found["d"]).max() > 1e-3
    assert not out.with_suffix(".tsv").exists()
    assert set(store.fingerprint.values) == {"encoder", "checkpoint_sha256", "spm_sha256", "dtype"}


def test_manifests_share_a_store(release, texts, caplog):
    out = texts / "t.store"
    assert embed(release, texts / "one.tsv", out) == 0
    before = contents(out)
    with caplog.at_level(logging.INFO):
        assert embed(release, texts / "two.tsv", out, f"out_manifest={texts}/m.tsv") == 0
    assert "1 embeddings to extract, 1 in the store" in caplog.text
    assert len(FeatureStore(out)) == 4
    assert_same({name: value for name, value in contents(out).items() if name in before}, before)
    rows = read_manifest(texts / "m.tsv")
    assert [(row.id, row.text, row.num_frames) for row in rows] == [
        ("b", "the cat sat on a mat", 1), ("z", "zebra quiz", 1)]  # fmt: skip
    assert split_path(texts / rows[1].path)[1] == teacher_key("zebra quiz", "eng_Latn")


def test_a_language_for_all_rows(release, texts):
    assert embed_texts(release, texts / "one.tsv", texts / "t.store", f"out_manifest={texts}/m.tsv") == 0
    assert len(FeatureStore(texts / "t.store")) == 2  # a, c and d are one text
    assert {row.text_lang for row in read_manifest(texts / "m.tsv")} == {LANGUAGE}


@pytest.fixture
def many(tmp_path):
    """60 texts of several lengths."""
    rows = [Row(f"r{i}", "v.mp4", " ".join(["cat"] * (1 + i % 7) + [str(i)]), text_lang=LANGUAGE) for i in range(60)]
    write_manifest(tmp_path / "many.tsv", rows)
    return tmp_path / "many.tsv"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_started_again(release, many, tmp_path, monkeypatch, capsys, caplog, number):
    out, taken = tmp_path / "t.store", []
    original = StoreSink.features

    def features(self, job, tensor):
        taken.append(job.name)
        if len(taken) == 20:
            os.kill(os.getpid(), number)
        return original(self, job, tensor)

    monkeypatch.setattr(StoreSink, "features", features)
    assert embed_texts(release, many, out, "max_tokens=60") == 128 + number
    assert "goes on from here" in capsys.readouterr().err
    there = len(contents(out))
    assert 20 <= there < 60
    monkeypatch.setattr(StoreSink, "features", original)
    with caplog.at_level(logging.INFO):
        assert embed_texts(release, many, out, "max_tokens=60") == 0
    assert f"{60 - there} embeddings to extract, {there} in the store" in caplog.text
    assert embed_texts(release, many, tmp_path / "whole.store") == 0
    assert_same(contents(out), contents(tmp_path / "whole.store"), ROUNDING)


def test_elements_and_merge(release, many, tmp_path, capsys):
    out, listed = tmp_path / "t.store", f"out_manifest={tmp_path}/m.tsv"
    for shard in (2, 0):
        assert embed_texts(release, many, out, "num_shards=3", f"shard={shard}") == 0
    line = refused(capsys, embed_texts(release, many, out, "num_shards=3", "merge=true"))
    assert "20 of 60 rows were not extracted yet" in line and "shard=1 again" in line
    assert embed_texts(release, many, out, "num_shards=3", "shard=1") == 0
    assert embed_texts(release, many, out, "num_shards=3", "merge=true", listed) == 0
    assert len(read_manifest(tmp_path / "m.tsv")) == 60
    assert embed_texts(release, many, tmp_path / "whole.store") == 0
    assert_same(contents(out), contents(tmp_path / "whole.store"), ROUNDING)


def test_another_teacher_is_not_mixed_in(release, texts, tmp_path, capsys):
    out = texts / "t.store"
    assert embed(release, texts / "one.tsv", out) == 0
    assert "dtype: fp32 in the store, bf16 asked" in refused(
        capsys, embed(release, texts / "two.tsv", out, "dtype=bf16")
    )
    other = shutil.copytree(release, tmp_path / "other")
    content = torch.load(other / "sonar_text_encoder.pt", weights_only=True)
    content["model"]["encoder.layers.0.ffn.inner_proj.bias"].add_(1)
    torch.save(content, other / "sonar_text_encoder.pt")
    assert "checkpoint_sha256: " in refused(capsys, embed(other, texts / "two.tsv", out))
    assert len(FeatureStore(out)) == 3


def test_bf16_is_close(release, texts):
    assert embed(release, texts / "one.tsv", texts / "t.store") == 0
    assert embed(release, texts / "one.tsv", texts / "b.store", "dtype=bf16") == 0
    exact, rounded = contents(texts / "t.store"), contents(texts / "b.store")
    errors = [np.abs(exact[name] - rounded[name]).max() for name in exact]
    assert 1e-4 < max(errors) < 0.1 * max(np.abs(value).max() for value in exact.values())


def test_a_text_beyond_the_teachers_positions_is_listed_and_the_others_kept(release, texts, capsys):
    rows = read_manifest(texts / "one.tsv")
    write_manifest(texts / "one.tsv", [replace(rows[0], text="q " * 600 + "q"), *rows[1:]])
    out = texts / "t.store"
    assert embed(release, texts / "one.tsv", out) == 1
    assert "1 rows failed: a" in capsys.readouterr().err
    (failure,) = read_failures(out / "failed.tsv")
    assert failure.id == "a" and re.search(r"a text of \d{4} tokens, the teacher reads 512", failure.cause)
    assert len(FeatureStore(out)) == 3


@pytest.mark.parametrize(
    ("rows", "words", "expected"),
    [
        ([Row("a", "x", "hi")], [], "1 of 1 rows have no text_lang: a. Fill the column, or set lang"),
        ([Row("a", "x", "hi", text_lang="eng_latn")], [], "did you mean 'eng_Latn'?"),
        ([Row("a", "x", None, text_lang="eng_Latn")], [], "column text"),
        ([Row("a", "x", "hi", text_lang="eng_Latn")], ["spm=null"], "spm is missing: give SONAR's sentencepiece"),
        ([Row("a", "x", "hi", text_lang="eng_Latn")], ["checkpoint=none.pt"], "checkpoint none.pt does not exist"),
        ([Row("a", "x", "hi", text_lang="eng_Latn")], ["epochs=2"], "epochs: leave them out, or set what=features"),
        ([Row("a", "x", "hi", text_lang="eng_Latn")], ["what=sonar_student"], "did you mean 'sonar"),
        ([Row("a", "x", "hi", text_lang="eng_Latn")], ["max_tokens=0"], "max_tokens=0: give a whole number"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(release, tmp_path, capsys, rows, words, expected):
    lines = ["\t".join(("id", "path", "text", "text_lang"))]
    lines += ["\t".join((row.id, row.path, row.text or "", row.text_lang or "")) for row in rows]
    (tmp_path / "m.tsv").write_text("\n".join(lines) + "\n")
    assert expected in refused(capsys, embed(release, tmp_path / "m.tsv", tmp_path / "t.store", *words))
    assert not (tmp_path / "t.store").exists()


@pytest.mark.parametrize("option", ["spm=x", "lang=eng_Latn", "max_tokens=9"])
def test_features_have_no_use_for_the_others_options(tmp_path, capsys, option):
    write_manifest(tmp_path / "m.tsv", [Row("a", "x.mp4")])
    given = [f"manifest={tmp_path}/m.tsv", f"out={tmp_path}/f.store", "checkpoint=x.pt", option]
    assert f"what=features has no use for {option.split('=')[0]}" in refused(capsys, extract.main(given))


# ---- sentence embeddings of signing


def embed_signing(checkpoint, manifest, out, *words) -> int:
    given = [f"checkpoint={checkpoint}", f"manifest={manifest}", f"out={out}"]
    return extract.main(["what=sonar", *given, "device=cpu", "num_workers=0", *words])


def direct(checkpoint, manifest) -> dict[str, np.ndarray]:
    """Each row alone through the model, in the way that slt-translate goes."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], {"data": "", "target_lang": "eng_Latn"}
    )
    rows = read_manifest(manifest)
    dataset = task.dataset_of(rows, manifest.parent, "direct")
    with torch.no_grad():
        return {
            row.id: models[0].eval().embed(dataset.collater([dataset[i]])["net_input"])[0].numpy()
            for i, row in enumerate(rows)
        }


@pytest.fixture(scope="module")
def feature_checkpoint(release, tmp_path_factory):
    return imported(release, tmp_path_factory.mktemp("features") / "sonar_asl.pt", "--source", "features")


def write_features(folder, count=9):
    """A manifest of features in a store, without any text or language."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder / "f.store", Fingerprint({"made": "here"})) as writer:
        for i in range(count):
            writer.add(f"k{i}", 0, torch.tensor(rng.normal(size=(3 + 2 * i, FEATURES)).astype(np.float32)))
    rows = [Row(f"r{i}", f"f.store/k{i}", signer="s") for i in range(count)]
    write_manifest(folder / "m.tsv", [*rows, Row("again", "f.store/k0", "text", text_lang="eng_Latn")])
    return folder / "m.tsv"


def check(out, expected: dict[str, np.ndarray]) -> None:
    store = FeatureStore(out)
    rows = read_manifest(out.with_suffix(".tsv"))
    assert {row.id for row in rows} == set(expected)
    assert {row.num_frames for row in rows} == {1}
    for row in rows:
        folder, key = split_path(out.parent / row.path)
        assert folder == str(out)
        np.testing.assert_allclose(store.read(key)[0], expected[row.id], atol=ROUNDING, rtol=1e-4, err_msg=row.id)


@pytest.mark.parametrize("words", [(), ("max_tokens=1",), ("max_tokens=30", "num_workers=2")])
def test_features(feature_checkpoint, tmp_path, words):
    manifest = write_features(tmp_path)
    out = tmp_path / "e.store"
    assert embed_signing(feature_checkpoint, manifest, out, *words) == 0
    expected = direct(feature_checkpoint, manifest)
    assert len({tuple(vector.round(4)) for vector in expected.values()}) == 9
    check(out, expected)
    rows = read_manifest(out.with_suffix(".tsv"))
    assert rows[0].path == rows[-1].path and len(FeatureStore(out)) == 9  # one segment
    assert rows[-1].text == "text" and rows[0].signer == "s"


def test_videos(release, tmp_path):
    checkpoint = imported(release, tmp_path / "sonar_asl.pt")
    for seed, frames in enumerate((20, 70, 131)):
        write_moving(tmp_path / f"v{seed}.mp4", frames, seed=seed)
    rows = [Row(f"r{i}", f"v{i}.mp4", f"text {i}") for i in range(3)]
    write_manifest(tmp_path / "m.tsv", [*rows, Row("part", "v2.mp4", "part", 1.0, 3.0)])
    assert embed_signing(checkpoint, tmp_path / "m.tsv", tmp_path / "e.store", "max_tokens=80") == 0
    check(tmp_path / "e.store", direct(checkpoint, tmp_path / "m.tsv"))


def test_poses(release, tmp_path):
    corpus = write_pose_corpus(tmp_path / "c", {"train": 20, "valid": 7})
    for split in ("train", "valid"):
        assert embed_texts(release, corpus / f"{split}.tsv", tmp_path / "t.store") == 0
    train_student(corpus, release, tmp_path / "t.store", tmp_path / "run", "optimization.max_update=2")
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert embed_signing(checkpoint, corpus / "valid.tsv", tmp_path / "e.store") == 0
    check(tmp_path / "e.store", direct(checkpoint, corpus / "valid.tsv"))


def test_resumed_in_elements_and_never_mixed(feature_checkpoint, tmp_path, monkeypatch, capsys, caplog):
    manifest, out = write_features(tmp_path), tmp_path / "e.store"
    original, taken = StoreSink.features, []

    def features(self, job, tensor):
        taken.append(job.name)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, job, tensor)

    monkeypatch.setattr(StoreSink, "features", features)
    assert embed_signing(feature_checkpoint, manifest, out, "num_shards=2", "shard=1", "max_tokens=1") == 128 + 15
    monkeypatch.setattr(StoreSink, "features", original)
    assert len(FeatureStore(out)) == 2
    for shard in (1, 0):
        with caplog.at_level(logging.INFO):
            assert embed_signing(feature_checkpoint, manifest, out, "num_shards=2", f"shard={shard}") == 0
    assert "embeddings to extract, 2 in the store" in caplog.text
    assert extract.main(["what=sonar", f"manifest={manifest}", f"out={out}", "num_shards=2", "merge=true"]) == 0
    check(out, direct(feature_checkpoint, manifest))
    line = refused(capsys, embed_signing(feature_checkpoint, manifest, out, "dtype=bf16"))
    assert "dtype: fp32 in the store, bf16 asked" in line


def test_rows_that_cannot_be_read_are_listed_and_the_others_kept(feature_checkpoint, tmp_path, capsys):
    for name, steps in (("good", 5), ("long", 2049), ("nan", 4)):
        array = np.ones((steps, FEATURES), dtype=np.float32)
        array[0] = np.nan if name == "nan" else 1
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "narrow.npy", np.ones((4, FEATURES - 1), dtype=np.float32))
    names = ("good", "long", "nan", "narrow", "gone")
    write_manifest(tmp_path / "m.tsv", [Row(name, f"{name}.npy", "text") for name in names])
    out = tmp_path / "e.store"
    assert embed_signing(feature_checkpoint, tmp_path / "m.tsv", out, "num_workers=1") == 1
    assert "4 rows failed" in capsys.readouterr().err
    causes = {failure.id: failure.cause for failure in read_failures(out / "failed.tsv")}
    assert set(causes) == {"long", "nan", "narrow", "gone"}
    assert "2049 source steps, the model reads 2048" in causes["long"]
    assert "NaN" in causes["nan"] and f"{FEATURES - 1} channels" in causes["narrow"] and "gone.npy" in causes["gone"]
    assert not any("Error: " in cause for cause in causes.values())  # each in words of its own, not as a surprise
    assert [row.id for row in read_manifest(out.with_suffix(".tsv"))] == ["good"]


def test_half_precision_and_models_without_embedding(feature_checkpoint, tmp_path, capsys):
    manifest = write_features(tmp_path)
    for dtype in ("bf16", "fp16"):
        assert embed_signing(feature_checkpoint, manifest, tmp_path / f"{dtype}.store", f"dtype={dtype}") == 0
        store, exact = FeatureStore(tmp_path / f"{dtype}.store"), direct(feature_checkpoint, manifest)
        for row in read_manifest(tmp_path / f"{dtype}.tsv"):
            vector = store.read(split_path(row.path)[1])[0]
            assert vector @ exact[row.id] > 0.99 * np.linalg.norm(vector) * np.linalg.norm(exact[row.id])
            assert np.abs(vector - exact[row.id]).max() > 1e-6
    (tmp_path / "no.pt").write_bytes(b"nothing")
    assert "no.pt cannot be loaded" in refused(
        capsys, embed_signing(tmp_path / "no.pt", manifest, tmp_path / "x.store")
    )
    two = f"{feature_checkpoint}:{feature_checkpoint}"
    assert "not an ensemble" in refused(capsys, embed_signing(two, manifest, tmp_path / "x.store"))
    line = refused(capsys, embed_signing(feature_checkpoint, manifest, tmp_path / "x.store", "variant=base_16x224"))
    assert "what=sonar has no use for variant" in line


# ---- keys


def test_keys_of_videos_are_those_of_stores_that_exist(tmp_path):
    """Made with version 0.2's rule; another key would have all videos extracted again."""
    row = Row("a", "videos/some clip.mp4", start=1.5, end=2.5, fps=25.0, box=(0.0, 0.0, 1.0, 0.5))
    assert segment_key(row, ("bytes", 1234)) == "some_clip-d63943c5bc71722e"
    assert segment_key(replace(row, fps=None), ("bytes", 1234)) == "some_clip-d63943c5bc71722e"


def test_keys_of_arrays_follow_their_rate_and_content(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 4)))

    def key(**values):
        return find_segments([Row("a", "a.npy", start=0.0, end=1.0, **values)], tmp_path)[0].key

    first = key(fps=25.0)
    assert key(fps=25.0) == first != key(fps=50.0)
    np.save(tmp_path / "a.npy", np.ones((9, 4)))
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert key(fps=25.0) != first


def test_keys_of_stored_features_follow_their_fingerprint(tmp_path):
    keys = set()
    for stride in (32, 64):
        shutil.rmtree(tmp_path / "f.store", ignore_errors=True)
        with StoreWriter(tmp_path / "f.store", Fingerprint({"stride": stride})) as writer:
            writer.add("k", 0, torch.ones(3, 4))
        keys.add(find_segments([Row("a", "f.store/k")], tmp_path)[0].key)
    assert len(keys) == 2
