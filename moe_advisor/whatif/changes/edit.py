"""What all changes share: what they are asked, and how they edit a lane."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.whatif.blocks import PAYLOAD, Block, aligned, find_blocks
from moe_advisor.whatif.model import NO_ITEM, Edges, Ints, Items, Lane, StepModel, Waits


class Case(IntEnum):
    """Which end of the range a model stands for."""

    LOW = 0
    EXPECTED = 1
    HIGH = 2


class NotApplicableError(Exception):
    """The change does not apply to this run, or the trace can't tell; the text says why."""


@dataclass(frozen=True)
class Context:
    """What a change may know beside the model: configuration values and metrics, by name."""

    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What is asked of a change: its value (None: the default), the case, what else is known.

    `host_scale` is what the replay will multiply host times by; work that no profiler stretches is
    added divided by it.
    """

    value: str | None
    case: Case
    context: Context
    host_scale: float = 1.0


@dataclass(frozen=True)
class Blocked:
    """Why a change counts for nothing yet; `first`: the change after which it does, if any."""

    reason: str
    first: str | None = None


def select(lane: Lane, keep: NDArray[np.bool_]) -> Lane:
    """The lane without the other items; what depended on one depends on what that depended on.

    The host time of a dropped launch goes with it. The last item is always kept.
    """
    keep = keep.copy()
    keep[-1] = True
    number = np.cumsum(keep) - 1
    number[~keep] = NO_ITEM
    # A dropped item is replaced by the newest kept item before it on its stream.
    stand_in = _kept_before(lane.items, number)
    edges = lane.edges
    on = stand_in[edges.on]
    good = keep[edges.item] & (on != NO_ITEM)
    new_edges = Edges(number[edges.item[good]], on[good], edges.lag_ns[good])
    waits = lane.waits
    kept_wait = keep[waits.item] | keep[np.maximum(waits.item - 1, 0)]
    following = np.searchsorted(np.flatnonzero(keep), waits.item[kept_wait])
    wait_on = np.where(waits.on >= 0, stand_in[np.maximum(waits.on, 0)], NO_ITEM)[kept_wait]
    new_waits = Waits(
        following,
        waits.before_ns[kept_wait],
        waits.own_ns[kept_wait],
        np.where(wait_on < following, wait_on, NO_ITEM),
        waits.lag_ns[kept_wait],
    )
    return replace(
        lane, items=lane.items.take(np.flatnonzero(keep)), edges=new_edges, waits=new_waits
    )


def _kept_before(items: Items, number: Ints) -> Ints:
    """Per item the number of the newest kept item up to it on its stream, or NO_ITEM."""
    found = np.full(len(items), NO_ITEM, np.int64)
    for stream in np.unique(items.stream).tolist():
        rows = np.flatnonzero(items.stream == stream)
        found[rows] = np.maximum.accumulate(number[rows])
    return found


def without_waits(lane: Lane, keep: NDArray[np.bool_]) -> Lane:
    """The lane without the host waits that `keep` drops; the work before them stays."""
    waits = lane.waits
    host = lane.items.host_ns.copy()
    np.add.at(host, waits.item[~keep], waits.before_ns[~keep])
    kept = Waits(
        waits.item[keep],
        waits.before_ns[keep],
        waits.own_ns[keep],
        waits.on[keep],
        waits.lag_ns[keep],
    )
    return replace(lane.with_items(host_ns=host), waits=kept)


def each(model: StepModel, change: Callable[[Lane], Lane]) -> StepModel:
    """The model with every lane changed."""
    return model.with_lanes(tuple(change(lane) for lane in model.lanes))


def require(condition: bool, reason: str) -> None:
    """Raises NotApplicableError with `reason` unless the condition holds."""
    if not condition:
        raise NotApplicableError(reason)


def require_room(context: Context, share: float, what: str) -> None:
    """Raises NotApplicableError unless `share` of the memory peak is free, where both are known."""
    headroom = context.metrics.get("memory_headroom_gib")
    peak = context.metrics.get("memory_peak_gib")
    if headroom is None or peak is None:
        return
    require(
        headroom > share * peak,
        f"{headroom:.1f} GiB of headroom beside a peak of {peak:.1f} GiB don't hold {what}",
    )


def blend(low: float, high: float, case: Case) -> float:
    """low, the middle or high."""
    return (low, (low + high) / 2, high)[case]


def blocks_of(model: StepModel) -> list[list[Block]]:
    """The MoE blocks of every lane; NotApplicableError where none is recognised."""
    require(
        any(lane.items.has_role(*PAYLOAD).any() for lane in model.lanes),
        "no expert all-to-all in the step: the experts are not spread over ranks",
    )
    items = [lane.items for lane in model.lanes]
    found = aligned(items, [find_blocks(one) for one in items])
    require(
        any(found),
        "no MoE layer recognised: dispatch, expert GEMM and combine of a layer can't be told apart",
    )
    return found
