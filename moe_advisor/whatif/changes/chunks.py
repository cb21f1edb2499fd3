"""A step with every MoE layer in two halves whose wire and work alternate on two streams."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import COMMUNICATION, GEMMS, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD, Block
from moe_advisor.whatif.changes.edit import Case
from moe_advisor.whatif.model import NO_ITEM, Edges, Ints, Items, Lane, StepModel, Waits


def chunked(model: StepModel, blocks: list[list[Block]], case: Case) -> StepModel:
    """Every MoE layer in two halves whose wire and work alternate on two streams."""
    plans = [_chunk_plan(lane, found) for lane, found in zip(model.lanes, blocks, strict=True)]
    doubled = len(model.participants)
    # The second half of collective c becomes collective doubled + c on all ranks that split it.
    split = [
        set(lane.items.collective[plan.copied].tolist()) - {NO_ITEM}
        for lane, plan in zip(model.lanes, plans, strict=True)
    ]
    common = set.intersection(*split) if split else set()
    lanes = [
        _chunked(lane, plan, model, case, doubled, common)
        for lane, plan in zip(model.lanes, plans, strict=True)
    ]
    return replace(model, lanes=tuple(lanes), participants=model.participants + model.participants)


@dataclass(frozen=True)
class _Plan:
    """New item order: old item and half (-1 whole, 0 first, 1 second) per new item."""

    old: Ints
    half: Ints
    copied: Ints
    blocks: list[Block]


def _chunk_plan(lane: Lane, found: list[Block]) -> _Plan:
    old: list[NDArray[np.int64]] = []
    half: list[NDArray[np.int64]] = []
    copied: list[NDArray[np.int64]] = []
    reach = 0

    def put(low: int, high: int, part: int) -> None:
        old.append(np.arange(low, high))
        half.append(np.full(high - low, part, np.int64))

    for block in found:
        put(reach, block.begin, -1)
        copied.append(np.arange(block.begin, block.end))
        for part in (0, 1):
            put(block.begin, block.inside, part)
        for part in (0, 1):
            put(block.inside, block.after, part)
        for part in (0, 1):
            put(block.after, block.end, part)
        reach = block.end
    put(reach, len(lane.items), -1)
    return _Plan(
        np.concatenate(old).astype(np.int64),
        np.concatenate(half),
        np.concatenate(copied).astype(np.int64) if copied else np.empty(0, np.int64),
        found,
    )


def _chunked(
    lane: Lane, plan: _Plan, model: StepModel, case: Case, doubled: int, common: set[int]
) -> Lane:
    old_items = lane.items
    items = old_items.take(plan.old)
    split = plan.half >= 0
    second = plan.half == 1
    duration = np.where(split, _half_ns(items, model), items.duration_ns)
    transfer = np.where(split, _half_wire_ns(items.transfer_ns, model), items.transfer_ns)
    collective = items.collective.copy()
    copied = second & np.isin(collective, sorted(common))
    collective[copied] += doubled
    collective[split & ~np.isin(items.collective, sorted(common))] = NO_ITEM
    residual = np.where(split, items.residual_ns // 2, items.residual_ns)
    # The place of (old item, half) in the new order; whole items count for both halves.
    place = np.full((2, len(old_items)), NO_ITEM, np.int64)
    at = np.arange(len(plan.old))
    for part in (0, 1):
        mine = (plan.half == part) | ~split
        place[part, plan.old[mine]] = at[mine]
    wire = items.has_role(*PAYLOAD) & split
    stream = items.stream.copy()
    side = int(stream.max()) + 1
    stream[wire] = side
    edge_item: list[NDArray[Any]] = []
    edge_on: list[NDArray[Any]] = []
    edge_lag: list[NDArray[Any]] = []

    def edge(item: Any, on: Any, lag: Any = 0) -> None:
        a, b = np.atleast_1d(np.asarray(item, np.int64)), np.atleast_1d(np.asarray(on, np.int64))
        edge_item.append(a)
        edge_on.append(b)
        edge_lag.append(np.broadcast_to(np.asarray(lag, np.int64), a.shape))

    edges = lane.edges
    for part in (0, 1):
        item, on = place[part, edges.item], place[part, edges.on]
        # A whole item after a split one waits for both halves; a split one for its own half.
        good = (item != NO_ITEM) & (on != NO_ITEM) & (on < item)
        edge(item[good], on[good], edges.lag_ns[good])
    for block in plan.blocks:
        _block_edges(block, place, edge, case)
    waits = lane.waits
    order = []
    for part in (0, 1):
        here = place[part, waits.item]
        on = np.where(waits.on >= 0, place[part, np.maximum(waits.on, 0)], NO_ITEM)
        whole = (plan.half[here] < 0) & (part == 1)
        rows = np.flatnonzero(~whole)
        order.append(
            (here[rows], waits.before_ns[rows], waits.own_ns[rows], on[rows], waits.lag_ns[rows])
        )
    merged = [np.concatenate(column) for column in zip(*order, strict=True)]
    sort = np.argsort(merged[0], kind="stable")
    here, work, own, on, lag = (column[sort] for column in merged)
    new_waits = Waits(here, work, own, np.where(on < here, on, NO_ITEM), lag)
    # Every half records an event and waits for one, before its wire and after it.
    joins = calibrate.JOIN_LAUNCHES * model.calibration.launch_ns
    host = items.host_ns + np.where(wire, joins, 0)
    _join_gradients(lane, plan, place, host, duration, model, case)
    new = replace(
        items,
        duration_ns=duration,
        transfer_ns=transfer,
        host_ns=host,
        collective=collective,
        residual_ns=residual,
        stream=stream,
    )
    new_edges = Edges(np.concatenate(edge_item), np.concatenate(edge_on), np.concatenate(edge_lag))
    return replace(lane, items=new, edges=new_edges, waits=new_waits)


def _block_edges(block: Block, place: Ints, edge: Callable[..., None], case: Case) -> None:
    """Who waits for whom among the halves of one layer.

    Backward joins by half: autograd orders each edge of its graph by itself. In forward every join
    waits for all that was put on the communication stream so far, as `wait_stream` does; at best
    the dispatch joins by half.
    """
    by_stream = not block.backward
    dispatch_by_half = case is Case.HIGH
    first, first_last = block.first, block.inside - 1
    second, second_last = block.second, block.after - 1
    for part in (0, 1):
        other = 1 if by_stream else part
        if block.first > block.begin:
            edge(place[part, first], place[part, block.first - 1])
        else:
            edge(place[part, first], place[0, first] - 1)
        if block.second > block.inside:
            edge(place[part, block.inside], place[part if dispatch_by_half else other, first_last])
            edge(place[part, second], place[part, block.second - 1])
            if by_stream and part == 1:
                edge(place[1, block.inside], place[0, second_last])
        following = place[part, block.after] if block.end > block.after else place[0, block.end]
        edge(following, place[other if block.end > block.after else part, second_last])
    if block.end > block.after:
        edge(place[0, block.end], place[1, second_last])


def _join_gradients(
    lane: Lane,
    plan: _Plan,
    place: Ints,
    host: Ints,
    duration: Ints,
    model: StepModel,
    case: Case,
) -> None:
    """Adds what brings the halves' gradients together, behind every backward pass through a layer.

    Autograd fills a whole tensor with zeros and copies the half into it, for both halves of the
    tokens and of their weights, and adds them up; and it adds the halves' gradients of every expert
    weight. An addition reads two values and writes one per parameter, the optimizer moves
    OPTIMIZER_VALUES: so the optimizer's time shows what one addition for all weights takes.
    """
    items = lane.items
    optimizer = float(items.duration_ns[items.has_role(Role.OPTIMIZER)].sum())
    gemms = items.has_role(Role.EXPERT_GEMM)
    backward = [block for block in plan.blocks if block.backward]
    if case is Case.HIGH or not backward:
        return
    passes = model.facts.get("microbatches") or 1.0
    adding = optimizer * calibrate.ADDITION_VALUES / calibrate.OPTIMIZER_VALUES * passes
    adding /= len(backward)
    for block in backward:
        following = int(place[0, block.end])
        rows = np.flatnonzero(items.kernels[block.begin : block.end] > 0) + block.begin
        # Every weight has two products in backward: its own gradient and its input's.
        weights = int(gemms[block.begin : block.end].sum()) // 2
        launches = calibrate.SLICE_LAUNCHES + weights
        one = float(np.median(items.host_ns[rows] / items.kernels[rows]))
        host[following] += round(launches * one)
        if items.collective[block.end] == NO_ITEM and weights:
            short = calibrate.SLICE_LAUNCHES * model.calibration.floor_ns
            duration[following] += round(adding) + short


def _half_ns(items: Items, model: StepModel) -> Ints:
    """Duration of each kernel when it gets half of the tokens.

    A kernel that does not fill the GPU once is bound by latency and keeps its duration. A GEMM
    keeps the tail of its last tiles. Everything else halves, down to the shortest kernel.
    """
    constants = model.calibration
    duration = items.duration_ns
    half = duration // 2
    gemm = items.has_role(*GEMMS)
    copies = items.has_role(Role.MEMCPY, Role.MEMSET)
    latency_bound = ~gemm & ~copies & (items.blocks < constants.sm_count)
    shortest = np.minimum(duration, constants.floor_ns)
    result = np.maximum(half + shortest // 2, shortest)
    result = np.where(gemm, np.minimum(half + calibrate.GEMM_TAIL_NS, duration), result)
    result = np.where(latency_bound, duration, result)
    wire = items.has_role(*COMMUNICATION)
    return np.where(wire, _half_wire_ns(duration, model), result)


def _half_wire_ns(transfer: Ints, model: StepModel) -> Ints:
    """A collective of half the bytes: its fixed cost stays."""
    fixed = np.minimum(transfer, model.calibration.wire_floor_ns)
    return fixed + (transfer - fixed) // 2
