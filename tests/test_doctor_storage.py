"""slt-doctor: the output folder, with really full and read-only ones, and the decode test."""

import errno
import os
import re
import resource
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from slt_plugin.cli.checks import child, probe_video, storage, video
from slt_plugin.cli.checks.result import FAIL, OK, WARN

MOUNTS = r"""
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:25 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,size=4G
41 21 0:40 / /home rw,relatime - nfs4 server:/home rw,vers=4.2,hard,proto=tcp
42 41 0:41 / /home/my\040data rw - lustre 10.0.0.1@tcp:/fs rw,flock
43 21 0:42 / /soft rw - nfs server:/soft rw,soft
44 21 0:43 / /inside rw - overlay overlay rw,lowerdir=/a
"""


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/work/x", OK, "ext4 on /"),
        ("/dev/shm/x", WARN, "gone after a reboot"),
        ("/home/me", OK, "nfs4 on /home; other nodes"),
        ("/home/my data/x", OK, "lustre on /home/my data; slow with many small files"),
        ("/homework", OK, "ext4 on /"),
        ("/soft/x", WARN, "hard is safe"),
        ("/inside", WARN, "docker run -v"),
    ],
)
def test_file_system_of_a_folder(path, status, text):
    check = storage.check_file_system(storage.read_mount(MOUNTS, Path(path)))
    assert check.status == status and text in f"{check.found} {check.remedy}"


def test_a_later_mount_hides_an_earlier_one():
    later = MOUNTS + "50 21 0:50 / /home rw - xfs /dev/sdb rw\n"
    assert storage.read_mount(later, Path("/home/me"))[1] == "xfs"
    assert storage.read_mount("", Path("/home")) is None
    assert storage.check_file_system(None).status == OK


def test_mount_of_this_folder_is_the_one_that_df_names(tmp_path):
    df = subprocess.run(["df", "--output=fstype,target", tmp_path], capture_output=True, text=True, check=True).stdout
    kind, point = df.splitlines()[1].split()
    mounts = Path("/proc/self/mountinfo").read_text()
    assert storage.read_mount(mounts, tmp_path)[:2] == (point, kind)


@pytest.mark.parametrize(
    ("free", "total", "status"),
    [(10**6, 10**7, OK), (49_999, 10**7, WARN), (50, 10**7, FAIL), (0, 10**7, FAIL), (0, 0, OK)],
)
def test_inodes(free, total, status):
    check = storage.check_inodes(free, total)
    assert check.status == status and ("slt-extract" in check.remedy) == (status != OK)


@pytest.mark.parametrize(("rate", "status"), [(500.0, OK), (50.0, OK), (49.0, WARN)])
def test_speed(rate, status):
    check = storage.judge_speed(rate, 64 * 2**20)
    assert check.status == status and f"takes {1000 / rate:.1f} s" in check.found


def by_name(checks):
    return {check.name: check for check in checks}


def test_a_good_folder_is_left_as_it_was(tmp_path):
    checks = by_name(storage.check_storage(tmp_path))
    assert set(checks) == {
        "folder", "file system", "free space", "free inodes", "hard links", "os.replace", "file locks", "writing",
    }  # fmt: skip
    assert {checks[name].status for name in ("hard links", "os.replace", "file locks")} == {OK}
    assert float(re.match(r"([\d,]+) MB/s", checks["writing"].found)[1].replace(",", "")) > 0
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path):
    (check,) = storage.check_storage(tmp_path / "none")
    assert check.status == FAIL and f"mkdir -p {tmp_path}/none" in check.remedy
    (tmp_path / "file").touch()
    assert "is a file" in storage.check_storage(tmp_path / "file")[0].found


@pytest.fixture
def mount(tmp_path):
    """Mounts a small tmpfs with the options given; unmounted at the end."""
    mounted = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        outcome = child.run(command, 30.0)
        if os.geteuid() != 0 or outcome.problem is not None:
            pytest.skip(f"no small file system can be mounted here ({outcome.problem or 'not root'})")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(mount):
    folder = mount("size=1m")
    checks = by_name(storage.check_storage(folder))
    assert checks["file system"].status == WARN and checks["free space"].status == FAIL
    assert checks["writing"].status == FAIL and "the disk is full (No space left on device)" in checks["writing"].found
    assert "free some space" in checks["writing"].remedy
    assert list(folder.iterdir()) == []  # the half-written file is gone again


