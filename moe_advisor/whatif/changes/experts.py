"""Changes of the expert side: grouped GEMM, fused permutation, balanced routing."""

import numpy as np

from moe_advisor.measure.summary import ACHIEVABLE_BANDWIDTH
from moe_advisor.roles.roles import GEMMS, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import LOCAL, PAYLOAD, Block, find_blocks
from moe_advisor.whatif.changes.dispatch import ep_size
from moe_advisor.whatif.changes.edit import (
    Ask,
    Case,
    Context,
    blocks_of,
    require,
    select,
    without_waits,
)
from moe_advisor.whatif.model import Ints, Items, Lane, StepModel

ROUTER = "router"
"""What `permute-fusion` may fuse as well."""


def grouped_gemm(model: StepModel, ask: Ask) -> StepModel:
    """One launch for all local experts instead of one per expert."""
    blocks = blocks_of(model)
    grouped = model.facts.get("grouped_expert_gemms")
    total = model.facts.get("expert_gemms")
    require(
        not (grouped and total and grouped >= calibrate.GROUPED_SHARE * total),
        "the experts run in grouped GEMMs already",
    )
    lanes = [
        _grouped(lane, found, model, ask.case)
        for lane, found in zip(model.lanes, blocks, strict=True)
    ]
    require(
        any(new is not old for new, old in zip(lanes, model.lanes, strict=True)),
        "no MoE layer launches one GEMM per expert",
    )
    return model.with_lanes(tuple(lanes))


