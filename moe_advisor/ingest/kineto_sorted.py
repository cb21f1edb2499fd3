"""The columns of a whole Kineto file, sorted, before they are divided among ranks."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.ingest.kineto_columns import HOST_OVERHEAD, Columns, CommsCall
from moe_advisor.model import MATMUL_SCHEMA, NONE
from moe_advisor.privacy import safe_text

NAME_LIMIT = 4096
"""Longest kernel or range name kept, in characters; mangled template names reach about 2,000."""

DAY_NS = 86_400 * 10**9
"""A row further than this from the middle of the trace has a broken clock: no capture is so long"""

Ints = NDArray[np.int64]


@dataclass(slots=True)
class Host:
    """Host-side columns of the file in start order; threads are unique over its processes."""

    start: Ints
    end: Ints
    pid: Ints
    tid: Ints
    name: NDArray[np.uint32]


@dataclass(slots=True)
class Calls(Host):
    """API calls."""

    correlation: Ints


@dataclass(slots=True)
class Ranges(Host):
    """Operators, annotations, modules and the profiler's own work."""

    kind: NDArray[np.uint8]
    sequence: Ints
    forward: Ints


@dataclass(slots=True)
class Activities:
    """GPU work in start order."""

    start: Ints
    end: Ints
    name: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    pid: Ints
    device: Ints
    stream: Ints
    correlation: Ints
    bytes: Ints
    blocks: Ints
    in_graph: NDArray[np.bool_]
    number: Ints  # row in file order


@dataclass(slots=True)
class Names:
    """One numbering for the names of activities, calls and ranges."""

    texts: list[str]
    activity: NDArray[np.uint32]
    call: NDArray[np.uint32]
    operator: NDArray[np.uint32]
    overhead: NDArray[np.uint32]
    numbers: dict[str, int]

    def number(self, text: str) -> int:
        """The number of `text`, given one if it is new."""
        clean = safe_text(text, NAME_LIMIT)
        number = self.numbers.setdefault(clean, len(self.texts))
        if number == len(self.texts):
            self.texts.append(clean)
        return number


_API_VERSION = re.compile(r"_v\d{4,}$")
OVERHEAD_PREFIX = "profiler: "


def names_of(columns: Columns) -> Names:
    """The names of all rows, safe to be shown."""
    nothing = np.zeros(0, np.uint32)
    names = Names([], nothing, nothing, nothing, nothing, {})

    def numbered(texts: list[str]) -> NDArray[np.uint32]:
        return np.array([names.number(text) for text in texts], np.uint32)

    names.activity = numbered(list(columns.activity_names))
    names.call = numbered([_API_VERSION.sub("", text) for text in columns.call_names])
    names.operator = numbered(list(columns.range_names))
    kinds = columns.ranges.column("kind", np.uint8)
    used = np.unique(columns.ranges.column("name", np.uint32)[kinds == HOST_OVERHEAD])
    names.overhead = names.operator.copy()
    texts = list(columns.range_names)
    for raw in used.tolist():
        names.overhead[raw] = names.number(OVERHEAD_PREFIX + texts[raw])
    return names


class Lanes:
    """Thread numbers that are unique over the processes of a file.

    The main process keeps its own; those of others are moved far above.
    """

    PLACES = 1 << 18  # more processes than this share numbers, so that they fit 64 bits
    SHIFT = 1 << 44  # above every thread number of `ThreadNumbers`

    def __init__(self, pids: Ints) -> None:
        values, counts = np.unique(pids, return_counts=True)
        order = np.lexsort((values, -counts))
        self._shift = {
            int(values[at]): place % self.PLACES * self.SHIFT for place, at in enumerate(order)
        }

    def of(self, pid: Ints, tid: Ints) -> Ints:
        """The number of each thread `tid` of process `pid`."""
        if len(self._shift) <= 1:
            return tid
        values, inverse = np.unique(pid, return_inverse=True)
        shifts = np.array([self._shift.get(int(value), 0) for value in values], np.int64)
        return tid + shifts[inverse]


@dataclass(slots=True)
class SortedFile:
    """The columns of a whole file, sorted, before they are divided among ranks."""

    activities: Activities
    calls: Calls
    ranges: Ranges
    launched_by: Ints  # row in calls per activity, NONE where unknown
    comms: list[CommsCall]
    duplicates: int
    jumps: int
    matmuls: pl.DataFrame  # MATMUL_SCHEMA and `pid`


