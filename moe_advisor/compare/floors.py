"""Smallest changes worth a verdict: noise that no capture of a few steps can show by itself."""

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
"""Host-bound times vary by 10 to 30 % from run to run and machine to machine."""

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


@dataclass(frozen=True, slots=True)
class Floor:
    """Smallest change that counts: both must be exceeded."""

    absolute: float
    relative: float

    def of(self, base: float) -> float:
        """The floor in the metric's unit beside a base value."""
        return max(self.absolute, self.relative * abs(base))


def floor(
    name: str, unit: str, step_ms: float, repeats: int, cross_profiler: bool, waiting: float = 1.0
) -> Floor:
    """The floor of a metric beside the base's `step_ms`.

    `repeats` is the number of runs of the side that has more; `waiting` the share of waiting in
    the base's communication, 1 where it is not known.
    """
    absolute = ABSOLUTE.get(unit, 0.0)
    if unit == "ms/step":
        absolute = max(MS_FLOOR, STEP_SHARE_FLOOR * step_ms)
    relative = relative_floor(name, unit, waiting)
    if repeats >= MEASURED_REPEATS:
        relative = min(relative, REPEATED)
    if cross_profiler:
        relative = max(relative, CROSS_PROFILER)
    return Floor(absolute, relative)


def relative_floor(name: str, unit: str, waiting: float = 1.0) -> float:
    """How much one run's metric differs from the next run's of the same job, as a share."""
    if name.endswith("_wait_ms"):
        return WAITING
    if is_waiting(name):
        return waiting * WAITING + (1.0 - waiting) * TRANSFER
    if name.startswith(_HOST):
        return HOST
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