def _grouped(lane: Lane, found: list[Block], model: StepModel, case: Case) -> Lane:
    """The loop over a layer's experts becomes one round of launches for all of them.

    Kernels of one role are merged to as many launches as one expert has. Small kernels that ran
    after each other leave most of the GPU idle; merged they fill it as far as memory allows. In
    backward, work beside GEMMs beyond BACKWARD_ACTIVATION times the forward's handles weights
    expert by expert (clearing and adding up slices of stacked gradients) and goes.
    """
    items = lane.items
    constants = model.calibration
    keep = np.ones(len(items), np.bool_)
    duration = items.duration_ns.copy()
    forward_rest: list[float] = []
    for block in sorted(found, key=lambda one: one.backward):
        rows = np.arange(block.inside, block.second)
        gemm = items.has_role(*GEMMS)[rows]
        per_expert = 4 if block.backward else 2
        experts = int(gemm.sum()) // per_expert
        if experts < calibrate.SEQUENTIAL_EXPERTS:
            continue
        _, place, count = np.unique(items.name[rows], return_inverse=True, return_counts=True)
        looped = gemm | (count[place] >= experts // 2)
        work = np.maximum(items.duration_ns[rows] - constants.floor_ns, 0).astype(np.float64)
        filled = np.clip(items.blocks[rows] / constants.sm_count, 0.0, 1.0)
        packed = np.maximum(
            np.where(items.blocks[rows] > 0, filled, 1.0), calibrate.PACKING_LIMIT[case]
        )
        body = work * np.minimum(packed, 1.0)
        rest = float(body[looped & ~gemm].sum())
        scale = 1.0
        if not block.backward:
            forward_rest.append(rest)
        elif forward_rest and rest > 0:
            allowed = calibrate.BACKWARD_ACTIVATION[case] * float(np.mean(forward_rest))
            scale = min(1.0, allowed / rest)
        for role in np.unique(items.role[rows[looped]]).tolist():
            same = looped & (items.role[rows] == role)
            each = float(body[same].sum()) * (1.0 if (gemm & same).any() else scale)
            left = max(1, round(int(same.sum()) / experts))
            heads = rows[same][:: -(-int(same.sum()) // left)]
            keep[rows[same]] = False
            keep[heads] = True
            duration[heads] = round(each / len(heads)) + constants.floor_ns
    if keep.all():
        return lane
    return select(lane.with_items(duration_ns=duration), keep)


def permute_fusion(model: StepModel, ask: Ask) -> StepModel:
    """Fused permutation: its time falls towards what moving its bytes takes.

    Each byte sent is read and written once before the wire and, where it arrives, once after it.
    Launches and waits of the separate kernels leave the host; with `router` those of the router's
    top-k and auxiliary loss as well, which another setting fuses.
    """
    require(ask.value in (None, ROUTER), f"permute-fusion={ask.value}: the value is {ROUTER}")
    routed = ask.value == ROUTER
    require(
        not routed or "te-router" not in model.facts.get("families", ()),
        "the router is fused already: apply permute-fusion alone",
    )
    fused = {"te-permute", "hybridep-permute"} & set(model.facts.get("families", ()))
    require(not fused, "permutation is fused already")
    bandwidth = float(model.hardware.get("memory_bandwidth_gbps") or 0.0)
    require(bandwidth > 0, "the GPU's memory bandwidth is not known")
    permuting = [lane.items.has_role(Role.PERMUTE) for lane in model.lanes]
    now = sum(
        float(lane.items.duration_ns[rows].sum())
        for lane, rows in zip(model.lanes, permuting, strict=True)
    )
    require(now > 0, "no permutation kernels told from others in this trace")
    sent = sum(float(_payload_bytes(lane.items).sum()) for lane in model.lanes)
    require(
        sent > 0,
        "the bytes that the permutation must move are unknown: the all-to-alls carry no sizes",
    )
    floor = calibrate.PERMUTE_PASSES * sent / (bandwidth * ACHIEVABLE_BANDWIDTH)  # GB/s: bytes/ns
    target = min(floor * calibrate.PERMUTE_OVER_FLOOR[ask.case] / now, 1.0)
    require(
        floor * calibrate.PERMUTE_OVER_FLOOR[Case.EXPECTED] < calibrate.PERMUTE_WORTH * now,
        "the permutation runs near its floor already",
    )
    lanes = []
    for lane, rows in zip(model.lanes, permuting, strict=True):
        items = lane.items
        duration = np.where(rows, items.duration_ns * target, items.duration_ns).astype(np.int64)
        lanes.append(_fewer_launches(lane.with_items(duration_ns=duration), ask.case, routed))
    return model.with_lanes(tuple(lanes))


def _fewer_launches(lane: Lane, case: Case, routed: bool) -> Lane:
    """The lane without the host time of the launches and waits that a fused permutation spares.

    Of the local work around the wire FUSED_LAUNCHES are left per pass through a layer; with the
    router fused (`routed`) ROUTER_LAUNCHES go next to it. The host's time falls as the number of
    launches does, at worst not at all; what sorting the chunks between the wire and the experts
    takes beyond its launches goes, too: it handles one view per expert and rank.
    """
    items = lane.items
    if case is Case.LOW:
        return lane
    local = items.has_role(*LOCAL) & (items.kernels > 0)
    gemms = items.has_role(Role.EXPERT_GEMM)
    host = items.host_ns.astype(np.float64)
    each = host.sum() / max(float(items.kernels.sum()), 1.0)
    keep = np.ones(len(lane.waits), np.bool_)
    spare = 0.0
    for block in find_blocks(items):
        before, after = calibrate.FUSED_LAUNCHES[block.backward]
        for low, high, left in (
            (block.begin, block.first, before),
            (block.after, block.end, after),
        ):
            spare += max(float(items.kernels[low:high][local[low:high]].sum()) - left, 0.0)
        spare += calibrate.ROUTER_LAUNCHES[block.backward] if routed else 0.0
        ahead = gemms[block.inside : block.second]
        sort = slice(block.inside, block.inside + (int(np.argmax(ahead)) if ahead.any() else 0))
        if total := float(host[sort].sum()):
            host[sort] *= min(each * float(items.kernels[sort].sum()) / total, 1.0)
        if not block.backward:
            inside = np.flatnonzero(
                (lane.waits.item > block.begin) & (lane.waits.item <= block.first)
            )
            keep[inside[: -calibrate.FUSED_WAITS]] = False
    host *= 1.0 - min(spare / max(float(items.kernels.sum()), 1.0), 1.0)
    return without_waits(lane.with_items(host_ns=host.astype(np.int64)), keep)


def _payload_bytes(items: Items) -> Ints:
    """Bytes sent per payload collective of known size, 0 for all other items."""
    return np.where(items.has_role(*PAYLOAD), np.maximum(items.bytes_sent, 0), 0)


def balanced_experts(model: StepModel, ask: Ask) -> StepModel:
    """Every rank gets the same number of tokens."""
    require(
        len(model.lanes) > 1,
        "imbalance between ranks can't be told from one rank: capture all ranks of an EP group",
    )
    imbalance = ask.context.metrics.get("expert_token_imbalance")
    require(
        imbalance is None or imbalance >= calibrate.UNEVEN_TOKENS,
        f"tokens are balanced: the fullest rank gets {imbalance or 1.0:.2f} times the mean",
    )
    blocks = blocks_of(model)
    require(
        len({len(found) for found in blocks}) == 1, "the ranks run different numbers of MoE layers"
    )
    floor = model.calibration.floor_ns
    durations = [lane.items.duration_ns.copy() for lane in model.lanes]
    transfers = [lane.items.transfer_ns.copy() for lane in model.lanes]
    for number in range(len(blocks[0])):
        work = []
        for lane, found in zip(model.lanes, blocks, strict=True):
            block = found[number]
            rows = np.arange(block.inside, block.second)
            work.append(np.maximum(lane.items.duration_ns[rows] - floor, 0))
        mean = float(np.mean([part.sum() for part in work]))
        fullest = int(np.argmax([part.sum() for part in work]))
        pattern = work[fullest]
        for at, (found, part) in enumerate(zip(blocks, work, strict=True)):
            block = found[number]
            base = np.minimum(durations[at][block.inside : block.second], floor)
            if len(part) == len(pattern) and pattern.sum():
                share = pattern / pattern.sum()
            else:
                share = part / max(int(part.sum()), 1)
            durations[at][block.inside : block.second] = base + (share * mean).astype(np.int64)
    _even_wire(model, transfers, durations, ask.context)
    lanes = [
        lane.with_items(duration_ns=duration, transfer_ns=transfer)
        for lane, duration, transfer in zip(model.lanes, durations, transfers, strict=True)
    ]
    return model.with_lanes(tuple(lanes))


def _even_wire(
    model: StepModel, transfers: list[Ints], durations: list[Ints], context: Context
) -> None:
    """Transfers of evenly spread payloads: the even size over the rate of the busiest rank."""
    ranks = ep_size(model, context)
    for lane, own, duration in zip(model.lanes, transfers, durations, strict=True):
        items = lane.items
        wire = items.has_role(*PAYLOAD) & (items.bytes_sent > 0) & (items.collective >= 0)
        rows = np.flatnonzero(wire)
        if not len(rows):
            continue
        numbers = items.collective[rows]
        leaving: dict[int, int] = {}
        even: dict[int, int] = {}
        for other in model.lanes:
            mine = np.flatnonzero(np.isin(other.items.collective, numbers))
            for row in mine.tolist():
                key = int(other.items.collective[row])
                out = int(other.items.bytes_sent[row] - max(int(other.items.bytes_self[row]), 0))
                leaving[key] = max(leaving.get(key, 0), out)
                even[key] = even.get(key, 0) + int(other.items.bytes_sent[row])
        for row, key in zip(rows.tolist(), numbers.tolist(), strict=True):
            balanced = even[key] / len(model.lanes) * (ranks - 1) / ranks
            if leaving.get(key, 0) > 0:
                factor = min(balanced / leaving[key], calibrate.EVEN_WIRE_LIMIT)
                new = int(own[row] * factor)
                duration[row] += new - own[row]
                own[row] = new
