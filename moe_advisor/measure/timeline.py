"""One representative step as drawable slices, bounded in size."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from moe_advisor.intervals import Intervals, union
from moe_advisor.measure.kernels import NAME_LIMIT, short_name
from moe_advisor.measure.rank import MeasuredRank
from moe_advisor.measure.summary import representative_step
from moe_advisor.model import ActivityKind, RangeKind
from moe_advisor.privacy import safe_text
from moe_advisor.result import Timeline, TimelineSlices
from moe_advisor.roles.roles import COMMUNICATION, Role

MAX_SLICES = 6_000
"""More slices than pixels help nobody; this many keep a timeline below 300 kB of JSON."""

MAX_HOST_RANGES = 1_000
MAX_GAPS = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a step is kept; None keeps everything."""

    slices: int | None = MAX_SLICES
    host_ranges: int | None = MAX_HOST_RANGES
    gaps: int | None = MAX_GAPS
    digits: int = 2
    """Decimals of a time in us: 10 ns can be seen on no screen, 1 ns is what a trace holds."""


DRAWN = Limits()
FULL = Limits(100_000, 100_000, 100_000, 3)
"""For a trace viewer, which draws what is in view: so many make a file of about 25 MB a rank."""


def timeline(
    measured: MeasuredRank, number: int | None = None, limits: Limits = DRAWN
) -> Timeline | None:
    """The rank's step `number`, its representative one by default; None without GPU work."""
    windows, trace, roles, idle = (
        measured.windows,
        measured.trace,
        measured.roles,
        measured.idle,
    )
    if not len(windows) or not len(trace.activities):
        return None
    if number is None:
        number = representative_step(measured.partial)
    start, end = int(windows.start[number]), int(windows.end[number])
    table = trace.activities.with_columns(
        role=pl.Series(roles.roles), row=pl.int_range(pl.len())
    ).filter((pl.col("end_ns") > start) & (pl.col("start_ns") < end))
    span = union([start], [end])
    firsts, lasts = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    kinds, of_role = table["kind"].to_numpy(), table["role"].to_numpy()
    computes = (kinds == ActivityKind.KERNEL) & (of_role < Role.EP_DISPATCH)
    compute = union(firsts[computes], lasts[computes])
    comms = np.isin(of_role, COMMUNICATION)
    comm = union(firsts[comms], lasts[comms]) & span
    shown, omitted = _reduced(table, limits.slices)
    streams = sorted(shown["stream"].unique().to_list())
    lane_of = {stream: lane for lane, stream in enumerate(streams)}
    shown = shown.with_columns(
        lane=pl.col("stream").replace_strict(lane_of, return_dtype=pl.Int64)
    ).sort("lane", "start_ns", "end_ns")
    used = sorted(shown["name"].unique().to_list())
    name_of = {name: index for index, name in enumerate(used)}
    present = sorted(shown["role"].unique().to_list())
    role_of = {role: index for index, role in enumerate(present)}

    def us(ns: int) -> float:
        return round((ns - start) / 1e3, limits.digits)

    return Timeline(
        rank=trace.rank,
        step=windows.names[number],
        step_ms=round((end - start) / 1e6, 6),
        lanes=[f"stream {stream}" for stream in streams],
        names=[short_name(trace.names[name]) for name in used],
        roles=[Role(role).label for role in present],
        slices=TimelineSlices(
            lane=shown["lane"].to_list(),
            start_us=[us(max(value, start)) for value in shown["start_ns"].to_list()],
            dur_us=[
                round((min(b, end) - max(a, start)) / 1e3, limits.digits)
                for a, b in zip(shown["start_ns"].to_list(), shown["end_ns"].to_list(), strict=True)
            ],
            name=[name_of[name] for name in shown["name"].to_list()],
            role=[role_of[role] for role in shown["role"].to_list()],
        ),
        host=_host_ranges(measured, number, start, limits),
        exposed=_pairs(comm - compute, us, limits.gaps),
        hidden=_pairs(comm & compute, us, limits.gaps),
        gaps=[
            [us(a), round((b - a) / 1e3, limits.digits), cause]
            for cause, one in (
                *((f"host_gap_{cause}", one & span) for cause, one in idle.by_cause.items()),
                ("dependency_idle", idle.dependency & span),
            )
            for a, b in _largest(one, limits.gaps)
        ],
        omitted=omitted,
    )


def _reduced(table: pl.DataFrame, most: int | None) -> tuple[pl.DataFrame, int]:
    """The `most` longest activities; the rest are counted as omitted."""
    if most is None or len(table) <= most:
        return table, 0
    longest = (
        table.with_columns(length=pl.col("end_ns") - pl.col("start_ns"))
        .sort("length", "row", descending=[True, False])
        .head(most)
    )
    return longest.drop("length"), len(table) - most


def _largest(one: Intervals, most: int | None) -> list[tuple[int, int]]:
    pairs = one.pairs()
    if most is not None and len(pairs) > most:
        pairs = sorted(sorted(pairs, key=lambda pair: pair[0] - pair[1])[:most])
    return pairs


def _pairs(one: Intervals, us, most: int | None) -> list[list[float]]:  # type: ignore[no-untyped-def]
    return [[us(a), us(b)] for a, b in _largest(one, most)]


def _host_ranges(
    measured: MeasuredRank, number: int, start: int, limits: Limits
) -> list[list[object]]:
    """Annotations of the step on the thread that opened the step: start, duration, name, depth."""
    trace, windows = measured.trace, measured.windows
    low, high = int(windows.host_start[number]), int(windows.host_end[number])
    inside = trace.ranges.filter(
        (pl.col("kind") == RangeKind.ANNOTATION)
        & (pl.col("start_ns") >= low)
        & (pl.col("end_ns") <= high)
    )
    if not len(inside):
        return []
    main = inside.group_by("tid").len().sort("len", "tid")["tid"][-1]
    found: list[list[object]] = []
    stack: list[int] = []
    for first, last, name in (
        inside.filter(pl.col("tid") == main)
        .sort("start_ns", pl.col("end_ns"), descending=[False, True])
        .select("start_ns", "end_ns", "name")
        .iter_rows()
    ):
        while stack and stack[-1] <= first:
            stack.pop()
        found.append(
            [
                round((first - start) / 1e3, limits.digits),
                round((last - first) / 1e3, limits.digits),
                safe_text(trace.names[name], NAME_LIMIT),
                len(stack),
            ]
        )
        stack.append(last)
        if limits.host_ranges is not None and len(found) >= limits.host_ranges:
            break
    return found
