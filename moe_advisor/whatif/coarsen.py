"""Keeps a model small: neighbouring kernels of one kind become one item, at no loss of timing.

A run of kernels on one stream ends at the later of two times: its work after the stream was free,
and the latest way from one of its launches to its end. One item with the whole work as duration and
that way as latency after the last launch says the same.
"""

from dataclasses import replace

import numpy as np

from moe_advisor.whatif.model import NEVER_LATE, NO_ITEM, Edges, Flags, Ints, Lane, StepModel, Waits

SPARE = 2
"""Groups are made this many times larger than needed on average: not all items can be merged."""


def coarsen(model: StepModel, limit: int) -> StepModel:
    """`model` with about `limit` items, if it has more and enough of them can be merged."""
    total = sum(len(lane.items) for lane in model.lanes)
    if total <= limit:
        return model
    size = -(-SPARE * total // limit)
    return replace(
        model, lanes=tuple(merge_neighbours(lane, size) for lane in model.lanes), merged=size
    )


def merge_neighbours(lane: Lane, size: int) -> Lane:
    """The lane with runs of up to `size` like items merged."""
    items = lane.items
    count = len(items)
    joins = _joinable(lane)
    position = np.arange(count)
    first_of_run = np.maximum.accumulate(np.where(joins, 0, position))
    joins &= (position - first_of_run) % size != 0
    opens = np.flatnonzero(~joins)
    group = np.cumsum(~joins) - 1
    inner = np.where(joins, items.gap_ns + items.residual_ns, 0)
    work = np.cumsum(items.duration_ns + inner)
    last = np.concatenate([opens[1:], [count]]) - 1
    duration = np.add.reduceat(items.duration_ns + inner, opens)
    clock = np.cumsum(items.host_ns)
    to_end = work[last][group] - work + items.duration_ns
    way = clock - clock[last][group] + items.latency_ns + to_end
    # The first item's own delay comes after whatever held it up, so only it may count it.
    way += np.where(joins, items.residual_ns - items.residual_ns[opens][group], 0)
    longest = np.maximum.reduceat(np.where(items.latency_ns > NEVER_LATE, way, NEVER_LATE), opens)
    latency = np.where(longest > NEVER_LATE, longest - duration, NEVER_LATE)
    sums = {
        name: np.add.reduceat(getattr(items, name), opens)
        for name in ("host_ns", "alloc_ns", "pause_ns", "kernels")
    }
    merged = replace(
        items.take(opens),
        duration_ns=duration,
        latency_ns=latency,
        transfer_ns=np.where(items.collective[opens] >= 0, items.transfer_ns[opens], duration),
        blocks=np.maximum.reduceat(items.blocks, opens),
        launch_ns=items.launch_ns[last],
        **sums,
    )
    return replace(
        lane,
        items=merged,
        edges=Edges(group[lane.edges.item], group[lane.edges.on], lane.edges.lag_ns),
        waits=_renumbered(lane.waits, group),
    )


def _joinable(lane: Lane) -> Flags:
    """Which items can join the one before them."""
    items = lane.items
    same = np.ones(len(items), np.bool_)
    same[0] = False
    for column in ("stream", "role", "scope", "backward", "recompute", "in_graph"):
        values = getattr(items, column)
        same[1:] &= values[1:] == values[:-1]
    alone = items.collective != NO_ITEM
    same[1:] &= ~alone[1:] & ~alone[:-1]
    same[lane.edges.item] = False
    for ends in (lane.edges.on, lane.waits.on[lane.waits.on >= 0]):
        same[np.minimum(ends + 1, len(items) - 1)] = False
    same[lane.waits.item] = False
    same[-1] = False
    return same


def _renumbered(waits: Waits, group: Ints) -> Waits:
    on = np.where(waits.on >= 0, group[np.maximum(waits.on, 0)], NO_ITEM)
    return replace(waits, item=group[waits.item], on=on)
