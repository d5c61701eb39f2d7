"""slt-extract on small videos: the numbers, copies, shared segments, failures, elements, refusals."""

import logging
import shutil

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from extract_helpers import assert_same, contents, run, words, write_checkpoint, write_corpus, write_moving

from slt_plugin.checkpoints.sign_hiera import import_sign_hiera, load_sign_hiera
from slt_plugin.cli import extract
from slt_plugin.data import video
from slt_plugin.data.manifest import Row, read_manifest, resolve_path, write_manifest
from slt_plugin.data.sampling import sliding_windows
from slt_plugin.data.store import FeatureStore, split_path
from slt_plugin.data.transforms import normalise
from slt_plugin.extraction.failures import Failure, read_failures, write_failures
from slt_plugin.modules.hiera import VARIANTS

REAL = ROOT.parent / "shared" / "realdata" / "video_how2sign"
# fp32: the order of sums depends on which windows share a batch; features are between -10 and 10 here
ROUNDING = 3e-5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture(scope="module")
def store(corpus, checkpoint, tmp_path_factory):
    """The whole corpus, one copy, windows one by one."""
    out = tmp_path_factory.mktemp("features") / "train.store"
    assert run(corpus, checkpoint, out) == 0
    return out


def refused(capsys, status: int) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("slt-extract: ")]
    assert status == 1 and len(lines) == 1
    return lines[0]


def direct_features(row: Row, corpus, model) -> np.ndarray:
    """All frames decoded, whole windows with their padding, the encoder's documented interface."""
    clip = video.decode_clip(resolve_path(row, corpus.parent), row.start, row.end, size=64, box=row.box)
    windows = sliding_windows(clip.num_frames, 25.0, num_frames=32, sampling_rate=2, target_fps=25.0, stride=16)
    pixels = torch.stack([normalise(clip.frames[w.indices].permute(0, 3, 1, 2)) for w in windows]).transpose(1, 2)
    with torch.no_grad():
        features, padded = model.extract_features(pixels, torch.tensor([w.padding for w in windows]))
    return features[~padded].numpy()


