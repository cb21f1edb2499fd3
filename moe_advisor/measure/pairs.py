"""Waiting and transfer of pipeline sends and receives, matched between the stages that exchange.

A send and its receive are one transfer: both kernels are resident until the data has gone over. The
shorter of the two is the transfer, what the other spent beyond it is waiting for its partner. The
k-th send of one stage to another is the k-th receive there. A kernel that talks to two stages at
once is done when both are: its transfer is the shortest of all three.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.alignment import certain, unmistakable
from moe_advisor.measure.clock import Fit, align
from moe_advisor.measure.partial import Collectives, RankPartial
from moe_advisor.measure.realign import common_time, overlap, tells_apart
from moe_advisor.measure.schedule import one_f_one_b
from moe_advisor.model import NONE
from moe_advisor.roles.roles import Role

Ints = NDArray[np.int64]

SENDS, RECEIVES, BOTH = 0, 1, 2


@dataclass(frozen=True)
class Pairs:
    """Per rank and step (ns): transfer, waiting, and what found no partner; `reason` says why.

    `evidence` is what told whom a kernel talks to: `peers` of the trace, `two stages`, or the
    order of a 1F1B `schedule`.
    """

    transfer: Mapping[int, Ints]
    wait: Mapping[int, Ints]
    unmatched: Mapping[int, Ints]
    reason: str | None
    sent_bytes: float
    sent_ns: float
    """Bytes of matched transfers of known size, and their transfer time: the link's rate."""
    count: int
    lost: int
    evidence: frozenset[str]


@dataclass(frozen=True)
class _Stage:
    """One rank of a pipeline group: its place in it and its rows by step, in launch order."""

    partial: RankPartial
    place: int
    rows: Mapping[str, Ints]


@dataclass(frozen=True)
class _End:
    """One direction of a kernel: whom it sends to or receives from, and how much (NONE unknown)."""

    row: int
    peer: int
    sends: bool
    size: int


_Key = tuple[int, int]
"""A kernel: its stage's place in the group and its row in that rank's collectives."""


class _Tally:
    """Everything found so far, group by group."""

    def __init__(self, partials: Sequence[RankPartial]) -> None:
        def zeros() -> dict[int, Ints]:
            return {one.rank: np.zeros(len(one.step_names), np.int64) for one in partials}

        self.transfer, self.wait, self.unmatched = zeros(), zeros(), zeros()
        self.reasons: list[str] = []
        self.evidence: set[str] = set()
        self.sent_bytes = self.sent_ns = 0.0
        self.count = self.lost = 0

    def add(self, one: RankPartial, row: int, partners_ns: Sequence[int]) -> None:
        """One kernel with the durations of all it exchanged with; none: it stays unmatched."""
        step = int(one.collectives.step[row])
        own = int(one.collectives.duration_ns[row])
        if not partners_ns:
            self.unmatched[one.rank][step] += own
            self.lost += 1
            return
        short = min(own, *partners_ns)
        self.transfer[one.rank][step] += short
        self.wait[one.rank][step] += own - short

    def moved(self, table: Collectives, row: int, transfer_ns: int) -> None:
        """The bytes of two kernels that exchange with nobody else."""
        self.count += 1
        sent, received = int(table.bytes_sent[row]), int(table.bytes_received[row])
        if sent >= 0 and received >= 0:
            self.sent_bytes += max(sent, received)
            self.sent_ns += transfer_ns


def match_pairs(partials: Sequence[RankPartial]) -> Pairs:
    """Matches the sends of each rank with the receives of its partners, in launch order."""
    tally = _Tally(partials)
    clocks: dict[tuple[int, int], Fit] = {}
    groups = _groups(partials)
    for name in sorted(groups):
        stages = _stages(name, groups[name])
        if isinstance(stages, str):
            tally.reasons.append(stages)
            for one in groups[name]:
                for row in _rows(name, one).tolist():
                    tally.add(one, row, [])
            continue
        partners: dict[_Key, set[_Key]] = {}
        for step in sorted({step for one in stages for step in one.rows}):
            found = _ends(stages, step)
            if isinstance(found, str):
                tally.reasons.append(found)
                continue
            ends, how = found
            tally.evidence.add(how)
            if not clocks and _differ(stages, ends):
                clocks = align(partials)
            partners |= _exchanges(stages, step, ends, clocks, tally.reasons)
        _count(stages, partners, tally)
    return Pairs(
        transfer=tally.transfer,
        wait=tally.wait,
        unmatched=tally.unmatched,
        reason=tally.reasons[0] if tally.reasons else None,
        sent_bytes=tally.sent_bytes,
        sent_ns=tally.sent_ns,
        count=tally.count,
        lost=tally.lost,
        evidence=frozenset(tally.evidence),
    )