def sorted_file(columns: Columns, names: Names) -> SortedFile:
    """All rows with sane times; `columns` keep only those that are still needed."""
    jumps = 0
    middle = middle_ns(columns)

    def sane(start: Ints, end: Ints) -> NDArray[np.bool_]:
        nonlocal jumps
        keep: NDArray[np.bool_] = (np.abs(start - middle) < DAY_NS) & (end - start < DAY_NS)
        jumps += int((~keep).sum())
        return keep

    host_pids = columns.calls.column("pid")
    range_kinds = columns.ranges.column("kind", np.uint8)
    range_pids = columns.ranges.column("pid")
    lanes = Lanes(np.concatenate([host_pids, range_pids[range_kinds != HOST_OVERHEAD]]))

    table = columns.calls
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((end[rows], start[rows]))]
    calls = Calls(
        start=start[rows],
        end=end[rows],
        pid=host_pids[rows],
        tid=lanes.of(host_pids, table.column("tid"))[rows],
        name=names.call[table.column("name", np.uint32)[rows]],
        correlation=table.column("correlation")[rows],
    )
    table.keep("start")

    table = columns.ranges
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((-end[rows], start[rows]))]
    kind = range_kinds[rows]
    raw_names = table.column("name", np.uint32)[rows]
    overhead = kind == HOST_OVERHEAD
    tid = lanes.of(range_pids, table.column("tid"))[rows]
    ranges = Ranges(
        start=start[rows],
        end=end[rows],
        pid=range_pids[rows],
        tid=np.where(overhead, NONE, tid),
        name=np.where(overhead, names.overhead[raw_names], names.operator[raw_names])
        if len(raw_names)
        else raw_names,
        kind=kind,
        sequence=table.column("sequence")[rows],
        forward=table.column("forward")[rows],
    )
    table.keep("start")

    table = columns.activities
    start, end = table.column("start"), table.column("end")
    rows = np.flatnonzero(sane(start, end))
    rows = rows[np.lexsort((end[rows], start[rows]))]
    raw_names = table.column("name", np.uint32)[rows]
    activities = Activities(
        start=start[rows],
        end=end[rows],
        name=names.activity[raw_names] if len(raw_names) else raw_names,
        kind=table.column("kind", np.uint8)[rows],
        pid=table.column("pid")[rows],
        device=table.column("device")[rows],
        stream=table.column("stream")[rows],
        correlation=table.column("correlation")[rows],
        bytes=table.column("bytes")[rows],
        blocks=table.column("blocks")[rows],
        in_graph=table.column("graph_node", np.bool_)[rows],
        number=rows,
    )
    table.keep("start")
    launched_by, duplicates = _launches(activities, calls)
    graph = np.array(["GraphLaunch" in text for text in names.texts] or [False], np.bool_)
    has_call = launched_by >= 0
    activities.in_graph[has_call] |= graph[calls.name[launched_by[has_call]]]
    comms = [
        CommsCall(
            call.start_ns,
            call.end_ns,
            call.pid,
            int(lanes.of(np.array([call.pid]), np.array([call.tid]))[0]),
            call.args,
        )
        for call in columns.comms
    ]
    matmuls = _matmul_table(columns, lanes)
    return SortedFile(activities, calls, ranges, launched_by, comms, duplicates, jumps, matmuls)


def middle_ns(columns: Columns) -> int:
    """A time that is surely inside the capture, even if some rows' clocks are broken."""
    starts = [columns.activities.column("start"), columns.calls.column("start")]
    merged = np.concatenate(starts)
    if not len(merged):
        merged = columns.ranges.column("start")
    return int(np.partition(merged, len(merged) // 2)[len(merged) // 2]) if len(merged) else 0


def _launches(activities: Activities, calls: Calls) -> tuple[Ints, int]:
    """Row of the call that launched each activity, and how many calls share another's number.

    Where several calls have the correlation number (several processes in a file), it is the last
    that began before the activity, else the first.
    """
    launched_by = np.full(len(activities.start), NONE, np.int64)
    usable = np.flatnonzero(calls.correlation > 0)
    if not len(usable):
        return launched_by, 0
    # calls are in start order, so a stable sort by correlation leaves (correlation, start) order
    order = usable[np.argsort(calls.correlation[usable], kind="stable")]
    correlations = calls.correlation[order]
    first = np.searchsorted(correlations, activities.correlation, side="left")
    last = np.searchsorted(correlations, activities.correlation, side="right")
    found = last > first
    launched_by[found] = order[first[found]]
    duplicates = int((np.diff(correlations) == 0).sum())
    if duplicates:
        before = np.searchsorted(calls.start, activities.start, side="right")
        for row in np.flatnonzero(last - first > 1).tolist():
            candidates = order[first[row] : last[row]]
            place = int(np.searchsorted(candidates, before[row], side="left"))
            launched_by[row] = candidates[max(place - 1, 0)]
    return launched_by, duplicates


def _matmul_table(columns: Columns, lanes: Lanes) -> pl.DataFrame:
    table = columns.matmuls
    pid = table.column("pid")
    found = pl.DataFrame(
        {
            "start_ns": table.column("start"),
            "end_ns": table.column("end"),
            "tid": lanes.of(pid, table.column("tid")) if len(pid) else pid,
            "flops": table.column("flops"),
            "rows": table.column("rows"),
            "groups": table.column("groups"),
            "pid": pid,
        },
        schema={**MATMUL_SCHEMA, "pid": pl.Int64},
    )
    return found.sort("start_ns", maintain_order=True)
