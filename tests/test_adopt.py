"""slt-manifest adopt-features: folders of SSVP-SLT and Tarrés et al. into stores."""

import numpy as np
import pytest
import torch

from slt_plugin.cli.adopt_features import parse_fingerprint
from slt_plugin.cli.manifest import main
from slt_plugin.data.adopt import key_of
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row, read_manifest, write_manifest
from slt_plugin.data.sources import FeatureSource
from slt_plugin.data.store import FeatureStore

STATED = ["checkpoint=dm70h", "variant=base_128x224", "fps=25", "stride=64", "crop=signer"]


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def adopt(capsys, folder, *options, name="train", stated=STATED):
    output = folder / f"{name}_store.tsv"
    words = ("adopt-features", folder / f"{name}.tsv", output, "--store", folder / "f.store", *options)
    return *run(capsys, *words, "--fingerprint", *stated)[:2], output


@pytest.fixture
def ssvp(tmp_path, capsys):
    """Twelve clips in copies 0, 1 and 10, the n-th of n + 1 steps, the first of one window (C,); converted manifest."""
    lines = []
    for clip in range(12):
        name = f"clip{clip:02d}xyz"
        for epoch in (0, 1, 10):
            file = tmp_path / "features" / str(epoch) / name[:5] / f"{name}.pt"
            file.parent.mkdir(parents=True, exist_ok=True)
            array = torch.full((clip + 1, 4), float(100 * epoch + clip))
            torch.save(array[0] if clip == 0 else array, file)
        lines.append(f"{name}.mp4\t{clip + 1}\tsentence {clip}\n")
    (tmp_path / "theirs.tsv").write_text("".join(lines))
    assert main(["convert", "--from", "ssvp", "--media-suffix", ".pt", *map(str, both(tmp_path))]) == 0
    capsys.readouterr()
    return tmp_path


def both(folder):
    return folder / "theirs.tsv", folder / "train.tsv"


def test_ssvp_slt_with_all_copies(ssvp, capsys):
    status, out, output = adopt(capsys, ssvp)
    assert status == 0
    assert out == f"{ssvp / 'f.store'}: 36 feature arrays stored now, 36 in all\n{output}: 12 rows\n"
    rows, before = read_manifest(output), read_manifest(ssvp / "train.tsv")
    assert [row.path for row in rows] == [f"f.store/features/clip{c // 10}/clip{c:02d}xyz" for c in range(12)]
    assert [(row.id, row.text, row.num_frames) for row in rows] == [(r.id, r.text, r.num_frames) for r in before]
    old, new = (FeatureSource(ssvp, channels=4) for _ in range(2))
    rng = np.random.default_rng(0)
    for row_before, row in zip(before, rows, strict=True):
        for epoch in range(1, 5):
            assert torch.equal(new.load(row, epoch=epoch, rng=rng), old.load(row_before, epoch=epoch, rng=rng))
        assert torch.equal(new.load(row), old.load(row_before))
    assert new.fingerprint(rows).values == {
        "checkpoint": "dm70h", "crop": "signer", "fps": 25, "stride": 64, "variant": "base_128x224",
    }  # fmt: skip
    assert run(capsys, "check", output)[0] == 0


def test_tarres_npy(tmp_path, capsys):
    """Two languages of one file, a file outside the manifest's folder, float16, no lengths in the manifest."""
    (tmp_path / "data" / "val").mkdir(parents=True)
    np.save(tmp_path / "data" / "val" / "a.b.npy", np.arange(20, dtype=np.float64).reshape(5, 4))
    np.save(tmp_path / "z.npy", np.ones((3, 4), dtype=np.float16))
    rows = [
        Row("en", "val/a.b.npy", "one"),
        Row("es", "./val/a.b.npy", "uno"),
        Row("part", "val/a.b.npy", "part", start=1.0, end=3.0, fps=1.0),
        Row("far", str(tmp_path / "z.npy"), "far"),
    ]
    write_manifest(tmp_path / "data" / "train.tsv", rows)
    stated = [*STATED[:2], "stride=1", "fps=25.0", "crop=full"]
    status, out, output = adopt(capsys, tmp_path / "data", "--dtype", "float16", "--workers", 1, stated=stated)
    assert status == 0 and "2 feature arrays stored now" in out
    new = read_manifest(output)
    assert [row.path for row in new[:3]] == ["f.store/val/a.b"] * 3
    assert new[3].path == "f.store" + str(tmp_path / "z")
    assert [row.num_frames for row in new] == [5, 5, 2, 3]
    source = FeatureSource(tmp_path / "data", channels=4)
    np.testing.assert_array_equal(source.load(new[1]), np.arange(20).reshape(5, 4))
    np.testing.assert_array_equal(source.load(new[2]), np.arange(4, 12).reshape(2, 4))
    assert FeatureStore(tmp_path / "data" / "f.store").dtype == "float16"


