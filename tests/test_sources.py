"""From manifest rows to tensors."""

import math
import os
import pickle
import time

import numpy as np
import pytest
import torch
from pose_helpers import random_pose, write_mmpose, write_openpose, write_pose
from video_helpers import write_video

from slt_plugin.data.errors import DataError
from slt_plugin.data.features import FeatureError
from slt_plugin.data.landmarks import MMPOSE_133, PoseError
from slt_plugin.data.manifest import Row
from slt_plugin.data.pose import PoseAugment, PoseOptions
from slt_plugin.data.sources import FeatureSource, PoseSource, inspect_media

PARTS = ("body", "left_hand", "right_hand")
AUGMENT = PoseAugment(speed=0.2, rotation=10, scale=0.1, shear=0.1, noise=0.01, frame_drop=0.05, landmark_drop=0.02)


@pytest.fixture
def media(tmp_path):
    """A shard of 100 frames, the same as a .pose file, and features of 100 steps."""
    pose = random_pose(100, 137)
    np.save(tmp_path / "a.npy", pose)
    write_pose(tmp_path / "a.pose", pose)
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(100, 8)))
    torch.save(torch.randn(100, 8), tmp_path / "f.pt")
    return tmp_path


ROWS = [
    Row("npy", "a.npy"),
    Row("npy-counted", "a.npy", num_frames=100),
    Row("npy-part", "a.npy", start=0.4, end=2.0, fps=25.0),
    Row("npy-end", "a.npy", start=0.4, fps=25.0),
    Row("npy-past", "a.npy", start=3.0, end=4.5, fps=25.0, num_frames=25),
    Row("pose", "a.pose"),
    Row("pose-part", "a.pose", start=0.4, end=2.0),
    Row("pose-counted", "a.pose", start=0.4, end=2.0, num_frames=40),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
@pytest.mark.parametrize("step", [1, 3])
def test_pose_steps_are_what_load_gives(media, row, step):
    source = PoseSource(media, PoseOptions(PARTS, step_frames=step))
    out = source.load(row)
    assert (out.dtype, out.shape[1]) == (torch.float32, source.channels)
    assert source.channels == 153
    # an end past the file is known only when the file is opened
    assert source.num_steps(row) == (math.ceil(38 / step) if row.id == "npy-past" else len(out))


def test_the_files_own_frame_rate_decides(tmp_path):
    """A manifest that says 30 where the file has 29.97 would be 108 frames late after an hour."""
    pose = np.ones((108_300, 7, 3), dtype=np.float32)
    pose[:, 0, 0] = np.arange(len(pose))  # the nose's x is the frame number
    write_pose(tmp_path / "a.pose", pose, (("BODY", MMPOSE_133[0][1][:7]),), fps=29.97)
    source = PoseSource(tmp_path, PoseOptions(("body",), normalise="none"))
    late = source.load(Row("late", "a.pose", start=3600.0, end=3610.0, fps=30.0, num_frames=300))
    assert (late[0, 0], len(late)) == (round(3600 * 29.97), 300)
    hour = Row("hour", "a.pose", start=0.0, end=3600.0, fps=30.0, num_frames=108_000)
    assert (source.num_steps(hour), len(source.load(hour))) == (108_000, 107_892)  # planned with the row, then read
    with pytest.raises(DataError, match=r"recorded at 29\.97 fps, but fps=30\.4 is given"):
        source.load(Row("wrong", "a.pose", start=0.0, end=1.0, fps=30.4))


@pytest.mark.parametrize("path", ["f.npy", "f.pt"])
@pytest.mark.parametrize("step", [1, 3])
def test_feature_steps_are_what_load_gives(media, path, step):
    source = FeatureSource(media, channels=8, step=step)
    for fields in ({}, {"num_frames": 100}, {"start": 0.4, "end": 2.0, "fps": 25.0}, {"start": 0.4, "fps": 25.0}):
        row = Row("a", path, **fields)
        out = source.load(row)
        assert out.dtype == torch.float32
        assert out.shape == (source.num_steps(row), 8)
    whole = FeatureSource(media, channels=8).load(Row("a", path))
    part = source.load(Row("a", path, start=0.4, end=2.0, fps=25.0))
    assert torch.equal(part, whole[10:50:step])


@pytest.mark.parametrize("source", [PoseSource("/none", PoseOptions()), FeatureSource("/none", channels=8)])
def test_files_stay_closed_where_the_row_tells(source):
    assert source.num_steps(Row("a", "gone.npy", num_frames=7)) == 7
    assert source.num_steps(Row("a", "gone.npy", start=1.0, end=3.0, fps=25.0)) == 50
    with pytest.raises(DataError, match=r"row 'a': /none/gone\.npy: no such file"):
        source.num_steps(Row("a", "gone.npy"))


def test_augmentation_only_with_a_generator(media):
    source = PoseSource(media, PoseOptions(PARTS, augment=AUGMENT))
    row = ROWS[0]
    plain = PoseSource(media, PoseOptions(PARTS)).load(row)
    assert torch.equal(source.load(row), plain)
    first, again, other = (source.load(row, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(PoseSource(media, PoseOptions(PARTS)).load(row, rng=np.random.default_rng(1)), plain)


def test_extraction_copies(tmp_path):
    for copy in range(3):
        folder = tmp_path / "features" / str(copy) / "abcde"
        folder.mkdir(parents=True)
        torch.save(torch.full((4 + copy, 2), float(copy)), folder / "abcdef.pt")
    source, row = FeatureSource(tmp_path, channels=2), Row("a", "features/{epoch}/abcde/abcdef.pt")
    rng = np.random.default_rng(0)
    assert [source.load(row, epoch=e, rng=rng)[0, 0].item() for e in (1, 2, 3, 4)] == [0, 1, 2, 0]
    assert [source.load(row, epoch=e)[0, 0].item() for e in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert source.num_steps(row) == 4
    assert inspect_media(row, tmp_path).num_frames == 4
    (tmp_path / "features/1/abcde/abcdef.pt").write_bytes(b"x")
    source.load(row)
    with pytest.raises(FeatureError, match=r"row 'a': .*features/1/abcde/abcdef\.pt: not a complete"):
        inspect_media(row, tmp_path)
    with pytest.raises(FeatureError, match="row 'a'"):
        source.load(row, epoch=2, rng=rng)


def test_sources_can_be_sent_to_workers(media):
    for source, row in (
        (PoseSource(media, PoseOptions(PARTS, augment=AUGMENT)), ROWS[0]),
        (FeatureSource(media, channels=8), Row("a", "f.npy")),
    ):
        before = source.load(row)
        copy = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert torch.equal(copy.load(row), before)
        assert len(pickle.dumps(source)) < 2000  # no open file, no data


def test_maps_survive_a_fork(media):
    source = PoseSource(media, PoseOptions(PARTS))
    expected = source.load(ROWS[2])
    pid = os.fork()
    if pid == 0:
        same = False
        try:
            same = torch.equal(source.load(ROWS[2]), expected)
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert torch.equal(source.load(ROWS[2]), expected)


# ---- errors name row, file and remedy ----


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("R", "gone.npy"), r"gone\.npy: no such file or folder; correct"),
        (Row("R", "f.pt"), r"f\.pt: \.pt is not a supported pose; give"),
        (Row("R", "f.npy"), r"f\.npy: array of shape \(100, 8\).*task\.source=features"),
        (Row("R", "a.npy", start=1.0, end=2.0), r"a\.npy: .*add an fps column"),
        (Row("R", "a.npy", start=9.0, end=10.0, fps=25.0), r"a\.npy: .*lies past.*correct"),
        (Row("R", "a.npy", num_frames=99), r"a\.npy: num_frames is 99, but 100 frames were read; correct"),
        (Row("R", "a.pose", fps=30.0), r"a\.pose: recorded at 25 fps.*correct"),
        (Row("R", "blind.npy"), r"blind\.npy: no frame shows both shoulders.*remove the row"),
    ],
)
def test_pose_errors(media, row, said):
    blind = random_pose(5, 137)
    blind[..., 2] = 0
    np.save(media / "blind.npy", blind)
    source = PoseSource(media, PoseOptions(PARTS))
    with pytest.raises(DataError, match=rf"^row 'R': .*{said}"):
        source.load(row)
    if row.path != "f.pt":
        with pytest.raises(DataError, match=r"^row 'R'"):
            inspect_media(row if row.path != "f.npy" else Row("R", "f.npy", num_frames=3), media)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row("R", "gone.pt"), r"gone\.pt: no such file or folder; correct"),
        (Row("R", "a.mp4"), r"a\.mp4: .*give \.npy or \.pt"),
        (Row("R", "a.npy"), r"a\.npy: array of shape \(100, 137, 3\); save features"),
        (Row("R", "wide.npy"), r"wide\.npy: 9 channels, but the model is set up for 8; set task\.feature_channels"),
        (Row("R", "empty.pt"), r"empty\.pt: .*has no frames"),
        (Row("R", "f.npy", num_frames=7), r"f\.npy: num_frames is 7, but 100"),
        (Row("R", "f.npy", start=1.0, end=2.0), r"f\.npy: .*add an fps column"),
    ],
)
def test_feature_errors(media, row, said):
    np.save(media / "wide.npy", np.ones((4, 9)))
    torch.save(torch.ones(0, 8), media / "empty.pt")
    with pytest.raises(DataError, match=rf"^row 'R': .*{said}"):
        FeatureSource(media, channels=8).load(row)


