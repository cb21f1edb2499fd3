"""The innermost range at a time, against the plain definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_advisor.nesting import Nesting


def nest(ranges: list[tuple[int, int]]) -> Nesting:
    ordered = sorted(ranges, key=lambda one: (one[0], -one[1]))
    return Nesting.of(
        np.array([start for start, _ in ordered], np.int64),
        np.array([end for _, end in ordered], np.int64),
    )


def test_a_time_belongs_to_the_range_opened_last_and_still_open() -> None:
    tree = nest([(0, 100), (10, 40), (20, 30), (50, 60)])
    assert tree.parents.tolist() == [-1, 0, 1, 0]
    times = np.array([-1, 0, 15, 20, 30, 40, 55, 60, 100], np.int64)
    assert tree.innermost(times).tolist() == [-1, 0, 1, 2, 1, 0, 3, 0, -1]


def test_no_ranges_hold_no_time() -> None:
    assert nest([]).innermost(np.array([1, 2], np.int64)).tolist() == [-1, -1]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=30),
    st.lists(st.integers(-2, 62), max_size=10),
)
def test_any_ranges_nested_or_not(spans: list[tuple[int, int]], times: list[int]) -> None:
    tree = nest([(start, start + length) for start, length in spans])
    expected = [
        max((i for i in range(len(spans)) if tree.starts[i] <= t < tree.ends[i]), default=-1)
        for t in times
    ]
    assert tree.innermost(np.array(times, np.int64)).tolist() == expected
