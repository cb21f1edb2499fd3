"""Every GPU activity with its role: the table for people who go on in a notebook."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.intervals import Intervals, union
from moe_advisor.measure.partial import RankPartial
from moe_advisor.measure.rank import MeasuredRank
from moe_advisor.model import ActivityKind, CollectiveKind, Schema
from moe_advisor.privacy import safe_text
from moe_advisor.roles.roles import COMMUNICATION, CONFIDENCE, Role, Source

NAME_LIMIT = 400
"""Characters of a kernel name: templates tell apart what a short name merges."""

ACTIVITY_TABLE: Schema = {
    "rank": pl.Int32,
    "step": pl.String,
    "start_ns": pl.Int64,
    "end_ns": pl.Int64,
    "duration_ns": pl.Int64,
    "exposed_ns": pl.Int64,
    "stream": pl.Int64,
    "kind": pl.String,
    "role": pl.String,
    "family": pl.String,
    "evidence": pl.String,
    "confidence": pl.String,
    "name": pl.String,
    "blocks": pl.Int64,
    "bytes": pl.Int64,
    "in_graph": pl.Boolean,
    "collective": pl.String,
    "group_size": pl.Int64,
    "bytes_sent": pl.Int64,
    "bytes_received": pl.Int64,
}
"""Columns of the table. `step` is null outside the kept steps; times count from `zeros`;
`exposed_ns` is the part of a communication activity beside which no compute kernel runs, null for
other work; `blocks`, `bytes` and the last four are null where the trace does not say."""


def zeros(partials: Sequence[RankPartial]) -> dict[int, int]:
    """For each rank the time of its own clock that is called 0.

    It is the start of the earliest first step on the rank's host, so that ranks of one host can be
    laid side by side; a rank whose clock has no base counts from its own first step. Clocks of two
    hosts are not compared.
    """
    ranks = [one for one in partials if len(one.window_start_ns)]
    first: dict[int, int] = {}
    for one in ranks:
        if one.epoch_ns is not None:
            utc = int(one.window_start_ns[0]) + one.epoch_ns
            first[one.host] = min(utc, first.get(one.host, utc))
    return {
        one.rank: int(one.window_start_ns[0])
        if one.epoch_ns is None
        else first[one.host] - one.epoch_ns
        for one in ranks
    }


def activity_table(measured: MeasuredRank, zero_ns: int | None = None) -> pl.DataFrame:
    """All GPU activities of one rank as `ACTIVITY_TABLE`, in order of their start.

    Times count from `zero_ns` of the rank's clock, by default from its first activity.
    """
    trace, table = measured.trace, measured.trace.activities
    if not len(table):
        return pl.DataFrame(schema=ACTIVITY_TABLE)
    zero = int(table["start_ns"][0]) if zero_ns is None else zero_ns
    roles = measured.roles.roles
    used = np.unique(table["name"].to_numpy())
    names = {int(name): safe_text(trace.names[name], NAME_LIMIT) for name in used}
    collectives = trace.collectives.select(
        pl.col("activity"),
        pl.col("kind")
        .replace_strict(
            {kind.value: kind.name.lower() for kind in CollectiveKind}, return_dtype=pl.String
        )
        .alias("collective"),
        *(_or_null(name) for name in ("group_size", "bytes_sent", "bytes_received")),
    ).unique("activity", keep="first")
    return (
        table.with_columns(
            pl.lit(measured.partial.rank, pl.Int32).alias("rank"),
            _of(roles, [role.label for role in Role]).alias("role"),
            _of(roles, [str(role.family) for role in Role]).alias("family"),
            _of(measured.roles.sources, [one.name.lower() for one in Source]).alias("evidence"),
            _of(measured.roles.sources, [CONFIDENCE[one] for one in Source]).alias("confidence"),
            _steps(measured).alias("step"),
            pl.Series("exposed_ns", _exposed(measured), pl.Int64),
            pl.col("kind").replace_strict(
                {kind.value: kind.name.lower() for kind in ActivityKind}, return_dtype=pl.String
            ),
            pl.col("name").cast(pl.Int64).replace_strict(names, return_dtype=pl.String),
            (pl.col("end_ns") - pl.col("start_ns")).alias("duration_ns"),
            pl.col("start_ns") - zero,
            pl.col("end_ns") - zero,
            _or_null("blocks"),
            _or_null("bytes"),
            pl.int_range(pl.len()).alias("activity"),
        )
        .join(collectives, on="activity", how="left", maintain_order="left")
        .select(pl.col(name).cast(kind) for name, kind in ACTIVITY_TABLE.items())
    )


def _or_null(name: str) -> pl.Expr:
    """A whole-number column whose negative values say that the trace does not know."""
    return pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name)


def _of(numbers: NDArray[np.int8], words: list[str]) -> pl.Series:
    """The word of each number."""
    return pl.Series(words).gather(pl.Series(numbers.astype(np.uint32)))


def _steps(measured: MeasuredRank) -> pl.Series:
    """The kept step in whose window each activity starts, or null."""
    windows, start = measured.windows, measured.trace.activities["start_ns"].to_numpy()
    if not len(windows):
        return pl.Series([None] * len(start), dtype=pl.String)
    place = np.searchsorted(windows.start, start, side="right") - 1
    inside = (place >= 0) & (start < windows.end[np.maximum(place, 0)])
    names = pl.Series([safe_text(name, NAME_LIMIT) for name in windows.names])
    found = names.gather(pl.Series(np.maximum(place, 0).astype(np.uint32)))
    return found.zip_with(pl.Series(inside), pl.Series([None], dtype=pl.String))


def _exposed(measured: MeasuredRank) -> list[int | None]:
    """Per activity the time without a compute kernel beside it; None where it is none to hide."""
    table, roles = measured.trace.activities, measured.roles.roles
    start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    computes = (table["kind"].to_numpy() == ActivityKind.KERNEL) & (roles < Role.EP_DISPATCH)
    compute: Intervals = union(start[computes], end[computes])
    comm = np.isin(roles, COMMUNICATION)
    exposed = (end - start) - compute.within(start, end)
    return [int(ns) if of else None for ns, of in zip(exposed, comm, strict=True)]
