"""What one rank contributes to the result: plain numbers that merge in any order.

Times are integer nanoseconds per kept step of that rank. A partial is self-contained (it can be
pickled, cached, sent to another machine), and a result depends only on the set of partials.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import Intervals
from moe_advisor.model import CaptureIssue, Device

PerStep = NDArray[np.int64]


@dataclass(frozen=True)
class Collectives:
    """The communication activities of one rank inside its steps, in launch order per group.

    Columns of equal length. `group` is -1 where the communicator is unknown; `index` counts the
    collectives of a group within the step. `compute_before_ns` and `gap_before_ns` are compute
    and host-gap time since the end of the group's collective before it: what kept this rank.
    """

    step: NDArray[np.int64]
    group: NDArray[np.int64]
    index: NDArray[np.int64]
    role: NDArray[np.int8]
    start_ns: NDArray[np.int64]
    duration_ns: NDArray[np.int64]
    bytes_sent: NDArray[np.int64]
    bytes_received: NDArray[np.int64]
    bytes_self: NDArray[np.int64]
    compute_before_ns: NDArray[np.int64]
    gap_before_ns: NDArray[np.int64]
    backward: NDArray[np.bool_]
    kind: NDArray[np.int8]
    """`model.CollectiveKind` of each."""
    sequence: NDArray[np.int64]
    """The operation's number in its communicator; NONE where the trace does not say."""
    place: NDArray[np.int64]
    to_low: NDArray[np.int64]
    to_high: NDArray[np.int64]
    from_low: NDArray[np.int64]
    from_high: NDArray[np.int64]
    """As in `model.COLLECTIVE_SCHEMA`: own place in the group, and the peers' of a P2P kernel."""

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class RolePartial:
    """Time (union), exposed time and number of activities of one role, over all steps."""

    ns: int
    exposed_ns: int
    count: int
    sources: tuple[int, ...]  # summed durations by evidence, in the order of roles.Source


@dataclass(frozen=True)
class RankPartial:
    """All measurements of one rank that need no other rank."""

    rank: int
    rank_source: str
    host: int
    device: Device
    world_size: int | None
    epoch_ns: int | None
    step_names: tuple[str, ...]
    step_source: str
    step_pattern: str | None
    dropped: tuple[tuple[str, str], ...]
    window_start_ns: PerStep
    step_ns: PerStep
    times_ns: dict[str, PerStep]
    """Metric name without `_ms` -> ns per step."""
    counts: dict[str, NDArray[np.float64]]
    parts_ns: dict[str, PerStep]
    """Part of the stacked bar -> ns per step, waits not yet told from transfers."""
    roles: dict[str, RolePartial]
    collectives: Collectives
    group_names: tuple[str, ...]
    ep_exposed: Intervals
    absent_ns: dict[tuple[str, str], int]
    """(cause, role family) -> ns over all steps."""
    idle_ns: dict[str, int]
    idle_detail: dict[str, dict[str, tuple[int, int]]]
    """Finest idle cause -> call and range around it -> (number, ns of idle time under it)."""
    unclassified: dict[str, tuple[int, int]]
    memory_peak_bytes: int | None
    facts: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    """Metric -> why this rank could not measure it."""
    issues: tuple[CaptureIssue, ...] = ()
    cause_ns: dict[str, int] = field(default_factory=dict)
    """Finest idle cause -> ns over all steps; the causes add up to the idle time."""
    layers_ns: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    """(layer, phase) -> (forward ns, backward ns) over all steps; empty where layers don't show."""
    kernels: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(role, short name) -> (number, ns) over all steps; name "" sums a role's shortest."""
    weight: float = 1.0
    """How much the rank counts in a mean; set where pipeline stages were read unevenly."""