def test_features_are_those_of_the_windows(corpus, checkpoint, store):
    model = load_sign_hiera(checkpoint).eval()
    features = FeatureStore(store)
    rows = read_manifest(store.with_suffix(".tsv"))
    assert [row.id for row in rows] == ["a", "b", "c", "d", "e", "c-de", "d-begin", "d-end"]
    for row, source in zip(rows, read_manifest(corpus), strict=True):
        folder, key = split_path(store.parent / row.path)
        assert folder == str(store)
        expected = direct_features(source, corpus, model)
        np.testing.assert_allclose(features.read(key), expected, atol=ROUNDING, rtol=0, err_msg=row.id)
        assert row.num_frames == len(expected) and features.dtype == "float32"
    # 131 frames: windows at 0, 32, 64 and 96 of 64, 64, 64 and 35 frames
    assert rows[3].num_frames == 3 * 16 + (32 - 2 * ((32 - 18) // 2)) // 2
    assert np.abs(expected).mean() > 0.1 and expected.std(0).mean() > 0.01  # neither zeros nor all the same


def test_feature_manifest_keeps_what_is_not_of_the_video(corpus, store):
    rows = {row.id: row for row in read_manifest(store.with_suffix(".tsv"))}
    assert rows["d-end"].signer == "s1" and rows["d-end"].text == "end" and rows["c-de"].text_lang == "de"
    assert all((row.start, row.end, row.fps, row.box) == (None,) * 4 for row in rows.values())
    assert rows["c"].path == rows["c-de"].path  # one segment in two languages
    assert len({row.path for row in rows.values()}) == len(FeatureStore(store)) == 7


@pytest.mark.parametrize("options", [{"batch_clips": 5}, {"batch_clips": 3, "num_workers": 2}])
def test_neither_batches_nor_workers_change_the_features(corpus, checkpoint, store, tmp_path, options):
    assert run(corpus, checkpoint, tmp_path / "f.store", **options) == 0
    assert_same(contents(store), contents(tmp_path / "f.store"), ROUNDING)


def test_copies_are_augmented_and_repeatable(corpus, checkpoint, store, tmp_path):
    options = {"epochs": 3, "randaugment_ops": 2}
    assert run(corpus, checkpoint, tmp_path / "1.store", **options) == 0
    assert run(corpus, checkpoint, tmp_path / "2.store", num_workers=2, batch_clips=4, **options) == 0
    found = contents(tmp_path / "1.store")
    assert_same(found, contents(tmp_path / "2.store"), ROUNDING)
    plain = contents(store)
    assert_same({name: features for name, features in found.items() if name[1] == 0}, plain)
    for key, _ in plain:
        first, second, third = (found[key, copy] for copy in range(3))
        assert len(first) == len(second) == len(third)
        for one, other in ((first, second), (first, third), (second, third)):
            assert np.abs(one - other).max() > 100 * ROUNDING
    assert run(corpus, checkpoint, tmp_path / "3.store", seed=2, **options) == 0
    other = contents(tmp_path / "3.store")
    assert all(np.abs(other[key, 1] - found[key, 1]).max() > 100 * ROUNDING for key, _ in plain)


def test_copies_are_added_to_a_store(corpus, checkpoint, tmp_path, caplog, capsys):
    out = tmp_path / "f.store"
    assert run(corpus, checkpoint, out) == 0
    line = refused(capsys, run(corpus, checkpoint, out, epochs=2, merge=True))
    assert "8 of 8 rows (2 copies each) were not extracted yet" in line
    with caplog.at_level(logging.INFO):
        assert run(corpus, checkpoint, out, epochs=2) == 0
    assert "7 features to extract, 7 in the store" in caplog.text
    assert FeatureStore(out).num_copies == 2


def test_elements_and_merge_equal_one_run(corpus, checkpoint, store, tmp_path, capsys):
    out = tmp_path / "parts.store"
    assert run(corpus, checkpoint, out, num_shards=3, shard=2) == 0
    assert not out.with_suffix(".tsv").exists()
    line = refused(capsys, run(corpus, checkpoint, out, num_shards=3, merge=True))
    assert "were not extracted yet: a, b, c" in line and "num_shards=3 shard=0, 1 again" in line
    assert run(corpus, checkpoint, out, num_shards=3, shard=0) == 0
    assert run(corpus, checkpoint, out, num_shards=3, shard=1) == 0
    assert extract.main([f"manifest={corpus}", f"out={out}", "merge=true"]) == 0  # no checkpoint is needed for that
    assert_same(contents(store), contents(out))
    ours, theirs = (read_manifest(folder.with_suffix(".tsv")) for folder in (out, store))
    assert [row.path.replace("parts", "train") for row in ours] == [row.path for row in theirs]
    # elements of another number, or all at once, go on from what is there
    shards = sorted(out.glob("*.safetensors"))
    assert run(corpus, checkpoint, out) == 0
    assert sorted(out.glob("*.safetensors")) == shards


def test_bad_videos_are_listed_and_the_others_kept(checkpoint, store, corpus, tmp_path, capsys, caplog):
    manifest = shutil.copytree(corpus.parent, tmp_path / "corpus") / "train.tsv"
    good = (manifest.parent / "b.mp4").read_bytes()
    (manifest.parent / "b.mp4").write_bytes(good[: len(good) // 3])
    (manifest.parent / "c.mp4").unlink()
    out = tmp_path / "f.store"
    assert run(manifest, checkpoint, out, epochs=2, num_workers=1) == 1
    assert "3 rows failed: b, c, c-de" in capsys.readouterr().err
    failures = {failure.id: failure for failure in read_failures(out / "failed.tsv")}
    assert set(failures) == {"b", "c", "c-de"}
    assert failures["b"].path == "b.mp4" and "frames could be read" in failures["b"].cause
    assert "no such file" in failures["c"].cause.lower() and failures["c-de"].cause == failures["c"].cause
    assert [row.id for row in read_manifest(out.with_suffix(".tsv"))] == ["a", "d", "e", "d-begin", "d-end"]
    (manifest.parent / "b.mp4").write_bytes(good)
    assert run(manifest, checkpoint, out, epochs=2) == 1
    assert [failure.id for failure in read_failures(out / "failed.tsv")] == ["c", "c-de"]
    (manifest.parent / "c.mp4").write_bytes((corpus.parent / "c.mp4").read_bytes())
    assert run(manifest, checkpoint, out, epochs=2) == 0
    assert not (out / "failed.tsv").exists()
    assert [row.id for row in read_manifest(out.with_suffix(".tsv"))] == [row.id for row in read_manifest(manifest)]
    copies = contents(out)
    assert_same(contents(store), {name: features for name, features in copies.items() if name[1] == 0})


def test_failures_of_elements(corpus, checkpoint, store, tmp_path, capsys):
    manifest = shutil.copytree(corpus.parent, tmp_path / "corpus") / "train.tsv"
    (manifest.parent / "a.mp4").rename(tmp_path / "hidden.mp4")
    out = tmp_path / "f.store"
    assert [run(manifest, checkpoint, out, num_shards=2, shard=shard) for shard in (1, 0)] == [0, 1]
    assert [failure.id for failure in read_failures(out / "failed-0of2.tsv")] == ["a"]
    assert run(manifest, checkpoint, out, num_shards=2, merge=True) == 1
    assert "1 rows failed: a" in capsys.readouterr().err
    assert "a" not in [row.id for row in read_manifest(out.with_suffix(".tsv"))]
    (tmp_path / "hidden.mp4").rename(manifest.parent / "a.mp4")
    assert run(manifest, checkpoint, out, num_shards=2, shard=0) == 0
    assert not list(out.glob("failed*"))
    write_failures(out / "failed-3of7.tsv", [Failure("a", "a.mp4", "of an earlier run in seven parts")])
    assert run(manifest, checkpoint, out, num_shards=2, merge=True) == 0
    assert not list(out.glob("failed*"))
    assert_same(contents(store), contents(out))


def test_nothing_but_bad_videos(checkpoint, tmp_path, capsys):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    write_manifest(tmp_path / "m.tsv", [Row("x", "x.mp4")])
    line = refused(capsys, run(tmp_path / "m.tsv", checkpoint, tmp_path / "f.store"))
    assert "no row could be extracted" in line and "failed.tsv" in line


def test_other_options_are_not_mixed(corpus, checkpoint, store, tmp_path, capsys):
    before = sorted(store.iterdir())
    line = refused(capsys, run(corpus, checkpoint, store, stride=8))
    assert "stride: 16 in the store, 8 asked" in line and str(store) in line
    assert "target_fps: 25 in the store, 30 asked" in refused(capsys, run(corpus, checkpoint, store, target_fps=30))
    other = write_checkpoint(tmp_path / "other.pt", seed=1)
    assert "checkpoint_sha256" in refused(capsys, run(corpus, other, store))
    assert "float32 in the store" in refused(capsys, run(corpus, checkpoint, store, store_dtype="fp16"))
    assert sorted(store.iterdir()) == before


def write_pretrained(path, clips: dict):
    """What slt-pretrain saves of an autoencoder, as far as it is read here."""
    torch.manual_seed(0)
    encoder = VARIANTS["tiny_32x64"](num_classes=0).state_dict()
    options = {"clip_frames": 32, "clip_size": 64, **clips}
    model = {f"mae.encoder.{name}": value for name, value in encoder.items()}
    torch.save({"model": model, "task_state": {"clips": options}}, path)
    return path


def test_videos_are_cut_as_in_the_checkpoints_training(corpus, tmp_path, caplog, capsys):
    """What a pretraining says of its clips is taken over; also from the file that slt-import-checkpoint makes of it."""
    trained = {"clip_sampling_rate": 1, "clip_target_fps": 8.0}
    pretrained = write_pretrained(tmp_path / "mae.pt", trained)
    imported = tmp_path / "imported.pt"
    assert import_sign_hiera(pretrained, imported).clips == trained
    for name, file in (("a", pretrained), ("b", imported)):
        assert run(corpus, file, tmp_path / f"{name}.store") == 0
        mark = FeatureStore(tmp_path / f"{name}.store").fingerprint.values
        assert (mark["sampling_rate"], mark["target_fps"]) == (1, 8.0)
    assert "was trained with" not in caplog.text
    given = contents(tmp_path / "a.store")
    assert run(corpus, pretrained, tmp_path / "a.store", sampling_rate=1, target_fps=8) == 0  # the same
    assert "was trained with" not in caplog.text
    capsys.readouterr()
    assert "sampling_rate: 1 in the store, 2 asked" in refused(
        capsys, run(corpus, pretrained, tmp_path / "a.store", sampling_rate=2)
    )
    assert_same(contents(tmp_path / "a.store"), given)


def test_other_sampling_than_the_checkpoints_is_named(corpus, tmp_path, caplog):
    pretrained = write_pretrained(tmp_path / "mae.pt", {"clip_sampling_rate": 1, "clip_target_fps": 8.0})
    assert run(corpus, pretrained, tmp_path / "f.store", sampling_rate=2, target_fps=25) == 0
    warned = [record.getMessage() for record in caplog.records if "was trained with" in record.getMessage()]
    assert [line.split(":")[0] for line in warned] == [
        f"sampling_rate=2, but checkpoint={pretrained} was trained with 1",
        f"target_fps=25, but checkpoint={pretrained} was trained with 8",
    ]
    mark = FeatureStore(tmp_path / "f.store").fingerprint.values
    assert (mark["sampling_rate"], mark["target_fps"]) == (2, 25.0)


def test_a_checkpoint_without_clips_has_the_releases_sampling(store):
    mark = FeatureStore(store).fingerprint.values
    assert (mark["sampling_rate"], mark["target_fps"]) == (2, 25.0)


def test_changed_segments_are_extracted_again(checkpoint, tmp_path):
    """Same row, same path, but other times or another video under the old name."""
    write_moving(tmp_path / "v.mp4", 60, seed=1)
    out = tmp_path / "f.store"

    def path_of(row: Row) -> str:
        out.with_suffix(".tsv").unlink(missing_ok=True)
        write_manifest(tmp_path / "m.tsv", [row])
        assert run(tmp_path / "m.tsv", checkpoint, out) == 0
        return read_manifest(out.with_suffix(".tsv"))[0].path

    first = path_of(Row("x", "v.mp4"))
    assert path_of(Row("renamed", "./v.mp4", "with text", start=0.0)) == first
    later = path_of(Row("x", "v.mp4", start=1.0))
    boxed = path_of(Row("x", "v.mp4", box=(0.0, 0.0, 0.5, 0.5)))
    write_moving(tmp_path / "v.mp4", 60, seed=2)
    replaced = path_of(Row("x", "v.mp4"))
    assert len({first, later, boxed, replaced}) == 4 and len(FeatureStore(out)) == 4


def test_folders_of_frames(checkpoint, tmp_path):
    """A folder has no frame rate of its own: the row's decides which frames are sampled. A file's does not."""
    (tmp_path / "frames").mkdir()
    for number in range(30):
        image = torch.full((3, 48, 64), 8 * number, dtype=torch.uint8)
        torchvision.io.write_png(image, str(tmp_path / "frames" / f"images{number + 1:04d}.png"))
    write_moving(tmp_path / "v.mp4", 30, seed=0)
    rows = [Row(f"{path}{fps}", path, fps=fps, box=(0.0, 0.0, 1.0, 1.0)) for path, fps in
            (("frames", 25.0), ("frames", 50.0), ("v.mp4", 25.0), ("v.mp4", 25.1), ("v.mp4", None))]  # fmt: skip
    write_manifest(tmp_path / "m.tsv", rows)
    assert run(tmp_path / "m.tsv", checkpoint, tmp_path / "f.store") == 0
    found = read_manifest(tmp_path / "f.tsv")
    assert [row.num_frames for row in found] == [8, 4, 8, 8, 8]
    assert [len({row.path for row in found[part]}) for part in (slice(2), slice(2, 5))] == [2, 1]


def test_a_manifest_of_other_rows_is_not_replaced(corpus, checkpoint, store, tmp_path, capsys):
    write_manifest(tmp_path / "other.tsv", [Row("a", str(corpus.parent / "a.mp4"))])
    assert "Name another file with out_manifest" in refused(capsys, run(tmp_path / "other.tsv", checkpoint, store))
    assert len(FeatureStore(store)) == 7  # said before anything is extracted


def test_feature_manifest_elsewhere(corpus, checkpoint, tmp_path):
    write_manifest(tmp_path / "a.tsv", [Row("a", str(corpus.parent / "a.mp4"))])
    out, manifest = tmp_path / "stores" / "f.store", tmp_path / "deep" / "er" / "a.tsv"
    assert run(tmp_path / "a.tsv", checkpoint, out, out_manifest=manifest) == 0
    folder, key = split_path((manifest.parent / read_manifest(manifest)[0].path).resolve())
    assert folder == str(out.resolve()) and key in FeatureStore(out)


def test_smaller_types_are_close(corpus, checkpoint, store, tmp_path):
    assert run(corpus, checkpoint, tmp_path / "f.store", store_dtype="fp16") == 0
    assert_same(contents(store), contents(tmp_path / "f.store"), 1e-6, rtol=2**-11)
    assert run(corpus, checkpoint, tmp_path / "b.store", dtype="bf16") == 0
    exact, rounded = contents(store), contents(tmp_path / "b.store")
    scale = np.sqrt(np.mean([np.square(features).mean() for features in exact.values()]))
    errors = [np.abs(exact[name] - rounded[name]).max() for name in exact]
    assert 1e-5 < max(errors) < 0.1 * scale


def test_large_frames_without_a_box_are_named_once(checkpoint, tmp_path, caplog):
    write_moving(tmp_path / "wide.mp4", 20, seed=0, size=(192, 108))
    rows = [Row("x", "wide.mp4"), Row("y", "wide.mp4", start=0.2), Row("z", "wide.mp4", box=(0.25, 0.0, 0.75, 1.0))]
    write_manifest(tmp_path / "m.tsv", rows)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path / "m.tsv", checkpoint, tmp_path / "f.store", epochs=2) == 0
    warned = [record.getMessage() for record in caplog.records if "192x108" in record.getMessage()]
    assert len(warned) == 1 and warned[0].startswith("2 rows") and warned[0].endswith(": x, y")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 0}, "epochs=0: give a whole number of at least 1"),
        ({"shard": 2, "num_shards": 2}, "numbered 0 to 1"),
        ({"dtype": "bf32"}, "dtype=bf32: give fp32 or bf16 or fp16"),
        ({"store_dtype": "bf16"}, "store_dtype=bf16: give fp32 or fp16"),
        ({"num_frames": 64}, "up to the variant's 32"),
        ({"num_frames": 5}, "even number"),
        ({"variant": "tiny_32x46"}, "did you mean 'tiny_32x64'"),
        ({"device": "cuda:99"}, "device=cuda:99: torch sees"),
        ({"device": "tpu"}, "give cuda"),
        ({"media_root": "/nowhere"}, "media_root=/nowhere is no folder"),
        ({"staging": "$NOT_SET_ANYWHERE"}, "staging=$NOT_SET_ANYWHERE is no folder"),
        ({"checkpoint": "none.pt"}, "none.pt"),
        ({"manifest": "none.tsv"}, "manifest=none.tsv does not exist"),
        ({"out": "features"}, "ends in .store"),
        ({"flip": 2}, "flip=2"),
        ({"target_fps": 0}, "target_fps=0"),
        ({"target_fps": "fast"}, "target_fps=fast: give a number above 0"),
        ({"staging_gb": "null"}, "staging_gb=null"),
        ({"epoch": 3}, "epoch is no option; did you mean 'epochs'? (slt-extract --help"),
        ({"num_workers": "two"}, "num_workers=two"),
    ],
)
def test_refused_before_anything_is_written(corpus, checkpoint, tmp_path, capsys, options, expected):
    given = words(corpus, checkpoint, tmp_path / "f.store", **options)
    assert expected in refused(capsys, extract.main(given))
    assert not list(tmp_path.iterdir())


