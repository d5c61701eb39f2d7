"""The signer's box as numbers: regions, tubes and the choice between them, against values worked out by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slt_plugin.data.signer_geometry import (
    Tube,
    centre_square,
    choose_tube,
    expand,
    in_parts,
    iou,
    limited,
    link_tubes,
    mean_box,
    square,
)


def still(tubes):
    pytest.fail(f"asked for the motion in {tubes}")


def at(x, y=0.0, size=10.0):
    return (x, y, x + size, y + size)


def test_a_face_becomes_a_region_and_a_box():
    # 40 wide, 50 high: 60 to each side, 50 up, 150 down
    region = expand((100, 200, 140, 250))
    assert region == (40, 150, 200, 400)
    # 160 x 250 about (120, 275)
    assert square(region) == (-5, 150, 245, 400)
    assert in_parts(square(region), 640, 400) == (-5 / 640, 0.375, 245 / 640, 1.0)
    assert square((0, 0, 30, 10)) == (0, -10, 30, 20)
    assert square((1, 2, 3, 4)) == (1, 2, 3, 4)


def test_without_a_face_the_centre():
    assert centre_square(1280, 720) == (460, 180, 820, 540)
    assert centre_square(210, 260) == (52.5, 77.5, 157.5, 182.5)


def test_boxes_are_cut_at_a_frame_size_beyond_the_frame():
    assert limited((-1.5, -1.0, 2.0, 2.25)) == (-1.0, -1.0, 2.0, 2.0)
    assert limited((-0.5, 0.0, 1.0, 1.5)) == (-0.5, 0.0, 1.0, 1.5)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (at(0), at(0), 1.0),
        (at(0), at(5), 50 / 150),
        (at(0), at(5, 5), 25 / 175),
        (at(0), at(10), 0.0),
        (at(0), at(30, 30), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert iou(a, b) == iou(b, a) == pytest.approx(expected)


def test_mean():
    assert mean_box([(0, 0, 10, 20), (2, 4, 20, 30)]) == (1, 2, 15, 25)


def test_two_people_are_two_tubes():
    left, right = at(0), at(100)
    regions = [[right], [at(1), at(101)], [], [at(102), at(2)], [left]]
    assert link_tubes(regions) == [
        Tube((0, 1, 3), (right, at(101), at(102))),
        Tube((1, 3, 4), (at(1), at(2), left)),
    ]


def test_a_tube_takes_the_nearest_region_of_a_sample_and_only_one():
    assert link_tubes([[at(0)], [at(4), at(1)]]) == [Tube((0, 1), (at(0), at(1))), Tube((1,), (at(4),))]


def test_a_tube_is_held_to_its_first_region():
    # each overlaps the one before by more than 0.2 (6 of 14), the third the first by 0.11 (2 of 18)
    assert link_tubes([[at(0)], [at(4)], [at(8)]]) == [Tube((0, 1), (at(0), at(4))), Tube((2,), (at(8),))]


def test_an_overlap_of_a_fifth_is_not_enough():
    # 100 of 500
    assert iou((0, 0, 30, 10), (20, 0, 40, 10)) == pytest.approx(100 / 400)
    assert iou((0, 0, 30, 10), (20, 0, 50, 10)) == 0.2
    assert len(link_tubes([[(0, 0, 30, 10)], [(20, 0, 50, 10)]])) == 2
    assert len(link_tubes([[(0, 0, 30, 10)], [(20, 0, 40, 10)]])) == 1


def test_only_who_is_seen_in_more_than_half_of_the_samples_counts():
    often, half = Tube((0, 1, 2), (at(0),) * 3), Tube((0, 1), (at(100, size=99),) * 2)
    assert choose_tube([half, often], 4, still) == often


def test_the_one_who_moves_most_wins():
    tubes = [Tube((0, 1, 2), (at(x),) * 3) for x in (0, 100, 200)]
    seen = []

    def motion(asked):
        seen.extend(asked)
        return [0.25, 0.5, 0.125]

    rare = Tube((1,), (at(300, size=99),))
    assert choose_tube([*tubes, rare], 3, motion) == tubes[1]
    assert seen == tubes


def test_of_equal_motion_the_larger_wins():
    small, large = Tube((0,), (at(0),)), Tube((0,), (at(100, size=20),))
    assert choose_tube([small, large], 1, lambda tubes: [0.0, 0.0]) == large


def test_where_nobody_stays_the_largest_total_area_wins():
    # 2 x 100 against 1 x 144
    twice, once = Tube((0, 1), (at(0),) * 2), Tube((2,), (at(100, size=12),))
    assert choose_tube([once, twice], 4, still) == twice
    assert choose_tube([once, Tube((0,), (at(0),))], 4, still) == once


boxes = st.tuples(*[st.integers(0, 12).map(float)] * 2).map(lambda corner: at(*corner))


@given(st.lists(st.lists(boxes, max_size=3), max_size=6))
def test_every_region_is_in_one_tube_and_a_sample_once_in_each(regions):
    tubes = link_tubes(regions)
    found = sorted(itertools.chain.from_iterable(zip(t.samples, t.regions, strict=True) for t in tubes))
    assert found == sorted((number, box) for number, sample in enumerate(regions) for box in sample)
    for tube in tubes:
        assert list(tube.samples) == sorted(set(tube.samples))
        assert all(iou(tube.regions[0], region) > 0.2 for region in tube.regions)
