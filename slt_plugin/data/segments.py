"""From a manifest's seconds to the frames of a media file: one rule for poses and features."""

import math

from slt_plugin.data.errors import DataError
from slt_plugin.data.manifest import Row

# an annotated end may lie this many seconds past the last frame (rounded or sloppy annotation): it is cut there
END_SLACK = 1.0
# a manifest's fps may differ this much, relatively, from the file's own (29.97 written as 30), and with it the frames
FPS_TOLERANCE = 0.01


def segment_frames(
    start: float | None, end: float | None, fps: float | None, num_frames: int | None
) -> tuple[int, int | None]:
    """The frames [first, last) nearest to the seconds [start, end); last None = the file's end, if not known.

    Both ends are rounded to the nearest frame, so that adjacent segments share no frame and times written with few
    digits find the frames they were computed from. num_frames (of the whole file): None = not known yet, and not
    checked. Raises DataError where times are given but no frame rate, where nothing is left, and where the segment
    begins past the file or ends more than END_SLACK seconds past it (a smaller excess is cut).
    """
    first, last = 0, num_frames
    if start is not None or end is not None:
        if fps is None:
            raise DataError("start and end are in seconds, but the frame rate is not known; add an fps column")
        first = math.floor((start or 0.0) * fps + 0.5)
        if end is not None:
            last = math.floor(end * fps + 0.5)
    if num_frames is not None:
        if (first > 0 and first >= num_frames) or last > num_frames + END_SLACK * (fps or 0):
            raise DataError(
                f"the segment from {start or 0:g} s{'' if end is None else f' to {end:g} s'} lies past the file's "
                f"{num_frames} frames at {fps:g} fps ({num_frames / fps:.2f} s); correct start, end or fps"
            )
        last = min(last, num_frames)
    if last is not None and last <= first:
        if end is None:
            raise DataError("it has no frames; write it again, or remove the row")
        raise DataError(f"the segment from {start or 0:g} s to {end:g} s has no frames; correct or remove the row")
    return first, last


def known_frames(row: Row) -> int | None:
    """Frames of the row as far as its own fields tell, else None. Times come first: reading uses them.

    Where the file has a frame rate of its own, reading may give up to FPS_TOLERANCE more or less.
    """
    if row.end is not None and row.fps is not None:
        first, last = segment_frames(row.start, row.end, row.fps, None)
        return last - first
    return row.num_frames


def agreed_fps(given: float | None, in_file: float | int | None) -> float | None:
    """The file's own frame rate, else the manifest's, else None. Raises DataError where the two do not agree.

    The file's decides: at 30 instead of 29.97 fps, a segment an hour into a file would begin 108 frames too late. An
    int means that the format stores whole numbers only (.pose before 0.2 writes 29.97 as 29 or 30): there the
    manifest's decides, if it is less than 1 away.
    """
    if given is None or in_file is None:
        return given if in_file is None else in_file
    whole = isinstance(in_file, int)
    if abs(given - in_file) >= 1 if whole else abs(given - in_file) > FPS_TOLERANCE * in_file:
        raise DataError(f"recorded at {in_file:g} fps, but fps={given:g} is given; correct the manifest's fps column")
    return given if whole else in_file


def check_num_frames(row: Row, found: int, fps: float | None) -> None:
    """Raise DataError where the row's num_frames is not what was read: batches are planned with it.

    Where times are given, one frame of rounding or FPS_TOLERANCE is allowed, whichever is more, and an end past the
    file may cost END_SLACK seconds.
    """
    if row.num_frames is None:
        return
    timed = row.start is not None or row.end is not None
    rounding = max(1.0, FPS_TOLERANCE * row.num_frames) if timed else 0.0
    cut = END_SLACK * fps if row.end is not None and fps is not None else 0.0
    if not row.num_frames - rounding - cut <= found <= row.num_frames + rounding:
        raise DataError(
            f"num_frames is {row.num_frames}, but {found} frames were read; correct it, or leave the num_frames column "
            "out"
        )
