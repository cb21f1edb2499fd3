"""Device idle time and who caused it; the compute-absent time and what stood in the way."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.intervals import Intervals, merge, union
from moe_advisor.model import NONE, ActivityKind, CopyKind, RankTrace
from moe_advisor.roles.taxonomy import Taxonomy


@dataclass(frozen=True)
class CallKinds:
    """Which of the process's CUDA calls are of a kind, row by row.

    An asynchronous copy to pageable memory counts as blocking: it waits for the device.
    """

    sync: NDArray[np.bool_]
    blocking: NDArray[np.bool_]
    alloc: NDArray[np.bool_]
    module: NDArray[np.bool_]
    names: list[int]
    """The names of all calls, as numbers."""

    @classmethod
    def of(cls, rank: RankTrace, taxonomy: Taxonomy) -> "CallKinds":
        """The kinds of the rank's calls by their names, and by the copies they launched."""
        name = rank.calls["name"].to_numpy()
        numbers = distinct(name)
        codes = np.zeros(numbers[-1] + 1 if numbers else 0, np.uint8)
        for one in numbers:
            codes[one] = _CALL_CODES.get(taxonomy.call_kind(rank.names[one]) or "", 0)
        code = codes.take(name)
        sync, blocking, alloc, module = (code == kind for kind in _CALL_CODES.values())
        work = rank.activities
        pageable = (
            (work["kind"].to_numpy() == ActivityKind.MEMCPY)
            & work["pageable"].to_numpy()
            & (work["copy_kind"].to_numpy() == CopyKind.DEVICE_TO_HOST)
        )
        launched = work["call"].to_numpy()[pageable]
        blocking[launched[launched >= 0]] = True
        return cls(sync, blocking, alloc, module, numbers)


_CALL_CODES = {"sync": 1, "blocking_copy": 2, "alloc": 3, "module_load": 4}
_FREES, _MALLOCS = ("cudaFree", "hipFree"), ("cudaMalloc", "hipMalloc")


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
    kinds: CallKinds


def host_calls(rank: RankTrace, taxonomy: Taxonomy) -> HostCalls:
    """Classifies the CUDA calls of the process and finds its data-loading ranges."""
    names = rank.calls["name"].to_numpy()
    start = rank.calls["start_ns"].to_numpy()
    end = rank.calls["end_ns"].to_numpy()
    kinds = CallKinds.of(rank, taxonomy)
    waits = np.flatnonzero(kinds.sync | kinds.blocking)
    alloc = np.flatnonzero(kinds.alloc)
    freed = start[among(names, [n for n in kinds.names if rank.names[n] in _FREES])]
    asked = start[among(names, [n for n in kinds.names if rank.names[n] in _MALLOCS])]
    contexts = {
        n: taxonomy.context(rank.names[n]) for n in distinct(rank.ranges["name"].to_numpy())
    }
    loads = rank.ranges.filter(
        pl.col("name").is_in([name for name, context in contexts.items() if context == "data"])
    )
    return HostCalls(
        sync=union(start[waits], end[waits]),
        alloc=union(start[alloc], end[alloc]),
        data=union(loads["start_ns"].to_numpy(), loads["end_ns"].to_numpy()),
        sync_starts=np.sort(start[kinds.sync]),
        alloc_frees=np.sort(freed[freed < asked.max(initial=NONE)]),
        kinds=kinds,
    )


def next_issue_ns(
    starts: NDArray[np.int64], issued: NDArray[np.int64], low: NDArray[np.int64]
) -> NDArray[np.int64]:
    """When the activities in the rows `low` were issued; NONE where their launch is unknown.

    `starts` is sorted. Of several that start together the one issued first counts, and `low` is the
    first row of them.
    """
    found = issued[low]
    tied = np.zeros(len(starts), np.bool_)
    np.equal(starts[1:], starts[:-1], out=tied[:-1])
    for tie in np.flatnonzero(tied[low]).tolist():
        high = np.searchsorted(starts, starts[low[tie]], side="right")
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


def divide_idle(
    rank: RankTrace,
    issued: NDArray[np.int64],
    busy: Intervals,
    span: Intervals,
    calls: HostCalls,
) -> Idle:
    """Divides the idle time of `span` (the union of the step windows).

    `issued` are the `issue_times` of the rank.

    A gap is the host's if the launch call of the next activity began after the gap did; the end of
    the last step, with nothing launched any more, is the host's too.
    """
    starts = rank.activities["start_ns"].to_numpy()
    gap_start, gap_end = busy.ends[:-1], busy.starts[1:]
    issued_at = next_issue_ns(starts, issued, np.searchsorted(starts, gap_end))
    by_host = (issued_at != NONE) & (issued_at > gap_start)
    late = host = Intervals(gap_start[by_host], gap_end[by_host])
    in_time = Intervals(gap_start[~by_host], gap_end[~by_host])
    if len(busy) and len(span):
        tail = union([busy.ends[-1]], [max(int(span.ends[-1]), int(busy.ends[-1]))])
        head = union([min(int(span.starts[0]), int(busy.starts[0]))], [busy.starts[0]])
        host = merge([head, host, tail])
    else:
        host = span
    host = host & span
    causes: dict[str, Intervals] = {}
    rest = host
    for cause, held in (("sync", calls.sync), ("alloc", calls.alloc), ("data", calls.data)):
        causes[cause], rest = rest.parted(held)
    causes["launch"] = rest
    began = calls.sync.contains(late.starts)
    after = Intervals(late.starts[began], late.ends[began]) & span
    return Idle(host, in_time & span, causes, after)


def starved_launches(
    rank: RankTrace,
    issued: NDArray[np.int64],
    compute_rows: NDArray[np.bool_],
    compute: Intervals,
    span: Intervals,
) -> Intervals:
    """When no compute kernel runs and the next one had not been issued yet, inside `span`.

    `issued` are the `issue_times` of the rank.
    A kernel without a known launch counts as issued. After the last kernel nothing was issued.
    """
    if not len(compute) or not len(span):
        return span
    rows = np.flatnonzero(compute_rows)
    starts = rank.activities["start_ns"].to_numpy()[rows]
    gap_start = np.concatenate([[min(int(span.starts[0]), int(compute.starts[0]))], compute.ends])
    last_end = max(int(span.ends[-1]), int(compute.ends[-1]))
    gap_end = np.concatenate([compute.starts, [last_end]])
    alone = len(compute) == len(starts)  # kernels never overlap or touch: each opens its own
    opens = np.arange(len(starts)) if alone else np.searchsorted(starts, compute.starts)
    issued_at = np.append(next_issue_ns(starts, issued[rows], opens), last_end)
    np.copyto(issued_at[:-1], gap_start[:-1], where=issued_at[:-1] == NONE)
    return union(gap_start, np.clip(issued_at, gap_start, gap_end, out=issued_at))