def test_out_beside_the_manifest_of_videos(corpus, checkpoint, capsys):
    assert "would replace manifest=" in refused(capsys, run(corpus, checkpoint, corpus.with_suffix(".store")))


def test_wrong_media_root_is_said_at_once(corpus, checkpoint, tmp_path, capsys):
    line = refused(capsys, run(corpus, checkpoint, tmp_path / "f.store", media_root=tmp_path))
    assert "none of the 5 media files is there" in line and "media_root" in line


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_real_how2sign_clips(checkpoint, tmp_path, caplog):
    clips = sorted((REAL / "clips").iterdir())
    write_manifest(tmp_path / "m.tsv", [Row(path.stem, str(path)) for path in clips])
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path / "m.tsv", checkpoint, tmp_path / "f.store", num_workers=2) == 0
    rows = read_manifest(tmp_path / "f.tsv")
    assert len(rows) == len(clips) == 30
    assert f"{len(clips)} rows without a box: frames of 1280x720" in caplog.text
    store = FeatureStore(tmp_path / "f.store")
    for row, path in zip(rows, clips, strict=True):
        info = video.probe(path)
        windows = sliding_windows(info.num_frames, info.fps, num_frames=32, sampling_rate=2, target_fps=25.0, stride=16)
        assert row.num_frames == sum(window.kept_frames for window in windows) // 2
        assert np.isfinite(store.read(row.path.split("/")[-1])).all()