def test_a_segment_of_no_frames_names_the_row():
    row = Row("R", "a.npy", start=1.0, end=1.001, fps=25.0)
    for source in (PoseSource("/none", PoseOptions()), FeatureSource("/none", channels=8)):
        with pytest.raises(DataError, match=r"^row 'R': a\.npy: the segment .* has no frames; correct"):
            source.num_steps(row)


@pytest.mark.parametrize("options", [{"channels": 0}, {"channels": 8, "step": 0}, {"channels": 2.5}])
def test_refused_feature_options(options):
    with pytest.raises(FeatureError, match=r"^task\.(feature_channels|step_frames)=.*: give a whole number from 1 up"):
        FeatureSource("/none", **options)


# ---- inspect_media ----


def test_inspect_tells_kind_length_rate_and_shape(media):
    write_openpose(media / "folder", random_pose(5, 137))
    write_mmpose(media / "m.json", random_pose(6, 133))
    found = {path: inspect_media(Row("R", path), media) for path in os.listdir(media)}
    assert {path: (info.kind, info.num_frames, info.fps, info.shape) for path, info in found.items()} == {
        "a.npy": ("pose array", 100, None, (100, 137, 3)),
        "a.pose": ("pose file", 100, 25.0, (100, 1, 137, 2)),
        "f.npy": ("features", 100, None, (100, 8)),
        "f.pt": ("features", 100, None, (100, 8)),
        "folder": ("OpenPose folder", 5, None, (5, 137, 3)),
        "m.json": ("MMPose JSON", 6, None, (6, 133, 3)),
    }
    info = inspect_media(Row("R", "a.npy", start=1.0, end=2.0, fps=25.0, num_frames=25), media)
    assert (info.num_frames, info.fps) == (25, 25.0)


