"""Raw video as a source: the frames of the sliding windows, from files whose frames carry their number."""

import numpy as np
import pytest
import torch
from video_helpers import numbers_of, write_video

from slt_plugin.data.clips import ClipOptions, VideoSource
from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.sampling import sliding_windows
from slt_plugin.data.transforms import VideoAugment

SAMPLING = {"num_frames": 16, "sampling_rate": 2, "target_fps": 25.0, "stride": 8}


def source(root, **options) -> VideoSource:
    return VideoSource(root, ClipOptions(**{**SAMPLING, "size": 32, **options}))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", 60, fps=25)
    write_video(folder / "b.mp4", 40, fps=50)
    return folder


def kept(frames: int, fps: float) -> list[list[int]]:
    return [w.indices[: w.kept_frames].tolist() for w in sliding_windows(frames, fps, **SAMPLING)]


@pytest.mark.parametrize(("name", "frames", "fps"), [("a.mp4", 60, 25), ("b.mp4", 40, 50)])
def test_frames_are_those_of_the_windows_without_padding(root, name, frames, fps):
    clips = source(root).load(Row("r", name))
    expected = kept(frames, fps)
    assert clips.lengths == tuple(map(len, expected))
    assert clips.frames.shape == (sum(clips.lengths), 3, 32, 32) and clips.frames.dtype == torch.uint8
    assert numbers_of(clips.frames.permute(0, 2, 3, 1)) == [i for window in expected for i in window]


def test_a_segment_is_a_video_of_its_own(root):
    row = Row("r", "a.mp4", start=0.4, end=1.6)  # frames 10 to 39
    clips = source(root).load(row)
    assert numbers_of(clips.frames.permute(0, 2, 3, 1)) == [10 + i for window in kept(30, 25) for i in window]


@pytest.mark.parametrize(
    "row", [Row("r", "a.mp4"), Row("r", "a.mp4", start=0.4, end=1.6), Row("r", "a.mp4", num_frames=60)]
)
def test_planned_lengths_are_those_that_are_read(root, row):
    loaded = source(root).load(row)
    assert source(root).clip_lengths(row) == loaded.lengths
    assert source(root).num_steps(row) == len(loaded.frames)


def test_a_row_that_tells_everything_is_planned_without_its_file(tmp_path):
    row = Row("r", "missing.mp4", start=1.0, end=3.4, fps=25.0)
    assert source(tmp_path).clip_lengths(row) == tuple(map(len, kept(60, 25)))
    with pytest.raises(DataError, match=r"row .r.: .*missing\.mp4"):
        source(tmp_path).load(row)


def test_truncation_keeps_the_beginning_and_is_counted(root):
    row = Row("r", "a.mp4")
    whole, cut = source(root), source(root, truncate=2)
    assert len(whole.clip_lengths(row)) > 2
    assert cut.clip_lengths(row) == whole.clip_lengths(row)[:2] == cut.load(row).lengths
    assert cut.truncated_clips(row) == len(whole.clip_lengths(row)) - 2 and whole.truncated_clips(row) == 0
    assert torch.equal(cut.load(row).frames, whole.load(row).frames[: sum(cut.clip_lengths(row))])


def test_augmentation_only_with_a_generator_and_one_draw_a_row(root):
    row = Row("r", "a.mp4")
    augmented = source(root, augment=VideoAugment(randaugment_ops=2, crop=4, flip=0.5))
    plain = source(root).load(row)
    assert torch.equal(augmented.load(row).frames, plain.frames)
    first, again, other = (augmented.load(row, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.frames, again.frames) and not torch.equal(first.frames, other.frames)
    assert first.lengths == plain.lengths and first.frames.shape == plain.frames.shape


def test_the_box_is_cut_out(root):
    box = (0.0, 0.0, 0.5, 0.5)
    frames = source(root).load(Row("r", "a.mp4", box=box)).frames
    whole = source(root, size=64).load(Row("r", "a.mp4")).frames[..., :32, :32]
    assert (frames.float() - whole.float()).abs().mean() < 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("r", "a.mp4", fps=30.0), "row 'r': .*a.mp4.*25.*30"),
        (Row("r", "a.mp4", num_frames=50), "num_frames is 50, but 60"),
        (Row("r", "a.mp4", start=3.0, end=9.0), "row 'r': .*a.mp4.*past"),
    ],
)
def test_errors_name_row_file_and_cause(root, row, message):
    with pytest.raises(DataError, match=message):
        source(root).load(row)


def test_options_are_checked():
    with pytest.raises(DataError, match="truncate=-1"):
        ClipOptions(truncate=-1)
    with pytest.raises(DataError, match="even number"):
        ClipOptions(num_frames=15).windows(10, 25.0)
