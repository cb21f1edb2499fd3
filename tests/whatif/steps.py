"""Builds small step models item by item; times in µs."""

from dataclasses import dataclass, field

import numpy as np

from moe_advisor.roles.roles import Role
from moe_advisor.whatif.model import (
    NEVER_LATE,
    NO_ITEM,
    Calibration,
    Edges,
    Items,
    Lane,
    StepModel,
    Waits,
)
from moe_advisor.whatif.replay import replay

US = 1_000
COSTS = Calibration(
    launch_ns=5 * US,
    latency_ns=5 * US,
    gap_ns=1 * US,
    floor_ns=2 * US,
    wire_floor_ns=10 * US,
    sm_count=132,
)


@dataclass
class Step:
    """Collects the items of one rank; every method returns the number of the new item."""

    rows: list[dict] = field(default_factory=list)
    edges: list[tuple[int, int, int]] = field(default_factory=list)
    waits: list[tuple[int, int, int, int, int]] = field(default_factory=list)

    def item(
        self,
        duration: float,
        role: Role = Role.ELEMENTWISE,
        *,
        stream: int = 0,
        host: float = 0.0,
        collective: int = NO_ITEM,
        transfer: float | None = None,
        blocks: int = 1_000,
        sent: int = -1,
        own: int = -1,
        launched: bool = True,
        after: int | None = None,
        **flags: bool,
    ) -> int:
        row = {
            "stream": stream,
            "duration_ns": int(duration * US),
            "host_ns": int(host * US),
            "latency_ns": 0 if launched else NEVER_LATE,
            "transfer_ns": int((duration if transfer is None else transfer) * US),
            "collective": collective,
            "role": int(role),
            "blocks": blocks,
            "bytes_sent": sent,
            "bytes_self": own,
            "kernels": 1,
            "scope": int(role == Role.ATTENTION),
            **flags,
        }
        self.rows.append(row)
        number = len(self.rows) - 1
        if after is not None:
            self.edges.append((number, after, 0))
        return number

    def wait(self, on: int, *, before: float = 0.0, own: float = 0.0, lag: float = 0.0) -> None:
        """The host waits for `on` before it launches the next item."""
        times = (int(before * US), int(own * US))
        self.waits.append((len(self.rows), *times, on, int(lag * US)))

    def lane(self, step: float, *, rank: int = 0, offset: float = 0.0) -> Lane:
        self.item(0.0, Role.COMPUTE_OTHER)
        flags = ("backward", "recompute", "in_graph")
        names = Items.__dataclass_fields__
        columns = {
            name: np.asarray(
                [row.get(name, 0) for row in self.rows], np.bool_ if name in flags else np.int64
            )
            for name in names
        }
        return Lane(
            rank=rank,
            step="iteration 1",
            items=Items(**columns),
            edges=Edges(*_columns(self.edges, 3)),
            waits=Waits(*_columns(self.waits, 5)),
            host_start_ns=0,
            step_ns=int(step * US),
            offset_ns=int(offset * US),
        )


def _columns(rows: list, width: int) -> list[np.ndarray]:
    return [np.asarray([row[at] for row in rows], np.int64) for at in range(width)]


def model(*lanes: Lane, collectives: int = 0, **facts: object) -> StepModel:
    everyone = tuple(range(len(lanes)))
    hardware = {"memory_bandwidth_gbps": 4800, "nvlink_gbps_per_direction": 450}
    made = StepModel(lanes, (everyone,) * collectives, COSTS, hardware, ("",), ("",), facts)
    starts = replay(made).start_ns
    return made.with_lanes(
        tuple(lane.with_items(start_ns=s) for lane, s in zip(lanes, starts, strict=True))
    )
