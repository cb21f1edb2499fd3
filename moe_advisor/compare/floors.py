"""Smallest changes worth a verdict: noise that no capture of a few steps can show by itself."""

import math
from dataclasses import dataclass

MS_FLOOR = 0.5
"""ms: the residual that the definitions themselves allow."""

STEP_SHARE_FLOOR = 0.003
"""Share of the step that a change of any time must reach to matter."""

SHARE_FLOOR = 0.005
RATIO_FLOOR = 0.05
COUNT_FLOOR = 1.0
GIB_FLOOR = 0.1
RATE_FLOOR = 1.0

ABSOLUTE = {
    "share": SHARE_FLOOR,
    "ratio": RATIO_FLOOR,
    "max/mean": RATIO_FLOOR,
    "count/step": COUNT_FLOOR,
    "GiB": GIB_FLOOR,
    "GB/s": RATE_FLOOR,
    "TFLOP/s": RATE_FLOOR,
    "tokens/s": 0.0,
}

GPU_TIME = 0.02
"""The same job's step and kernel times repeat within 1 to 2 % from run to run."""

TRANSFER = 0.04
"""Transfer repeats within 4 % from run to run."""

WAITING = 0.4
"""The duration of an all-to-all holds waiting and varies by up to 40 % from run to run."""

HOST = 0.3
"""Host-bound steps vary by 10 to 30 % from run to run and machine to machine."""

HOST_GAPS = 0.5
"""Gaps alone vary more than the step they are part of: in captures of one job by 33 and 41 %."""

BLIND = 0.05
"""Where runs of one job differ by more than this, a change below the floor is no proof of none:
nobody wants a regression of this size to pass."""

COUNT = 0.01
MEASURED_REPEATS = 3
"""From this number of repeats on a side their own spread says how much runs vary."""

REPEATED = 0.01
"""Relative floor where repeats were measured: below it nobody acts."""

CROSS_PROFILER = 0.05
"""Kernel times under two profilers differ by up to this with the same job."""

_WAITING = ("_wait_ms", "ep_a2a_ms", "ep_a2a_blocking_ms", "ep_notify_ms", "a2a_to_expert_gemm")
_HOST = (
    *("host_gap", "gpu_idle", "dependency_idle", "launch_starved", "blocked_by", "compute_absent"),
    *("memcpy_exposed", "pp_"),
)
_PROFILER_FREE = ("compute_ms", "kernels_per_step", "expert_token_imbalance", "recompute_ms")


_WHOLE_STEP = ("step_ms", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "mfu", "hfu")
"""Metrics that hold all of the step, its host time included."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Smallest change that counts: both must be exceeded.

    `steady` is the relative floor of the same metric without host time in it.
    """

    absolute: float
    relative: float
    steady: float | None = None

    def of(self, base: float) -> float:
        """The floor in the metric's unit beside a base value."""
        return max(self.absolute, self.relative * abs(base))

    def blind(self, base: float) -> float | None:
        """From this change on, one that stays below the floor can't be told; None for never."""
        if self.steady is None or self.of(base) <= BLIND * abs(base):
            return None
        return max(self.absolute, self.steady * abs(base))


def floor(
    name: str,
    unit: str,
    step_ms: float,
    repeats: int,
    cross_profiler: bool,
    waiting: float = 1.0,
    host: float = 0.0,
) -> Floor:
    """The floor of a metric beside the base's `step_ms`.

    `repeats` is the number of runs of the side that has more; `waiting` the share of waiting in
    the base's communication, 1 where it is not known; `host` the share of host time in the step.
    """
    absolute = ABSOLUTE.get(unit, 0.0)
    if unit == "ms/step":
        absolute = max(MS_FLOOR, STEP_SHARE_FLOOR * step_ms)
    relative = relative_floor(name, unit, waiting)
    steady = relative
    # Kernels and host vary for reasons of their own.
    whole = max(GPU_TIME, math.hypot((1.0 - host) * GPU_TIME, host * HOST))
    if name in _WHOLE_STEP:
        relative = whole
    elif unit == "share" and name.endswith("_share"):
        relative = math.hypot(relative, whole)  # a part over the step: both vary
    if repeats >= MEASURED_REPEATS:
        relative = steady = min(relative, REPEATED)
    if cross_profiler:
        relative, steady = max(relative, CROSS_PROFILER), max(steady, CROSS_PROFILER)
    return Floor(absolute, relative, steady if name in _WHOLE_STEP else None)


def relative_floor(name: str, unit: str, waiting: float = 1.0) -> float:
    """How much one run's metric differs from the next run's of the same job, as a share."""
    if name.endswith("_wait_ms"):
        return WAITING
    if is_waiting(name):
        return waiting * WAITING + (1.0 - waiting) * TRANSFER
    if name.startswith(_HOST):
        return HOST_GAPS
    if "_transfer_ms" in name or unit == "GB/s":
        return TRANSFER
    return COUNT if unit == "count/step" else GPU_TIME


def family(name: str) -> str | None:
    """The family of collectives whose waiting a metric holds; None for all of them together."""
    if name.startswith(("ep_", "a2a_")):
        return "ep_a2a"
    head = name.split("_collective", 1)[0]
    return f"{head}_collective" if head in ("dp", "tp", "cp") else None


def is_waiting(name: str) -> bool:
    """Whether a metric holds time spent waiting for another rank."""
    if name.startswith(("memcpy", "offload")):
        return False
    return (
        name.endswith(_WAITING) or "exposed" in name or name in ("comm_ms", "dp_collective_ms")
    ) or name == "blocked_by_comm_ms"


def profiler_free(name: str) -> bool:
    """Whether two profilers must agree on a metric.

    Neither host time nor waiting does, and families of compute differ too, since only one of the
    captures may hold the operators that tell them apart.
    """
    return name.endswith("_transfer_ms") or name in _PROFILER_FREE
