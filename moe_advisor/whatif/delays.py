"""What every start waited for: launch, stream, other streams, room on the GPU, and a rest.

The rest is `Items.residual_ns`, the fixed delays that a report counts as unexplained.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from moe_advisor.whatif.model import (
    NEVER_LATE,
    NO_ITEM,
    Calibration,
    Edges,
    Ints,
    Items,
    Lane,
)
from moe_advisor.whatif.order import put_off

TOUCHING_NS = 2_000
"""Two time stamps of different clock domains (host, GPU) that differ by less are the same."""

RECURRING = 3
"""A gap between two kernels of a graph that was seen so often is the graph's own."""

FILLED_SHARE = 0.9
"""A kernel with a block for this share of the SMs leaves no room for another: GEMMs of Hopper run
in clusters of two or four SMs, and the SMs left over lie apart (128 blocks on 132 SMs)."""

ROOM_TAIL = 0.6
"""A kernel that fills the GPU gives room in the last part of its time at the earliest. Its blocks
take turns and differ by one turn at most, so the first SM is free no sooner than half way; a tenth
more for blocks that began late."""


def with_delays(lane: Lane, usual: Calibration) -> Lane:
    """The lane with what each start waited for divided into known costs and an unexplained rest."""
    items, edges = lane.items, lane.edges
    start = items.start_ns
    end = start + items.duration_ns
    launched = items.latency_ns > NEVER_LATE
    # A graph launch prepares the whole graph before its first kernel starts.
    slow = max(usual.graph_latency_ns, usual.latency_ns)
    most = np.where(items.graph_heads(), slow, usual.latency_ns)
    latency = np.where(launched, np.minimum(most, start - items.launch_ns), NEVER_LATE)
    before = stream_predecessor(items.stream)
    free = np.where(before >= 0, end[before], 0)
    gap = np.minimum(np.maximum(usual.gap_ns, _graph_gaps(items, before)), start - free)
    lag = np.minimum(usual.gap_ns, start[edges.item] - end[edges.on])
    bound = np.maximum(items.launch_ns + latency, free + gap)
    np.maximum.at(bound, edges.item, end[edges.on] + lag)
    late, filler = _without_room(items, bound, usual)
    edges = replace(edges, lag_ns=lag)
    roomy = replace(lane, edges=joined(edges, late, filler, start[late] - end[filler]))
    # A replay can't serve every wait for a kernel that was launched later: those stay unexplained.
    order = put_off(roomy)
    last = np.asarray([order.get(item, item) for item in late.tolist()], np.int64)
    served = filler <= last
    late, filler = late[served], filler[served]
    np.maximum.at(bound, late, start[late])
    return replace(
        lane,
        items=replace(items, latency_ns=latency, gap_ns=gap, residual_ns=start - bound),
        edges=joined(edges, late, filler, start[late] - end[filler]),
    )


def _without_room(items: Items, ready_ns: Ints, usual: Calibration) -> tuple[Ints, Ints]:
    """Items that started late because kernels of other streams filled the GPU, and the last one.

    One after the other, each with a block for nearly every SM, they ran from when the item was
    ready until it started, and one had come to its tail then. Blocks are dealt out in order of
    arrival: before its last ones have a place, nothing else gets one. It may have been launched
    after the item.
    """
    start = items.start_ns
    end = start + items.duration_ns
    waiting = start - ready_ns > TOUCHING_NS
    fills = items.blocks >= FILLED_SHARE * usual.sm_count
    full = np.flatnonzero(fills)
    full = full[np.argsort(start[full], kind="stable")]
    late: list[Ints] = [np.empty(0, np.int64)]
    on: list[Ints] = [np.empty(0, np.int64)]
    if not len(full):
        return late[0], on[0]
    # Stretches during which the GPU was full without a break.
    reach = np.maximum.accumulate(end[full])
    stretch = np.concatenate([[0], np.cumsum(start[full][1:] > reach[:-1] + usual.gap_ns)])
    rows = np.flatnonzero(waiting)
    # Of two that are ready within a gap of each other either may go first.
    soon = ready_ns[rows] + TOUCHING_NS + usual.gap_ns
    at_ready = np.searchsorted(start[full], soon, side="right") - 1
    at_start = np.searchsorted(start[full], start[rows], side="left") - 1
    rows = rows[(at_ready >= 0) & (stretch[at_ready] == stretch[np.maximum(at_start, 0)])]
    for stream in np.unique(items.stream[full]).tolist():
        own = full[items.stream[full] == stream]
        mine = rows[items.stream[rows] != stream]
        last = np.searchsorted(start[own], start[mine], side="left") - 1
        for place in (last, last - 1):
            found = own[np.maximum(place, 0)]
            left = end[found] - start[mine]
            good = (
                (place >= 0)
                & (left >= -usual.gap_ns)
                & (left <= ROOM_TAIL * items.duration_ns[found])
            )
            late.append(mine[good])
            on.append(found[good])
    return np.concatenate(late), np.concatenate(on)


def _graph_gaps(items: Items, before: Ints) -> Ints:
    """Median gap between the same two kernels of a CUDA graph, 0 where it does not recur.

    What comes back at the same place of every replay (branches that join, nodes that profilers
    don't record) belongs to the graph.
    """
    found = np.zeros(len(items), np.int64)
    rows = np.flatnonzero(items.in_graph & ~items.graph_heads() & (before >= 0))
    if len(rows) < RECURRING:
        return found
    ends = (items.start_ns + items.duration_ns)[before[rows]]
    names = np.stack([items.name[before[rows]], items.name[rows]])
    _, place, count = np.unique(names, axis=1, return_inverse=True, return_counts=True)
    gaps = items.start_ns[rows] - ends
    for number in np.flatnonzero(count >= RECURRING).tolist():
        mine = place == number
        found[rows[mine]] = max(int(np.median(gaps[mine])), 0)
    return found


def stream_predecessor(stream: Ints) -> Ints:
    """Per item the item before it on its stream, or NO_ITEM."""
    order = np.argsort(stream, kind="stable")
    same = np.concatenate([[False], stream[order][1:] == stream[order][:-1]])
    found = np.full(len(stream), NO_ITEM, np.int64)
    found[order[1:][same[1:]]] = order[:-1][same[1:]]
    return found


def joined(
    edges: Edges, items: Iterable[int], on: Iterable[int], lag_ns: Iterable[int] | int = 0
) -> Edges:
    """The dependencies with more of them; without a lag an item waits for the very end."""
    more = np.asarray(items, np.int64)
    return Edges(
        np.concatenate([edges.item, more]),
        np.concatenate([edges.on, np.asarray(on, np.int64)]),
        np.concatenate([edges.lag_ns, np.broadcast_to(np.asarray(lag_ns, np.int64), len(more))]),
    )
