"""Interval algebra: exact small cases and the laws that hold for all sets."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_advisor.intervals import EMPTY, Intervals, complement, merge, placed, union

times = st.integers(-50, 50)
rows = st.lists(st.tuples(times, times), max_size=12)


def make(pairs: list[tuple[int, int]]) -> Intervals:
    return union([a for a, _ in pairs], [b for _, b in pairs])


def instants(one: Intervals) -> set[int]:
    return {t for a, b in one.pairs() for t in range(a, b)}


def test_union_merges_touching_and_drops_empty_rows() -> None:
    assert make([(5, 9), (0, 5), (20, 20), (30, 25), (40, 41)]).pairs() == [(0, 9), (40, 41)]


def test_exposed_time_is_the_uncovered_part() -> None:
    comm, compute = make([(0, 100), (150, 200)]), make([(50, 160)])
    assert (comm - compute).pairs() == [(0, 50), (160, 200)]
    assert (comm & compute).pairs() == [(50, 100), (150, 160)]


def test_length_within_windows() -> None:
    one = make([(0, 10), (20, 30)])
    assert one.within([-5, 5, 10, 25], [5, 25, 20, 99]).tolist() == [5, 10, 0, 5]
    assert EMPTY.within([0], [9]).tolist() == [0]


def test_complement_of_a_window() -> None:
    assert complement(make([(2, 4), (6, 20)]), 0, 10).pairs() == [(0, 2), (4, 6)]


@given(rows, rows)
def test_set_laws(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = make(a), make(b)
    assert instants(x | y) == instants(x) | instants(y)
    assert instants(x & y) == instants(x) & instants(y)
    assert instants(x - y) == instants(x) - instants(y)
    assert (x - y).total + (x & y).total == x.total
    assert merge([x, x]).pairs() == x.pairs()


@given(rows, st.randoms())
def test_order_of_rows_does_not_matter(a: list[tuple[int, int]], random: object) -> None:
    shuffled = a.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert make(a).pairs() == make(shuffled).pairs()


@given(rows, times, times)
def test_within_agrees_with_clipping(a: list[tuple[int, int]], start: int, end: int) -> None:
    x = make(a)
    if start < end:
        assert x.within([start], [end])[0] == x.clip(start, end).total
    assert np.array_equal(x.contains(range(-60, 60)), [t in instants(x) for t in range(-60, 60)])


@given(rows, rows)
def test_touching_is_sharing_an_instant(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x = make(a)
    found = x.touches([s for s, _ in b], [e for _, e in b]).tolist()
    assert found == [bool(instants(x) & set(range(s, e))) for s, e in b]


@given(rows, rows)
def test_parts_are_disjoint_sorted_and_without_seams(
    a: list[tuple[int, int]], b: list[tuple[int, int]]
) -> None:
    x, y = make(a), make(b)
    for part, wanted in zip(x.parted(y), (x & y, x - y), strict=True):
        pairs = part.pairs()
        assert pairs == wanted.pairs()
        assert all(first < last for first, last in pairs)
        assert all(one[1] < other[0] for one, other in pairwise(pairs))


def test_long_runs_are_cut_at_the_edges_of_the_few() -> None:
    many = union(np.arange(0, 50_000, 10), np.arange(0, 50_000, 10) + 4)
    few = make([(-5, 2), (12, 20_002), (20_007, 20_009), (20_012, 99_999)])
    assert (many & few).pairs() == [
        (max(a, c), min(b, d)) for c, d in few.pairs() for a, b in many.pairs() if a < d and c < b
    ]
    assert (few - many).total == few.total - (many & few).total


@given(st.lists(times, max_size=6), st.lists(times, max_size=40), st.booleans())
def test_placed_is_a_search(values: list[int], at: list[int], ordered: bool) -> None:
    known, asked = np.sort(np.asarray(values, np.int64)), np.asarray(at, np.int64)
    asked = np.sort(asked) if ordered else asked
    given_ = np.arange(len(known) + 1) * 3
    for side in ("left", "right"):
        found = placed(given_, known, asked, side)
        assert found.tolist() == (3 * np.searchsorted(known, asked, side=side)).tolist()
