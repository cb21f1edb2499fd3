"""Which exposed EP communication a compute kernel really waited for, from stream order and events.

Exposed communication need not delay anything: the next kernel may wait for something else. For
every stretch without compute, the kernel that ends it is traced back: to the activity before it on
its own stream, or over a `cudaStreamWaitEvent` to the last activity that another stream got before
the event was recorded, whichever ended last.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import few
from moe_advisor.intervals import Intervals, union
from moe_advisor.model import RankTrace

MAX_HOPS = 6
"""Copies, memsets and events between a communication kernel and its consumer: never more seen."""

MAX_WAITS = 32
"""Events that one kernel waits for; torch issues one per stream it joins."""

HANDOVER_NS = 10_000
"""Without event records, a kernel that starts within 10 µs after the end of communication, with a
stream wait issued before it, waited for it: start latency behind an event is 2 to 8 µs."""

_WAIT_CALLS = ("cudaStreamWaitEvent", "cuStreamWaitEvent", "hipStreamWaitEvent")

Rows = NDArray[np.int64]


class Evidence(IntEnum):
    """How the dependency is known, best first."""

    EVENT = 0
    ORDER = 1
    STRUCTURE = 2


EVIDENCE_LABELS = {
    Evidence.EVENT: "by event dependencies",
    Evidence.ORDER: "by stream order",
    Evidence.STRUCTURE: "by structure only",
}


@dataclass(frozen=True)
class Blocking:
    """Where compute waited for EP communication (disjoint, ns), apart by evidence.

    Only time of the communication counts that lies in a gap of compute; whether the waiting kernel
    was issued by then is the caller's business.
    """

    by_evidence: dict[Evidence, Intervals]
    resolved: bool
    """Whether the trace has event records or stream waits at all."""


@dataclass(frozen=True)
class _Lane:
    """The work of one stream in start order, which is its launch order."""

    rows: Rows
    calls: Rows  # call of the last launch up to each row
    wait_calls: Rows
    producers: Rows  # per wait: the row that it waits for, or -1


def find_blocking(
    rank: RankTrace, ep_rows: NDArray[np.bool_], compute_rows: NDArray[np.bool_], compute: Intervals
) -> Blocking:
    """Which EP time blocked compute, for all rows of `rank.activities`."""
    waits = rank.waits
    found: dict[Evidence, Intervals] = {}
    gaps = _Gaps.of(rank, ep_rows, compute_rows, compute)
    resolved = bool(len(waits))
    if gaps is None:
        return Blocking(found, resolved)
    table = rank.activities
    start, end = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    lanes = _lanes(rank)
    stream = table["stream"].to_numpy()
    call = table["call"].to_numpy()
    count = len(gaps.kernel)
    held_until = np.full(count, -1, np.int64)
    evidence = np.full(count, -1, np.int64)
    current, weakest = gaps.kernel.copy(), np.zeros(count, np.int64)
    open_ = np.arange(count)
    for _ in range(MAX_HOPS):
        if not len(open_):
            break
        producer, kind = _producers(current[open_], lanes, stream, call, end)
        running = (producer >= 0) & (end[np.maximum(producer, 0)] > gaps.start[open_])
        running &= ~compute_rows[np.maximum(producer, 0)]
        open_, producer, kind = open_[running], producer[running], kind[running]
        # One event on the way makes it an event dependency.
        weakest[open_] += kind == Evidence.EVENT
        is_ep = ep_rows[producer]
        done = open_[is_ep]
        held_until[done] = end[producer[is_ep]]
        evidence[done] = np.where(weakest[done] > 0, Evidence.EVENT, Evidence.ORDER)
        current[open_] = producer
        open_ = open_[~is_ep]
    if not resolved:
        # An event that can't be seen may have held the kernel longer than its own stream did.
        missing = np.flatnonzero(held_until < gaps.end - HANDOVER_NS)
        by_time = _by_time(rank, gaps, missing, ep_rows, lanes, stream)
        held_until[missing[by_time]] = gaps.end[missing[by_time]]
        evidence[missing[by_time]] = Evidence.STRUCTURE
    near = np.flatnonzero(ep_rows & gaps.all.touches(start, end))
    ep = union(start[near], end[near])
    for one in Evidence:
        chosen = evidence == one
        if chosen.any():
            until = np.minimum(held_until[chosen], gaps.end[chosen])
            found[one] = ep & union(gaps.start[chosen], until)
    return Blocking(found, resolved)


@dataclass(frozen=True)
class _Gaps:
    """Stretches without compute that hold EP communication, and the kernel that ends each."""

    start: Rows
    end: Rows
    kernel: Rows
    all: Intervals

    @classmethod
    def of(
        cls,
        rank: RankTrace,
        ep_rows: NDArray[np.bool_],
        compute_rows: NDArray[np.bool_],
        compute: Intervals,
    ) -> "_Gaps | None":
        if len(compute) < 2 or not ep_rows.any():
            return None
        table = rank.activities
        starts, ends = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
        ep = np.flatnonzero(ep_rows)
        own = union(starts[ep], ends[ep])
        low, high = compute.ends[:-1], compute.starts[1:]
        held = own.touches(low, high)
        low, high = low[held], high[held]
        if not len(low):
            return None
        rows = np.flatnonzero(compute_rows)
        # Of kernels that start together, the one on the lowest stream, whatever their order.
        rows = rows[np.lexsort((table["stream"].to_numpy()[rows], starts[rows]))]
        kernel = rows[np.searchsorted(starts[rows], high)]
        return cls(low, high, kernel, union(low, high))


def _lanes(rank: RankTrace) -> dict[int, _Lane]:
    table, waits = rank.activities, rank.waits
    stream, call = table["stream"].to_numpy(), table["call"].to_numpy()
    rows_of: dict[int, Rows] = {}
    calls_of: dict[int, Rows] = {}
    for one in few(stream):
        rows = np.flatnonzero(stream == one)
        rows_of[one], calls_of[one] = rows, np.maximum.accumulate(call[rows])
    wait_stream, record_stream = waits["stream"].to_numpy(), waits["record_stream"].to_numpy()
    wait_call, record_call = waits["wait_call"].to_numpy(), waits["record_call"].to_numpy()
    producer = np.full(len(waits), -1, np.int64)
    for one in np.unique(record_stream).tolist():
        if one in rows_of:
            mine = np.flatnonzero(record_stream == one)
            place = np.searchsorted(calls_of[one], record_call[mine]) - 1
            producer[mine] = np.where(place >= 0, rows_of[one][np.maximum(place, 0)], -1)
    lanes = {}
    for one, rows in rows_of.items():
        mine = np.flatnonzero((wait_stream == one) & (producer >= 0))
        lanes[one] = _Lane(rows, calls_of[one], wait_call[mine], producer[mine])
    return lanes


def _producers(
    rows: Rows, lanes: dict[int, _Lane], stream: Rows, call: Rows, end: Rows
) -> tuple[Rows, Rows]:
    """Per row, the activity it waited for longest (-1: none known) and how that is known."""
    found = np.full(len(rows), -1, np.int64)
    kind = np.full(len(rows), int(Evidence.ORDER), np.int64)
    for one in np.unique(stream[rows]).tolist():
        lane = lanes[one]
        mine = np.flatnonzero(stream[rows] == one)
        place = np.searchsorted(lane.rows, rows[mine])
        before = np.where(place > 0, lane.rows[np.maximum(place - 1, 0)], -1)
        best, how = before.copy(), np.full(len(mine), int(Evidence.ORDER), np.int64)
        if len(lane.wait_calls):
            since = np.where(before >= 0, call[np.maximum(before, 0)], -1)
            low = np.searchsorted(lane.wait_calls, since)
            high = np.searchsorted(lane.wait_calls, call[rows[mine]])
            for ahead in range(min(int((high - low).max(initial=0)), MAX_WAITS)):
                at = np.minimum(low + ahead, len(lane.producers) - 1)
                other = lane.producers[at]
                later = (low + ahead < high) & (
                    (best < 0) | (end[other] > end[np.maximum(best, 0)])
                )
                best = np.where(later, other, best)
                how = np.where(later, int(Evidence.EVENT), how)
        found[mine], kind[mine] = best, how
    return found, kind


def _by_time(
    rank: RankTrace,
    gaps: _Gaps,
    chosen: Rows,
    ep_rows: NDArray[np.bool_],
    lanes: dict[int, _Lane],
    stream: Rows,
) -> NDArray[np.bool_]:
    """Which gaps end right after communication, with a stream wait issued before their kernel.

    A kernel whose launch is unknown (replayed by a graph) needs no wait call.
    """
    if not len(chosen):
        return np.zeros(0, np.bool_)
    end = rank.activities["end_ns"].to_numpy()
    ends = np.sort(end[ep_rows])
    last = np.searchsorted(ends, gaps.end[chosen], side="right") - 1
    near = (last >= 0) & (gaps.end[chosen] - ends[np.maximum(last, 0)] <= HANDOVER_NS)
    names = [n for n, text in enumerate(rank.names) if text.startswith(_WAIT_CALLS)]
    waits = np.flatnonzero(rank.calls["name"].is_in(names).to_numpy())
    tids = rank.calls["tid"].to_numpy()
    call = rank.activities["call"].to_numpy()
    kernel = gaps.kernel[chosen]
    unknown = call[kernel] < 0
    before = np.zeros(len(chosen), np.int64)
    for at, row in enumerate(kernel.tolist()):
        lane = lanes[int(stream[row])]
        place = int(np.searchsorted(lane.rows, row))
        before[at] = lane.calls[place - 1] if place else -1
    waited = np.zeros(len(chosen), np.bool_)
    for tid in np.unique(tids[call[kernel[~unknown]]]).tolist():
        mine = waits[tids[waits] == tid]
        own = ~unknown & (tids[np.maximum(call[kernel], 0)] == tid)
        first = np.searchsorted(mine, before)
        waited |= own & (first < np.searchsorted(mine, call[kernel]))
    return np.asarray(near & (unknown | waited), np.bool_)


def basis(ns: dict[str, int]) -> str:
    """A sentence about the evidence behind blocking time, from ns by `Evidence` name."""
    total = sum(ns.values())
    if not total:
        return "nothing waited for it, as far as streams and events tell"
    parts = [
        f"{100 * ns[one.name.lower()] / total:.0f} % {label}"
        for one, label in EVIDENCE_LABELS.items()
        if ns.get(one.name.lower())
    ]
    weak = ns.get("structure", 0) / total
    confidence = "high" if weak < 0.1 else "medium" if weak < 0.5 else "low"
    return f"{', '.join(parts)}; confidence {confidence}"
