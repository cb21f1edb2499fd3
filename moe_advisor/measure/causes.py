"""Why the device was idle: every nanosecond of idle time in exactly one named cause.

`divide_idle` splits idle time by the calls of the host (synchronising call, allocator, data,
launching, dependency); here each of those is divided further by the evidence that the trace holds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import among, few
from moe_advisor.intervals import EMPTY, Intervals, merge, union
from moe_advisor.measure.call_names import Detail, name_calls
from moe_advisor.measure.host import CallKinds, Idle, next_issue_ns
from moe_advisor.measure.steps import StepWindows
from moe_advisor.model import NONE, ActivityKind, CopyKind, RangeKind, RankTrace
from moe_advisor.roles.assign import RoleTable
from moe_advisor.roles.roles import COMMUNICATION, Role

PROFILER_PREFIX = "profiler: "
"""Ingest puts this before the name of every overhead range of the profiler itself."""

LOADING = ("Module Loading", "Function Loading", "Driver Compiler")
"""Overhead ranges of these names are the program's own lazy loading, not the profiler's work."""

QUIET_NS = 5_000_000
"""A pause of 5 ms without any call or operator holds hundreds of launches: nothing of the step's
work was being issued."""

RECURRING_STEPS = 0.6
"""A pause that comes in more than this share of the steps belongs to the loop; only then is the
garbage collector suspected. The trace can't prove it."""

GROUP_OF = {
    "dispatcher_split_sync": "sync",
    "blocking_copy": "sync",
    "sync": "sync",
    "alloc": "alloc",
    "data": "data",
    "module_load": "launch",
    "profiler": "launch",
    "dispatcher_count_wait": "launch",
    "cuda_call": "launch",
    "gc_suspected": "launch",
    "python": "launch",
    "host_unknown": "launch",
    "dependency_graph": "dependency",
    "dependency_copy": "dependency",
    "dependency_peer": "dependency",
    "dependency_stream": "dependency",
    "dependency_queue": "dependency",
    "dependency_unknown": "dependency",
}
"""Cause -> the part of `divide_idle`'s division that it belongs to, in order of precedence."""


@dataclass(frozen=True)
class Causes:
    """Disjoint sets whose union is the idle time, and the names behind them."""

    sets: dict[str, Intervals]
    detail: dict[str, Detail]
    """Cause -> name of the call or range -> (number, ns of idle time under it)."""


def find_causes(
    rank: RankTrace,
    roles: RoleTable,
    idle: Idle,
    windows: StepWindows,
    kinds: CallKinds,
    issued: NDArray[np.int64],
) -> Causes:
    """Divides the idle time of a rank; the sets of a group add up to that group exactly.

    `issued` are the `issue_times` of the rank.
    """
    calls = _Calls.of(rank, kinds, idle.host)
    sets: dict[str, Intervals] = {}
    split, copies = _split_syncs(rank, roles, calls), calls.span(calls.blocking)
    rest = idle.by_cause["sync"]
    for cause, held in (("dispatcher_split_sync", calls.span(split)), ("blocking_copy", copies)):
        sets[cause], rest = rest.parted(held)
    sets["sync"] = rest
    sets["alloc"], sets["data"] = idle.by_cause["alloc"], idle.by_cause["data"]
    sets |= _launching(rank, roles, idle.by_cause["launch"], windows, calls)
    sets |= _dependencies(rank, roles, idle.dependency, issued)
    near = calls.near
    split, blocking = split[near], calls.blocking[near]
    chosen = {
        "dispatcher_split_sync": near[split],
        "blocking_copy": near[blocking & ~split],
        "sync": near[calls.sync[near] & ~split & ~blocking],
        "alloc": near[calls.alloc[near]],
        "module_load": near[calls.module[near]],
    }
    others = {"cuda_call": near[~calls.module[near]]}
    detail = name_calls(rank, sets, chosen | others, paths=set(chosen))
    return Causes({cause: sets[cause] for cause in GROUP_OF}, detail)


