"""A range that is too wide to decide by is cut at its longer side first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_advisor.whatif.engine import narrowed

sides = st.floats(0.0, 100.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-3.0, 4.0, (-3.0, 4.0)),  # narrow enough
        (-5.0, 6.0, (-4.0, 4.0)),  # both sides are too long
        (-1.0, 20.0, (-1.0, 7.0)),  # the short side stays
        (-20.0, 2.0, (-6.0, 2.0)),
    ],
)
def test_the_longer_side_is_cut_first(
    low: float, high: float, expected: tuple[float, float]
) -> None:
    assert narrowed(low, 0.0, high, 8.0) == expected


@given(st.floats(-100.0, 100.0), sides, sides, sides)
def test_a_range_keeps_its_limit_and_what_is_expected(
    expected: float, below: float, above: float, limit: float
) -> None:
    low, high = narrowed(expected - below, expected, expected + above, limit)
    assert high - low <= limit + 1e-9
    assert expected - below - 1e-9 <= low <= expected + 1e-9
    assert expected - 1e-9 <= high <= expected + above + 1e-9
