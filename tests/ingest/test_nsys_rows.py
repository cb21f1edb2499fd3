"""Rows by owner in long columns: what the order of rows in the file must not change."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from moe_advisor.ingest.nsys_rows import Gathered, by_time, joined, runs_by_start

RANDOM = np.random.default_rng(7)


def stably_sorted(start: NDArray[np.int64], end: NDArray[np.int64]) -> list[int]:
    return sorted(range(len(start)), key=lambda row: (start[row], end[row]))


def stably_sorted_by(start: list[int]) -> list[int]:
    return sorted(range(len(start)), key=start.__getitem__)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ([], []),
        ([5], [6]),
        ([1, 2, 3], [9, 8, 7]),
        ([3, 1, 2], [4, 4, 4]),
        ([1, 1, 1, 2], [7, 3, 5, 9]),
        ([2, 1, 2, 1, 2], [5, 5, 3, 5, 4]),
    ],
)
def test_activities_come_by_start_and_then_by_end_and_equal_ones_as_they_were(
    start: list[int], end: list[int]
) -> None:
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    order = by_time(starts, ends)
    found = list(range(len(starts))) if order is None else order.tolist()
    assert found == stably_sorted(starts, ends)


def test_many_ties_in_no_order_are_sorted_too() -> None:
    starts, ends = RANDOM.integers(0, 50, 2_000), RANDOM.integers(50, 60, 2_000)
    order = by_time(starts, ends)
    assert order is not None
    assert order.tolist() == stably_sorted(starts, ends)


def test_what_is_in_order_needs_none() -> None:
    assert by_time(np.array([1, 1, 4]), np.array([2, 3, 5])) is None


def parts(*starts: list[int]) -> list[pl.DataFrame]:
    """Parts of which the second column numbers all rows."""
    rows = iter(range(1_000))
    return [
        pl.DataFrame({"start": one, "row": [next(rows) for _ in one]}, schema=dict.fromkeys(("start", "row"), pl.Int64))
        for one in starts
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("starts", "rows"),
    [
        (([1, 2], [3, 4]), [0, 1, 2, 3]),
        (([8, 9, 1, 2], [3, 4]), [2, 3, 4, 5, 0, 1]),
        (([5, 6], [], [1, 5]), [2, 0, 3, 1]),
        (([1, 5], [5, 6]), [0, 1, 2, 3]),
        (([1, 7], [5, 9]), [0, 2, 1, 3]),
        (([1, 9, 2, 3, 2], []), [0, 2, 4, 3, 1]),
        (([5], [5], [5]), [0, 1, 2]),
        (([], []), []),
    ],
)
def test_few_runs_in_order_are_put_together_in_pieces(
    starts: tuple[list[int], ...], rows: list[int]
) -> None:
    given = parts(*starts)
    pieces = runs_by_start(given, "start")
    assert pieces is not None
    assert joined(given, "row", pieces).tolist() == rows


@pytest.mark.parametrize("seed", range(40))
def test_pieces_give_the_stable_order_of_any_runs(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 9, 5)
    given = parts(*(np.sort(random.integers(0, 12, size)).tolist() for size in sizes))
    starts = [start for part in given for start in part["start"]]
    pieces = runs_by_start(given, "start")
    assert pieces is not None
    assert joined(given, "row", pieces).tolist() == stably_sorted_by(starts)


def test_a_table_in_no_order_has_no_runs() -> None:
    assert runs_by_start(parts([3, 2] * 100), "start") is None


def test_rows_keep_their_order_and_their_types_over_the_blocks() -> None:

    gathered = Gathered(lambda frame: frame)
    values = np.arange(100_000)
    for low in range(0, len(values), 30_000):
        some = values[low : low + 30_000]
        rows = np.flatnonzero(some % 3 > 0)
        columns = {"wide": some, "narrow": some.astype(np.uint32), "odd": some % 2 == 1}
        gathered.add(columns, rows, len(rows))
    gathered.add({"wide": values[:2], "narrow": values[:2].astype(np.uint32), "odd": values[:2] > 0}, None, 2)  # fmt: skip
    kept = [frame for frame in gathered.close() if isinstance(frame, pl.DataFrame)]
    assert len(kept) > 1
    whole = pl.concat(kept)
    assert whole.schema == {"wide": pl.Int64, "narrow": pl.UInt32, "odd": pl.Boolean}
    assert whole["wide"].to_list() == [*(n for n in range(100_000) if n % 3), 0, 1]
    assert whole["narrow"].to_list() == whole["wide"].to_list()
    assert whole["odd"].to_list() == [n % 2 == 1 for n in whole["wide"]]