def test_every_row_that_cannot_be_used_is_listed(ssvp, capsys):
    features = ssvp / "features"
    (features / "1" / "clip0" / "clip03xyz.pt").unlink()
    (features / "0" / "clip0" / "clip04xyz.pt").write_bytes(b"half")
    (features / "10" / "clip0" / "clip04xyz.pt").write_bytes(b"half")
    torch.save(torch.full((6, 4), torch.nan), features / "0" / "clip0" / "clip05xyz.pt")
    torch.save(torch.ones(7, 5), features / "10" / "clip0" / "clip06xyz.pt")
    torch.save(torch.ones(9, 4), features / "1" / "clip0" / "clip07xyz.pt")
    torch.save(torch.ones(0, 4), features / "1" / "clip0" / "clip08xyz.pt")
    status, out, output = adopt(capsys, ssvp)
    assert status == 1 and not output.exists()
    lines = out.splitlines()
    said = ["clip03xyz.pt: no such file", "clip04xyz.pt: not a complete .pt file", "NaN or infinite values in 6 steps"]
    said += ["5 channels, but the store's features have 4", "(copy 1): num_frames is 8, but 9", "array of shape (0, 4)"]
    for clip, (line, cause) in enumerate(zip(lines, said, strict=False), start=3):
        assert line.startswith(f"{ssvp / 'train.tsv'}: row 'clip{clip:02d}xyz': ") and cause in line
    assert lines[1].endswith("(and 1 more of its copies)")
    assert lines[-2].endswith("f.store: 30 feature arrays stored now, 30 in all")
    assert lines[-1].startswith(f"{output}: not written: 6 of 12 rows failed (clip03xyz, ") and len(lines) == 8
    status, out, output = adopt(capsys, ssvp, "--allow-failed")
    assert status == 1 and len(out.splitlines()) == 8
    assert [row.id for row in read_manifest(output)] == [f"clip{clip:02d}xyz" for clip in (0, 1, 2, 9, 10, 11)]
    assert run(capsys, "check", output)[0] == 0


def test_resuming_reads_only_what_is_missing(ssvp, capsys):
    repaired = ssvp / "features" / "1" / "clip0" / "clip03xyz.pt"
    content = repaired.read_bytes()
    repaired.write_bytes(b"")
    assert adopt(capsys, ssvp)[0] == 1
    for file in (ssvp / "features").rglob("*.pt"):
        file.write_bytes(b"not read again")
    repaired.write_bytes(content)
    status, out, output = adopt(capsys, ssvp)
    assert status == 0 and "1 feature arrays stored now, 36 in all" in out
    assert (
        FeatureSource(ssvp, channels=4).load(read_manifest(output)[3], epoch=2, rng=np.random.default_rng(0)) == 103
    ).all()


def test_two_manifests_share_a_store_only_where_their_files_cannot_be_confused(ssvp, capsys):
    write_manifest(ssvp / "valid.tsv", read_manifest(ssvp / "train.tsv")[:3])
    assert adopt(capsys, ssvp)[0] == 0
    status, out, _ = adopt(capsys, ssvp, name="valid")
    assert status == 0 and "0 feature arrays stored now, 36 in all" in out
    (ssvp / "elsewhere").mkdir()
    status, out, err = run(
        capsys, "adopt-features", ssvp / "train.tsv", ssvp / "x.tsv", "--store", ssvp / "f.store", "--media-root",
        ssvp / "elsewhere", "--fingerprint", *STATED,
    )  # fmt: skip
    assert status == 1 and f"another origin: {ssvp} in the store, {ssvp / 'elsewhere'} asked" in err


