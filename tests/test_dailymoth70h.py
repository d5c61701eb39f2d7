"""manifests/dailymoth70h*.py: the archives, what is dropped and why, and the manifests."""

import csv
import fcntl
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest
from http_helpers import serve
from video_helpers import write_video

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "manifests"))

import dailymoth70h  # noqa: E402
import dailymoth70h_archives as archives  # noqa: E402

from slt_plugin.data.manifest import read_manifest  # noqa: E402
from slt_plugin.data.video import probe  # noqa: E402

# name, seconds in the table, caption, frames of the clip (None: no clip, 0: no video)
CLIPS = [
    ("0000001-2023.1.4.mp4", "0.8", "A major concern is landslides.", 20),
    ("0000002-2023.1.4.mp4", "1.2", 'He said "so", and left.', 30),
    ("0001003-2023.1.5.mp4", "1.0", "", 25),
    ("0001004-2023.1.5.mp4", "1.0", "It is gone.", None),
    ("0001005-2023.1.5.mp4", "1.0", "It is damaged.", 0),
    ("0000001-2023.1.4.mp4", "0.8", "Said twice.", 20),
]
TABLES = {"train.tsv": CLIPS, "val.tsv": CLIPS[:1], "test.tsv": CLIPS[:2]}


def table(clips) -> bytes:
    return "".join(f"{name}\t{seconds}\t{text}\n" for name, seconds, text, _ in clips).encode()


