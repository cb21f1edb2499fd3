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
        return self._before(at, places(self.starts, at, "right"))

    def _before(self, at: Nanoseconds, index: Nanoseconds) -> Nanoseconds:
        """The same where `index` intervals begin up to each time."""
        if not len(self):
            return np.zeros(at.shape, np.int64)
        last = np.maximum(index - 1, 0)
        inside = np.minimum(at, self.ends.take(last)) - self.starts.take(last)
        return np.where(index > 0, self._length_before.take(last) + inside, 0)

    def within(self, starts: ArrayLike, ends: ArrayLike) -> Nanoseconds:
        """Length of the set (ns) inside each window [starts[i], ends[i])."""
        first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
        index = places(self.starts, first, "right")
        if first.ndim != 1 or (last < first).any():
            return self.before(last) - self._before(first, index)
        # Most windows are short: only where another interval begins in one is its end looked up.
        beyond = np.append(self.starts, np.iinfo(np.int64).max)
        more = np.flatnonzero(beyond.take(index) <= last)
        upto = index
        if len(more):
            upto = index.copy()
            upto[more] = places(self.starts, last[more], "right")
        return self._before(last, upto) - self._before(first, index)

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
        found = np.asarray(placed(beyond, self.ends, first, "right") < last, np.bool_)
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
        return self.parted(other)[1]

    def parted(self, other: "Intervals") -> "tuple[Intervals, Intervals]":
        """What lies inside `other` and what lies outside, for the price of the first."""
        inside = _both(self, other)
        if not len(inside):
            return EMPTY, self
        # Taken out of the set, a piece closes what is before it and opens what is after it. The
        # runs are sorted, which a stable sort notices.
        starts = np.concatenate([self.starts, inside.ends])
        ends = np.concatenate([self.ends, inside.starts])
        starts.sort(kind="stable")
        ends.sort(kind="stable")
        kept = starts < ends
        if not kept.all():
            starts, ends = starts[kept], ends[kept]
        return inside, Intervals(starts, ends)


_TAG_BITS = 7
"""Enough for the two ends of each of 62 sets."""

_LONG_RUNS = 1_000
"""From so many intervals in a row on, copying the run costs less than looking each one up."""

EMPTY = Intervals(np.empty(0, np.int64), np.empty(0, np.int64))


def places(values: Nanoseconds, times: Nanoseconds, side: Literal["left", "right"]) -> Nanoseconds:
    """`np.searchsorted(values, times, side)`, where many `times` come in order.

    Then the few values are looked up among the times instead, and all between two share a place.
    """
    return placed(np.arange(len(values) + 1), values, times, side)


def placed(
    given: Nanoseconds, values: Nanoseconds, times: Nanoseconds, side: Literal["left", "right"]
) -> Nanoseconds:
    """What `given` holds at `places(values, times, side)`; it is one longer than `values`."""
    if times.ndim != 1 or len(times) < 2 * len(values) or (times[1:] < times[:-1]).any():
        return given[np.searchsorted(values, times, side=side)]
    counts = np.empty(len(values) + 1, np.int64)
    counts[:-1] = np.searchsorted(times, values, side="left" if side == "right" else "right")
    counts[-1] = len(times)
    counts[1:] -= counts[:-1].copy()
    return np.repeat(given, counts)


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
    if (first[1:] > last[:-1]).all():
        return Intervals(first, last)
    if (first[1:] < first[:-1]).any():
        # Where as many have ended as have begun nothing is open, whichever end belongs to which.
        first, reach = np.sort(first, kind="stable"), np.sort(last, kind="stable")
    else:
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
    high = np.searchsorted(second.starts, first.ends, side="left")
    pieces = high - low
    total = int(pieces.sum()) if len(pieces) else 0
    if not total:
        return EMPTY
    if total > _LONG_RUNS * len(first):
        # Long runs of whole intervals: copied run by run, only their ends can be cut.
        runs = [(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True) if b > a]
        starts = np.concatenate([second.starts[a:b] for a, b in runs])
        ends = np.concatenate([second.ends[a:b] for a, b in runs])
        held = np.flatnonzero(pieces)
        last = np.cumsum(pieces[held]) - 1
        opens = np.concatenate([[0], last[:-1] + 1])
        starts[opens] = np.maximum(starts[opens], first.starts[held])
        ends[last] = np.minimum(ends[last], first.ends[held])
        return Intervals(starts, ends)
    if int(pieces.max()) == 1:
        row = np.flatnonzero(pieces)
        other = low[row]
    else:
        row = np.repeat(np.arange(len(first)), pieces)
        other = np.arange(total) + np.repeat(low - (np.cumsum(pieces) - pieces), pieces)
    return Intervals(
        np.maximum(first.starts[row], second.starts[other]),
        np.minimum(first.ends[row], second.ends[other]),
    )


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
