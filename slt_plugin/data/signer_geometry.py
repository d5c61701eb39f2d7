"""From face boxes to the signer's box: the ROI rule of SSVP-SLT (Rust et al. 2024), as numbers.

A box is (x0, y0, x1, y1) in pixels with x1 and y1 exclusive; it may reach beyond the frame. Nothing here reads frames.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Box = tuple[float, float, float, float]

UP, DOWN = 1.0, 3.0  # added above and below a face, in face heights
SIDE = 1.5  # added to its left and right, in face widths
MIN_IOU = 0.2  # regions that overlap more than this belong to one person
MIN_SHARE = 0.5  # a person is followed in more than this share of the samples
# what a manifest's box may hold, in parts of the width and height
LOWEST, HIGHEST = -1.0, 2.0


class Tube(NamedTuple):
    """One person over time: the sample numbers in which a region was found (ascending), and the regions."""

    samples: tuple[int, ...]
    regions: tuple[Box, ...]


def expand(face: Box) -> Box:
    """The signer's region around a face: hands at rest, at the sides and above the head are inside."""
    x0, y0, x1, y1 = face
    width, height = x1 - x0, y1 - y0
    return x0 - SIDE * width, y0 - UP * height, x1 + SIDE * width, y1 + DOWN * height


def area(box: Box) -> float:
    """0 where the box is empty or turned round."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where both are empty."""
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - common
    return common / union if union else 0.0


def mean_box(boxes: Sequence[Box]) -> Box:
    """The mean of each side; at least one box."""
    x0, y0, x1, y1 = (sum(sides) / len(boxes) for sides in zip(*boxes, strict=True))
    return x0, y0, x1, y1


def link_tubes(regions: Sequence[Sequence[Box]]) -> list[Tube]:
    """Sort the regions of all samples into persons; every region is in exactly one tube.

    A tube begins with the earliest region that is in none. Of every later sample it takes the free region that
    overlaps most with that first one, if by more than MIN_IOU: a comparison with the newest region instead could
    wander from one person to the next.
    """
    free = [list(sample) for sample in regions]
    tubes = []
    for begin, sample in enumerate(free):
        while sample:
            first = sample.pop(0)
            samples, members = [begin], [first]
            for number in range(begin + 1, len(free)):
                nearest = max(free[number], key=lambda region: iou(first, region), default=None)
                if nearest is not None and iou(first, nearest) > MIN_IOU:
                    free[number].remove(nearest)
                    samples.append(number)
                    members.append(nearest)
            tubes.append(Tube(tuple(samples), tuple(members)))
    return tubes


def choose_tube(tubes: Sequence[Tube], samples: int, motion: Callable[[Sequence[Tube]], Sequence[float]]) -> Tube:
    """The tube of the signer among at least one.

    Args:
        samples: how many samples there were, with a face or without.
        motion: gives the motion in each of the tubes it is handed; asked only where several persons are seen in more
            than MIN_SHARE of the samples, because it costs more than finding the faces.

    Where nobody is seen that often, the tube of the largest total area wins: near the camera and seen for long.
    """
    lasting = [tube for tube in tubes if len(tube.samples) > MIN_SHARE * samples]
    if not lasting:
        return max(tubes, key=_total_area)
    if len(lasting) == 1:
        return lasting[0]
    moved = motion(lasting)
    # of equal motion (a still picture) the larger
    return max(zip(moved, lasting, strict=True), key=lambda pair: (pair[0], _total_area(pair[1])))[1]


def centre_square(width: int, height: int) -> Box:
    """Where no face is seen: the square in the frame's centre whose side is half of the short side."""
    half = min(width, height) / 4
    return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half


def square(box: Box) -> Box:
    """The box, widened or heightened about its centre to the longer of its sides."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(box[2] - box[0], box[3] - box[1]) / 2
    return x - half, y - half, x + half, y + half


def in_parts(box: Box, width: int, height: int) -> Box:
    """Pixels to parts of the frame's width and height, as in a manifest; not limited."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def limited(parts: Box) -> Box:
    """A box in parts, cut to what a manifest's box may hold: one frame size beyond each edge."""
    x0, y0, x1, y1 = (min(HIGHEST, max(LOWEST, side)) for side in parts)
    return x0, y0, x1, y1


def _total_area(tube: Tube) -> float:
    return sum(map(area, tube.regions))
