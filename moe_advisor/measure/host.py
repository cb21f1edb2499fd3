"""Device idle time and who caused it; the compute-absent time and what stood in the way."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.intervals import Intervals, merge, union
from moe_advisor.model import NONE, ActivityKind, CopyKind, RankTrace
from moe_advisor.roles.taxonomy import Taxonomy

IDLE_CAUSES = ("sync", "alloc", "data", "launch")
"""How host gaps are divided by time, in order of precedence."""


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


def host_calls(rank: RankTrace, taxonomy: Taxonomy) -> HostCalls:
    """Classifies the CUDA calls of the process and finds its data-loading ranges."""
    names = rank.calls["name"].to_numpy()
    start = rank.calls["start_ns"].to_numpy()
    end = rank.calls["end_ns"].to_numpy()
    kinds = {name: taxonomy.call_kind(rank.names[name]) for name in distinct(names)}

    def of_kind(*wanted: str) -> NDArray[np.bool_]:
        return among(names, [name for name, kind in kinds.items() if kind in wanted])

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
    freed = among(names, [n for n in kinds if rank.names[n] in ("cudaFree", "hipFree")])
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


def next_issue_ns(
    starts: NDArray[np.int64], issued: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """When the activity that starts at each of `at` was issued; NONE where its launch is unknown.

    `starts` is sorted. Of several that start together the one issued first counts.
    """
    low = np.searchsorted(starts, at)
    found = issued[low]
    beyond = np.append(starts[1:], np.iinfo(np.int64).max)
    for tie in np.flatnonzero(beyond[low] == at).tolist():
        high = np.searchsorted(starts, at[tie], side="right")
        found[tie] = issued[low[tie] : high].min()
    return found


def issue_times(rank: RankTrace) -> NDArray[np.int64]:
    """Per activity, when its launch call began; NONE where that is unknown."""
    call = rank.activities["call"].to_numpy()
    call_start = rank.calls["start_ns"].to_numpy()
    if not len(call_start):
        return np.full(len(call), NONE, np.int64)
    return np.where(call >= 0, call_start[np.maximum(call, 0)], NONE)


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
    gap_start, gap_end = busy.ends[:-1], busy.starts[1:]
    issued_at = next_issue_ns(starts, issue_times(rank), gap_end)
    by_host = (issued_at != NONE) & (issued_at > gap_start)
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


def starved_launches(
    rank: RankTrace, compute_rows: NDArray[np.bool_], compute: Intervals, span: Intervals
) -> Intervals:
    """When no compute kernel runs and the next one had not been issued yet, inside `span`.

    A kernel without a known launch counts as issued. After the last kernel nothing was issued.
    """
    if not len(compute) or not len(span):
        return span
    rows = np.flatnonzero(compute_rows)
    starts = rank.activities["start_ns"].to_numpy()[rows]
    gap_start = np.concatenate([[min(int(span.starts[0]), int(compute.starts[0]))], compute.ends])
    last_end = max(int(span.ends[-1]), int(compute.ends[-1]))
    gap_end = np.concatenate([compute.starts, [last_end]])
    issued_at = next_issue_ns(starts, issue_times(rank)[rows], gap_end[:-1])
    issued_at = np.concatenate([np.where(issued_at == NONE, gap_start[:-1], issued_at), [last_end]])
    return union(gap_start, np.clip(issued_at, gap_start, gap_end))
