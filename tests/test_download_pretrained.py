"""The download script against a server on this machine: resuming, lengths, refusals, and what lies beside the file."""

import fcntl
import hashlib
import json
import socket
import sys
from pathlib import Path

import pytest
from hiera_files import hiera_mae, save, tiny_hiera
from http_helpers import serve

from slt_plugin.checkpoints.provenance import read_sidecar
from slt_plugin.checkpoints.releases import RELEASES
from slt_plugin.checkpoints.sign_hiera import describe, import_sign_hiera

SCRIPT = Path(__file__).parents[1] / "scripts/download_pretrained.py"
sys.path.insert(0, str(SCRIPT.parent))
import download_pretrained  # noqa: E402

CONTENT = bytes(range(256)) * 12_000  # 3 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "mae_hiera_base_16x224.pth"


@pytest.fixture
def server():
    with serve({f"/hiera/{NAME}": CONTENT}) as server:
        yield server


def run(server, folder, *words, model="hiera_mae_k400") -> int:
    return download_pretrained.main(["--model", model, "--out", str(folder), "--mirror", server.url, *words])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_download_and_its_record(server, tmp_path, capsys):
    assert run(server, tmp_path / "new") == 0
    target = tmp_path / "new" / NAME
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == {NAME, f"{NAME}.provenance.json"}  # nothing unfinished is left
    provenance = read_sidecar(target)
    assert (provenance.source, provenance.sha256) == (f"{server.url}/hiera/{NAME}", DIGEST)
    assert provenance.licence == "CC BY-NC 4.0"
    assert provenance.notes == (
        "licence: LICENSE.models of facebookresearch/hiera",
        "release hiera_mae_k400: 3072000 bytes, last modified Sun, 29 Dec 2024 10:00:00 GMT",
    )
    assert f"3,072,000 bytes, sha256 {DIGEST}, licence CC BY-NC 4.0" in capsys.readouterr().out
    assert [entry[0] for entry in server.log] == ["GET"]


def test_a_broken_connection_goes_on_where_it_stopped(server, tmp_path, capsys):
    server.faults = [{"end": 1_000_000}, {"status": 503}, {"end": 2_000_000}]
    assert run(server, tmp_path) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    later = ("bytes=1000000-", '"one"'), ("bytes=1000000-", '"one"'), ("bytes=2000000-", '"one"')
    assert [entry[1:] for entry in server.log] == [(None, None), *later]
    assert "the connection ended after 1,000,000 of 3,072,000 bytes" in capsys.readouterr().err


def unfinished(server, tmp_path, capsys) -> str:
    """A run that gives up with 500,000 bytes; its message."""
    server.faults = [{"end": 500_000}, *[{"status": 503}] * 3]
    assert run(server, tmp_path) == 1
    assert not (tmp_path / NAME).exists()
    assert (tmp_path / f"{NAME}.part").stat().st_size == 500_000
    return capsys.readouterr().err


def test_the_next_run_goes_on(server, tmp_path, capsys):
    assert "HTTP 503, 4 times without progress. 500,000 bytes are in " in unfinished(server, tmp_path, capsys)
    server.log.clear()
    assert run(server, tmp_path) == 0
    assert [entry[1] for entry in server.log] == ["bytes=500000-"]
    assert read_sidecar(tmp_path / NAME).sha256 == hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest() == DIGEST


@pytest.mark.parametrize("change", ["new file", "no ranges", "no record", "other mirror"])
def test_where_going_on_is_impossible_it_begins_again(server, tmp_path, capsys, change):
    unfinished(server, tmp_path, capsys)
    if change == "new file":
        server.files[f"/hiera/{NAME}"], server.etag = CONTENT[::-1], '"two"'
    elif change == "no ranges":
        server.ranges = False
    elif change == "no record":
        (tmp_path / f"{NAME}.part.json").unlink()
    else:
        server.files[f"/mirror/hiera/{NAME}"] = CONTENT[::-1]
        server.url += "/mirror"
    assert run(server, tmp_path) == 0
    reversed_content = change in ("new file", "other mirror")
    assert (tmp_path / NAME).read_bytes() == (CONTENT[::-1] if reversed_content else CONTENT)
    assert names(tmp_path) == {NAME, f"{NAME}.provenance.json"}


def test_a_killed_rename(server, tmp_path, capsys):
    """All bytes were there, the process died before it could rename them."""
    unfinished(server, tmp_path, capsys)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert run(server, tmp_path) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    unfinished(server, tmp_path / "b", capsys)
    (tmp_path / "b" / f"{NAME}.part").write_bytes(CONTENT + b"more")  # longer than the server's
    assert run(server, tmp_path / "b") == 0
    assert (tmp_path / "b" / NAME).read_bytes() == CONTENT


def test_too_few_bytes_are_never_taken_for_the_file(server, tmp_path, capsys):
    server.files[f"/hiera/{NAME}"] = CONTENT[:1000]
    server.faults = [{"lie": 24}] * 10
    server.ranges = False
    assert run(server, tmp_path) == 1
    assert "the connection ended after 1,000 of 1,024 bytes" in capsys.readouterr().err
    assert not (tmp_path / NAME).exists()


