"""Device idle time and who caused it; the compute-absent time and what stood in the way."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.intervals import EMPTY, Intervals, merge, union
from moe_advisor.model import ActivityKind, CopyKind, RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.taxonomy import Taxonomy

IDLE_CAUSES = ("sync", "alloc", "data", "launch")
"""How host gaps are divided by time, in order of precedence."""

DETAIL_ROWS = 8
"""At most so many calls or ranges are named for one idle cause; the rest is summed as other."""


@dataclass(frozen=True)
class HostCalls:
    """Intervals (ns) in which some thread of the process stood in a call of one kind."""

    sync: Intervals
    alloc: Intervals
    data: Intervals
    sync_starts: NDArray[np.int64]
    """Start of every synchronising call, sorted: to count them."""
    alloc_frees: NDArray[np.int64]
    """Start of every cudaFree that a cudaMalloc of the process follows, sorted."""


def host_calls(rank: RankTrace, roles: RoleTable, taxonomy: Taxonomy) -> HostCalls:
    """Classifies the CUDA calls of the process and finds its data-loading ranges."""
    names = rank.calls["name"].to_numpy()
    start = rank.calls["start_ns"].to_numpy()
    end = rank.calls["end_ns"].to_numpy()
    kinds = {name: taxonomy.call_kind(rank.names[name]) for name in np.unique(names).tolist()}

    def of_kind(*wanted: str) -> NDArray[np.bool_]:
        return np.isin(names, [name for name, kind in kinds.items() if kind in wanted])

    sync = of_kind("sync")
    blocking = of_kind("blocking_copy")
    copies = rank.activities.filter(
        (pl.col("kind") == ActivityKind.MEMCPY)
        & pl.col("pageable")
        & (pl.col("copy_kind") == CopyKind.DEVICE_TO_HOST)
        & (pl.col("call") >= 0)
    )
    blocking[copies["call"].to_numpy()] = True  # an async copy to pageable memory waits for it
    alloc = of_kind("alloc")
    freed = np.isin(names, [n for n in kinds if rank.names[n] in ("cudaFree", "hipFree")])
    contexts = {n: taxonomy.context(rank.names[n]) for n in rank.ranges["name"].unique().to_list()}
    loads = rank.ranges.filter(
        pl.col("name").is_in([name for name, context in contexts.items() if context == "data"])
    )
    return HostCalls(
        sync=union(start[sync | blocking], end[sync | blocking]),
        alloc=union(start[alloc], end[alloc]),
        data=union(loads["start_ns"].to_numpy(), loads["end_ns"].to_numpy()),
        sync_starts=np.sort(start[sync]),
        alloc_frees=np.sort(start[freed]),
    )


@dataclass(frozen=True)
class Idle:
    """Device idle time inside the steps, as disjoint sets (ns)."""

    host: Intervals
    dependency: Intervals
    by_cause: dict[str, Intervals]
    after_sync: Intervals


def divide_idle(rank: RankTrace, busy: Intervals, span: Intervals, calls: HostCalls) -> Idle:
    """Divides the idle time of `span` (the union of the step windows).

    A gap is the host's if the launch call of the next activity began after the gap did; the end of
    the last step, with nothing launched any more, is the host's too.
    """
    starts = rank.activities["start_ns"].to_numpy()
    call = rank.activities["call"].to_numpy()
    call_start = rank.calls["start_ns"].to_numpy()
    gap_start, gap_end = busy.ends[:-1], busy.starts[1:]
    following = np.searchsorted(starts, gap_end)
    launch = call[following] if len(following) else np.empty(0, np.int64)
    by_host = launch >= 0
    by_host[by_host] = call_start[launch[by_host]] > gap_start[by_host]
    host = union(gap_start[by_host], gap_end[by_host])
    if len(busy) and len(span):
        tail = union([busy.ends[-1]], [max(int(span.ends[-1]), int(busy.ends[-1]))])
        head = union([min(int(span.starts[0]), int(busy.starts[0]))], [busy.starts[0]])
        host = merge([head, host, tail])
    else:
        host = span
    host = host & span
    idle = span - busy
    causes: dict[str, Intervals] = {}
    rest = host
    for cause, held in (("sync", calls.sync), ("alloc", calls.alloc), ("data", calls.data)):
        causes[cause] = rest & held
        rest = rest - held
    causes["launch"] = rest
    began = calls.sync.contains(gap_start[by_host]) if len(gap_start) else np.zeros(0, np.bool_)
    after = union(gap_start[by_host][began], gap_end[by_host][began]) & span
    return Idle(host, idle - host, causes, after)


def starved_and_issued(
    rank: RankTrace, compute_rows: NDArray[np.bool_], compute: Intervals, span: Intervals
) -> tuple[Intervals, Intervals]:
    """Divides the compute-absent time of `span`: before and after the next kernel was issued.

    A kernel without a known launch counts as issued. After the last kernel nothing was issued.
    """
    absent = span - compute
    if not len(compute):
        return absent, EMPTY
    rows = np.flatnonzero(compute_rows)
    starts = rank.activities["start_ns"].to_numpy()[rows]
    call = rank.activities["call"].to_numpy()[rows]
    call_start = rank.calls["start_ns"].to_numpy()
    gap_start, gap_end = compute.ends[:-1], compute.starts[1:]
    launch = call[np.searchsorted(starts, gap_end)] if len(gap_end) else np.empty(0, np.int64)
    issued_at = np.where(
        launch >= 0, call_start[np.maximum(launch, 0)] if len(call_start) else 0, gap_start
    )
    until = np.clip(issued_at, gap_start, gap_end)
    tail_end = max(int(span.ends[-1]), int(compute.ends[-1])) if len(span) else 0
    first = int(compute.starts[0])
    head_launch = call[np.searchsorted(starts, [first])[0]]
    head_until = int(call_start[head_launch]) if head_launch >= 0 else 0
    head_start = min(int(span.starts[0]), first) if len(span) else first
    starved = merge(
        [
            union(gap_start, until),
            union([compute.ends[-1]], [tail_end]),
            union([head_start], [min(max(head_until, head_start), first)]),
        ]
    )
    starved = starved & absent
    return starved, absent - starved


def idle_detail(
    rank: RankTrace, idle: Idle, taxonomy: Taxonomy
) -> dict[str, dict[str, tuple[int, int]]]:
    """Which calls and ranges held the host during the gaps: name -> (number, idle ns under it)."""
    detail: dict[str, dict[str, tuple[int, int]]] = {}
    names = rank.calls["name"].to_numpy()
    start = rank.calls["start_ns"].to_numpy()
    end = rank.calls["end_ns"].to_numpy()
    for cause, kinds in (("sync", ("sync", "blocking_copy", "async_copy")), ("alloc", ("alloc",))):
        gaps = idle.by_cause[cause]
        found: dict[str, tuple[int, int]] = {}
        for name in np.unique(names).tolist():
            text = rank.names[name]
            if taxonomy.call_kind(text) not in kinds or not len(gaps):
                continue
            rows = names == name
            under = gaps.within(start[rows], end[rows])
            if under.any():
                found[text] = (int((under > 0).sum()), int(under.sum()))
        detail[cause] = _largest(found)
    return detail


def _largest(found: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    kept = dict(ordered[:DETAIL_ROWS])
    if len(ordered) > DETAIL_ROWS:
        rest = [value for _, value in ordered[DETAIL_ROWS:]]
        kept["other"] = (sum(count for count, _ in rest), sum(ns for _, ns in rest))
    return kept
