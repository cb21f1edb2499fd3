"""Changes that take waits and repeated work away."""

import numpy as np

from moe_advisor.roles.roles import Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD, find_blocks
from moe_advisor.whatif.changes.edit import (
    Ask,
    Case,
    require,
    require_room,
    select,
    without_waits,
)
from moe_advisor.whatif.model import NO_ITEM, Flags, Items, StepModel
from moe_advisor.whatif.replay import replay


def host_syncs(model: StepModel, ask: Ask) -> StepModel:
    """No synchronising calls, no allocator calls, no long pauses of the launching thread."""
    lanes = []
    found = 0
    for lane in model.lanes:
        items = lane.items
        found += len(lane.waits) + int((items.alloc_ns > 0).sum()) + int((items.pause_ns > 0).sum())
        keep = np.zeros(len(lane.waits), np.bool_)
        if ask.case is Case.LOW:  # every second one is needed by something
            keep[::2] = True
        new = without_waits(lane, keep)
        host = new.items.host_ns - items.alloc_ns
        if ask.case is not Case.LOW:
            host = host - items.pause_ns
        lanes.append(new.with_items(host_ns=np.maximum(host, 0)))
    require(found > 0, "the launching threads neither wait, allocate nor pause in this step")
    return model.with_lanes(tuple(lanes))


RECOMPUTED = ("core_attn", "moe_act", "layernorm", "moe")
"""Megatron-Core's `recompute_modules` whose kernels can be told; `selective` alone is core_attn."""


def _modules(value: str) -> frozenset[str]:
    """The modules that are still recomputed; NotApplicableError for unknown ones."""
    if value == "none":
        return frozenset()
    modules = {"core_attn" if one == "selective" else one for one in value.split(",")}
    require(
        modules <= set(RECOMPUTED),
        f"recompute={value}: the value is none, selective or modules of {', '.join(RECOMPUTED)}",
    )
    return frozenset(modules)


def _of_modules(items: Items, modules: frozenset[str]) -> Flags:
    """Which recomputed items belong to one of `modules`."""
    found: Flags = np.zeros(len(items), np.bool_)
    if "core_attn" in modules:
        found |= _core_attention(items)
    if "moe_act" in modules:
        found |= items.has_role(Role.ACTIVATION)
    if "layernorm" in modules:
        found |= items.has_role(Role.NORM)
    if "moe" in modules:
        for block in find_blocks(items):
            found[block.begin : block.end] |= block.recompute
    return found


def _core_attention(items: Items) -> Flags:
    """Per recomputed layer all from the first to the last attention kernel.

    Unfused attention scales, masks and drops between its products.
    """
    found: Flags = np.zeros(len(items), np.bool_)
    rows = np.flatnonzero(items.recompute & items.has_role(Role.ATTENTION))
    if not len(rows):
        return found
    ends = np.flatnonzero(~items.recompute | items.has_role(*PAYLOAD, Role.EXPERT_GEMM))
    layer = np.searchsorted(ends, rows)
    for number in np.unique(layer).tolist():
        mine = rows[layer == number]
        found[mine[0] : mine[-1] + 1] = True
    return found


def recompute(model: StepModel, ask: Ask) -> StepModel:
    """Forward work that runs again inside backward goes: all of it, or all but some modules'."""
    target = ask.value or "none"
    modules = _modules(target)
    require(
        any(lane.items.recompute.any() for lane in model.lanes),
        "no forward work runs again inside backward",
    )
    drops = []
    dropped: set[int] = set()
    for lane in model.lanes:
        items = lane.items
        drop = items.recompute & ~_of_modules(items, modules)
        drops.append(drop)
        dropped |= set(items.collective[drop].tolist())
    dropped.discard(NO_ITEM)
    # What is no longer recomputed is kept: in proportion to its time, for want of its sizes.
    left = sum(
        int(lane.items.duration_ns[drop].sum())
        for lane, drop in zip(model.lanes, drops, strict=True)
    )
    whole = sum(int(i.duration_ns[i.recompute].sum()) for i in (one.items for one in model.lanes))
    share = calibrate.ACTIVATION_GROWTH[0] * left / max(whole, 1)
    require_room(ask.context, share, "the activations that recompute saves")
    lanes = []
    for lane, drop in zip(model.lanes, drops, strict=True):
        gone = drop | np.isin(lane.items.collective, sorted(dropped))
        lanes.append(select(lane, ~gone))
    return model.with_lanes(tuple(lanes))


def stragglers(model: StepModel, ask: Ask) -> StepModel:
    """Ranks hardly wait for each other: of each wait a quarter stays, at worst half."""
    require(ask.value is None, f"stragglers={ask.value}: takes no value")
    require(
        len(model.lanes) > 1 and len(model.participants) > 0,
        "waiting for other ranks can't be told from one rank: capture all ranks of a group",
    )

    # How long they wait depends on how fast the hosts are: as in this replay, not as measured.
    timing = replay(model, host_scale=ask.host_scale)
    lanes = []
    for lane, start, end in zip(model.lanes, timing.start_ns, timing.end_ns, strict=True):
        items = lane.items
        matched = items.collective >= 0
        wait = np.where(matched, np.maximum(end - start - items.transfer_ns, 0), 0)
        left = (wait * calibrate.WAITING_LEFT[ask.case]).astype(np.int64)
        alone = np.full(len(items), NO_ITEM, np.int64)
        duration = np.where(matched, items.transfer_ns + left, items.duration_ns)
        lanes.append(lane.with_items(duration_ns=duration, collective=alone))
    return model.with_lanes(tuple(lanes))