def _exchanges(
    stages: Sequence[_Stage],
    step: str,
    ends: Mapping[int, Sequence[_End]],
    clocks: Mapping[tuple[int, int], Fit],
    reasons: list[str],
) -> dict[_Key, set[_Key]]:
    """Every kernel of the step of which all partners are known, with them."""
    told: dict[_Key, list[_Key]] = {}
    for one, other in _ordered_pairs(stages):
        sends, takes = _between(one, other, ends)
        matched = _match(one, sends, other, takes, clocks)
        if len(matched) < max(len(sends), len(takes)):
            reasons.append(
                f"step {step}: the sends of rank {one.partial.rank} and the receives of rank "
                f"{other.partial.rank} differ in number or size"
            )
        for end, there in matched:
            a, b = (one.place, end.row), (other.place, there.row)
            told.setdefault(a, []).append(b)
            told.setdefault(b, []).append(a)
    here = {one.place for one in stages}
    found: dict[_Key, set[_Key]] = {}
    for one in stages:
        away = {end.peer for end in ends[one.place]} - here
        if away:
            reasons.append(
                f"rank {one.partial.rank} exchanges with stage {min(away)} of the pipeline, which "
                "was not read"
            )
        for row, due in Counter(end.row for end in ends[one.place]).items():
            partners = told.get((one.place, row), [])
            if len(partners) == due:
                found[one.place, row] = set(partners)
    return found


def _count(stages: Sequence[_Stage], partners: Mapping[_Key, set[_Key]], tally: _Tally) -> None:
    """Adds every kernel of a group, and what each pair of kernels moved, to the tally."""
    of = {one.place: one.partial for one in stages}

    def duration(key: _Key) -> int:
        return int(of[key[0]].collectives.duration_ns[key[1]])

    for one in stages:
        for rows in one.rows.values():
            for row in rows.tolist():
                key = (one.place, row)
                mine = sorted(partners.get(key, ()))
                tally.add(one.partial, row, [duration(other) for other in mine])
                alone = len(mine) == 1 and key < mine[0] and partners.get(mine[0]) == {key}
                if alone:
                    shorter = min(duration(key), duration(mine[0]))
                    tally.moved(one.partial.collectives, row, shorter)


def stage_places(partials: Sequence[RankPartial]) -> dict[int, tuple[int, int]]:
    """Rank -> (stages, its stage) for pipelines all of whose ranks were read.

    From the communicators that pipeline kernels use: their size, or the peers these talk to.
    """
    found: dict[int, tuple[int, int]] = {}
    for name, members in _groups(partials).items():
        size = max(_size(name, one, _rows(name, one)) for one in members)
        stages = _stages(name, members)
        if size == len(members) and not isinstance(stages, str):
            found |= {one.partial.rank: (size, one.place) for one in stages}
    return found


def _groups(partials: Sequence[RankPartial]) -> dict[str, list[RankPartial]]:
    """Communicator -> the ranks that pipeline kernels of it were seen on, in rank order."""
    groups: dict[str, list[RankPartial]] = {}
    for one in sorted(partials, key=lambda one: one.rank):
        table = one.collectives
        for group in np.unique(table.group[table.role == Role.PP_P2P]).tolist():
            name = one.group_names[group] if group >= 0 else "the pipeline"
            groups.setdefault(name, []).append(one)
    return groups


def _rows(name: str, one: RankPartial) -> Ints:
    table = one.collectives
    named = np.asarray([text == name for text in one.group_names] or [False])
    own = np.where(table.group >= 0, named[np.maximum(table.group, 0)], name == "the pipeline")
    return np.flatnonzero(own & (table.role == Role.PP_P2P))


def _stages(name: str, members: Sequence[RankPartial]) -> list[_Stage] | str:
    """The members with their places in the group; why not, where those are not known.

    Places are in the trace (`place`), or all of the group is here: torch numbers the ranks of a
    group upwards.
    """
    rows = [_rows(name, one) for one in members]
    told = [
        set(one.collectives.place[at].tolist()) - {NONE}
        for one, at in zip(members, rows, strict=True)
    ]
    if all(len(one) == 1 for one in told) and len(set().union(*told)) == len(members):
        places = [one.pop() for one in told]
    else:
        size = max(_size(name, one, at) for one, at in zip(members, rows, strict=True))
        if len(members) != max(size, 2):
            return (
                f"{len(members)} of {size or 'an unknown number of'} ranks of one pipeline group "
                "were read, and which of its stages they are is not in the trace"
            )
        places = list(range(len(members)))
    found = []
    for one, at, place in zip(members, rows, places, strict=True):
        step = one.collectives.step[at]
        by_step = {one.step_names[s]: at[step == s] for s in np.unique(step).tolist()}
        found.append(_Stage(one, place, by_step))
    return found


def _size(name: str, one: RankPartial, rows: Ints) -> int:
    """Ranks of the group as far as this member tells; 0 where it does not."""
    table = one.collectives
    peers = max(
        (int(column[rows].max(initial=NONE)) for column in (table.to_high, table.from_high)),
        default=NONE,
    )
    stage = one.facts.get("stage")
    listed = len(stage[0]) if stage else 0
    return max(int(one.facts.get("group_sizes", {}).get(name, 0)), peers + 1, listed)


