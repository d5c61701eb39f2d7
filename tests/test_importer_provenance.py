"""Where weights come from: what a download recorded, what a file name tells, and what nobody knows."""

import hashlib
import json
import logging

import pytest
from hiera_files import save, ssvp_mae, tiny_hiera

from slt_plugin.checkpoints.errors import CheckpointError
from slt_plugin.checkpoints.provenance import (
    Provenance,
    provenance_of,
    read_sidecar,
    sha256_of,
    sidecar_path,
    write_sidecar,
)
from slt_plugin.checkpoints.releases import RELEASES, release_of, was_never_released
from slt_plugin.checkpoints.sign_hiera import describe, import_sign_hiera

URL = "https://dl.fbaipublicfiles.com/SONAR/asl/dm_70h_ub_signhiera.pth"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"x" * 5_000_000)  # more than one block
    return path


def test_sha256(file):
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_that_nobody_described(file):
    assert provenance_of(file) == Provenance(str(file), sha256_of(file), "unknown")


def test_a_known_file_name_tells_the_licence(tmp_path):
    path = tmp_path / "dm_70h_ub_signhiera.pth"
    path.write_bytes(b"x")
    provenance = provenance_of(path, project="p", notes=["n"])
    assert (provenance.source, provenance.licence, provenance.project) == (str(path), "CC BY-NC 4.0", "p")
    assert provenance.notes[0] == "n"
    assert provenance.notes[1].startswith("licence assumed from the file name, release sonar_signhiera: the licence of")
    assert provenance_of(path, licence="CC0").notes == ()  # stated, not assumed
    assert provenance_of(path, licence="CC0").licence == "CC0"


def test_a_sidecar_is_taken_over(file):
    recorded = Provenance(URL, sha256_of(file), "CC BY-NC 4.0", ("352 MB",))
    write_sidecar(file, recorded)
    assert read_sidecar(file) == recorded
    assert provenance_of(file, project="p", notes=["n"]) == Provenance(
        URL, sha256_of(file), "CC BY-NC 4.0", ("352 MB", "n"), "p"
    )
    assert provenance_of(file, source="mine", licence="MIT").source == "mine"
    file.write_bytes(b"y")
    with pytest.raises(
        CheckpointError, match=r"weights\.pth is not the file that weights\.pth\.provenance\.json descr"
    ):
        provenance_of(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[]", "has a provenance that is none: expected source, sha256, licence, notes, project"),
        (b'{"source": "x", "sha256": "y", "extra": 1}', "has a provenance that is none"),
        (b'{"source": "x", "sha256": 3}', "without source and sha256, or with other values than text"),
        (b'{"source": "x", "sha256": "y", "notes": [1]}', "other values than text"),
        (b'{"source": "x", "sha256": "y", "notes": 3}', "other values than text"),
    ],
)
def test_a_damaged_sidecar(file, content, message):
    sidecar_path(file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        provenance_of(file)
    assert str(sidecar_path(file)) in str(error.value)


def test_from_the_sidecar_into_our_checkpoint(tmp_path, caplog):
    path = save(ssvp_mae(tiny_hiera()), tmp_path / "dm.pth")
    with caplog.at_level(logging.WARNING):
        import_sign_hiera(path, tmp_path / "unknown.pt")
    assert "the licence of these weights is not known; state it with --licence" in caplog.text
    assert describe(tmp_path / "unknown.pt").licence == "unknown"
    caplog.clear()
    write_sidecar(path, Provenance(URL, sha256_of(path), "CC BY-NC 4.0", ("as downloaded",)))
    with caplog.at_level(logging.WARNING):
        import_sign_hiera(path, tmp_path / "known.pt")
    assert caplog.text == ""
    assert describe(tmp_path / "known.pt") == Provenance(
        URL, sha256_of(path), "CC BY-NC 4.0", ("as downloaded",), "SSVP-SLT MAE or DailyMoth SignHiera"
    )
    assert describe(path) == describe(tmp_path / "known.pt")


def test_lines_and_json_have_every_fact():
    provenance = Provenance("s", "d", "l", ("n1", "n2"), "p")
    assert provenance.lines() == ["source: s", "sha256: d", "licence: l", "layout: p", "note: n1", "note: n2"]
    assert Provenance.from_dict(json.loads(json.dumps(provenance.to_dict())), "x") == provenance


def test_releases():
    assert {"sonar_signhiera", "sonar_encoder", "sonar_decoder", "sonar_text_encoder", "hiera_mae_k400"} <= set(
        RELEASES
    )
    assert release_of("dm_70h_ub_signhiera.pth") == ("sonar_signhiera", RELEASES["sonar_signhiera"])
    assert release_of("my_model.pth") is None
    assert all(was_never_released(name) for name in ("base", "large", "base_clip", "how2sign_large", "SSVP_base"))
    assert not any(was_never_released(name) for name in (*RELEASES, "", "sonar", "hiera_base"))
