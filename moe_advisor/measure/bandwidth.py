"""What the wires achieve: algorithm and bus bandwidth of collectives, by family, kind and span.

Algorithm bandwidth is the size of the collective over its transfer time; bus bandwidth is what that
asks of the link of one rank, by the factors of nccl-tests, and is what a link's figure compares to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import Collectives, RankPartial
from moe_advisor.model import CollectiveKind
from moe_advisor.result import CollectiveRate
from moe_advisor.roles.roles import Family, Role

LATENCY_BOUND_BYTES = 1 << 20
"""Collectives below 1 MiB take as long as their latency: at 300 GB/s a MiB needs 3 µs, and no NCCL
kernel is shorter than 10. They are counted, but say nothing about the link."""

FAST_PERCENTILE = 10
"""Without the other ranks, the fastest tenth of a rank's collectives shows the wire best."""

MIN_SEEN = 8
"""Fewer collectives of a kind than this have no fastest tenth."""

FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP, Family.PP, Family.OTHER_COLLECTIVE)

_FAMILY_NUMBER = np.asarray(
    [FAMILIES.index(role.family) if role.family in FAMILIES else -1 for role in Role], np.int8
)

Floats = NDArray[np.float64]
Key = tuple[str, int, int, str]
"""(family, kind, ranks of the group, span)."""


@dataclass
class _Sums:
    instances: int = 0
    """Matched collectives of the whole capture, each once per group."""
    large: int = 0
    size_bytes: float = 0.0
    bus_bytes: float = 0.0
    transfer_ns: float = 0.0
    groups: set[str] = field(default_factory=set)


