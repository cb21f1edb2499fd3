"""Who makes the others wait: per group, which rank arrives last, how often, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import RankPartial
from moe_advisor.result import Lateness

SCATTER_NS = 20_000
"""Starts of one collective scatter by some 10 µs even when nobody is late: shorter waits name
no one."""

STICKY_SHARE = 0.7
"""One rank that is last in more of a group's collectives than this is the straggler itself."""

ROTATING = 1.5
"""Where no rank is last more often than this times its fair share, all take turns."""

MIN_COUNT = 8
"""Of fewer collectives no pattern can be told."""

UNEVEN_TOKENS = 1.05
"""The late rank had more to do if it received at least this times its group's mean: forced balance
measures 1.000, natural routing on two ranks up to 1.05."""

GC_SHARE = 0.5
"""From this share of a rank's host gaps on, suspected garbage collection is their named cause."""

MAX_GROUPS = 256
"""Groups listed, those with the most waiting first: results stay small with many ranks."""

CAUSES = ("tokens", "slow_gpu", "compute", "host", "garbage_collection", "unexplained")


@dataclass
class _Sums:
    last: NDArray[np.int64]
    """Per member: collectives in which it was last and somebody waited."""
    caused: NDArray[np.float64]
    """[member, cause]: ns that the others waited for it, in the order of CAUSES."""


@dataclass
class Arrivals:
    """Who was last and what that cost; filled group by group and step by step, in any order."""

    sums: dict[tuple[str, tuple[int, ...]], _Sums] = field(default_factory=dict)

    def add(
        self,
        families: NDArray[np.object_],
        ranks: tuple[int, ...],
        last: NDArray[np.int64],
        wait: NDArray[np.int64],
        host: NDArray[np.int64],
        compute: NDArray[np.int64],
        fullness: NDArray[np.float64],
    ) -> None:
        """One group in one step. `last` is the late member of each collective.

        `wait`, `host` and `compute` are [member, collective] in ns: each member's waiting and how
        much of it the late one's extra host gaps and extra compute explain. `fullness` are the
        tokens of the experts before it over the group's mean, 1 where no experts ran.
        """
        if not wait.shape[1]:
            return
        counts = (wait.max(axis=0) >= SCATTER_NS).astype(np.int64)
        fuller = fullness[last, np.arange(wait.shape[1])] >= UNEVEN_TOKENS
        waited, by_host = wait.sum(axis=0) * 1.0, host.sum(axis=0) * 1.0
        by_compute = compute.sum(axis=0) * 1.0
        rest = np.maximum(waited - by_host - by_compute, 0.0)
        for family in sorted({str(one) for one in families}):
            mine = families == family
            key = (family, ranks)
            sums = self.sums.setdefault(
                key,
                _Sums(np.zeros(len(ranks), np.int64), np.zeros((len(ranks), len(CAUSES)))),
            )
            np.add.at(sums.last, last[mine], counts[mine])
            for cause, values in (
                ("tokens", np.where(fuller, by_compute, 0.0)),
                ("compute", np.where(fuller, 0.0, by_compute)),
                ("host", by_host),
                ("unexplained", rest),
            ):
                np.add.at(sums.caused[:, CAUSES.index(cause)], last[mine], values[mine])


def lateness(
    arrivals: Arrivals, partials: Sequence[RankPartial], slow: Mapping[int, float]
) -> list[Lateness]:
    """Every rank of every group in which anybody waited, worst group first.

    `slow` holds the ranks whose GPU is slower than its peers.
    """
    by_rank = {one.rank: one for one in partials}
    groups: list[tuple[float, list[Lateness]]] = []
    for (family, ranks), sums in sorted(arrivals.sums.items()):
        total = int(sums.last.sum())
        if not total:
            continue
        pattern = _pattern(sums.last)
        rows = []
        for place, rank in enumerate(ranks):
            one = by_rank[rank]
            ns = dict(zip(CAUSES, sums.caused[place].tolist(), strict=True))
            if rank in slow:
                ns["slow_gpu"], ns["compute"] = ns["compute"], 0.0
            if _collects(one):
                ns["garbage_collection"], ns["host"] = ns["host"], 0.0
            steps = max(len(one.step_names), 1)
            rows.append(
                Lateness(
                    family=family,
                    group=f"ranks {', '.join(map(str, ranks[:16]))}"
                    + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""),
                    rank=rank,
                    arrived_last=int(sums.last[place]),
                    of=total,
                    share=_round(sums.last[place] / total),
                    pattern=pattern,
                    caused_wait_ms=_ms(sum(ns.values()), steps),
                    why={cause: _ms(value, steps) for cause, value in ns.items() if value > 0},
                )
            )
        groups.append((float(sums.caused.sum()), rows))
    groups.sort(key=lambda one: (-one[0], one[1][0].family, one[1][0].group))
    return [row for _, rows in groups[:MAX_GROUPS] for row in rows]


def _pattern(last: NDArray[np.int64]) -> Literal["sticky", "rotating", "mixed"]:
    if last.sum() < MIN_COUNT:
        return "mixed"
    share = float(last.max() / last.sum())
    if share > STICKY_SHARE:
        return "sticky"
    return "rotating" if share <= min(ROTATING / len(last), STICKY_SHARE) else "mixed"


def _collects(one: RankPartial) -> bool:
    gaps = sum(one.idle_ns.get(cause, 0) for cause in ("sync", "alloc", "data", "launch"))
    return gaps > 0 and one.cause_ns.get("gc_suspected", 0) > GC_SHARE * gaps


def _ms(ns: float, steps: int) -> float:
    return _round(ns / steps / 1e6)


def _round(value: float) -> float:
    return round(float(value), 6)
