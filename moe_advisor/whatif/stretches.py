"""Items of one stream that wait for nothing but their launch and each other, taken as one.

Such a stretch ends at the later of two times: all its work after the stream was free, and the
latest way from one of its launches to its end. Both are sums that arrays know beforehand, so a
replay steps from stretch to stretch; when each item began and ended is worked out if asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.whatif.model import Flags, Ints, Items


@dataclass(frozen=True)
class Stretches:
    """The items of a lane in stretches; most columns have one entry per stretch, in launch order.

    A stretch of one item has the item's own columns.
    """

    items: Items
    host_ns: Ints
    """Of each item, as scaled for this replay."""
    durations_ns: Ints
    """Of each item."""
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    @classmethod
    def of(cls, items: Items, host_ns: Ints, durations_ns: Ints, apart: Flags) -> "Stretches":
        """The stretches of `items`, where those that are `apart` stand alone.

        `durations_ns` are the items' own or, for lanes replayed alone, those of a transfer.
        """
        opens = np.ones(len(items), np.bool_)
        opens[1:] = apart[1:] | apart[:-1] | (items.stream[1:] != items.stream[:-1])
        first = np.flatnonzero(opens)
        return cls(items, host_ns, durations_ns, first, np.append(first[1:], len(items)) - 1)

    def columns(self) -> tuple[Ints, ...]:
        """Stream, duration, host, latency, gap and residual of each stretch."""
        items, first, last = self.items, self.first, self.last
        work, clock = self._work(), np.cumsum(self.host_ns)
        duration = np.add.reduceat(work, first)
        host = np.add.reduceat(self.host_ns, first)
        done = np.cumsum(work)
        way = clock + items.latency_ns + items.residual_ns + self.durations_ns - done
        latency = np.maximum.reduceat(way, first) + done[last] - clock[last] - duration
        one = first == last
        return (
            items.stream[first],
            np.where(one, self.durations_ns[first], duration),
            host,
            np.where(one, items.latency_ns[first], latency),
            np.where(one, items.gap_ns[first], 0),
            np.where(one, items.residual_ns[first], 0),
        )

    def times(
        self, host: Sequence[int], free: Sequence[int], start: Sequence[int], end: Sequence[int]
    ) -> tuple[Ints, Ints]:
        """Start and end of every item.

        `host` and `free` say for each stretch when the host and its stream came to it; `start` and
        `end` hold the items that stand alone.
        """
        starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
        size = self.last - self.first + 1
        inside = np.flatnonzero(np.repeat(size > 1, size))
        if not len(inside):
            return starts, ends
        stretch = np.repeat(np.arange(len(size)), size)[inside]
        work, clock = self._work(), np.cumsum(self.host_ns)
        done = np.cumsum(work)
        first = self.first[stretch]
        done = done[inside] - (done[first] - work[first])
        clock = clock[inside] - (clock[first] - self.host_ns[first])
        items, duration = self.items, self.durations_ns[inside]
        launched = np.asarray(host, np.int64)[stretch] + clock + items.latency_ns[inside]
        earliest = launched + items.residual_ns[inside] + duration - done
        earliest = np.maximum(earliest, np.asarray(free, np.int64)[stretch])
        ends[inside] = done + _running_most(earliest, stretch)
        starts[inside] = ends[inside] - duration
        return starts, ends

    def _work(self) -> Ints:
        return self.items.gap_ns + self.items.residual_ns + self.durations_ns


def _running_most(values: Ints, group: NDArray[Any]) -> Ints:
    """The largest of `values` so far, from the first of each group on; groups are neighbours."""
    least = int(values.min())
    step = int(values.max()) - least + 1
    found: Ints = np.maximum.accumulate(values - least + group * step) - group * step + least
    return found
