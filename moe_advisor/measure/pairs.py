"""Waiting and transfer of pipeline sends and receives, matched between two neighbouring stages.

A send and its receive are one transfer: both kernels are resident until the data has gone over. The
shorter of the two is the transfer, what the other spent beyond it is waiting for its partner.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import Collectives, RankPartial
from moe_advisor.roles.roles import Role

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Per rank and step (ns): transfer and waiting; `reason` says why some could not be matched."""

    transfer: Mapping[int, Ints]
    wait: Mapping[int, Ints]
    reason: str | None
    sent_bytes: float
    sent_ns: float
    """Bytes of matched transfers of known size, and their transfer time: the link's rate."""
    count: int


def match_pairs(partials: Sequence[RankPartial]) -> Pairs:
    """Matches the sends of each rank with the receives of its partner, in launch order."""
    transfer = {one.rank: np.zeros(len(one.step_names), np.int64) for one in partials}
    wait = {one.rank: np.zeros(len(one.step_names), np.int64) for one in partials}
    groups: dict[str, list[RankPartial]] = {}
    reason: str | None = None
    for one in sorted(partials, key=lambda one: one.rank):
        table = one.collectives
        p2p = table.role == Role.PP_P2P
        for group in np.unique(table.group[p2p]).tolist():
            name = one.group_names[group] if group >= 0 else "the pipeline"
            groups.setdefault(name, []).append(one)
    sent_bytes = sent_ns = 0.0
    count = 0
    for name in sorted(groups):
        members = groups[name]
        if len(members) != 2:
            reason = reason or (
                f"{len(members)} ranks of one pipeline group were read: whom a kernel talks to "
                "shows only between two"
            )
            continue
        first, second = members
        for step in first.step_names:
            if step not in second.step_names:
                continue
            a, b = _rows(name, first, step), _rows(name, second, step)
            matched = _match(first, a, second, b)
            if matched is None:
                reason = reason or (
                    f"step {step}: the sends of rank {first.rank} and the receives of rank "
                    f"{second.rank} differ in number or size"
                )
                continue
            for at, to in matched:
                left, right = first.collectives, second.collectives
                short = np.minimum(left.duration_ns[at], right.duration_ns[to])
                for one, rows, table in ((first, at, left), (second, to, right)):
                    number = one.step_names.index(step)
                    transfer[one.rank][number] += int(short.sum())
                    wait[one.rank][number] += int((table.duration_ns[rows] - short).sum())
                known = (left.bytes_sent[at] >= 0) & (left.bytes_received[at] >= 0)
                moved = np.maximum(left.bytes_sent[at], left.bytes_received[at])
                sent_bytes += float(moved[known].sum())
                sent_ns += float(short[known].sum())
                count += len(at)
    return Pairs(transfer, wait, reason, sent_bytes, sent_ns, count)


def _rows(name: str, one: RankPartial, step: str) -> Ints:
    table = one.collectives
    named = np.asarray([text == name for text in one.group_names] or [False])
    unnamed = name == "the pipeline"
    own = np.where(table.group >= 0, named[np.maximum(table.group, 0)], unnamed)
    mine = own & (table.role == Role.PP_P2P) & (table.step == one.step_names.index(step))
    return np.flatnonzero(mine)


def _match(
    first: RankPartial, a: Ints, second: RankPartial, b: Ints
) -> list[tuple[Ints, Ints]] | None:
    """Rows of one kind against rows of the other; None where they do not fit together.

    A kernel that sends and receives at once meets one that does the same. Where directions are
    known and apart, the order of sends and receives differs by rank: each is matched by itself.
    """
    left, right = first.collectives, second.collectives
    ways: list[tuple[Ints, Ints]] = []
    both = [a[_directions(left, a) == 2], b[_directions(right, b) == 2]]
    ways.append((both[0], both[1]))
    ways.append((a[_directions(left, a) == 0], b[_directions(right, b) == 1]))
    ways.append((a[_directions(left, a) == 1], b[_directions(right, b) == 0]))
    for at, to in ways:
        if len(at) != len(to):
            return None
        sizes = (left.bytes_sent[at], right.bytes_received[to])
        if ((sizes[0] != sizes[1]) & (sizes[0] > 0) & (sizes[1] > 0)).any():
            return None
    return [(at, to) for at, to in ways if len(at)]


def _directions(table: Collectives, rows: Ints) -> Ints:
    """0 sends, 1 receives, 2 both or unknown."""
    sent = table.bytes_sent[rows]
    received = table.bytes_received[rows]
    return np.where((sent > 0) & (received == 0), 0, np.where((received > 0) & (sent == 0), 1, 2))
