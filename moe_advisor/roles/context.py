"""What each launch stood under: the innermost meaningful host range, its forward operator's too."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.codes import distinct, few
from moe_advisor.intervals import union
from moe_advisor.model import NONE, RangeKind, RankTrace
from moe_advisor.nesting import Nesting
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


def launch_contexts(rank: RankTrace, taxonomy: Taxonomy) -> LaunchContexts:
    """The context of every CUDA call of the rank."""
    calls = len(rank.calls)
    ranges = rank.ranges.filter(pl.col("kind") != RangeKind.LIBRARY)
    meanings = {
        name: taxonomy.context(rank.names[name]) for name in distinct(ranges["name"].to_numpy())
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
    tids, starts = rank.calls["tid"].to_numpy(), rank.calls["start_ns"].to_numpy()
    ranges = pl.concat([own, linked])
    around = _innermost(ranges, tids, starts)
    index = np.zeros(calls, np.int16)
    by_link = np.zeros(calls, np.bool_)
    found = np.flatnonzero(around >= 0)
    index[found] = ranges["label"].to_numpy()[around[found]]
    by_link[found] = ranges["linked"].to_numpy()[around[found]]
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
    forward = forward.group_by("tid", "sequence", maintain_order=True).agg(pl.col("start_ns").max())
    around = _innermost(own, forward["tid"].to_numpy(), forward["start_ns"].to_numpy())
    labels = np.where(around >= 0, own["label"].to_numpy()[around], 0).astype(np.int16)
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


def _innermost(
    ranges: pl.DataFrame, tids: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Per (thread, time), the row of the thread's innermost range; -1 where there is none."""
    found = np.full(len(tids), -1, np.int64)
    for (tid,), part in ranges.with_row_index().group_by("tid", maintain_order=True):
        part = part.sort("start_ns", "end_ns", descending=[False, True], maintain_order=True)
        tree = Nesting.of(part["start_ns"].to_numpy(), part["end_ns"].to_numpy())
        rows = np.flatnonzero(tids == tid)
        inner = tree.innermost(times[rows])
        held = inner >= 0
        found[rows[held]] = part["index"].to_numpy()[inner[held]]
    return found


def _backward_calls(
    rank: RankTrace, table: pl.DataFrame, tids: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which calls were made by backward work.

    With operators: the calls on threads that hold backward operators and no forward thread's work.
    Without (nsys): the calls of threads other than the one whose annotations cover the most time.
    Their number would not do: Transformer Engine opens more ranges in backward than in forward.
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
    main = max(
        (union(part["start_ns"].to_numpy(), part["end_ns"].to_numpy()).total, tid)
        for (tid,), part in annotated.group_by("tid")
    )[1]
    launches = rank.activities["call"].to_numpy()
    launching = few(tids.take(launches[launches >= 0]))
    found = np.zeros(len(tids), np.bool_)
    for tid in launching:
        if tid != main:
            found |= tids == tid
    return found
