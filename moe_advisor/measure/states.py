"""Divides steps into elementary states: what ran and what the host did, at every instant.

All interval arithmetic of a rank is one sweep: every instant of a step belongs to exactly one
state, a set of named conditions, and every time metric is a sum over states. Divisions of a step
are therefore exact by construction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import hashed
from moe_advisor.intervals import Intervals, places, sweep, union

MAX_CONDITIONS = 60
"""Conditions are bits of one signed 64-bit number, two of which the windows take."""

_EDGES_AT_ONCE = 500_000
"""Windows are divided in groups of about so many edges: their arrays stay in the processor's cache,
and the peak of memory does not grow with the length of the capture."""


@dataclass(frozen=True)
class States:
    """Time spent in each state, per step.

    `bits` maps a condition to its bit; `keys[k]` is the set of conditions of state k, and
    `ns[step, k]` how long the step was in it.
    """

    bits: dict[str, int]
    keys: NDArray[np.int64]
    ns: NDArray[np.int64]

    def time(self, holds: Iterable[str] = (), lacks: Iterable[str] = ()) -> NDArray[np.int64]:
        """Time (ns per step) in which a condition of `holds` holds and none of `lacks` does.

        An empty `holds` asks for nothing. Conditions that never occurred are allowed.
        """
        wanted = tuple(holds)
        chosen = (self.keys & self._mask(lacks)) == 0
        if wanted:
            chosen &= (self.keys & self._mask(wanted)) != 0
        return self._sum(chosen)

    def both(
        self, one: Iterable[str], other: Iterable[str], lacks: Iterable[str] = ()
    ) -> NDArray[np.int64]:
        """Time (ns per step) in which one of each hold and none of `lacks` does."""
        chosen = (self.keys & self._mask(one)) != 0
        chosen &= (self.keys & self._mask(other)) != 0
        chosen &= (self.keys & self._mask(lacks)) == 0
        return self._sum(chosen)

    def _sum(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(self.ns[:, chosen].sum(axis=1), np.int64)

    def _mask(self, names: Iterable[str]) -> int:
        return sum(1 << self.bits[name] for name in set(names) if name in self.bits)


def divide(
    conditions: Mapping[str, Intervals], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> States:
    """The states of the windows [starts[i], ends[i]), which must be sorted and disjoint."""
    present = {name: one for name, one in conditions.items() if len(one)}
    if len(present) > MAX_CONDITIONS:
        raise ValueError(f"{len(present)} conditions; at most {MAX_CONDITIONS}")
    bits = {name: index for index, name in enumerate(present)}
    edges = 2 * sum(len(one) for one in present.values())
    groups = min(max(edges // _EDGES_AT_ONCE, 1), max(len(starts), 1))
    cuts = [len(starts) * group // groups for group in range(groups + 1)]
    parts = [
        _divide(tuple(present.values()), starts[low:high], ends[low:high])
        for low, high in pairwise(cuts)
    ]
    keys = np.unique(np.concatenate([found for found, _ in parts]))
    ns = np.zeros((len(starts), len(keys)), np.int64)
    for low, (found, spent) in zip(cuts, parts, strict=False):
        ns[low : low + len(spent), np.searchsorted(keys, found)] = spent
    return States(bits, keys, ns)


def _divide(
    conditions: tuple[Intervals, ...], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The states of neighbouring windows: their keys, and ns by window and state."""
    if not len(starts):
        return np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
    near = [one.near(int(starts[0]), int(ends[-1])) for one in conditions]
    windows = union(starts, ends)
    cuts = union(starts, starts + 1)  # windows touch: their own starts must stay edges
    times, key = sweep([*near, windows, cuts])
    key &= (1 << len(conditions)) - 1
    times, length = times[:-1], np.diff(times)
    step = places(starts, times, "right") - 1
    inside = step >= 0
    inside[inside] &= times[inside] < ends[step[inside]]
    key, step, length = key[inside], step[inside], length[inside]
    keys, state = hashed(key)
    ns = np.bincount(step * len(keys) + state, weights=length, minlength=len(starts) * len(keys))
    # Sums of whole ns are exact in doubles up to 2**53 ns, 104 days.
    return keys, ns.astype(np.int64).reshape(len(starts), len(keys))
