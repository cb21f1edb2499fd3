"""What work costs that runs beside communication."""

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


def contended(
    before: StepModel,
    model: StepModel,
    starts: Sequence[Ints],
    ends: Sequence[Ints],
    case: Case,
) -> StepModel:
    """`model` with what runs beside moved communication slowed; times are those of `model`.

    A GEMM that fills the GPU exactly once runs its left-over blocks after the others as soon as
    communication holds a single SM; one with many waves slows by the share of SMs held. Memory
    bound kernels and the wire itself share the memory's bandwidth. Slowdowns count only for the
    time that both are there.
    """
    weight = (2.0, 1.0, 0.0)[case]
    lanes = []
    sms = model.calibration.sm_count
    for lane, original, start, end in zip(model.lanes, before.lanes, starts, ends, strict=True):
        items = lane.items
        side = int(original.items.stream.max()) + 1
        wire = (items.stream >= side) & items.has_role(*COMMUNICATION)
        if not wire.any():
            lanes.append(lane)
            continue
        held = int(np.clip(np.median(items.blocks[wire]), 1, sms - 1))
        duration, transfer = items.duration_ns.copy(), items.transfer_ns.copy()
        resident = union(start[wire], end[wire])
        busy = (items.stream < side) & items.has_role(*COMPUTE)
        heavy = busy & items.has_role(*GEMMS, Role.ATTENTION) & (items.blocks > 0)
        rows = np.flatnonzero(heavy)
        # Overlap is counted over the undisturbed duration: the rest of it is the slowdown.
        covered = resident.within(start[rows], start[rows] + items.duration_ns[rows])
        waves = np.ceil(items.blocks[rows] / sms)
        slow = np.where(
            waves <= calibrate.QUANTISED_WAVES,
            np.ceil(items.blocks[rows] / (sms - held)) / waves,
            sms / (sms - held),
        )
        duration[rows] += ((slow - 1.0) * covered).astype(np.int64)
        share = weight * _memory_share(items, wire, model)
        if share > 0:
            rows = np.flatnonzero(busy & ~heavy)
            covered = resident.within(start[rows], start[rows] + items.duration_ns[rows])
            duration[rows] += (share * covered).astype(np.int64)
            computing = union(start[busy], end[busy])
            rows = np.flatnonzero(wire)
            covered = computing.within(start[rows], start[rows] + items.transfer_ns[rows])
            transfer[rows] += (share * covered).astype(np.int64)
            duration[rows] += (share * covered).astype(np.int64)
        lanes.append(lane.with_items(duration_ns=duration, transfer_ns=transfer))
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