def tar(members: dict[str, bytes] | list[tarfile.TarInfo]) -> bytes:
    """A .tar.gz of files, or of members without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        if isinstance(members, list):
            for member in members:
                file.addfile(member)
            return _closed(file, out)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _closed(file: tarfile.TarFile, out: io.BytesIO) -> bytes:
    file.close()
    return out.getvalue()


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, bytes]:
    """The archives of a small corpus."""
    folder = tmp_path_factory.mktemp("clips")
    clips = {}
    for name, _, _, frames in CLIPS:
        if frames is not None:
            data = write_video(folder / name, frames, size=(224, 224)).read_bytes() if frames else b""
            clips[f"videos/{name[:5]}/{name}"] = data
    return {
        "manifests": tar({f"dailymoth-70h/manifests/{name}": table(rows) for name, rows in TABLES.items()}),
        "unblurred_clips": tar({f"dailymoth-70h/unblurred_clips/{name}": data for name, data in clips.items()}),
        "blurred_clips": tar({f"blurred_clips/{name}": data for name, data in clips.items()}),  # without the folder
        "raw_videos": tar({"dailymoth-70h/raw_videos/2023.1.4.mp4": b"video"}),
    }


@pytest.fixture
def server(content, monkeypatch):
    with serve({f"/dailymoth-70h/{name}.tar.gz": data for name, data in content.items()}) as server:
        for name, data in content.items():
            monkeypatch.setitem(archives.MD5, name, hashlib.md5(data).hexdigest())
        yield server


def run(*words: object) -> int:
    return dailymoth70h.main(["--workers", "0", *map(str, words)])


def download(server, corpus: Path, *words: object) -> int:
    return run("--corpus", corpus, "--mirror", f"{server.url}/", "--download", *words)


@pytest.fixture
def corpus(content, tmp_path) -> Path:
    """The extracted corpus."""
    for name in ("manifests", "unblurred_clips"):
        with tarfile.open(fileobj=io.BytesIO(content[name])) as file:
            file.extractall(tmp_path, filter="data")
    return tmp_path / "dailymoth-70h"


def notes(path: Path) -> list[tuple[str, ...]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [
            (n["line"], n["id"], n["action"], n["cause"])
            for n in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def published(name: str) -> str:
    return {
        "raw_videos": "875ffe4eeac3a37e50b4202c2b4996d2",
        "blurred_clips": "a2819c7b06a8b38eb7686e4dc90a7433",
        "unblurred_clips": "3e69046f6cf415cec89c3544d0523325",
        "manifests": "69e500cc5cfad3133c4b589428865472",
    }[name]


# ---- manifests ----


def test_manifests_of_the_three_splits(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--corpus", corpus, "--out", out) == 0
    rows = {split: read_manifest(out / f"{split}.tsv", require_text=True) for split in ("train", "valid", "test")}
    assert [(r.id, r.text, r.num_frames, r.fps) for r in rows["test"]] == [
        ("0000001-2023.1.4", "A major concern is landslides.", 20, 25.0),
        ("0000002-2023.1.4", 'He said "so", and left.', 30, 25.0),
    ]
    assert len(rows["valid"]) == 1
    for row in (row for split in rows.values() for row in split):
        assert (row.start, row.end, row.box, row.signer) == (None, None, None, None)  # the clip is the row
        assert (row.sign_lang, row.text_lang, row.corpus) == ("ase", "en", "dailymoth70h")
        assert Path(row.path) == corpus / "unblurred_clips/videos" / row.id[:5] / Path(row.path).name
        info = probe(row.path)
        assert (info.num_frames, info.width, info.height) == (row.num_frames, 224, 224)
    assert f"{out / 'test.tsv'}: 2 rows, 0.00 h" in capsys.readouterr().out


def test_everything_dropped_is_counted_and_listed(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--corpus", corpus, "--out", out, "--split", "train") == 0
    assert notes(out / "train.dropped.txt") == [
        ("3", "0001003-2023.1.5", "dropped", "no text"),
        ("4", "0001004-2023.1.5", "dropped", "clip missing"),
        ("5", "0001005-2023.1.5", "dropped", "clip cannot be used"),
        ("6", "0000001-2023.1.4-2", "kept", "name is there twice; new id"),
    ]
    rows = read_manifest(out / "train.tsv")
    assert [(r.id, r.text) for r in rows][-1] == ("0000001-2023.1.4-2", "Said twice.")
    assert len(rows) == 3 and rows[-1].path == rows[0].path
    output = capsys.readouterr().out
    assert "dropped       1  clip missing" in output and "dropped       1  no text" in output
    assert not (out / "test.tsv").exists()


def test_a_table_of_unusable_lines_is_refused_as_a_whole(corpus, tmp_path, capsys):
    (corpus / "manifests/test.tsv").write_text("a.mp4\t1.0\tText.\nb.mp4\tlong\tText.\n\nc.mp4\n")
    assert run("--corpus", corpus, "--out", tmp_path / "out", "--split", "test") == 1
    message = capsys.readouterr().err
    assert "test.tsv: 3 problems" in message and "line 2, column duration: 'long' is not a number" in message
    assert not (tmp_path / "out").exists()


def test_without_the_clips_nothing_is_checked_and_it_says_so(corpus, tmp_path, capsys, caplog):
    assert run("--corpus", corpus, "--out", tmp_path / "out", "--split", "train", "--clips", "blurred") == 0
    rows = read_manifest(tmp_path / "out/train.tsv")
    assert len(rows) == 5
    assert rows[3].path == str(corpus / "blurred_clips/videos/00010/0001005-2023.1.5.mp4")
    assert {(r.num_frames, r.fps, r.end) for r in rows} == {(None, None, None)}
    assert "blurred_clips/videos is not a folder" in caplog.text and "nothing was checked" in caplog.text
    assert notes(tmp_path / "out/train.dropped.txt")[0] == ("3", "0001003-2023.1.5", "dropped", "no text")
    assert "5 rows\n" in capsys.readouterr().out


def test_where_things_are(corpus, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (corpus / "unblurred_clips/videos").rename(elsewhere)
    (corpus / "manifests/test.tsv").rename(tmp_path / "mine.tsv")
    words = ("--corpus", corpus, "--out", tmp_path / "out")
    assert run(*words, "--split", "test") == 1
    message = capsys.readouterr().err
    assert "manifests/test.tsv is missing" in message and "has train.tsv, val.tsv)" in message
    moved = ("--test", tmp_path / "mine.tsv", "--media-folder", elsewhere, "--media-root", elsewhere)
    assert run(*words, *moved) == 0  # the split with a file only
    assert [row.path for row in read_manifest(tmp_path / "out/test.tsv")] == [
        "00000/0000001-2023.1.4.mp4",
        "00000/0000002-2023.1.4.mp4",
    ]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["test.dropped.txt", "test.tsv"]
    assert run(*words, *moved) == 1
    assert "test.tsv exists: add --overwrite" in capsys.readouterr().err
    assert run(*words, *moved, "--overwrite") == 0
    assert run(*words, "--split", "train", "--media-folder", elsewhere / "00000") == 1
    assert "none of the 6 clips is below" in capsys.readouterr().err
    assert run(*words, "--split", "train", "--media-folder", tmp_path / "no") == 1
    assert "is not a folder" in capsys.readouterr().err


def test_a_split_without_rows_is_an_error(corpus, tmp_path, capsys):
    (corpus / "manifests/test.tsv").write_bytes(table(CLIPS[2:4]))
    (corpus / "unblurred_clips/videos/00010/0001004-2023.1.5.mp4").write_bytes(b"")
    assert run("--corpus", corpus, "--out", tmp_path / "out", "--split", "test") == 1
    assert "test.tsv: 0 rows, 0.00 h, not written" in capsys.readouterr().out
    assert not (tmp_path / "out/test.tsv").exists()


def test_usage(tmp_path, capsys):
    for words, message in (
        ((), "give --out DIR for manifests, --download for the corpus"),
        (("--download", "clips"), "invalid choice: 'clips'"),
        (("--out", tmp_path, "--md5", "clips=0"), "'clips=0': give manifests|unblurred_clips"),
        (("--out", tmp_path, "--mirror", "ftp://x"), "'ftp://x' is not an http or https URL"),
    ):
        with pytest.raises(SystemExit):
            run("--corpus", tmp_path, *words)
        assert message in capsys.readouterr().err


# ---- archives ----


def test_download_and_build_in_one_command(server, tmp_path, capsys):
    corpus, out = tmp_path / "dm", tmp_path / "out"
    assert download(server, corpus, "--out", out) == 0
    assert sorted(path.name for path in corpus.iterdir()) == ["archives", "manifests", "unblurred_clips"]
    assert [len(read_manifest(out / f"{split}.tsv")) for split in ("train", "valid", "test")] == [3, 1, 2]
    output = capsys.readouterr().out
    assert f"{corpus / 'manifests'}: 3 files of {corpus / 'archives/manifests.tar.gz'}" in output
    server.log.clear()
    for archive in (corpus / "archives").iterdir():
        archive.unlink()  # may be deleted
    assert download(server, corpus) == 0
    assert "there already" in capsys.readouterr().out
    assert server.log == []


def test_named_archives_and_both_layouts(server, tmp_path):
    assert download(server, tmp_path, "raw_videos", "blurred_clips") == 0
    assert (tmp_path / "raw_videos/2023.1.4.mp4").read_bytes() == b"video"
    assert (tmp_path / "blurred_clips/videos/00000/0000001-2023.1.4.mp4").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "blurred_clips", "raw_videos"]


def test_the_published_sums():
    assert {name: published(name) for name in archives.MD5} == archives.MD5


def test_another_md5_is_refused(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(archives.MD5, "manifests", published("manifests"))
    assert download(server, tmp_path, "manifests") == 1
    found = hashlib.md5(server.files["/dailymoth-70h/manifests.tar.gz"]).hexdigest()
    assert f"its md5 is {found}, expected 69e500cc5cfad3133c4b589428865472" in capsys.readouterr().err
    assert list((tmp_path / "archives").iterdir()) == []
    assert not (tmp_path / "manifests").exists()
    assert download(server, tmp_path, "manifests", "--md5", f"manifests={found}") == 0  # a mirror's own


def test_a_broken_download_goes_on(server, tmp_path, capsys):
    server.faults = [{"end": 1000}, {"status": 503}]
    assert download(server, tmp_path, "unblurred_clips") == 0
    assert [entry[1] for entry in server.log] == [None, "bytes=1000-", "bytes=1000-"]
    server.files.clear()
    assert download(server, tmp_path, "raw_videos") == 1
    assert "HTTP 403 Forbidden: the server has no such file, or no longer. The addresses are" in capsys.readouterr().err


def test_an_interrupted_extraction_is_repeated(server, tmp_path, monkeypatch):
    real, files = tarfile.TarFile.extract, []

    def stop(self, member, *args, **kwargs):
        if len(files) == 2:
            raise KeyboardInterrupt
        files.append(member.name)
        return real(self, member, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", stop)
        assert download(server, tmp_path, "manifests") == 130
    assert not (tmp_path / "manifests").exists()
    # and after kill -9, which cannot tidy up
    left = tmp_path / ".manifests.extracting/dailymoth-70h/manifests"
    left.mkdir(parents=True)
    (left / "train.tsv").write_text("half")
    (left / "old.tsv").write_text("old")
    server.log.clear()
    assert download(server, tmp_path, "manifests") == 0
    assert server.log == []  # the archive was there
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == ["test.tsv", "train.tsv", "val.tsv"]
    assert (tmp_path / "manifests/train.tsv").read_bytes() == table(CLIPS)
    assert not (tmp_path / ".manifests.extracting").exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (tar({"dailymoth-70h/manifests/a.tsv": b"a", "../out.tsv": b"x"}), "'../out.tsv' would be extracted to"),
        (tar([link("dailymoth-70h/manifests/a", "/etc/passwd")]), "absolute path"),
        (tar([link("dailymoth-70h/manifests/a", "../../../x")]), "outside the destination"),
        (
            tar({"dailymoth-70h/tables/a.tsv": b"a"}),
            "no folder dailymoth-70h/manifests, but dailymoth-70h/tables",
        ),
        (tar({"dailymoth-70h/manifests/a.tsv": bytes(range(256)) * 999})[:-40], "cannot be unpacked"),
        (b"no archive", "cannot be unpacked"),
    ],
)
def test_archives_that_are_refused(tmp_path, capsys, archive, message):
    corpus = tmp_path / "a" / "corpus"
    with serve({"/dailymoth-70h/manifests.tar.gz": archive}) as server:
        given = f"manifests={hashlib.md5(archive).hexdigest()}"
        assert download(server, corpus, "manifests", "--md5", given) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in corpus.iterdir()] == ["archives"]
    assert list(tmp_path.rglob("out.tsv")) == []


def test_a_full_disk_and_another_process(server, tmp_path, capsys, monkeypatch):
    assert download(server, tmp_path, "manifests") == 0
    archive = tmp_path / "archives/manifests.tar.gz"
    with open(archive, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(archives.ArchiveError, match="another process is unpacking it"):
            archives.extract(archive, tmp_path / "again")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(archives.ArchiveError, match="and unpacks to more, 10 are free"):
        archives.extract(archive, tmp_path / "again")