def test_a_server_that_tells_no_length(server, tmp_path):
    server.faults = [{"length": False}]
    assert run(server, tmp_path) == 0
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert read_sidecar(tmp_path / NAME).notes[-1].endswith("; the server did not tell the length")


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_explains_what_there_is_instead(server, tmp_path, capsys, status):
    server.files, server.refuse = {}, status
    assert run(server, tmp_path) == 1
    message = capsys.readouterr().err
    assert f"/hiera/{NAME}: HTTP {status} " in message
    assert "CLIP weights for How2Sign and YouTube-ASL were never released" in message
    assert "Use sonar_signhiera" in message
    assert len(server.log) == 1  # asking again would not help
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["how2sign_base", "base_clip", "ssvp_large", "H2S-clip"])
def test_names_of_weights_that_were_never_released(server, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as stop:
        run(server, tmp_path, model=name)
    assert stop.value.code == 2
    assert f"--model {name}: SSVP-SLT's base, large and CLIP weights" in capsys.readouterr().err
    assert server.log == []


def test_other_unknown_names(server, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(server, tmp_path, model="sonar_signhera")
    assert "did you mean 'sonar_signhiera'?; choose from sonar_signhiera, sonar_encoder" in capsys.readouterr().err


def test_a_login_page_is_no_checkpoint(server, tmp_path, capsys):
    server.faults = [{"type": "text/html; charset=utf-8"}]
    assert run(server, tmp_path) == 1
    assert "a web page came instead of the file" in capsys.readouterr().err
    assert names(tmp_path) == set()


def test_nobody_there(server, tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert run(server, tmp_path) == 1
        assert download_pretrained.main(["--list", "--mirror", server.url]) == 0
    output = capsys.readouterr()
    assert "2 times without progress" in output.err
    assert "size unknown: the server cannot be reached" in output.out


def test_a_complete_file_is_checked_and_kept(server, tmp_path, capsys):
    assert run(server, tmp_path) == 0
    server.log.clear()
    assert run(server, tmp_path) == 0
    assert "there already, sha256" in capsys.readouterr().out
    assert server.log == []
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"x")
    assert run(server, tmp_path) == 1
    assert "its sha256 differs. Remove it first" in capsys.readouterr().err


def test_a_file_from_elsewhere_is_compared_with_the_server(server, tmp_path, capsys):
    (tmp_path / NAME).write_bytes(CONTENT[:-1])
    assert run(server, tmp_path) == 1
    assert "has 3,071,999 bytes, the server's file 3072000: remove it" in capsys.readouterr().err
    (tmp_path / NAME).write_bytes(CONTENT)
    assert run(server, tmp_path) == 0
    assert read_sidecar(tmp_path / NAME).notes[-1].endswith("only its length was compared")
    assert {entry[0] for entry in server.log} == {"HEAD"}


def test_two_downloads_of_one_file(server, tmp_path, capsys):
    with open(tmp_path / f"{NAME}.part", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(server, tmp_path) == 1
    assert "another process is downloading it" in capsys.readouterr().err


def test_a_full_disk(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3_000_000}))
    assert run(server, tmp_path) == 1
    assert "3,072,000 bytes are needed, 3,000,000 are free" in capsys.readouterr().err


def test_the_list(server, tmp_path, capsys):
    assert download_pretrained.main(["--list", "--mirror", server.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"    {server.url}/hiera/{NAME} (3.1 MB)" in lines
    assert f"    {server.url}/SONAR/asl/dm_70h_ub_signhiera.pth (not available: HTTP 403)" in lines
    for name in ("sonar_signhiera", "sonar_encoder", "sonar_decoder", "sonar_text_encoder", "hiera_mae_k400"):
        assert any(line.startswith(f"{name}: ") for line in lines)
    assert sum(line.startswith("    licence CC BY-NC 4.0") for line in lines) == len(RELEASES)


def test_a_release_of_several_files(server, tmp_path):
    server.files = {f"/{path}": path.encode() for path in RELEASES["sonar_decoder"].files}
    assert run(server, tmp_path, model="sonar_decoder") == 0
    assert (tmp_path / "sentencepiece.source.256000.model").read_bytes() == b"SONAR/sentencepiece.source.256000.model"
    assert json.loads((tmp_path / "sonar_text_decoder.pt.provenance.json").read_text())["licence"] == "CC BY-NC 4.0"


def test_what_was_downloaded_is_imported_with_its_origin(server, tmp_path):
    content = save(hiera_mae(tiny_hiera()), tmp_path / "theirs.pth").read_bytes()
    server.files = {f"/hiera/{NAME}": content}
    assert run(server, tmp_path) == 0
    provenance = import_sign_hiera(tmp_path / NAME, tmp_path / "ours.pt").provenance
    assert (provenance.source, provenance.licence) == (f"{server.url}/hiera/{NAME}", "CC BY-NC 4.0")
    assert provenance.notes[0] == "licence: LICENSE.models of facebookresearch/hiera"
    assert describe(tmp_path / "ours.pt") == provenance