def test_another_fingerprint_is_refused(ssvp, capsys):
    assert adopt(capsys, ssvp)[0] == 0
    stated = [word.replace("stride=64", "stride=32") for word in STATED]
    words = ("adopt-features", ssvp / "train.tsv", ssvp / "x.tsv", "--store", ssvp / "f.store")
    status, _, err = run(capsys, *words, "--fingerprint", *stated)
    assert status == 1 and "stride: 64 in the store, 32 asked" in err
    assert not (ssvp / "x.tsv").exists()


def test_rows_that_are_no_plain_features(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    torch.save(torch.ones(3, 4), tmp_path / "a.pt")
    rows = [Row("good", "a.npy"), Row("key", "a.pt"), Row("stored", "g.store/a"), Row("video", "v.mp4")]
    write_manifest(tmp_path / "train.tsv", rows)
    status, out, _ = adopt(capsys, tmp_path)
    assert status == 1
    assert "row 'key': " in out and "would share the key 'a' with" in out
    assert "row 'stored': " in out and "is in a store already" in out
    assert "row 'video': " in out and ".mp4 is not a supported kind of features" in out


def test_nothing_that_can_be_used(tmp_path, capsys):
    write_manifest(tmp_path / "train.tsv", [Row("a", "a.npy")])
    status, out, output = adopt(capsys, tmp_path, "--allow-failed")
    assert status == 1 and not output.exists()
    assert out.splitlines()[-1].endswith("1 of 1 rows failed (a); correct them and run this again")


def test_keys_of_files():
    assert key_of("/d/features/{epoch}/abcde/abcdef.pt", "/d") == "features/abcde/abcdef"
    assert key_of("/d/a b.npy", "/d") == "a b"
    assert key_of("/elsewhere/a.npy", "/d") == "elsewhere/a"
    assert key_of("/d/x.store.d/a.npy", "/d") == "x.store.d/a"


def test_the_stated_fingerprint():
    values = parse_fingerprint(
        ["checkpoint=12", "variant=i3d", "fps=29.97", "stride=unknown", "crop=full", "flip=true"]
    )
    assert values == {
        "checkpoint": "12", "variant": "i3d", "fps": 29.97, "stride": "unknown", "crop": "full", "flip": True,
    }  # fmt: skip
    for words, said in (
        (["checkpoint"], "write NAME=VALUE"),
        (["fps="], "write NAME=VALUE"),
        ([*STATED, "fps=25"], "fps is given twice"),
        ([*STATED[:3], "strides=64", "crop=x"], r"lacks stride \(frames from .*\); did you mean 'strides'"),
        (STATED[:3], r"lacks stride \(.*\); crop \(.*write NAME=unknown"),
    ):
        with pytest.raises(DataError, match=said):
            parse_fingerprint(words)


def test_usage(ssvp, capsys):
    words = ("adopt-features", ssvp / "train.tsv")
    rest = ("--store", ssvp / "f.store", "--fingerprint", *STATED)
    with pytest.raises(SystemExit):
        run(capsys, *words, ssvp / "train.tsv", *rest)
    with pytest.raises(SystemExit):
        run(capsys, *words, ssvp / "out.tsv", "--workers", 0, *rest)
    for arguments in ((ssvp / "no" / "out.tsv", *rest), (ssvp / "out.tsv", "--media-root", ssvp / "no", *rest)):
        status, _, err = run(capsys, *words, *arguments)
        assert status == 1 and str(ssvp / "no") in err
    status, _, err = run(capsys, *words, ssvp / "out.tsv", "--store", ssvp / "f", "--fingerprint", *STATED)
    assert status == 1 and "named <name>.store" in err
    assert not (ssvp / "f.store").exists()