@dataclass(frozen=True)
class _Calls:
    """The CUDA calls of the process as arrays; masks say what each call is.

    `near` are the rows that touch a host gap: most calls lie where the device is busy, and no cause
    is found there.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    tid: NDArray[np.int64]
    sync: NDArray[np.bool_]
    blocking: NDArray[np.bool_]
    alloc: NDArray[np.bool_]
    module: NDArray[np.bool_]
    near: NDArray[np.int64]

    @classmethod
    def of(cls, rank: RankTrace, kinds: CallKinds, gaps: Intervals) -> "_Calls":
        table = rank.calls
        start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
        return cls(
            start,
            end,
            table["tid"].to_numpy(),
            kinds.sync,
            kinds.blocking,
            kinds.alloc,
            kinds.module,
            np.flatnonzero(gaps.touches(start, end)),
        )

    def span(self, rows: NDArray[np.bool_]) -> Intervals:
        """The time of those of `rows` that touch a host gap."""
        at = self.near[rows[self.near]]
        return union(self.start[at], self.end[at])


def _split_syncs(rank: RankTrace, roles: RoleTable, calls: _Calls) -> NDArray[np.bool_]:
    """Which waits fetch the split sizes of a dropless dispatcher.

    On one thread: a device-to-host copy was launched since the wait before it (or the wait is the
    copy), and the next EP all-to-all is launched before the next GEMM, attention kernel or wait
    for another copy.
    """
    found = np.zeros(len(calls.start), np.bool_)
    if not len(found):
        return found
    work = rank.activities
    call = work["call"].to_numpy()

    def launches(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The calls that launched these activities, in order."""
        launching = call[rows]
        return np.sort(launching[launching >= 0])

    copies = launches(
        (work["kind"].to_numpy() == ActivityKind.MEMCPY)
        & (work["copy_kind"].to_numpy() == CopyKind.DEVICE_TO_HOST)
    )
    payload = launches(roles.mask(Role.EP_DISPATCH, Role.EP_COMBINE))
    other = launches(
        roles.has_nature("gemm")
        | roles.has_nature("attention")
        | roles.mask(Role.EXPERT_GEMM, Role.DENSE_GEMM, Role.ATTENTION)
    )
    waits = np.flatnonzero(calls.sync | calls.blocking)
    copying = np.zeros(len(found), np.bool_)
    copying[copies] = True
    for tid in few(calls.tid[payload]):
        own, copied_by, carried_by, others = (
            rows[calls.tid[rows] == tid] for rows in (waits, copies, payload, other)
        )
        plain = own[~copying[own]]
        copied = _before(copied_by, own) > _before(plain, own)
        copied |= copying[own]
        soon = _after(carried_by, own) < _after(others, own)
        found[own] = copied & soon
    return found