@dataclass
class Rates:
    """Sums over matched collectives; filled group by group and step by step, in any order.

    Sends and receives are matched otherwise: `pairs` knows their rate.
    """

    sums: dict[Key, _Sums] = field(default_factory=dict)

    def add(
        self,
        group: str,
        members: Sequence[tuple[RankPartial, NDArray[np.int64]]],
        transfer_ns: NDArray[np.int64],
        domain: int | None = None,
    ) -> None:
        """One group in one step: per member its rows, in the same order; transfer per row."""
        first, at = members[0][0].collectives, members[0][1]
        tables = [(one.collectives, rows) for one, rows in members]
        size, bus = volumes(tables, first.kind[at])
        where = span([one for one, _ in members], domain)
        code = _FAMILY_NUMBER[first.role[at]].astype(np.int64) * 100 + first.kind[at]
        used = (size > 0) & (transfer_ns > 0) & (first.role[at] != Role.PP_P2P)
        for value in np.unique(code[used]).tolist():
            mine = (code == value) & used
            family, kind = FAMILIES[value // 100], value % 100
            sums = self.sums.setdefault((str(family), kind, len(members), where), _Sums())
            large = mine & (size >= LATENCY_BOUND_BYTES)
            sums.groups.add(group)
            sums.instances += int(mine.sum())
            sums.large += int(large.sum())
            sums.size_bytes += float(size[large].sum())
            sums.bus_bytes += float(bus[large].sum())
            sums.transfer_ns += float(transfer_ns[large].sum())


def volumes(
    tables: Sequence[tuple[Collectives, NDArray[np.int64]]], kind: NDArray[np.int8]
) -> tuple[Floats, Floats]:
    """(size, bytes on a rank's link) of each collective in bytes, means over its ranks; 0 unknown.

    The size is what nccl-tests calls it: the whole gathered or scattered buffer, what one rank
    puts into an all-to-all, the buffer of a reduction.
    """
    count = len(tables)
    sent = np.stack([t.bytes_sent[rows] for t, rows in tables]).astype(np.float64)
    received = np.stack([t.bytes_received[rows] for t, rows in tables]).astype(np.float64)
    own = np.stack([t.bytes_self[rows] for t, rows in tables]).astype(np.float64)
    whole = np.maximum(sent, received)
    size = np.where(kind == CollectiveKind.ALL_TO_ALL, sent, whole)
    known = (size >= 0).all(axis=0)
    size = np.where(known, np.maximum(size, 0).mean(axis=0), 0.0)
    others = (count - 1) / count if count > 1 else 0.0
    leaving = np.where(own >= 0, sent - own, sent * others).mean(axis=0)
    factor = np.ones(len(kind))
    factor[kind == CollectiveKind.ALL_REDUCE] = 2 * others
    for one in (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER):
        factor[kind == one] = others
    bus = np.where(kind == CollectiveKind.ALL_TO_ALL, np.maximum(leaving, 0), size * factor)
    return size, np.where(known, bus, 0.0)


def span(members: Sequence[RankPartial], domain: int | None = None) -> str:
    """Whether a group stays within one node, crosses nodes, or by rank numbers seems to.

    Ranks of one nsys report share its machine numbers. Elsewhere ranks are assumed to fill nodes
    of `domain` GPUs (the NVLink domain) in order, which is the launchers' default.
    """
    report = {one.epoch_ns for one in members}
    sources = {one.rank_source for one in members}
    if sources <= {"communicator", "process-order"} and len(report) == 1:
        return "intra-node" if len({one.host for one in members}) == 1 else "across nodes"
    if not domain:
        return "unknown"
    nodes = {one.rank // domain for one in members}
    return "intra-node, by rank numbers" if len(nodes) == 1 else "across nodes, by rank numbers"


def collective_rates(
    rates: Rates,
    partials: Sequence[RankPartial],
    hardware: Mapping[str, Any],
    unmatched: Mapping[int, NDArray[np.bool_]],
) -> list[CollectiveRate]:
    """All rates, largest volume first. `unmatched` marks the rows per rank without their peers."""
    steps = max((len(one.step_names) for one in partials), default=0)
    found = [_rate(key, sums, steps, hardware) for key, sums in sorted(rates.sums.items()) if steps]
    measured = {(one.family, one.kind) for one in found}
    found += [
        one
        for one in _alone(partials, hardware, unmatched)
        if (one.family, one.kind) not in measured
    ]
    return sorted(found, key=lambda one: (-(one.gb_per_step or 0.0), one.family, one.kind))


def _rate(key: Key, sums: _Sums, steps: int, hardware: Mapping[str, Any]) -> CollectiveRate:
    family, kind, ranks, where = key
    link = link_gbps(where, hardware)
    alg = sums.size_bytes / sums.transfer_ns if sums.transfer_ns else None
    bus = sums.bus_bytes / sums.transfer_ns if sums.transfer_ns else None
    small = sums.instances - sums.large
    each = steps * len(sums.groups)
    return CollectiveRate(
        family=family,
        kind=CollectiveKind(kind).name.lower(),
        ranks=ranks,
        span=where,
        status="measured" if bus is not None else "not_measured",
        count=_round(sums.instances / each),
        gb_per_step=_round(sums.size_bytes / each / 1e9),
        transfer_ms=_round(sums.transfer_ns / each / 1e6),
        alg_gbps=None if alg is None else _round(alg),
        bus_gbps=None if bus is None else _round(bus),
        link_gbps=link,
        link_share=_round(bus / link) if bus is not None and link else None,
        remark=f"{small} of {sums.instances} are below 1 MiB and not counted in the rate"
        if small
        else None,
    )


def _alone(
    partials: Sequence[RankPartial],
    hardware: Mapping[str, Any],
    unmatched: Mapping[int, NDArray[np.bool_]],
) -> list[CollectiveRate]:
    """Bounds from ranks whose peers are missing: own durations hold the waiting too."""
    pairs: dict[tuple[int, int], list[tuple[Floats, Floats, Floats]]] = {}
    steps = max((len(one.step_names) for one in partials), default=0)
    for one in partials:
        table = one.collectives
        rows = np.flatnonzero(unmatched.get(one.rank, np.zeros(len(table), np.bool_)))
        if not len(rows):
            continue
        kind = table.kind[rows]
        size, _ = volumes([(table, rows)], kind)
        known = (size >= LATENCY_BOUND_BYTES) & (table.duration_ns[rows] > 0)
        code = _FAMILY_NUMBER[table.role[rows]].astype(np.int64) * 100 + kind
        leaving = np.where(
            (kind == CollectiveKind.ALL_TO_ALL) & (table.bytes_self[rows] >= 0),
            np.maximum(table.bytes_sent[rows] - table.bytes_self[rows], 0),
            size,
        )
        for value in np.unique(code[known]).tolist():
            mine = known & (code == value)
            pairs.setdefault((value // 100, value % 100), []).append(
                (size[mine], leaving[mine].astype(np.float64), table.duration_ns[rows][mine] * 1.0)
            )
    found = []
    for (family, number), parts in sorted(pairs.items()):
        size, leaving, duration = (np.concatenate(column) for column in zip(*parts, strict=True))
        rate = leaving / duration
        low = float(leaving.sum() / duration.sum())
        best = float(np.percentile(rate, 100 - FAST_PERCENTILE)) if len(rate) >= MIN_SEEN else low
        link = link_gbps("intra-node", hardware)
        found.append(
            CollectiveRate(
                family=str(FAMILIES[family]),
                kind=CollectiveKind(number).name.lower(),
                ranks=None,
                span="unknown",
                status="estimated",
                count=_round(len(rate) / steps / len(partials)),
                gb_per_step=_round(size.sum() / steps / len(partials) / 1e9),
                transfer_ms=None,
                alg_gbps=None,
                bus_gbps=_round(best),
                link_gbps=link,
                link_share=_round(best / link) if link else None,
                remark=f"ranks of the group are missing: at least {low:.1f} GB/s over all, "
                "the fastest tenth is shown",
            )
        )
    return found


def link_gbps(where: str, hardware: Mapping[str, Any]) -> float | None:
    """The figure (GB/s, one direction) of the link that a span goes over; None if not known."""
    if where.startswith("intra-node"):
        value = hardware.get("nvlink_gbps_per_direction")
    elif where.startswith("across"):
        value = hardware["nic_gbps"] / 8 if hardware.get("nic_gbps") else None
    else:
        value = None
    return float(value) if value else None


def family_rate(rates: Rates, family: Family) -> tuple[float, str] | None:
    """Bus bandwidth (GB/s) of a family's large collectives and what it was taken from."""
    mine = [(key, one) for key, one in sorted(rates.sums.items()) if key[0] == str(family)]
    transfer = sum(one.transfer_ns for _, one in mine)
    if not transfer:
        return None
    kinds = sorted({CollectiveKind(key[1]).name.lower() for key, one in mine if one.large})
    spans = sorted({key[3] for key, one in mine if one.large})
    count = sum(one.large for _, one in mine)
    return (
        sum(one.bus_bytes for _, one in mine) / transfer,
        f"{count} collectives of 1 MiB and more ({', '.join(kinds)}), {', '.join(spans)}",
    )


def _round(value: float) -> float:
    return round(float(value), 6)
