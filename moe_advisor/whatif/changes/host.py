"""Changes that take waits and repeated work away."""

import numpy as np

from moe_advisor.roles.roles import Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.changes.edit import Ask, Case, each, require, select, without_waits
from moe_advisor.whatif.model import NO_ITEM, Lane, StepModel


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


def recompute(model: StepModel, ask: Ask) -> StepModel:
    """Forward work that runs again inside backward goes: all of it, or all but attention."""
    target = ask.value or "none"
    require(
        target in ("none", "selective"), f"recompute={ask.value}: the value is none or selective"
    )
    require(
        any(lane.items.recompute.any() for lane in model.lanes),
        "no forward work runs again inside backward",
    )
    headroom = ask.context.metrics.get("memory_headroom_gib")
    peak = ask.context.metrics.get("memory_peak_gib")
    if target == "none" and headroom is not None and peak is not None:
        require(
            headroom > calibrate.ACTIVATION_GROWTH[0] * peak,
            f"{headroom:.1f} GiB of headroom beside a peak of {peak:.1f} GiB don't hold the "
            "activations that recompute saves",
        )
    drops = []
    dropped: set[int] = set()
    for lane in model.lanes:
        items = lane.items
        drop = items.recompute.copy()
        if target == "selective":
            drop &= ~items.has_role(Role.ATTENTION)
        drops.append(drop)
        dropped |= set(items.collective[drop].tolist())
    dropped.discard(NO_ITEM)
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

    def change(lane: Lane) -> Lane:
        items = lane.items
        wait = np.where(items.collective >= 0, items.duration_ns - items.transfer_ns, 0)
        spared = (wait * (1.0 - calibrate.WAITING_LEFT[ask.case])).astype(np.int64)
        alone = np.full(len(items), NO_ITEM, np.int64)
        return lane.with_items(duration_ns=items.duration_ns - spared, collective=alone)

    return each(model, change)