def _before(rows: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per entry of `at`, the last of the sorted `rows` before it, or -1."""
    return np.concatenate([[-1], rows])[np.searchsorted(rows, at)]


def _after(rows: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per entry of `at`, the first of the sorted `rows` beyond it, or a number beyond all."""
    beyond = np.append(rows, np.iinfo(np.int64).max)
    return np.asarray(beyond[np.searchsorted(rows, at, side="right")], np.int64)


def _launching(
    rank: RankTrace, roles: RoleTable, gaps: Intervals, windows: StepWindows, calls: _Calls
) -> dict[str, Intervals]:
    """What the host did while it was on its way to the next launch."""
    ranges = rank.ranges
    name, kind = ranges["name"].to_numpy(), ranges["kind"].to_numpy()
    start, end = ranges["start_ns"].to_numpy(), ranges["end_ns"].to_numpy()
    overhead = [n for n, text in enumerate(rank.names) if text.startswith(PROFILER_PREFIX)]
    loading = [n for n in overhead if any(part in rank.names[n] for part in LOADING)]
    is_overhead, is_loading = among(name, overhead), among(name, loading)
    # Most calls and operators lie where the device is busy: only those in a gap matter here.
    near = gaps.touches(start, end) & ~is_overhead
    operators = among(kind, (RangeKind.OPERATOR, RangeKind.PYTHON)) & near
    visible = operators | ((kind == RangeKind.ANNOTATION) & near)
    visible &= ~np.isin(start, windows.host_start) & ~np.isin(end, windows.host_end)
    called = union(calls.start[calls.near], calls.end[calls.near])
    sets: dict[str, Intervals] = {}
    rest = gaps

    def claim(cause: str, held: Intervals) -> None:
        nonlocal rest
        sets[cause], rest = rest.parted(held)

    claim("module_load", union(start[is_loading], end[is_loading]) | calls.span(calls.module))
    claim("profiler", union(start[is_overhead & ~is_loading], end[is_overhead & ~is_loading]))
    claim("dispatcher_count_wait", _count_waits(rank, roles, calls))
    claim("cuda_call", called)
    active = merge([called, union(start[operators], end[operators])])
    claim("gc_suspected", _recurring_pauses(rest, active, windows))
    claim("python", union(start[visible], end[visible]))
    sets["host_unknown"] = rest
    return sets


def _count_waits(rank: RankTrace, roles: RoleTable, calls: _Calls) -> Intervals:
    """From the launch of a dispatch library's notify kernel to the thread's next CUDA call.

    Only where that call comes after the kernel's end: the thread polled the counters that the
    kernel writes.
    """
    call = rank.activities["call"].to_numpy()
    rows = np.flatnonzero(roles.mask(Role.EP_NOTIFY) & roles.has_nature("ep_notify") & (call >= 0))
    if not len(rows):
        return EMPTY
    ended = rank.activities["end_ns"].to_numpy()[rows]
    order = np.lexsort((calls.start, calls.tid))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    at = place[call[rows]]
    has_next = at + 1 < len(order)
    after = order[np.minimum(at + 1, len(order) - 1)]
    has_next &= calls.tid[after] == calls.tid[call[rows]]
    polled = has_next & (calls.start[after] >= ended)
    return union(calls.end[call[rows]][polled], calls.start[after][polled])


def _recurring_pauses(gaps: Intervals, active: Intervals, windows: StepWindows) -> Intervals:
    """Long stretches of the gaps without any call or operator, if most steps hold one."""
    pauses = gaps.ends - gaps.starts >= QUIET_NS
    quiet = Intervals(gaps.starts[pauses], gaps.ends[pauses]) - active
    long = quiet.ends - quiet.starts >= QUIET_NS
    if not long.any():
        return EMPTY
    starts = quiet.starts[long]
    step = np.searchsorted(windows.start, starts, side="right") - 1
    if len(np.unique(step[step >= 0])) < max(RECURRING_STEPS * len(windows), 2):
        return EMPTY
    return union(starts, quiet.ends[long])


def _dependencies(
    rank: RankTrace, roles: RoleTable, idle: Intervals, issue_ns: NDArray[np.int64]
) -> dict[str, Intervals]:
    """What the next activity, issued in time, stood behind: the activity that ended last."""
    names = [cause for cause, group in GROUP_OF.items() if group == "dependency"]
    sets = dict.fromkeys(names, EMPTY)
    table = rank.activities
    if not len(idle) or not len(table):
        sets["dependency_unknown"] = idle
        return sets
    start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    stream, call = table["stream"].to_numpy(), table["call"].to_numpy()
    graph = table["in_graph"].to_numpy()
    after = np.searchsorted(start, idle.ends)
    # Nothing runs where the device is idle: all that began before has ended, and what begins there
    # is empty.
    reach = np.maximum.accumulate(end)
    latest = np.maximum.accumulate(np.where(end == reach, np.arange(len(end)), 0))
    full = bool((end > start).all())
    began = (after if full else np.searchsorted(start, idle.starts, side="right")) - 1
    before = latest[np.maximum(began, 0)]
    after = np.minimum(after, len(start) - 1)
    issued = next_issue_ns(start, issue_ns, after)
    inside_graph = graph[after] & graph[before] & (call[after] == call[before])
    same = stream[after] == stream[before]
    copied = np.isin(roles.roles[before], (Role.MEMCPY, Role.MEMSET))
    spoke = np.isin(roles.roles[before], COMMUNICATION)
    unknown = (issued == NONE) & ~inside_graph
    # Window edges cut a gap: then its neighbours are not the activities that bound it.
    unknown |= (start[after] < idle.ends) | (end[before] > idle.starts)
    choice = np.select(
        [unknown, inside_graph, ~same & copied, ~same & spoke, ~same],
        [np.int8(place) for place in range(5)],
        np.int8(5),
    )
    for place, kind in enumerate(("unknown", "graph", "copy", "peer", "stream", "queue")):
        rows = choice == place
        sets[f"dependency_{kind}"] = union(idle.starts[rows], idle.ends[rows])
    return sets
