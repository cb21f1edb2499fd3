"""Ranges of one thread as a tree: which of them is the innermost at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.intervals import places

Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True)
class Nesting:
    """Ranges of one thread, sorted by (start, -end), each with the row of the one around it.

    A range that is only partly inside another counts as inside while both are open.
    """

    starts: Nanoseconds
    ends: Nanoseconds
    parents: NDArray[np.int64]
    """Row of the innermost range that is open where this one starts; -1 where there is none."""

    @classmethod
    def of(cls, starts: Nanoseconds, ends: Nanoseconds) -> "Nesting":
        """The tree of ranges [starts[i], ends[i]) (ns), which come sorted by (start, -end)."""
        parents = np.arange(len(starts)) - 1
        moving = np.arange(len(starts))
        # Whatever a row before has passed over was closed then and still is: so everyone takes
        # the steps of the row they stand on, and chains of siblings shrink by half each time.
        while len(moving := moving[_closed(parents[moving], ends, starts[moving])]):
            parents[moving] = parents[parents[moving]]
        return cls(starts, ends, parents)

    def innermost(self, times: Nanoseconds) -> NDArray[np.int64]:
        """Row of the innermost range that is open at each of `times`; -1 where none is."""
        row = places(self.starts, times, "right") - 1
        moving = np.arange(len(row))
        while len(moving := moving[_closed(row[moving], self.ends, times[moving])]):
            row[moving] = self.parents[row[moving]]
        return row


def _closed(rows: NDArray[np.int64], ends: Nanoseconds, times: Nanoseconds) -> NDArray[np.bool_]:
    """Whether each row is a range and has ended at its time."""
    if not len(ends):
        return np.zeros(len(rows), np.bool_)
    return (rows >= 0) & (ends[rows] <= times)
