"""A link of another speed, and how fast the link is now."""

from collections.abc import Mapping

import numpy as np

from moe_advisor.roles.roles import Family, Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD
from moe_advisor.whatif.changes.edit import Ask, Case, each, require
from moe_advisor.whatif.model import Lane, StepModel

NVLINK = "nvlink"


def is_link(value: str) -> bool:
    """Whether this names a link: NVLink, or how many times as fast."""
    try:
        return value == NVLINK or 0 < float(value) < float("inf")
    except ValueError:
        return False


def link(model: StepModel, ask: Ask) -> StepModel:
    """Every collective's wire faster by a factor, or as fast as NVLink; its fixed cost stays."""
    if ask.value in (None, NVLINK):
        return scale_wire(model, _to_nvlink(model, ask.case), ask.case)
    require(
        is_link(ask.value),
        f"link={ask.value}: neither nvlink nor a factor above 0, 2 for a link twice as fast",
    )
    factor = float(ask.value)
    scaled = scale_wire(model, dict.fromkeys(WIRE_FAMILIES, 1.0 / factor), ask.case)
    require(
        any(lane.items.family(*WIRE_FAMILIES).any() for lane in model.lanes),
        "no collectives in the step (sends and receives of a pipeline are not scaled)",
    )
    return scaled


WIRE_FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP, Family.OTHER_COLLECTIVE)
"""Not the pipeline's: a receive is nearly all waiting, and its transfer can't be told from it."""


def scale_wire(
    model: StepModel, factors: Mapping[Family, float], case: Case = Case.EXPECTED
) -> StepModel:
    """The model with the transfers of each family scaled; small ones are latency and stay.

    Unmatched collectives hold their waiting too: of those the low case scales a half.
    """
    fixed = model.calibration.wire_floor_ns

    def change(lane: Lane) -> Lane:
        items = lane.items
        duration, transfer = items.duration_ns.copy(), items.transfer_ns.copy()
        for family, factor in factors.items():
            rows = items.family(family) & ~items.has_role(Role.EP_NOTIFY)
            own = np.minimum(transfer, fixed)
            new = own + ((transfer - own) * factor).astype(np.int64)
            part = np.where(
                items.collective >= 0, 1.0, (0.5, 0.8, 1.0)[case] if factor < 1 else 1.0
            )
            delta = ((new - transfer) * part).astype(np.int64)
            duration = np.where(rows, np.maximum(duration + delta, 0), duration)
            transfer = np.where(rows, transfer + delta, transfer)
        return lane.with_items(duration_ns=duration, transfer_ns=transfer)

    return each(model, change)


def payload_gbps(model: StepModel, *, alone: bool = False) -> float | None:
    """Rate (GB/s) at which EP all-to-alls move what leaves a rank, their fixed cost taken off.

    None without their sizes, where all are small (latency, not a rate), and where peers are
    missing: waiting then counts as transfer. `alone`: with those as well, a rate that is too low.
    """
    fixed = model.calibration.wire_floor_ns
    moved = taken = 0.0
    for lane in model.lanes:
        items = lane.items
        leaving = items.bytes_sent - np.maximum(items.bytes_self, 0)
        rows = items.has_role(*PAYLOAD) & (items.transfer_ns > fixed)
        rows &= (items.collective >= 0) | alone
        rows &= leaving >= calibrate.RATE_BYTES
        moved += float(leaving[rows].sum())
        taken += float((items.transfer_ns[rows] - fixed).sum())
    return moved / taken if moved > 0 and taken > 0 else None


def slow_link(model: StepModel, *, alone: bool = False) -> tuple[float, float] | None:
    """Rate of EP's link and NVLink's figure (GB/s), where the first is another link's; or None."""
    rate, nvlink = payload_gbps(model, alone=alone), model.hardware.get("nvlink_gbps_per_direction")
    if not rate or not nvlink or rate >= calibrate.SLOW_LINK_SHARE * float(nvlink):
        return None
    return rate, float(nvlink)


def in_one_domain(model: StepModel) -> bool:
    """Whether every process group of the trace would fit into one NVLink domain."""
    sizes = [int(size) for size in model.facts.get("group_sizes", {}).values()]
    domain = int(model.hardware.get("nvlink_domain_size") or calibrate.DEFAULT_DOMAIN)
    return max([*sizes, len(model.lanes)]) <= domain


def _to_nvlink(model: StepModel, case: Case) -> dict[Family, float]:
    """What is left of each family's transfers once they cross NVLink.

    Other families than EP come along where they are slow too and all groups fit into one domain:
    then it is the machine's peer-to-peer access, else only the expert groups that move.
    """
    own = "; or say how many times as fast: link=FACTOR"
    require(
        any(lane.items.family(Family.EP).any() for lane in model.lanes),
        "no expert-parallel collectives in the step" + own,
    )
    nvlink = float(model.hardware.get("nvlink_gbps_per_direction") or 0.0)
    require(nvlink > 0, "NVLink's figure for this GPU is not known: --set gpu_name=NAME" + own)
    rate = payload_gbps(model) or 0.0
    require(
        rate > 0,
        "how fast EP's link is can't be told: needs the sizes of its all-to-alls (4 MiB or more) "
        "and all ranks of a group" + own,
    )
    require(
        slow_link(model) is not None,
        f"EP's all-to-alls move {rate:.0f} GB/s of NVLink's {nvlink:.0f}: that is NVLink already"
        + own,
    )
    left = min(1.0, rate / (calibrate.NVLINK_REACH[case] * nvlink))
    found = {Family.EP: left}
    if in_one_domain(model):
        limit = calibrate.SLOW_LINK_SHARE * nvlink
        found |= {one: left for one in WIRE_FAMILIES if 0 < _family_gbps(model, one) < limit}
    return found


def _family_gbps(model: StepModel, family: Family) -> float:
    """Bytes handed to the collectives of a family over their transfers, GB/s; 0 if unknown."""
    rows = [
        (lane.items, lane.items.family(family) & (lane.items.bytes_sent > 0))
        for lane in model.lanes
    ]
    taken = sum(float(items.transfer_ns[which].sum()) for items, which in rows)
    sent = sum(float(items.bytes_sent[which].sum()) for items, which in rows)
    return sent / taken if taken > 0 else 0.0
