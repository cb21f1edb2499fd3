"""Sets of half-open integer-nanosecond intervals, and how long they are inside windows.

A set is disjoint and sorted by construction; every function is vectorised and linear after the
sort. Touching intervals are merged, empty ones don't exist.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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
        index = places(self.starts, at, "right")
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
        index = places(self.starts, at, "right") - 1
        return (index >= 0) & (at < self.ends[np.maximum(index, 0)])

    def touches(self, starts: ArrayLike, ends: ArrayLike) -> NDArray[np.bool_]:
        """Whether each [starts[i], ends[i]) shares an instant with the set.

        A cheap filter before set arithmetic with many rows of which few matter.
        """
        first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        if not len(self):
            return np.zeros(first.shape, np.bool_)
        beyond = np.append(self.starts, np.iinfo(np.int64).max)
        found = np.asarray(beyond[places(self.ends, first, "right")] < last, np.bool_)
        found &= first < last
        return found

    def near(self, start: int, end: int) -> "Intervals":
        """The intervals that touch [start, end), uncut: views, no copies."""
        low = int(np.searchsorted(self.ends, start, side="right"))
        high = max(int(np.searchsorted(self.starts, end, side="left")), low)
        return Intervals(self.starts[low:high], self.ends[low:high])

    def clip(self, start: int, end: int) -> "Intervals":
        """The part of the set inside [start, end)."""
        return self & union([start], [end])

    def __or__(self, other: "Intervals") -> "Intervals":
        return merge([self, other])

    def __and__(self, other: "Intervals") -> "Intervals":
        return _both(self, other)

    def __sub__(self, other: "Intervals") -> "Intervals":
        if not len(self) or not len(other):
            return self
        start = min(int(self.starts[0]), int(other.starts[0]))
        end = max(int(self.ends[-1]), int(other.ends[-1]))
        return _both(self, _outside(other, start, end))


_TAG_BITS = 7
"""Enough for the two ends of each of 62 sets."""

EMPTY = Intervals(np.empty(0, np.int64), np.empty(0, np.int64))


def places(values: Nanoseconds, times: Nanoseconds, side: Literal["left", "right"]) -> Nanoseconds:
    """`np.searchsorted(values, times, side)`, where many `times` come in order.

    Then the few values are looked up among the times instead, and all between two share a place.
    """
    if times.ndim != 1 or len(times) < 4 * len(values) or (times[1:] < times[:-1]).any():
        return np.searchsorted(values, times, side=side)
    cuts = np.searchsorted(times, values, side="left" if side == "right" else "right")
    counts = np.diff(cuts, prepend=0, append=len(times))
    return np.repeat(np.arange(len(values) + 1), counts)


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


def _both(first: Intervals, second: Intervals) -> Intervals:
    """The intersection, piece by piece of the smaller set: it costs what the smaller set costs."""
    if len(first) > len(second):
        first, second = second, first
    low = np.searchsorted(second.ends, first.starts, side="right")
    pieces = np.searchsorted(second.starts, first.ends, side="left") - low
    reach = np.cumsum(pieces)
    if not len(reach) or not reach[-1]:
        return EMPTY
    row = np.repeat(np.arange(len(first)), pieces)
    other = np.arange(reach[-1]) + np.repeat(low - (reach - pieces), pieces)
    return Intervals(
        np.maximum(first.starts[row], second.starts[other]),
        np.minimum(first.ends[row], second.ends[other]),
    )


def _outside(covered: Intervals, start: int, end: int) -> Intervals:
    """What [start, end) holds outside `covered`, of which nothing may lie beyond it."""
    starts = np.concatenate([[start], covered.ends])
    ends = np.concatenate([covered.starts, [end]])
    if starts[0] == ends[0]:
        starts, ends = starts[1:], ends[1:]
    if len(ends) and starts[-1] == ends[-1]:
        starts, ends = starts[:-1], ends[:-1]
    return Intervals(starts, ends)


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
    first = int(edges.min(initial=0))
    if int(edges.max(initial=0)) - first < 1 << (63 - _TAG_BITS):
        # The tag rides in the low bits of its edge: one plain sort instead of an indirect one, and
        # all in place, because here is where a rank needs the most memory.
        times = edges
        times -= first
        times <<= _TAG_BITS
        times |= tags
        times.sort()
        np.bitwise_and(times, (1 << _TAG_BITS) - 1, out=tags, casting="unsafe")
        times >>= _TAG_BITS
        times += first
    else:
        order = np.argsort(edges, kind="stable")
        times, tags = edges[order], tags[order]
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
