"""From seconds to frames."""

import pytest

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row
from slt_plugin.data.segments import agreed_fps, check_num_frames, known_frames, segment_frames


def test_whole_files():
    assert segment_frames(None, None, None, 7) == (0, 7)
    assert segment_frames(None, None, None, None) == (0, None)


def test_nearest_frames_and_no_overlap():
    assert segment_frames(0.2, 0.6, 25, 100) == (5, 15)
    assert segment_frames(0.21, 0.59, 25, 100) == (5, 15)
    assert segment_frames(None, 0.6, 25, 100) == (0, 15)
    assert segment_frames(0.2, None, 25, 100) == (5, 100)
    assert segment_frames(0.2, None, 25, None) == (5, None)


@pytest.mark.parametrize("fps", [23.976, 25.0, 29.97, 60.0])
@pytest.mark.parametrize("digits", [3, 15])
def test_frames_come_back_from_written_seconds(fps, digits):
    """Also from times with three digits, hours into a file."""
    for first in (0, 1, 7, 99_999, 1_000_003):
        start, end = round(first / fps, digits), round((first + 40) / fps, digits)
        assert segment_frames(start, end, fps, None) == (first, first + 40)


def test_an_end_just_past_the_file_is_cut():
    assert segment_frames(1, 5, 25, 120) == (25, 120)
    with pytest.raises(DataError, match=r"from 1 s to 6 s lies past the file's 120 frames at 25 fps \(4\.80 s\)"):
        segment_frames(1, 6, 25, 120)


@pytest.mark.parametrize(
    ("start", "end", "fps", "num_frames", "said"),
    [
        (1, 2, None, 100, "add an fps column"),
        (None, 2, None, 100, "add an fps column"),
        (4.0, None, 25, 100, "lies past the file's 100 frames"),
        (4.5, 4.6, 25, 100, "lies past the file's 100 frames"),
        (1.0, 1.01, 25, 100, "has no frames"),
        (1.0, 1.01, 25, None, "has no frames"),
        (None, None, None, 0, "has no frames"),
        (0.0, 1.0, 25, 0, "has no frames"),
    ],
)
def test_refused(start, end, fps, num_frames, said):
    with pytest.raises(DataError, match=said):
        segment_frames(start, end, fps, num_frames)


def test_known_frames():
    assert known_frames(Row("a", "a.npy")) is None
    assert known_frames(Row("a", "a.npy", num_frames=9)) == 9
    assert known_frames(Row("a", "a.npy", start=1.0, end=2.0, num_frames=9)) == 9
    assert known_frames(Row("a", "a.npy", start=1.0, end=2.0, fps=25.0)) == 25
    assert known_frames(Row("a", "a.npy", end=2.0, fps=25.0, num_frames=51)) == 50  # as reading counts
    assert known_frames(Row("a", "a.npy", start=1.0, fps=25.0)) is None


def test_agreed_fps():
    assert agreed_fps(None, None) is None
    assert agreed_fps(None, 24.0) == agreed_fps(24.0, None) == 24.0
    assert agreed_fps(30.0, 29.97) == 29.97
    with pytest.raises(DataError, match=r"recorded at 29\.97 fps, but fps=25 is given"):
        agreed_fps(25.0, 29.97)
    # whole numbers: .pose before version 0.2
    assert agreed_fps(29.97, 29) == agreed_fps(29.97, 30) == 29.97
    with pytest.raises(DataError, match="recorded at 29 fps, but fps=30 is given"):
        agreed_fps(30.0, 29)


def test_check_num_frames():
    whole = Row("a", "a.npy", num_frames=100)
    check_num_frames(Row("a", "a.npy"), 5, None)
    check_num_frames(whole, 100, None)
    for found in (99, 101):
        with pytest.raises(DataError, match=f"num_frames is 100, but {found} frames were read; correct it"):
            check_num_frames(whole, found, 25)
    long = Row("a", "a.pose", start=0.0, end=3600.0, num_frames=108_000)  # counted at 30 fps
    check_num_frames(long, 107_892, 29.97)
    check_num_frames(Row("a", "a.pose", start=0.0, num_frames=108_000), 106_920, 29.97)  # 1 %
    with pytest.raises(DataError, match="num_frames is 108000, but 109100 frames were read"):
        check_num_frames(long, 109_100, 29.97)
    part = Row("a", "a.npy", start=1.0, end=5.0, num_frames=100)
    for found in (75, 99, 101):  # one frame of rounding, one second cut at the file's end
        check_num_frames(part, found, 25)
    for found in (73, 102):
        with pytest.raises(DataError, match="num_frames"):
            check_num_frames(part, found, 25)
