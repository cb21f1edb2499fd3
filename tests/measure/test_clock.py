"""Clocks of ranks, from collectives that end together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_advisor.measure.clock import clock_pairs, fit_line
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import measure_rank
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.taxonomy import builtin
from tests.trace_builder import ALL_REDUCE, SEND_RECV, TraceBuilder


def rank(
    number: int,
    groups: tuple[str, ...],
    *,
    ahead: float = 0.0,
    drift: float = 0.0,
    scatter: float = 0.0,
    small: bool = True,
) -> RankPartial:
    """A rank with 20 small all-reduces per group over 0.2 s and as many uneven all-to-alls.

    Its clock is `ahead` µs ahead and drifts; ends of the all-to-alls are `scatter` µs off.
    """
    b = TraceBuilder(rank=number, world_size=8)
    b.range(0, 300_000, "iteration 1")
    b.kernel(0, 1, launch=0)

    def shown(time: float) -> float:
        return time + ahead + time * drift

    for group in groups:
        place = ord(group) - ord("a")
        for at in range(20):
            end = 1_000 + 10_000 * at + 1_000 * place
            if small:
                b.collective(
                    shown(end - 20 - number),
                    shown(end),
                    CollectiveKind.ALL_REDUCE,
                    group,
                    "DATA_PARALLEL_GROUP",
                    name=ALL_REDUCE,
                    sent=8,
                    launch=shown(end - 400),
                )
            end += 500 + (scatter if at % 2 else 0.0)
            b.collective(
                shown(end - 300),
                shown(end),
                CollectiveKind.ALL_TO_ALL,
                group,
                "EXPERT_MODEL_PARALLEL_GROUP",
                name=SEND_RECV,
                launch=shown(end - 350),
            )
    return measure_rank(b.build(), builtin()).partial


def test_small_all_reduces_come_before_uneven_all_to_alls() -> None:
    (pair,) = clock_pairs([rank(0, ("a",)), rank(1, ("a",), ahead=750, scatter=200)])
    assert pair.anchors == "small all-reduces and barriers"
    assert pair.offset_us == 750.0
    assert pair.residual_us == 0.0
    assert pair.matches == 20


def test_without_small_ones_the_residual_shows_how_uneven_the_anchors_are() -> None:
    pairs = [rank(0, ("a",), small=False), rank(1, ("a",), ahead=50, scatter=200, small=False)]
    (pair,) = clock_pairs(pairs)
    assert pair.anchors == "all-to-alls and reduce-scatters"
    assert pair.residual_us == 100.0


def test_linear_drift_is_fitted() -> None:
    (pair,) = clock_pairs([rank(0, ("a",)), rank(1, ("a",), ahead=100, drift=50e-6)])
    assert pair.drift_ppm == pytest.approx(50, rel=0.01)
    assert pair.residual_us is not None
    assert pair.residual_us < 0.01


def test_offsets_are_carried_over_a_common_rank() -> None:
    pairs = clock_pairs(
        [
            rank(0, ("a",)),
            rank(1, ("a", "b"), ahead=100),
            rank(2, ("b",), ahead=40),
        ]
    )
    assert [(one.rank, one.offset_us) for one in pairs] == [(1, 100.0), (2, 40.0)]
    assert pairs[1].anchors == "small all-reduces and barriers, over rank 1"


def test_groups_that_share_nothing_are_not_measured() -> None:
    pairs = clock_pairs([rank(0, ("a",)), rank(1, ("a",)), rank(2, ("b",)), rank(3, ("b",))])
    assert [one.status for one in pairs] == ["measured", "not_measured", "not_measured"]
    assert "ties rank 2 to rank 0" in str(pairs[1].reason)


def test_ends_that_do_not_fit_together_are_no_clock() -> None:
    pairs = [rank(0, ("a",), small=False), rank(1, ("a",), scatter=4_000, small=False)]
    assert [one.status for one in clock_pairs(pairs)] == ["not_measured"]


def test_the_base_of_each_inputs_clock_counts() -> None:
    late = replace(rank(1, ("a",)), epoch_ns=7_000)
    (pair,) = clock_pairs([replace(rank(0, ("a",)), epoch_ns=0), late])
    assert pair.offset_us == 7.0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(-(10**9), 10**9),
    st.floats(-1e-4, 1e-4),
    st.lists(st.integers(0, 10**9), min_size=8, max_size=60, unique=True),
)
def test_a_straight_line_is_found_whatever_its_offset_and_drift(
    offset: int, drift: float, times: list[int]
) -> None:
    at = np.asarray(sorted(times), np.int64)
    fit = fit_line(at, np.rint(offset + drift * at).astype(np.int64), "ends")
    if np.ptp(at) >= 100_000_000:
        assert fit.residual_ns <= 2
