"""Token dispatch through a library instead of plain all-to-all."""

import numpy as np
from numpy.typing import NDArray

from moe_advisor.roles.roles import Role
from moe_advisor.whatif import calibrate
from moe_advisor.whatif.blocks import PAYLOAD, Block
from moe_advisor.whatif.changes.edit import (
    Ask,
    Blocked,
    Case,
    Context,
    blend,
    blocks_of,
    require,
)
from moe_advisor.whatif.changes.wire import payload_gbps, slow_link
from moe_advisor.whatif.model import Ints, Items, Lane, StepModel


def dispatcher(model: StepModel, ask: Ask) -> StepModel:
    """A dispatch library: one copy per token and rank, and less local permutation."""
    library = ask.value or "deepep"
    require(
        library in calibrate.DISPATCH_GBPS,
        f"dispatcher={ask.value}: the value is deepep or hybridep",
    )
    families = model.facts.get("families", ())
    require(
        not any(str(one).startswith(("deepep", "hybridep", "hybrid-ep")) for one in families),
        "the run uses a dispatch library already",
    )
    blocks = blocks_of(model)
    lanes = [
        _dispatched(lane, found, model, library, ask.case, ask.context)
        for lane, found in zip(model.lanes, blocks, strict=True)
    ]
    return model.with_lanes(tuple(lanes))


def blocked(model: StepModel, context: Context) -> Blocked | None:
    """Why the library can't be counted on here: its way around host memory is not known to exist.

    These libraries write into peers' memory. Inside one NVLink domain a slow link means that this
    access is missing; between hosts it takes RDMA, which no trace shows and no pair of ours tested.
    """
    if context.config.get("peer_access") is True:
        return None
    found = slow_link(model)
    if found is None:
        unsure = None if payload_gbps(model) else slow_link(model, alone=True)
        if unsure is None:
            return None
        return Blocked(
            f"EP's all-to-alls move {unsure[0]:.0f} of NVLink's {unsure[1]:.0f} GB/s: a slow link "
            "without the peer access that these libraries need, or waiting for ranks that are not "
            "among the inputs: give all ranks of a group, or --set peer_access=true",
            first="link",
        )
    rate, nvlink = found
    here = f"EP's link moves {rate:.0f} of NVLink's {nvlink:.0f} GB/s"
    domain = int(model.hardware.get("nvlink_domain_size") or calibrate.DEFAULT_DOMAIN)
    if ep_size(model, context) <= domain:
        return Blocked(
            f"{here} inside one NVLink domain, so peer-to-peer access seems to be missing, without "
            "which these libraries don't run: get it first (what-if link); --set peer_access=true "
            "if it is there",
            first="link",
        )
    return Blocked(
        f"{here}: between hosts these libraries need RDMA and their gain is untested by us "
        "(--set peer_access=true once it is there)"
    )


def _dispatched(
    lane: Lane,
    found: list[Block],
    model: StepModel,
    library: str,
    case: Case,
    context: Context,
) -> Lane:
    items = lane.items
    local = np.zeros(len(items), np.bool_)
    inner = np.zeros(len(items), np.bool_)
    for block in found:
        local[block.begin : block.end] = True
        inner[block.inside : block.second] = True
    permute = items.has_role(Role.PERMUTE)
    inside, outside = permute & inner, permute & ~inner
    # Rows are expanded top-k times once instead of twice: the cheaper of the two permutations goes.
    cheaper = inside if _time(items, inside) <= _time(items, outside) else outside
    saved = np.where(cheaper, calibrate.SAVED_PERMUTATION[case], 0.0)
    duration = (items.duration_ns * (1.0 - saved)).astype(np.int64)
    wire = items.has_role(*PAYLOAD)
    new = _dispatch_wire_ns(items, wire, model, library, case, context)
    change = np.where(wire, new - items.transfer_ns, 0)
    duration = np.maximum(duration + change, 0)
    return lane.with_items(duration_ns=duration, transfer_ns=np.where(wire, new, items.transfer_ns))


def _time(items: Items, rows: NDArray[np.bool_]) -> int:
    return int(items.duration_ns[rows].sum())


def ep_size(model: StepModel, context: Context) -> int:
    """Ranks that share the experts: from the configuration, the communicators or the lanes."""
    value = context.config.get("expert_model_parallel_size") or context.config.get("ep")
    if value:
        return int(value)
    groups, sizes = model.facts.get("groups", {}), model.facts.get("group_sizes", {})
    of_ep = [name for name, family in groups.items() if family == "ep" and name in sizes]
    found = [int(sizes[name]) for name in of_ep]
    return max([*found, len(model.lanes), 2])


def top_k(context: Context) -> int:
    """Experts per token: from the configuration, else the usual number."""
    value = context.config.get("moe_router_topk") or context.config.get("topk")
    return int(value) if value else calibrate.DEFAULT_TOP_K


def _dispatch_wire_ns(
    items: Items,
    wire: NDArray[np.bool_],
    model: StepModel,
    library: str,
    case: Case,
    context: Context,
) -> Ints:
    """Transfer of each payload collective with the library; the old one where sizes are unknown.

    The library copies each token once to every rank that needs it, its own rank included, at its
    published rate; what leaves the rank is bound by the link's rate seen in this trace.
    """
    known = wire & (items.bytes_sent > 0) & (items.transfer_ns > 0)
    if not known.any():
        return items.transfer_ns
    ranks, experts = ep_size(model, context), top_k(context)
    leaving = (items.bytes_sent - np.maximum(items.bytes_self, 0)).astype(np.float64)
    rate_now = leaving[known].sum() / items.transfer_ns[known].sum()  # bytes/ns = GB/s
    tokens = items.bytes_sent / experts
    copies = ranks * (1.0 - (1.0 - 1.0 / ranks) ** experts)
    domain = int(model.hardware.get("nvlink_domain_size") or calibrate.DEFAULT_DOMAIN)
    groups = -(-ranks // domain) if ranks > domain else ranks
    crossing = (groups - 1) * (1.0 - (1.0 - 1.0 / groups) ** experts)
    low, high = calibrate.DISPATCH_GBPS[library]
    nvlink = float(
        model.hardware.get("nvlink_gbps_per_direction") or calibrate.REFERENCE_NVLINK_GBPS
    )
    rate = blend(low, high, case) if case is not Case.EXPECTED else low
    rate = min(rate, float(nvlink))
    copied = tokens * copies / rate
    over_link = tokens * crossing / max(rate_now, 1e-9)
    if rate_now < calibrate.SLOW_LINK_SHARE * nvlink:
        over_link = over_link / calibrate.SLOW_LINK_RATE[case]
    new = np.maximum(copied, over_link) + model.calibration.wire_floor_ns
    return np.where(known, new, items.transfer_ns).astype(np.int64)