def _differ(stages: Sequence[_Stage], ends: Mapping[int, Sequence[_End]]) -> bool:
    """Whether some pair of stages shows different numbers of sends and receives."""
    pairs = (_between(one, other, ends) for one, other in _ordered_pairs(stages))
    return any(len(sends) != len(takes) for sends, takes in pairs)


def _between(
    one: _Stage, other: _Stage, ends: Mapping[int, Sequence[_End]]
) -> tuple[list[_End], list[_End]]:
    """What one stage sends to another, and what that receives from it."""
    sends = [end for end in ends[one.place] if end.sends and end.peer == other.place]
    takes = [end for end in ends[other.place] if not end.sends and end.peer == one.place]
    return sends, takes


def _ordered_pairs(members: Sequence[_Stage]) -> Iterator[tuple[_Stage, _Stage]]:
    return ((one, other) for one in members for other in members if one is not other)


def _ends(members: Sequence[_Stage], step: str) -> tuple[dict[int, list[_End]], str] | str:
    """Place -> its kernels' ends in this step, and what told the peers; or why they are unknown."""
    rows = {one.place: one.rows.get(step, np.zeros(0, np.int64)) for one in members}
    told = {one.place: _told(one.partial.collectives, rows[one.place]) for one in members}
    if all(ends is not None for ends in told.values()):
        return {place: ends or [] for place, ends in told.items()}, "peers"
    directions = {
        one.place: _directions(one.partial.collectives, rows[one.place]) for one in members
    }
    if len(members) == 2:
        peers = {one.place: [other.place] for one, other in _ordered_pairs(members)}
        each = {place: [peers[place][0]] * len(rows[place]) for place in peers}
        how = "two stages"
    else:
        found = one_f_one_b({place: ways.tolist() for place, ways in directions.items()})
        if found is None:
            return (
                f"{len(members)} ranks of one pipeline group were read: whom a kernel talks to is "
                "not in the trace, and their order is not that of a 1F1B schedule"
            )
        each, how = found, "schedule"
    ends: dict[int, list[_End]] = {}
    for one in members:
        table = one.partial.collectives
        ends[one.place] = [
            _End(row, peer, sends, int((table.bytes_sent if sends else table.bytes_received)[row]))
            for row, peer, way in zip(
                rows[one.place].tolist(),
                each[one.place],
                directions[one.place].tolist(),
                strict=True,
            )
            for sends in (True, False)
            if way in (BOTH, SENDS if sends else RECEIVES)
        ]
    return ends, how


def _told(table: Collectives, rows: Ints) -> list[_End] | None:
    """The ends of kernels whose peers the trace tells; None where one kernel has none."""
    found: list[_End] = []
    for row in rows.tolist():
        before = len(found)
        for sends, low, high, size in (
            (True, table.to_low, table.to_high, table.bytes_sent),
            (False, table.from_low, table.from_high, table.bytes_received),
        ):
            peers = sorted({int(low[row]), int(high[row])} - {NONE})
            each = int(size[row]) if len(peers) == 1 else NONE
            found += [_End(row, peer, sends, each) for peer in peers]
        if len(found) == before:
            return None
    return found


def _directions(table: Collectives, rows: Ints) -> Ints:
    """SENDS, RECEIVES, or BOTH (also where unknown)."""
    sent, received = table.bytes_sent[rows], table.bytes_received[rows]
    only_sends, only_receives = (sent > 0) & (received == 0), (received > 0) & (sent == 0)
    return np.where(only_sends, SENDS, np.where(only_receives, RECEIVES, BOTH))


def _match(
    one: _Stage,
    sends: Sequence[_End],
    other: _Stage,
    takes: Sequence[_End],
    clocks: Mapping[tuple[int, int], Fit],
) -> list[tuple[_End, _End]]:
    """The k-th send with the k-th receive; where they differ, only what is certain."""
    if not sends or not takes:
        return []
    size = np.asarray([end.size for end in sends])[:, None]
    there = np.asarray([end.size for end in takes])[None, :]
    fit = (size == there) | (size <= 0) | (there <= 0)
    if len(sends) == len(takes) and np.diagonal(fit).all():
        return list(zip(sends, takes, strict=True))
    rows = [np.asarray([end.row for end in ends]) for ends in (sends, takes)]
    lower = min(one.partial, other.partial, key=lambda partial: partial.rank)
    spans = [
        common_time(stage.partial, at, lower, clocks)
        for stage, at in zip((one, other), rows, strict=True)
    ]
    by_time = overlap(*spans)
    partner, _ = certain(fit if by_time is None else fit & by_time)
    if not tells_apart(*spans):
        partner = unmistakable(fit, partner)
    return [(sends[at], takes[to]) for at, to in enumerate(partner.tolist()) if to != NONE]