def test_no_inodes_left(mount):
    folder = mount("size=100m,nr_inodes=4")
    for i in range(3):
        (folder / str(i)).touch()
    checks = by_name(storage.check_storage(folder))
    assert checks["free inodes"].status == FAIL and checks["free inodes"].found == "0 of 4"
    assert checks["writing"].status == FAIL and "No space left" in checks["writing"].found


def test_read_only(mount):
    folder = mount("size=1m,ro")
    checks = by_name(storage.check_storage(folder))
    assert checks["writing"].status == FAIL
    assert checks["writing"].found == "it is mounted read-only (Read-only file system)"
    assert checks["writing"].remedy == storage.ELSEWHERE


def test_file_size_limit(tmp_path):
    """ulimit -f: space is left, but a checkpoint would be cut off."""
    code = "import sys; from pathlib import Path; from slt_plugin.cli.checks import storage\n"
    code += "for check in storage.try_folder(Path(sys.argv[1])): print(check.status, check.name, check.found)"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, preexec_fn=limit
    )
    assert "FAIL writing files of this size are not allowed (ulimit -f) (File too large)" in run.stdout
    assert "OK os.replace works" in run.stdout and list(tmp_path.iterdir()) == []


def test_missing_hard_links_replacing_and_locks(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for module, name in ((os, "link"), (os, "replace"), (storage.fcntl, "flock")):
        monkeypatch.setattr(module, name, refuse)
    checks = by_name(storage.try_folder(tmp_path))
    assert [checks[n].status for n in ("hard links", "os.replace", "file locks")] == [WARN, FAIL, WARN]
    assert all("Operation not supported" in checks[n].found for n in ("hard links", "os.replace", "file locks"))
    monkeypatch.setattr(os, "replace", lambda source, target: None)  # says it works and does nothing
    assert by_name(storage.try_folder(tmp_path))["os.replace"].found == "left the old file"


def test_free_space_is_that_of_the_folder(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    seen = []
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: seen.append(path) or usage(0, 0, 5 * 2**30))
    check = by_name(storage.check_storage(tmp_path))["free space"]
    assert check.status == WARN and check.found == "5.0 GB" and seen == [tmp_path.resolve()]


# ---- decoding


@pytest.mark.parametrize(
    ("facts", "problem", "statuses", "text"),
    [
        ({"decode": {"frames": 12, "av": "18.1", "missing": [], "problem": None}}, None, [OK], "12 frames of H.264"),
        ({"decode": {"frames": 12, "av": "18.1", "missing": ["AV1"], "problem": None}}, None, [OK, WARN], "12 frames"),
        ({"decode": {"frames": 11, "av": "18.1", "missing": [], "problem": "11 frames came back of 12"}}, None, [FAIL],
         "11 frames came back"),
        ({}, "ImportError: libavcodec.so.62", [FAIL], "pip install --force-reinstall --no-deps -c constraints.txt av"),
        ({}, "OSError: [Errno 28] No space left on device", [FAIL], "TMPDIR"),
        ({}, None, [FAIL], "said nothing"),
    ],
)  # fmt: skip
def test_what_the_video_probe_found(facts, problem, statuses, text):
    checks = video.check_decoding(facts, problem)
    assert [check.status for check in checks] == statuses
    assert text in f"{checks[0].found} {checks[0].remedy}"


def test_the_video_probe_sees_lost_frames_and_other_colours(monkeypatch, capsys):
    import json

    def found() -> dict:
        probe_video.main()
        return json.loads(capsys.readouterr().out)

    assert found()["problem"] is None and found()["frames"] == probe_video.FRAMES
    whole = probe_video.decode_clip
    monkeypatch.setattr(probe_video, "decode_clip", lambda path: whole(path, indices=range(11)))
    assert found()["problem"] == "11 frames came back of 12"
    monkeypatch.setattr(probe_video, "decode_clip", lambda path: whole(path, indices=[0, *range(11)]))
    assert "other colours" in found()["problem"]


def test_video_section_here():
    (check,) = video.check_video()
    assert check.status == OK
