"""What a comparison holds; outputs know no more than this."""

from typing import Any, Literal

import msgspec

SCHEMA = "moe-advisor/compare"
SCHEMA_VERSION = "1.0"

Verdict = Literal["better", "worse", "changed", "unchanged", "cant_tell"]
"""`changed` is for metrics without a good direction, such as the time of a kernel family."""


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts: immutable, written in field order."""


class Check(_Part, frozen=True, kw_only=True):
    """One question of comparability: same, differs (warned of), unknown or refused."""

    id: str
    state: Literal["same", "differs", "unknown", "refused"]
    base: str
    new: str
    message: str


class Delta(_Part, frozen=True, kw_only=True):
    """One metric on both sides, in its unit; `low` and `high` bound the change (95 %).

    `window_change` is of the whole windows' means, `step_change` of the medians over steps.
    """

    name: str
    title: str
    unit: str
    better: str | None
    verdict: Verdict
    reason: str
    base: float | None = None
    new: float | None = None
    window_change: float | None = None
    step_change: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    relative: float | None = None
    by_rank: dict[str, float] = {}


class Share(_Part, frozen=True, kw_only=True):
    """Part of the change of the step, ms: a part of it, a role, a layer, a cause or a rank."""

    name: str
    label: str
    base_ms: float
    new_ms: float
    change_ms: float


class KeyChange(_Part, frozen=True, kw_only=True):
    """A configuration key or trace fact whose value differs; None where a side lacks it."""

    key: str
    base: Any
    new: Any
    source: str


KernelState = Literal["new", "gone", "slower", "faster", "more often", "less often", "same"]


class KernelChange(_Part, frozen=True, kw_only=True):
    """Kernels of one short name in one role on both sides, per step; `us` is one run's mean."""

    role: str
    name: str
    state: KernelState
    base_ms: float
    new_ms: float
    change_ms: float
    base_count: float
    new_count: float
    base_us: float | None
    new_us: float | None


class WallChange(_Part, frozen=True, kw_only=True):
    """The score of a wall on both sides, shares of the step of each side."""

    wall: str
    base: float
    new: float
    base_limits: bool
    new_limits: bool
    base_missing: bool = False
    """Something of the wall could not be measured: a score of 0 says nothing then."""
    new_missing: bool = False


class Promise(_Part, frozen=True, kw_only=True):
    """A recommendation of the base that the new run follows: its estimate and what came."""

    rule: str
    title: str
    low_ms: float | None
    expected_ms: float | None
    high_ms: float | None
    measured_ms: float
    measured_low_ms: float | None
    measured_high_ms: float | None
    inside: bool | None
    """Whether the measured gain lies in the estimate's range; None without an estimate."""
    together: bool
    """Other recommendations were followed too: the measured gain belongs to all of them."""
    others: list[str]
    """Further settings that changed."""


class Side(_Part, frozen=True, kw_only=True):
    """One side in words: its name and how much of it was read."""

    name: str
    repeats: int
    steps: int
    verdict: str
    identity: list[str]


class Comparison(_Part, frozen=True, kw_only=True):
    """The whole comparison. `verdict` is that of the step time."""

    schema: str = SCHEMA
    schema_version: str = SCHEMA_VERSION
    tool_version: str
    base: Side
    new: Side
    headline: str
    verdict: Verdict
    checks: list[Check]
    deltas: list[Delta]
    parts: list[Share]
    roles: list[Share]
    layers: list[Share]
    causes: list[Share]
    ranks: list[Share]
    config: list[KeyChange]
    cause: str
    walls: list[WallChange] = []
    kernels: list[KernelChange] = []
    promises: list[Promise] = []
