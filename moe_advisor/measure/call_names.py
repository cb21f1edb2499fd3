"""Names the CUDA calls behind idle time: what was called, and inside which ranges."""

import re
from collections.abc import Collection, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import few
from moe_advisor.intervals import Intervals
from moe_advisor.model import RangeKind, RankTrace
from moe_advisor.nesting import Nesting

DETAIL_ROWS = 8
"""At most so many rows name what a cause consists of; the rest is summed as other."""

STEP_NAME = re.compile(r"(ProfilerStep|iteration|step)[#_ ]?\d+", re.IGNORECASE)
"""A range around a whole step says nothing about what a call was for."""

Int64s = NDArray[np.int64]

Detail = dict[str, tuple[int, int]]
"""Name of a call or range -> (number, ns of idle time under it)."""

_NO_NAME = -1


def name_calls(
    rank: RankTrace,
    sets: Mapping[str, Intervals],
    chosen: Mapping[str, Int64s],
    *,
    paths: Collection[str],
) -> dict[str, Detail]:
    """Per cause of `chosen`, which lists rows of `calls` that it may consist of: the calls' names.

    The causes in `paths` also tell the innermost annotation and operator around each call.
    """
    names = rank.calls["name"].to_numpy()
    start, end = rank.calls["start_ns"].to_numpy(), rank.calls["end_ns"].to_numpy()
    detail: dict[str, Detail] = {}
    for cause, rows in chosen.items():
        under = sets[cause].within(start[rows], end[rows])
        held = under > 0
        rows, under = rows[held], under[held]
        if not len(rows):
            continue
        places = np.full((2, len(rows)), _NO_NAME, np.int64)
        if cause in paths:
            places = _around(rank, rows)
        # Three names as the digits of one number: a capture has a few thousand of them.
        digits = len(rank.names) + 1
        key = (names[rows].astype(np.int64) * digits + places[0] + 1) * digits + places[1] + 1
        _, first, place, numbers = np.unique(
            key, return_index=True, return_inverse=True, return_counts=True
        )
        sums = np.bincount(place, weights=under)
        found: Detail = {}
        for at, number, ns in zip(first.tolist(), numbers.tolist(), sums.tolist(), strict=True):
            text = _text(rank, int(names[rows[at]]), places[:, at].tolist())
            before = found.get(text, (0, 0))
            found[text] = (before[0] + number, before[1] + int(ns))
        detail[cause] = _largest(found)
    return detail


def _text(rank: RankTrace, call: int, places: Collection[int]) -> str:
    """`call in annotation > operator`, as far as these are known."""
    around = [rank.names[name].split(", seq = ")[0] for name in places if name != _NO_NAME]
    return f"{rank.names[call]} in {' > '.join(around)}" if around else rank.names[call]


def _around(rank: RankTrace, rows: Int64s) -> Int64s:
    """Names of the innermost annotation and operator around each call, as two rows."""
    steps = [number for number, text in enumerate(rank.names) if STEP_NAME.fullmatch(text)]
    tids, starts = rank.calls["tid"].to_numpy()[rows], rank.calls["start_ns"].to_numpy()[rows]
    found = np.full((2, len(rows)), _NO_NAME, np.int64)
    meant = (
        (pl.col("kind") == RangeKind.ANNOTATION) & ~pl.col("name").is_in(steps),
        pl.col("kind") == RangeKind.OPERATOR,
    )
    for names, kept in zip(found, meant, strict=True):
        for tid in few(tids):
            part = rank.ranges.filter((pl.col("tid") == tid) & kept)
            mine = np.flatnonzero(tids == tid)
            tree = Nesting.of(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
            inner = tree.innermost(starts[mine])
            held = inner >= 0
            names[mine[held]] = part["name"].to_numpy()[inner[held]]
    return found


def _largest(found: Detail) -> Detail:
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    kept = dict(ordered[:DETAIL_ROWS])
    if len(ordered) > DETAIL_ROWS:
        rest = [value for _, value in ordered[DETAIL_ROWS:]]
        kept["other"] = (sum(count for count, _ in rest), sum(ns for _, ns in rest))
    return kept
