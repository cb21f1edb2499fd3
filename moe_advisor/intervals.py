"""Sets of half-open integer-nanosecond intervals, and how long they are inside windows.

A set is disjoint and sorted by construction; every function is vectorised and linear after the
sort. Touching intervals are merged, empty ones don't exist.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Disjoint, sorted, non-empty intervals [starts[i], ends[i]) in nanoseconds."""

    starts: Nanoseconds
    ends: Nanoseconds

    def __len__(self) -> int:
        return len(self.starts)

    def pairs(self) -> list[tuple[int, int]]:
        """The intervals as (start, end) pairs, for tests and small sets."""
        return list(zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    @cached_property
    def total(self) -> int:
        """Length of the whole set in ns."""
        return int((self.ends - self.starts).sum())

    @property
    def edges(self) -> Nanoseconds:
        """Starts and ends in turn: one sorted run."""
        return np.column_stack([self.starts, self.ends]).ravel()

    @cached_property
    def _length_before(self) -> Nanoseconds:
        """Length of the set before each interval, with the whole length at the end."""
        return np.concatenate([[0], np.cumsum(self.ends - self.starts)]).astype(np.int64)

    def before(self, times: ArrayLike) -> Nanoseconds:
        """Length of the set (ns) before each of `times`."""
        at = np.asarray(times, np.int64)
        index = np.searchsorted(self.starts, at, side="right")
        if not len(self):
            return np.zeros(at.shape, np.int64)
        last = np.maximum(index - 1, 0)
        inside = np.minimum(at, self.ends[last]) - self.starts[last]
        return np.where(index > 0, self._length_before[last] + inside, 0)

    def within(self, starts: ArrayLike, ends: ArrayLike) -> Nanoseconds:
        """Length of the set (ns) inside each window [starts[i], ends[i])."""
        return self.before(ends) - self.before(starts)

    def contains(self, times: ArrayLike) -> NDArray[np.bool_]:
        """Whether each of `times` lies in the set."""
        at = np.asarray(times, np.int64)
        if not len(self):
            return np.zeros(at.shape, np.bool_)
        index = np.searchsorted(self.starts, at, side="right") - 1
        return (index >= 0) & (at < self.ends[np.maximum(index, 0)])

    def touches(self, starts: ArrayLike, ends: ArrayLike) -> NDArray[np.bool_]:
        """Whether each [starts[i], ends[i]) shares an instant with the set.

        A cheap filter before set arithmetic with many rows of which few matter.
        """
        first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        if not len(self):
            return np.zeros(first.shape, np.bool_)
        following = np.searchsorted(self.ends, first, side="right")
        inside = following < len(self)
        found = inside & (first < last)
        found[inside] &= self.starts[following[inside]] < last[inside]
        return found

    def clip(self, start: int, end: int) -> "Intervals":
        """The part of the set inside [start, end)."""
        return self & union([start], [end])

    def __or__(self, other: "Intervals") -> "Intervals":
        return merge([self, other])

    def __and__(self, other: "Intervals") -> "Intervals":
        return _sweep(self, other, lambda a, b: a & b)

    def __sub__(self, other: "Intervals") -> "Intervals":
        return _sweep(self, other, lambda a, b: a & ~b)


EMPTY = Intervals(np.empty(0, np.int64), np.empty(0, np.int64))


def union(starts: ArrayLike, ends: ArrayLike) -> Intervals:
    """The union of [starts[i], ends[i]); rows may overlap and come in any order.

    Rows that end at or before their start count as nothing.
    """
    first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
    kept = last > first
    if not kept.all():
        first, last = first[kept], last[kept]
    if not len(first):
        return EMPTY
    if (first[1:] < first[:-1]).any():
        order = np.argsort(first, kind="stable")
        first, last = first[order], last[order]
    reach = np.maximum.accumulate(last)
    opens = np.concatenate([[True], first[1:] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return Intervals(first[opens], reach[closes])


def merge(sets: Iterable[Intervals]) -> Intervals:
    """The union of several sets."""
    present = [one for one in sets if len(one)]
    if not present:
        return EMPTY
    if len(present) == 1:
        return present[0]
    return union(
        np.concatenate([one.starts for one in present]),
        np.concatenate([one.ends for one in present]),
    )


def _sweep(
    first: Intervals,
    second: Intervals,
    keep: Callable[[NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.bool_]],
) -> Intervals:
    """The instants for which keep(in first, in second) holds; false where neither holds."""
    if not len(first):
        return EMPTY
    times, state = sweep([first, second])
    chosen = keep((state & 1) != 0, (state & 2) != 0)
    return union(times[:-1][chosen], times[1:][chosen])


def sweep(sets: Sequence[Intervals]) -> tuple[Nanoseconds, Nanoseconds]:
    """All edges of the sets in order, and the state of every stretch between two of them.

    Bit i of a state says that set i covers the stretch. At most 62 sets. Equal edges come once.
    """
    edges = np.concatenate([one.edges for one in sets])
    # Which set opens (even) or closes (odd): one byte an edge until it is needed in full.
    tags = np.concatenate(
        [
            np.tile(np.asarray([2 * bit, 2 * bit + 1], np.int8), len(one))
            for bit, one in enumerate(sets)
        ]
    )
    order = np.argsort(edges, kind="stable")  # sorted runs: merged in linear time
    times, tags = edges[order], tags[order]
    del edges, order
    change = np.asarray([s for bit in range(len(sets)) for s in (1 << bit, -(1 << bit))], np.int64)
    state = change[tags]
    np.cumsum(state, out=state)
    final = (
        np.concatenate([times[1:] > times[:-1], [True]]) if len(times) else np.empty(0, np.bool_)
    )
    return times[final], state[final][:-1]


def complement(covered: Intervals, start: int, end: int) -> Intervals:
    """What [start, end) holds outside `covered`."""
    return union([start], [end]) - covered
