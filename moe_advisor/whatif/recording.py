"""How much of the host's time a profiler's own recording took, told from the trace itself.

A profiler costs the host time per event. Where it records nested operators it shows how much on
this host: between an operator's start and that of the first one inside it lies little but its own
work. Where it records CUDA calls alone nothing shows it. The calls inside operators are not
counted beside them: with them captures of Transformer Engine, whose operators make more calls, come
out a sixth too fast, without them as right as all others.
"""

from collections.abc import Sequence

import numpy as np

from moe_advisor.model import RangeKind, RankTrace
from moe_advisor.whatif.model import Ints

NESTED = 20
"""Fewer nested operators make no median."""


def recording_ns(trace: RankTrace, threads: Ints, first_ns: int, last_ns: int) -> float:
    """Operators recorded on `threads` in [first, last) times the median start of one, ns.

    0 where the trace holds no nested operators there.
    """
    ranges = trace.ranges
    low, high = np.searchsorted(ranges["start_ns"].to_numpy(), [first_ns, last_ns]).tolist()
    part = ranges[low:high]
    tid = part["tid"].to_numpy()
    mine = np.flatnonzero((part["kind"].to_numpy() == RangeKind.OPERATOR) & np.isin(tid, threads))
    order = mine[np.argsort(tid[mine], kind="stable")]
    tid, start, end = (part[name].to_numpy()[order] for name in ("tid", "start_ns", "end_ns"))
    inside = (tid[1:] == tid[:-1]) & (start[1:] >= start[:-1]) & (end[1:] <= end[:-1])
    if int(inside.sum()) < NESTED:
        return 0.0
    return float(np.median((start[1:] - start[:-1])[inside])) * len(order)


def recorded_share(recording: Sequence[float], host_ns: float) -> float:
    """`recording` of all ranks over their host time; 0 where one rank shows none."""
    if not recording or min(recording) <= 0 or host_ns <= 0:
        return 0.0
    return sum(recording) / host_ns
