"""Megatron-Core's merged schedule: forward of one micro-batch beside backward of another.

Every layer is cut into nodes: attention (with router and permutation) and experts on the compute
stream, dispatch and combine (with what follows it) on a communication stream. A pair of layers is
launched as

    communication: combine backward | dispatch forward, dispatch backward | combine forward
    compute:       attention forward | experts backward, experts forward  | attention backward

Nodes of one micro-batch wait for each other by one event, streams run in launch order, and nothing
else orders the two (`TransformerLayerSchedulePlan.run`, Megatron-Core 0.16).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import COMMUNICATION, COMPUTE, Role
from moe_advisor.whatif.blocks import PAYLOAD, Block
from moe_advisor.whatif.model import NO_ITEM, Edges, Ints, Items, Lane, Waits

HANDOVERS = 4.5
"""Times that work goes from the launching thread to autograd's or back, per layer and direction: 9
per layer and micro-batch in eleven captures of the merged schedule, with Transformer Engine and
without, next to none before it (benchmarks/overlap_costs.yaml: handovers)."""


@dataclass(frozen=True)
class Node:
    """One call of the schedule: the items [begin, end) in the old launch order."""

    begin: int
    end: int
    comm: bool


@dataclass(frozen=True)
class Pair:
    """A backward and the forward after it: the items [begin, end), and their nodes in new order.

    `backward` and `forward` are the two micro-batches' own orders.
    """

    begin: int
    end: int
    order: tuple[Node, ...]
    backward: tuple[Node, ...]
    forward: tuple[Node, ...]


def passes(found: Sequence[Block]) -> list[list[Block]]:
    """The blocks in runs of one direction. Without a pipeline a run is one micro-batch."""
    return [list(run) for _, run in itertools.groupby(found, key=lambda block: block.backward)]


def pairs_of(items: Items, found: Sequence[Block]) -> list[Pair]:
    """What the schedule merges: every forward but the first with the backward launched before it.

    So the first forward and the last backward stay alone; with a pipeline the first run holds all
    of warm-up and the last all of cool-down.
    """
    runs = passes(found)
    turns = [
        _turn(items, a[-1].end, b[0].begin, b[0].backward) for a, b in itertools.pairwise(runs)
    ]
    starts = [0, *turns, _last_end(items, found)]
    pairs = []
    for number in range(1, len(runs) - 1):
        if not runs[number][0].backward:
            continue
        low, turn, high = starts[number], starts[number + 1], starts[number + 2]
        pairs.append(_pair(runs[number], runs[number + 1], low, turn, high))
    return pairs


def _turn(items: Items, low: int, high: int, to_backward: bool) -> int:
    """Where one direction ends and the other begins, between two blocks."""
    if to_backward:
        found = np.flatnonzero(items.backward[low:high])
        return low + int(found[0]) if len(found) else high
    found = np.flatnonzero(items.backward[low:high])
    return low + int(found[-1]) + 1 if len(found) else low


def _last_end(items: Items, found: Sequence[Block]) -> int:
    """End of the last block; a forward there never has a backward after it in this lane."""
    return found[-1].end if found else len(items) - 1


def _pair(backs: list[Block], fronts: list[Block], low: int, turn: int, high: int) -> Pair:
    backward: list[Node] = []
    forward: list[Node] = []
    if backs[0].begin > low:
        backward.append(Node(low, backs[0].begin, comm=False))
    by_layer: list[list[Node]] = []
    reaches = [*(block.begin for block in backs[1:]), turn]
    for block, reach in zip(backs, reaches, strict=True):
        by_layer.append(
            [
                Node(block.begin, block.inside, comm=True),
                Node(block.inside, block.second, comm=False),
                Node(block.second, block.after, comm=True),
                Node(block.after, reach, comm=False),
            ]
        )
    ahead: list[list[Node]] = []
    origin = turn
    for block in fronts:
        ahead.append(
            [
                Node(origin, block.first, comm=False),
                Node(block.first, block.inside, comm=True),
                Node(block.inside, block.second, comm=False),
                Node(block.second, block.end, comm=True),
            ]
        )
        origin = block.end
    order = list(backward)
    for back, front in itertools.zip_longest(by_layer, ahead):
        if back is None:
            order += front
        elif front is None:
            order += back
        else:
            order += [back[0], front[0], back[1], front[1], back[2], front[2], front[3], back[3]]
    backward += [node for layer in by_layer for node in layer]
    forward = [node for layer in ahead for node in layer]
    if high > origin:
        forward.append(Node(origin, high, comm=False))
        order.append(forward[-1])
    filled = [[one for one in nodes if one.end > one.begin] for nodes in (order, backward, forward)]
    return Pair(low, high, *(tuple(nodes) for nodes in filled))


def merged(lane: Lane, found: Sequence[Block], handover_ns: float) -> Lane:
    """The lane in the merged schedule; its layers cost the host HANDOVERS more per block.

    The cost falls where the layers' host time is and at most doubles it, so that a trace without
    launch calls gets none. Returns the lane itself where no forward follows a backward.
    """
    items = lane.items
    pairs = pairs_of(items, found)
    if not pairs:
        return lane
    rows = np.arange(len(items))
    for pair in pairs:
        rows[pair.begin : pair.end] = np.concatenate(
            [np.arange(node.begin, node.end) for node in pair.order]
        )
    place = np.empty(len(items), np.int64)
    place[rows] = np.arange(len(items))
    wire_stream = int(items.stream.max()) + 1
    stream = items.stream.copy()
    wire = _wire(items)
    owner = np.full(len(items), NO_ITEM, np.int64)  # which micro-batch of which pair
    chains: list[tuple[int, int]] = []
    for number, pair in enumerate(pairs):
        for side, nodes in enumerate((pair.backward, pair.forward)):
            for node in nodes:
                owner[node.begin : node.end] = 2 * number + side
                _place_node(items, wire, node, stream, wire_stream, chains)
            chains += _joins(stream, nodes)
        # Loss and next backward take up where a forward ends; a backward ends where it computes.
        chains += [(pair.end, end) for end in _ends(stream, pair.forward[-1])]
        chains += [(pair.begin, pair.begin - 1)] if pair.begin else []
    # Autograd is called once per node instead of once per micro-batch, the first and the last too.
    host = items.host_ns.copy()
    layers = slice(found[0].begin, found[-1].end)
    extra = min(handover_ns * HANDOVERS * len(found), float(host[layers].sum()))
    begins = _node_begins(items, found, pairs)
    host[begins] += int(extra / len(begins))
    moved = replace(items, stream=stream, host_ns=host).take(rows)
    return replace(
        lane,
        items=moved,
        edges=_edges(lane.edges, place, owner, chains),
        waits=_waits(lane.waits, place),
    )


def _node_begins(items: Items, found: Sequence[Block], pairs: Sequence[Pair]) -> Ints:
    """The first item of every node, of the passes that nothing is merged with as well."""
    begins = {node.begin for pair in pairs for node in pair.order}
    inside = np.zeros(len(items), np.bool_)
    for pair in pairs:
        inside[pair.begin : pair.end] = True
    for before, block in zip((None, *found[:-1]), found, strict=True):
        if inside[block.begin]:
            continue
        origin = before.end if before and before.backward == block.backward else block.begin
        ends = (block.second, block.after) if block.backward else (block.second,)
        starts = (block.begin if block.backward else origin, block.first, block.inside, *ends)
        begins |= set(starts)
    return np.asarray(sorted(begins), np.int64)


def _wire(items: Items) -> NDArray[np.bool_]:
    """Collectives that run one after the other on the communicator's stream.

    Payloads are called from the communication stream. Token counts are called from the compute
    stream, where newer PyTorch also runs them; older ones queue them behind the payloads.
    """
    own = np.setdiff1d(items.stream, items.stream[items.has_role(*COMPUTE)])
    queued = items.has_role(Role.EP_NOTIFY) & np.isin(items.stream, own)
    found: NDArray[np.bool_] = items.has_role(*PAYLOAD) | queued
    return found


def _place_node(
    items: Items,
    wire: NDArray[np.bool_],
    node: Node,
    stream: Ints,
    wire_stream: int,
    chains: list[tuple[int, int]],
) -> None:
    """Puts a node on its streams; a communication node runs item by item."""
    rows = np.arange(node.begin, node.end)
    stream[rows[wire[rows]]] = wire_stream
    if not node.comm:
        # A collective inside a compute node keeps its neighbours on the stream it was on.
        for row in rows[wire[rows]].tolist():
            chains += [(row, row - 1)] if row > node.begin else []
            chains += [(row + 1, row)] if row + 1 < node.end else []
        return
    work = ~items.has_role(*COMMUNICATION)[rows]
    stream[rows[work]] = wire_stream + 1
    chains += [(row, row - 1) for row in rows[1:].tolist()]


def _joins(stream: Ints, nodes: Sequence[Node]) -> list[tuple[int, int]]:
    """Per node its first item on each stream waits for the last items of the node before it."""
    found = []
    ends: list[int] = []
    for node in nodes:
        _, first = np.unique(stream[node.begin : node.end], return_index=True)
        found += [(node.begin + int(a), b) for a in first for b in ends]
        ends = _ends(stream, node)
    return found


def _ends(stream: Ints, node: Node) -> list[int]:
    """The last item of the node on each stream."""
    _, last = np.unique(stream[node.begin : node.end][::-1], return_index=True)
    return [node.end - 1 - int(one) for one in last]


def _edges(
    edges: Edges, place: Ints, owner: NDArray[np.int64], chains: Sequence[tuple[int, int]]
) -> Edges:
    """The old dependencies but those between the two micro-batches of a pair, and the new ones."""
    pair, other = owner[edges.item], owner[edges.on]
    crossing = (pair != other) & (pair >= 0) & (other >= 0) & (pair // 2 == other // 2)
    keep = ~crossing & (place[edges.on] < place[edges.item])
    new = np.asarray([c for c in chains if place[c[1]] < place[c[0]]], np.int64).reshape(-1, 2)
    return Edges(
        np.concatenate([place[edges.item[keep]], place[new[:, 0]]]),
        np.concatenate([place[edges.on[keep]], place[new[:, 1]]]),
        np.concatenate([edges.lag_ns[keep], np.zeros(len(new), np.int64)]),
    )


def _waits(waits: Waits, place: Ints) -> Waits:
    """The host's waits in the new launch order."""
    item = place[waits.item]
    on = np.where(waits.on >= 0, place[np.maximum(waits.on, 0)], NO_ITEM)
    order = np.argsort(item, kind="stable")
    return Waits(
        item[order],
        waits.before_ns[order],
        waits.own_ns[order],
        np.where(on < item, on, NO_ITEM)[order],
        waits.lag_ns[order],
    )
