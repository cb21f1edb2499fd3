"""What each launch stood under: the innermost meaningful host range, its forward operator's too."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.intervals import union
from moe_advisor.model import NONE, RangeKind, RankTrace
from moe_advisor.roles.taxonomy import Taxonomy

UNKNOWN = ""
"""The context of a launch that stands under nothing meaningful."""


@dataclass(frozen=True)
class LaunchContexts:
    """Per row of `calls`: the index of its context in `names`, and whether it came by forward link.

    `backward` marks launches under a backward operator or on a thread that runs backward work.
    """

    names: tuple[str, ...]
    index: NDArray[np.int16]
    linked: NDArray[np.bool_]
    backward: NDArray[np.bool_]

    def of(self, name: str) -> int:
        """The index of a context name, or a number that no launch has."""
        return self.names.index(name) if name in self.names else -2


@dataclass(frozen=True)
class _Timeline:
    """On one thread: from times[i] on, the innermost context is labels[i]."""

    times: NDArray[np.int64]
    labels: NDArray[np.int16]
    linked: NDArray[np.bool_]


def launch_contexts(rank: RankTrace, taxonomy: Taxonomy) -> LaunchContexts:
    """The context of every CUDA call of the rank."""
    calls = len(rank.calls)
    ranges = rank.ranges.filter(pl.col("kind") != RangeKind.LIBRARY)
    meanings = {
        name: taxonomy.context(rank.names[name]) for name in ranges["name"].unique().to_list()
    }
    names = (UNKNOWN, *sorted({meaning for meaning in meanings.values() if meaning}))
    number = {name: index for index, name in enumerate(names)}
    per_name = np.zeros(len(rank.names) + 1, np.int16)
    for name, meaning in meanings.items():
        per_name[name] = number[meaning or UNKNOWN]
    labels = per_name[ranges["name"].to_numpy()] if len(ranges) else np.empty(0, np.int16)
    table = ranges.select("start_ns", "end_ns", "tid", "sequence", "forward_tid").with_columns(
        pl.Series("label", labels, pl.Int16)
    )
    own = table.filter(pl.col("label") > 0).with_columns(linked=pl.lit(False))
    own = own.select("start_ns", "end_ns", "tid", "label", "linked")
    linked = _backward_links(table, own)
    timelines = _timelines(pl.concat([own, linked]))
    index = np.zeros(calls, np.int16)
    by_link = np.zeros(calls, np.bool_)
    tids, starts = rank.calls["tid"].to_numpy(), rank.calls["start_ns"].to_numpy()
    for tid, timeline in timelines.items():
        rows = np.flatnonzero(tids == tid)
        at = np.searchsorted(timeline.times, starts[rows], side="right") - 1
        found = at >= 0
        index[rows[found]] = timeline.labels[at[found]]
        by_link[rows[found]] = timeline.linked[at[found]]
    return LaunchContexts(names, index, by_link, _backward_calls(rank, table, tids, starts))


def _backward_links(table: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """Backward operators as ranges that carry the context of the forward operator they belong to.

    Autograd numbers forward operators per thread; the backward node has the same number and the
    profiler's own number of the forward thread, which is matched to the thread whose operators
    carry the most of those numbers.
    """
    schema = own.schema
    backward = table.filter((pl.col("forward_tid") != NONE) & (pl.col("sequence") != NONE))
    forward = table.filter((pl.col("forward_tid") == NONE) & (pl.col("sequence") != NONE))
    if not len(backward) or not len(forward) or not len(own):
        return pl.DataFrame(schema=schema)
    timelines = _timelines(own)
    forward = forward.sort("tid", "sequence", "start_ns").unique(
        ["tid", "sequence"], keep="last", maintain_order=True
    )
    tids, starts = forward["tid"].to_numpy(), forward["start_ns"].to_numpy()
    labels = np.zeros(len(forward), np.int16)
    for tid, timeline in timelines.items():
        rows = np.flatnonzero(tids == tid)
        at = np.searchsorted(timeline.times, starts[rows], side="right") - 1
        labels[rows[at >= 0]] = timeline.labels[at[at >= 0]]
    forward = forward.select(pl.col("tid").alias("thread"), "sequence").with_columns(
        pl.Series("label", labels)
    )
    votes = (
        backward.select("forward_tid", "sequence")
        .unique()
        .join(forward, on="sequence")
        .group_by("forward_tid", "thread")
        .len()
        .sort("forward_tid", "len", "thread")
        .unique("forward_tid", keep="last", maintain_order=True)
        .select("forward_tid", "thread")
    )
    return (
        backward.drop("label")
        .join(votes, on="forward_tid")
        .join(forward, on=["thread", "sequence"])
        .filter(pl.col("label") > 0)
        .with_columns(linked=pl.lit(True))
        .select(schema.names())
    )


def _timelines(ranges: pl.DataFrame) -> dict[int, _Timeline]:
    """Per thread, the innermost of the (properly nested) ranges at every time."""
    found: dict[int, _Timeline] = {}
    ordered = ranges.sort("tid", "start_ns", pl.col("end_ns"), descending=[False, False, True])
    for (tid,), part in ordered.group_by("tid", maintain_order=True):
        times: list[int] = []
        labels: list[int] = []
        linked: list[bool] = []
        stack: list[tuple[int, int, bool]] = []

        def leave(
            until: int,
            stack: list[tuple[int, int, bool]] = stack,
            times: list[int] = times,
            labels: list[int] = labels,
            linked: list[bool] = linked,
        ) -> None:
            while stack and stack[-1][0] <= until:
                end = stack.pop()[0]
                times.append(end)
                labels.append(stack[-1][1] if stack else 0)
                linked.append(stack[-1][2] if stack else False)

        for start, end, _, label, by_link in part.iter_rows():
            leave(start)
            times.append(start)
            labels.append(label)
            linked.append(by_link)
            stack.append((end, label, by_link))
        leave(1 << 62)
        found[int(tid)] = _Timeline(
            np.asarray(times, np.int64), np.asarray(labels, np.int16), np.asarray(linked, np.bool_)
        )
    return found


def _backward_calls(
    rank: RankTrace, table: pl.DataFrame, tids: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which calls were made by backward work.

    With operators: the calls on threads that hold backward operators and no forward thread's work.
    Without (nsys): the calls of threads other than the one that opened the most annotations.
    """
    nodes = table.filter(pl.col("forward_tid") != NONE)
    if len(nodes):
        threads = nodes["tid"].unique().to_list()
        inside = np.zeros(len(tids), np.bool_)
        for tid in threads:
            part = nodes.filter(pl.col("tid") == tid)
            covered = union(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
            rows = np.flatnonzero(tids == tid)
            inside[rows] = covered.contains(starts[rows])
        return inside
    annotated = rank.ranges.filter(pl.col("kind") == RangeKind.ANNOTATION)
    if not len(annotated):
        return np.zeros(len(tids), np.bool_)
    main = annotated.group_by("tid").len().sort("len", "tid")["tid"][-1]
    launches = rank.activities["call"].to_numpy()
    launching = np.unique(tids[launches[launches >= 0]])
    return np.isin(tids, launching[launching != main])
