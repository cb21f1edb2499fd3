"""How much of the host's time recording took, on a handful of events; times in ns."""

import numpy as np
import polars as pl

from moe_advisor.model import CALL_SCHEMA, RANGE_SCHEMA, RangeKind, RankTrace
from moe_advisor.whatif.recording import NESTED, recorded_share, recording_ns

THREAD, OTHER = 7, 8


def operators(starts: list[int], length: int, tid: int = THREAD, kind: int = RangeKind.OPERATOR):
    return [
        {"start_ns": at, "end_ns": at + length, "tid": tid, "name": 0, "kind": int(kind)}
        | {"sequence": -1, "forward_tid": -1}
        for at in starts
    ]


def trace(rows: list[dict], calls: list[int]) -> RankTrace:
    ranges = pl.DataFrame(rows, schema=RANGE_SCHEMA).sort(
        "start_ns", "end_ns", descending=[False, True]
    )
    made = [{"start_ns": at, "end_ns": at + 1, "tid": THREAD, "name": 0} for at in calls]
    return RankTrace(0, "metadata", ("",), ranges=ranges, calls=pl.DataFrame(made, CALL_SCHEMA))


def nested(count: int) -> list[dict]:
    """Operators of 50 ns, each with one inside it that starts after 10 ns."""
    outer = operators([100 * one for one in range(count)], 50)
    return outer + operators([100 * one + 10 for one in range(count)], 20)


def test_every_operator_costs_what_lies_between_an_operators_start_and_the_first_inside_it() -> (
    None
):
    one = trace(nested(NESTED), calls=[15, 115, 5_000])
    threads = np.asarray([THREAD])
    # Forty operators in the step, at 10 ns; the calls inside them are part of what one costs.
    assert recording_ns(one, threads, 0, 2_000) == 400.0
    assert recording_ns(one, np.asarray([OTHER]), 0, 2_000) == 0.0


def test_without_enough_nested_operators_nothing_is_told() -> None:
    threads = np.asarray([THREAD])
    assert recording_ns(trace(nested(NESTED - 1), []), threads, 0, 10_000) == 0.0
    annotations = [row | {"kind": int(RangeKind.ANNOTATION)} for row in nested(NESTED)]
    assert recording_ns(trace(annotations, []), threads, 0, 10_000) == 0.0
    # Operators side by side, or of another thread, are not inside one another.
    apart = operators([100 * one for one in range(NESTED)], 50)
    apart += operators([100 * one + 10 for one in range(NESTED)], 20, tid=OTHER)
    assert recording_ns(trace(apart, []), np.asarray([THREAD, OTHER]), 0, 10_000) == 0.0


def test_ranks_share_one_figure_and_one_without_it_leaves_none() -> None:
    assert recorded_share([300.0, 100.0], 2_000.0) == 0.2
    assert recorded_share([300.0, 0.0], 2_000.0) == 0.0
    assert recorded_share([], 2_000.0) == 0.0
    assert recorded_share([300.0], 0.0) == 0.0
