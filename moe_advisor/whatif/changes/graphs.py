"""CUDA graphs over parts of a layer or the whole step."""

import itertools

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import COMPUTE, GEMMS, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import find_blocks
from moe_advisor.whatif.changes.edit import (
    Ask,
    Case,
    blend,
    require,
    require_room,
    without_waits,
)
from moe_advisor.whatif.model import NEVER_LATE, Flags, Ints, Items, Lane, StepModel

SCOPES = ("attn", "moe_router", "moe_preprocess", "full")
"""Parts of a step that a graph can hold, named as Megatron-Core does."""


def cuda_graphs(model: StepModel, ask: Ask) -> StepModel:
    """Launches inside the scope become one graph launch per layer and direction."""
    scopes = set((ask.value or "attn,moe_router").replace("+", ",").split(","))
    unknown = scopes - set(SCOPES)
    require(
        not unknown,
        f"cuda-graphs={ask.value}: scopes are attn, moe_router, moe_preprocess or full",
    )
    share = ask.context.metrics.get("graph_kernel_share")
    require(
        "full" in scopes or not share or share < calibrate.GRAPHED_ALREADY,
        f"{100 * (share or 0):.0f} % of the kernels are launched by CUDA graphs already",
    )
    require_room(ask.context, calibrate.GRAPH_MEMORY_SHARE, "the graphs' static buffers")
    lanes = []
    for lane in model.lanes:
        # A graph of the whole step needs static shapes, and with them nothing to wait for.
        kept = np.full(len(lane.waits), "full" not in scopes)
        plain = lane if kept.all() else without_waits(lane, kept)
        lanes.append(_graphed(plain, _graph_scope(plain, scopes), model, ask.case))
    require(
        any(new is not old for new, old in zip(lanes, model.lanes, strict=True)),
        f"no launches of the scope {','.join(sorted(scopes))} can be told in this trace",
    )
    return model.with_lanes(tuple(lanes))


def _graph_scope(lane: Lane, scopes: set[str]) -> NDArray[np.bool_]:
    """Which items a graph of these scopes would hold."""
    items = lane.items
    compute = items.has_role(*COMPUTE, Role.MEMCPY, Role.MEMSET) & ~items.has_role(Role.OPTIMIZER)
    if "full" in scopes:
        return np.ones(len(items), np.bool_)
    inside = np.zeros(len(items), np.bool_)
    blocks = find_blocks(items)
    # What stands between MoE layers is attention and router; the ends are embedding and loss.
    between = [(a.end, b.begin) for a, b in itertools.pairwise(blocks)]
    if blocks:
        between = [(0, blocks[0].begin), *between]
        last = blocks[-1].end
        after = np.flatnonzero(items.has_role(Role.OPTIMIZER, Role.DP_GRAD_REDUCE)[last:])
        between.append((last, last + int(after[0]) if len(after) else len(items) - 1))
    for begin, end in between:
        attention = np.flatnonzero(items.has_role(Role.ATTENTION)[begin:end]) + begin
        if not len(attention):
            continue
        low, high = _attention_range(items, begin, end, attention)
        if "attn" in scopes:
            inside[low:high] = True
        if "moe_router" in scopes:
            inside[begin:low] |= items.backward[begin:low]
            inside[high:end] |= ~items.backward[high:end]
    if "attn" in scopes:
        inside |= items.scope == 1
    if "moe_router" in scopes:
        inside |= items.has_role(Role.ROUTER) | (items.scope == 2)
    if "moe_preprocess" in scopes:
        for block in blocks:
            inside[block.begin : block.first] = True
    loss = items.has_role(Role.EMBEDDING_LOSS) | (items.scope == 6)
    found: Flags = inside & compute & ~loss & ~items.in_graph
    return found


def _attention_range(items: Items, begin: int, end: int, attention: Ints) -> tuple[int, int]:
    """The projections and norms around attention: one GEMM on each side forward, two backward."""
    backward = bool(items.backward[attention].mean() > 0.5)
    gemms = np.flatnonzero(items.has_role(*GEMMS)[begin:end]) + begin
    count = 2 if backward else 1
    before = gemms[gemms < attention[0]]
    after = gemms[gemms > attention[-1]]
    low = int(before[-count:][0]) if len(before) else int(attention[0])
    high = int(after[:count][-1]) + 1 if len(after) else int(attention[-1]) + 1
    norm = items.has_role(Role.NORM, Role.MEMSET, Role.MEMCPY, Role.ELEMENTWISE)
    while low > begin and norm[low - 1] and not backward:
        low -= 1
    while high < end and norm[high]:
        high += 1
    return low, high


def _graphed(lane: Lane, inside: NDArray[np.bool_], model: StepModel, case: Case) -> Lane:
    """The lane with each run of launches in the scope replaced by one graph launch.

    Kernels keep their durations and follow each other at the gap of a graph. The host pays one
    launch and the framework's replay per run; a wait inside a run ends it.
    """
    items = lane.items
    inside = inside.copy()
    inside[-1] = False
    follows = np.concatenate([[False], inside[:-1]]) & inside
    follows &= np.concatenate([[False], items.backward[1:] == items.backward[:-1]])
    follows[lane.waits.item[lane.waits.item < len(items)]] = False
    if not follows.any():
        return lane
    opens = inside & ~follows
    runs = np.cumsum(opens)
    size = np.bincount(runs[inside], minlength=int(runs[-1]) + 1)
    single = inside & (size[runs] < calibrate.GRAPH_MIN_KERNELS)
    follows &= ~single
    opens &= ~single
    if not follows.any():
        return lane
    cost = blend(*calibrate.GRAPH_REPLAY_NS, case=Case(2 - case))
    cost_ns = round(cost) + round(model.calibration.launch_ns)
    # What the framework does around the graph stays; half of the way to the first launch was in it.
    host = np.where(follows, 0, items.host_ns)
    host = np.where(opens, np.minimum(items.host_ns, items.host_ns // 2 + cost_ns), host)
    # The rest of the replay's cost falls on the launch that follows the run.
    after = np.concatenate([[False], (opens | follows)[:-1]]) & ~follows
    host = host + np.where(after, cost_ns, 0)
    latency = np.where(follows, NEVER_LATE, items.latency_ns)
    gap = np.where(follows, np.minimum(items.gap_ns, calibrate.GRAPH_GAP_NS), items.gap_ns)
    residual = np.where(follows, 0, items.residual_ns)
    return lane.with_items(host_ns=host, latency_ns=latency, gap_ns=gap, residual_ns=residual)
