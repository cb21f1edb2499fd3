"""One training step as work that can be run again: lanes of GPU items, one lane per rank.

All times are integer nanoseconds. A lane lists the GPU work of one rank in launch order. An item
starts when its launch has arrived, when the item before it on its stream has ended, and when every
item that it depends on has ended; what the measured start took beyond that is its `residual`. A
host delay is the time between two launch calls that no wait for the GPU explains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import among
from moe_advisor.roles.roles import Family, Role

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NO_ITEM = -1
"""In a column of item numbers: none."""

NEVER_LATE = -(1 << 50)
"""Launch latency (ns) of an item whose launch the trace does not hold: it never waits for one."""

FAMILY_OF_ROLE: tuple[Family, ...] = tuple(role.family for role in Role)


@dataclass(frozen=True)
class Items:
    """GPU work of one rank in launch order; every column has one entry per item.

    `host_ns`: from the launch call before (or from the end of the last wait) to this launch call;
    of that, `alloc_ns` lies in allocator calls and `pause_ns` in long stretches without any call.
    `latency_ns`: launch call to earliest start. `gap_ns`: after the item before on the stream.
    `transfer_ns`: for a matched collective, its own end after the last participant's start.
    `collective`: number of the matched collective, or NO_ITEM. `kernels`: launches it stands for.
    """

    stream: Ints
    duration_ns: Ints
    host_ns: Ints
    alloc_ns: Ints
    pause_ns: Ints
    latency_ns: Ints
    gap_ns: Ints
    residual_ns: Ints
    transfer_ns: Ints
    collective: Ints
    role: Ints
    name: Ints
    blocks: Ints
    bytes_sent: Ints
    bytes_self: Ints
    kernels: Ints
    scope: Ints
    backward: Flags
    recompute: Flags
    in_graph: Flags
    launch_ns: Ints
    """Measured launch call, relative to the lane's step; like `start_ns` no input of a replay."""
    start_ns: Ints
    """Measured start, relative to the lane's step."""

    def __len__(self) -> int:
        return len(self.stream)

    def take(self, rows: NDArray[Any]) -> "Items":
        """The items of `rows`, in that order (rows may repeat)."""
        return Items(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def graph_heads(self) -> Flags:
        """First kernels of CUDA graphs: the ones that a graph launch starts."""
        same = np.concatenate([[False], self.launch_ns[1:] == self.launch_ns[:-1]])
        before = np.concatenate([[False], self.in_graph[:-1]])
        found: Flags = self.in_graph & ~(same & before)
        return found

    def family(self, *families: Family) -> Flags:
        """Which items belong to one of these families."""
        wanted = [number for number, family in enumerate(FAMILY_OF_ROLE) if family in families]
        return among(self.role, wanted)

    def has_role(self, *roles: Role) -> Flags:
        """Which items have one of these roles."""
        return among(self.role, roles)


@dataclass(frozen=True)
class Edges:
    """Dependencies between items of different streams: `item` starts after `on` ended + lag.

    A negative lag is a start in the tail of a kernel that had filled the GPU, and `on` may then be
    the later launched (`order.put_off`).
    """

    item: Ints
    on: Ints
    lag_ns: Ints

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def by_item(self) -> dict[int, list[tuple[int, int]]]:
        """Item -> (on, lag) of each of its dependencies."""
        found: dict[int, list[tuple[int, int]]] = {}
        rows = zip(self.item.tolist(), self.on.tolist(), self.lag_ns.tolist(), strict=True)
        for item, on, lag in rows:
            found.setdefault(item, []).append((on, lag))
        return found


@dataclass(frozen=True)
class Waits:
    """Host waits for the GPU, in host order.

    Before launching `item` the host works `before_ns`, then stands in a call that takes `own_ns`
    and lasts at least until the item `on` has ended, plus `lag_ns` (`on` may be NO_ITEM).
    """

    item: Ints
    before_ns: Ints
    own_ns: Ints
    on: Ints
    lag_ns: Ints

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True)
class Lane:
    """One rank's step. Its last item stands for the start of the next step and takes no time."""

    rank: int
    step: str
    items: Items
    edges: Edges
    waits: Waits
    host_start_ns: int
    """First launch call, relative to the start of the step (negative: the host was ahead)."""
    step_ns: int
    offset_ns: int
    """Start of the lane's step on the common clock of the model."""

    def with_items(self, **columns: NDArray[Any]) -> "Lane":
        """The lane with some columns of its items replaced."""
        return replace(self, items=replace(self.items, **columns))


@dataclass(frozen=True)
class Calibration:
    """Costs taken from this trace (medians), with fallbacks named in `calibrate`."""

    launch_ns: int
    """Host time of one more launch."""
    latency_ns: int
    """Launch call to kernel start on an idle stream."""
    gap_ns: int
    """Between two kernels of one stream that the host was in time for."""
    floor_ns: int
    """The shortest a kernel gets, however little it has to do."""
    wire_floor_ns: int
    """What a collective costs without payload."""
    sm_count: int
    graph_latency_ns: int = 0
    """Launch call to the start of the first kernel of a CUDA graph; 0: as of other kernels."""


@dataclass(frozen=True)
class StepModel:
    """The lanes of all ranks, what joins them, and the constants of the run."""

    lanes: tuple[Lane, ...]
    participants: tuple[tuple[int, ...], ...]
    """Per matched collective: the numbers of the lanes that take part."""
    calibration: Calibration
    hardware: Mapping[str, Any]
    names: tuple[str, ...]
    scopes: tuple[str, ...]
    facts: Mapping[str, Any]
    merged: int = 1
    """Largest number of activities that one item stands for."""
    whole_ns: float = 0.0
    """Mean measured step over the ranks where the lanes hold only its first part, else 0."""

    @property
    def lane_ns(self) -> float:
        """Mean measured time that the lanes hold, over the ranks."""
        return float(np.mean([lane.step_ns for lane in self.lanes])) if self.lanes else 0.0

    @property
    def step_ns(self) -> float:
        """Mean measured step over the ranks."""
        return self.whole_ns or self.lane_ns

    @property
    def repeats(self) -> float:
        """How many times what the lanes hold makes the step."""
        return self.step_ns / self.lane_ns if self.lanes else 1.0

    def with_lanes(self, lanes: "tuple[Lane, ...]") -> "StepModel":
        """The model with other lanes."""
        return replace(self, lanes=lanes)
