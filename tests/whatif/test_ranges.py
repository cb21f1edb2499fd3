"""Ranges: how the host's speed is told, what is cut, what is withheld."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_advisor.whatif.engine import mean_of_three, narrowed, told_scales

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


STRETCH = (1.1, 1.6, 2.2)
SCALES = np.geomspace(0.3, 1.25, 12)


def test_a_log_tells_the_hosts_speed_where_the_host_sets_the_step() -> None:
    high, middle, low = told_scales(STRETCH, SCALES, 100.0 * SCALES, 80.0)
    assert middle == pytest.approx(0.8, abs=0.02)
    assert 1.0 < high / low < 1.1


def test_a_log_leaves_the_hosts_speed_open_where_the_gpu_sets_the_step() -> None:
    steps = np.full(len(SCALES), 100.0)
    high, middle, low = told_scales(STRETCH, SCALES, steps, 90.0)
    assert (1 / high, 1 / middle, 1 / low) == pytest.approx(STRETCH, rel=0.03)


def test_a_gain_that_peaks_at_the_middle_speed_counts_less() -> None:
    assert mean_of_three(8.0, 4.0, 5.0) == pytest.approx(5.9)
    assert mean_of_three(3.0, 1.0, 5.0) == pytest.approx(3.0)


def test_a_log_is_heard_where_the_trace_leaves_no_choice() -> None:
    """Recording may be told to take its most in every case: the step decides all the same."""
    scales = np.geomspace(0.16, 1.25, 12)
    _, middle, _ = told_scales((4.0, 4.0, 4.0), scales, 100.0 * scales, 80.0)
    assert middle == pytest.approx(0.68, abs=0.03)