@pytest.mark.parametrize("name", ["a.npz", "a.txt"])
def test_inspect_lists_all_supported_kinds(media, name):
    with pytest.raises(
        DataError, match=r"row 'R': .* is not a supported kind of media; give videos .*\.mp4.*\.pose.*\.pt"
    ):
        inspect_media(Row("R", name), media)


def test_inspect_decodes_all_of_a_video_segment(tmp_path):
    write_video(tmp_path / "v.mp4", 30)
    info = inspect_media(Row("R", "v.mp4", start=0.4, end=1.0, fps=25.0), tmp_path)
    assert (info.kind, info.num_frames, info.fps) == ("video", 15, 25)
    with pytest.raises(DataError, match=r"row 'R': .*v\.mp4: num_frames is 5, but 15"):
        inspect_media(Row("R", "v.mp4", start=0.4, end=1.0, num_frames=5), tmp_path)
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "v.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=r"row 'R': .*v\.mp4"):
        inspect_media(Row("R", "v.mp4"), tmp_path)


def test_inspect_reads_every_frame(media, monkeypatch):
    monkeypatch.setattr("slt_plugin.data.sources._INSPECTED_AT_ONCE", 30)
    pose, features = random_pose(100, 137), np.ones((100, 8))
    pose[95, 100, 0] = features[95, 3] = np.nan  # point 100 is of the left hand
    np.save(media / "p.npy", pose)
    np.save(media / "n.npy", features)
    for path, error in (("p.npy", PoseError), ("n.npy", FeatureError)):
        with pytest.raises(error, match=rf"row 'R': .*{path}: NaN .* 95"):
            inspect_media(Row("R", path), media)
        assert inspect_media(Row("R", path, start=0.0, end=3.8, fps=25.0), media).num_frames == 95
    pose[95, 100, 0] = 0
    pose[20:, 5, 2] = 0  # shoulders in the first part are enough
    np.save(media / "p.npy", pose)
    assert inspect_media(Row("R", "p.npy"), media).num_frames == 100


# ---- speed ----


def test_segments_of_a_long_shard_are_fast(tmp_path):
    """The training hot path. Limits are three times the targets (0.5 and 1.5 ms), for busy machines."""
    pose = np.tile(random_pose(250, 51), (40, 1, 1))
    pose[:, 9:30, 2] = 0
    np.save(tmp_path / "shard.npy", pose.astype(np.float16))
    rows = [Row(str(i), "shard.npy", start=i * 10.0, end=(i + 1) * 10.0, fps=25.0) for i in range(40)]
    for augment, limit in ((None, 1.5e-3), (AUGMENT, 4.5e-3)):
        source, rng = PoseSource(tmp_path, PoseOptions(PARTS, augment=augment)), np.random.default_rng(0)
        times = []
        for row in rows:
            start = time.process_time()
            source.load(row, rng=rng)
            times.append(time.process_time() - start)
        assert np.median(times) < limit
