"""What work costs that runs beside communication."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import union
from moe_advisor.roles.roles import COMMUNICATION, COMPUTE, GEMMS, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.changes.edit import (
    Case,
)
from moe_advisor.whatif.model import Ints, Items, StepModel

STATIC_SCHEDULE = re.compile(r"cutlass.{0,4}device_kernel")
"""Persistent kernels that deal out their tiles beforehand, by name (also mangled): CUTLASS 3, which
PyTorch's grouped GEMM is. cuBLAS's and cuDNN's hand tiles to whichever block is free."""


def contended(
    before: StepModel,
    model: StepModel,
    starts: Sequence[Ints],
    ends: Sequence[Ints],
    case: Case,
    delays: Sequence[Ints] | None = None,
) -> StepModel:
    """`model` with what runs beside moved communication slowed; `starts` and `ends` are a replay's.

    `delays` are those that this function had added before that replay.

    A GEMM whose tiles are dealt out beforehand and that fills the GPU exactly once runs its
    left-over blocks after the others as soon as communication holds a single SM; every other one
    slows by the share of SMs held. Memory bound kernels share the memory's bandwidth with the wire,
    which is slower beside compute itself. Slowdowns count only while both are there. A wire that is
    ready while a kernel fills the GPU starts in that kernel's tail.
    """
    weight = (2.0, 1.0, 0.0)[case]
    static = [n for n, name in enumerate(model.names) if STATIC_SCHEDULE.search(name)]
    lanes = []
    sms = model.calibration.sm_count
    for number, (lane, original) in enumerate(zip(model.lanes, before.lanes, strict=True)):
        items, start, end = lane.items, starts[number], ends[number]
        side = int(original.items.stream.max()) + 1
        wire = (items.stream >= side) & items.has_role(*COMMUNICATION)
        if not wire.any():
            lanes.append(lane)
            continue
        held = int(np.clip(np.median(items.blocks[wire]), 1, sms - 1))
        duration, transfer = items.duration_ns.copy(), items.transfer_ns.copy()
        resident = union(start[wire], end[wire])
        busy = items.has_role(*COMPUTE)
        heavy = busy & items.has_role(*GEMMS, Role.ATTENTION) & (items.blocks > 0)
        # Overlap is counted over the undisturbed duration: the rest of it is the slowdown.
        undisturbed = start + items.duration_ns
        rows = np.flatnonzero(heavy)
        covered = resident.within(start[rows], undisturbed[rows])
        waves = np.ceil(items.blocks[rows] / sms)
        dealt = (waves <= calibrate.QUANTISED_WAVES) & np.isin(items.name[rows], static)
        # Blocks that have an SM keep it: only a wire that was there first holds them up.
        covered = np.where(dealt & ~resident.contains(start[rows]), 0, covered)
        left_over = np.ceil(items.blocks[rows] / (sms - held)) / waves - 1.0
        slow = 1.0 + np.where(
            dealt, left_over * calibrate.LEFT_OVER_WAVE[case], sms / (sms - held) - 1.0
        )
        duration[rows] += ((slow - 1.0) * covered).astype(np.int64)
        share = weight * _memory_share(items, wire, model)
        if share > 0:
            rows = np.flatnonzero(busy & ~heavy)
            covered = resident.within(start[rows], undisturbed[rows])
            duration[rows] += (share * covered).astype(np.int64)
        computing = union(start[busy], end[busy])
        rows = np.flatnonzero(wire)
        covered = computing.within(start[rows], start[rows] + items.transfer_ns[rows])
        aside = busy & (items.stream >= side)
        beside = calibrate.WIRE_BESIDE_STREAMS if aside.any() else calibrate.WIRE_BESIDE_COMPUTE
        longer = (beside[case] * covered).astype(np.int64)
        transfer[rows] += longer
        duration[rows] += longer
        # Two streams of compute share one GPU: what one takes, the other loses.
        if aside.any():
            for mine, others in ((aside, busy & ~aside), (busy & ~aside, aside)):
                rows = np.flatnonzero(mine)
                taken = union(start[others], undisturbed[others])
                covered = taken.within(start[rows], undisturbed[rows])
                duration[rows] += (calibrate.SHARED_GPU[case] * covered).astype(np.int64)
        ready = start - (delays[number] if delays else 0)
        residual = items.residual_ns + _without_room(items, wire, start, ready, sms, case)
        lanes.append(
            lane.with_items(duration_ns=duration, transfer_ns=transfer, residual_ns=residual)
        )
    return model.with_lanes(tuple(lanes))


def _memory_share(items: Items, wire: NDArray[np.bool_], model: StepModel) -> float:
    """Share of the memory's bandwidth that the wire takes: a byte is read and written once."""
    bandwidth = float(model.hardware.get("memory_bandwidth_gbps") or 0.0)
    known = wire & (items.bytes_sent >= 0) & (items.transfer_ns > 0)
    if not bandwidth or not known.any():
        return 0.0
    rate = float((items.bytes_sent - np.maximum(items.bytes_self, 0))[known].sum())
    rate /= float(items.transfer_ns[known].sum())
    return min(2.0 * rate / bandwidth, 0.5)


def _without_room(
    items: Items, wire: NDArray[np.bool_], start: Ints, ready: Ints, sms: int, case: Case
) -> Ints:
    """How long each item waits for SMs: collectives on the wire, while a kernel holds them all."""
    found = np.zeros(len(items), np.int64)
    full = np.flatnonzero(items.has_role(*COMPUTE) & (items.blocks >= sms))
    rows = np.flatnonzero(wire)
    full = full[np.argsort(start[full], kind="stable")]
    waves = np.maximum(items.blocks[full] // sms, 1)
    share = 1.0 - (1.0 - calibrate.ROOM_FROM[case]) / waves
    until = np.maximum.accumulate(start[full] + (share * items.duration_ns[full]).astype(np.int64))
    place = np.searchsorted(start[full], ready[rows], side="right") - 1
    held, rows = until[place[place >= 0]], rows[place >= 0]
    found[rows] = np.maximum(held - ready[rows], 0)
    return found
