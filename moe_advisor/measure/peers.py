"""What only several ranks together can tell: waiting and transfer, who is late, and why.

Collectives are matched per communicator and step in launch order. The last participant to arrive
has the shortest duration: that duration is the transfer, what the others spent beyond it is
waiting. No clock is compared, so ranks of different hosts match as well as those of one. A step in
which ranks show different collectives is realigned (realign.py); what is not certain there stays
unmatched.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_advisor.codes import among, distinct
from moe_advisor.measure.alignment import fits
from moe_advisor.measure.bandwidth import Rates
from moe_advisor.measure.clock import Fit, align
from moe_advisor.measure.imbalance import Dispatches
from moe_advisor.measure.lateness import Arrivals
from moe_advisor.measure.pairs import Pairs, match_pairs
from moe_advisor.measure.partial import Collectives, PerStep, RankPartial
from moe_advisor.measure.realign import realign
from moe_advisor.model import CollectiveKind
from moe_advisor.roles.roles import Family, Role

WAITING_FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP)
"""Families whose collectives all participants leave together. A pipeline receive does not end
with its sender's last kernel, so its waiting is the bubble's business."""

_FAMILY_OF = np.asarray([role.family for role in Role], dtype=object)
_WAITING_NUMBER = np.asarray(
    [next((n for n, f in enumerate(WAITING_FAMILIES) if f is role.family), -1) for role in Role],
    np.int8,
)

UNEVEN_TOKENS = 1.05
"""From this max / mean of received tokens on, extra compute of the late rank is imbalance: forced
balance measures 1.000, natural routing on two ranks up to 1.05."""


@dataclass(frozen=True)
class Instance:
    """One matched collective: own durations and waits in rank order, ns."""

    group: str
    step: str
    index: int
    role: Role
    ranks: tuple[int, ...]
    transfer_ns: int
    waits_ns: tuple[int, ...]


@dataclass(frozen=True)
class Matched:
    """The matched collectives of one group over all its steps, as arrays of equal length."""

    group: str
    ranks: tuple[int, ...]
    steps: tuple[str, ...]
    step: NDArray[np.int64]
    """Place in `steps`, ascending."""
    role: NDArray[np.int8]
    transfer_ns: NDArray[np.int64]
    waits_ns: NDArray[np.int64]
    """[member, collective]."""

    def instances(self, step: str, family: Family) -> Iterator[Instance]:
        """Those of one step and family; `index` counts all collectives of the group in the step."""
        columns = np.flatnonzero(self.step == self.steps.index(step))
        for index, column in enumerate(columns.tolist()):
            role = Role(self.role[column])
            if role.family is family:
                waits = tuple(self.waits_ns[:, column].tolist())
                transfer = int(self.transfer_ns[column])
                yield Instance(self.group, step, index, role, self.ranks, transfer, waits)


@dataclass
class Waiting:
    """Waiting and transfer of one rank, per family and step (ns), and the causes of its waits."""

    transfer: dict[Family, PerStep]
    wait: dict[Family, PerStep]
    wait_host: PerStep
    wait_imbalance: PerStep
    wait_compute: PerStep
    wait_ends_ns: NDArray[np.int64]
    """Per collective of the rank: the end of its waiting part; its start where it did not wait or
    could not be matched."""
    matched: NDArray[np.bool_]
    arrived_last: int = 0
    instances: int = 0


@dataclass
class Tally:
    """Sums over all matched collectives, for views of their own."""

    rates: Rates = field(default_factory=Rates)
    arrivals: Arrivals = field(default_factory=Arrivals)
    dispatches: Dispatches = field(default_factory=Dispatches)


@dataclass
class Peers:
    """Everything that matching found; `imbalance` is the mean over forward dispatches, or None."""

    by_rank: dict[int, Waiting]
    matched: list[Matched]
    imbalance: float | None
    imbalance_reason: str | None
    unmatched_groups: dict[str, str]
    tally: Tally
    pairs: Pairs
    realigned: dict[str, int] = field(default_factory=dict)
    """Collectives of steps in which ranks differed, matched all the same, by their evidence."""

    def instances(self, step: str, family: Family) -> Iterator[Instance]:
        """The matched collectives of one step and family, group by group in launch order."""
        for one in self.matched:
            if step in one.steps:
                yield from one.instances(step, family)

    def groups(self, family: Family) -> set[tuple[int, ...]]:
        """The ranks of every group that was matched in a collective of the family."""
        roles = [role for role in Role if role.family is family]
        return {one.ranks for one in self.matched if np.isin(one.role, roles).any()}


@dataclass(frozen=True)
class _Member:
    partial: RankPartial
    rows: dict[str, NDArray[np.int64]]  # step name -> rows in launch order


def match_peers(partials: Sequence[RankPartial], domain: int | None = None) -> Peers:
    """Matches the collectives of all ranks; ranks that lack a partner stay unmatched.

    `domain` is the number of GPUs of an NVLink domain, where it is known.
    """
    tally = Tally()
    waiting = {one.rank: _blank(one) for one in partials}
    groups = _groups(partials)
    matched: list[Matched] = []
    unmatched: dict[str, str] = {}
    ratios: list[float] = []
    realigned: dict[str, int] = {}
    clocks: dict[tuple[int, int], Fit] | None = None
    for name in sorted(groups):
        members = groups[name]
        expected = max(
            (m.partial.facts.get("group_sizes", {}).get(name, 0) for m in members), default=0
        )
        if name.startswith("family:"):
            expected = max((m.partial.world_size or 0 for m in members), default=0)
        if len(members) < 2 or len(members) < expected:
            unmatched[name] = f"{len(members)} of {expected or 'unknown'} ranks read"
            continue
        steps, uneven = _whole_steps(members)
        if uneven and clocks is None:
            clocks = align(partials)
        mended = _mended(name, members, steps, uneven, clocks or {}, unmatched, realigned)
        for whole in (members, mended):
            these = steps if whole is members else tuple(whole[0].rows)
            if these:
                matched.append(_match_group(name, these, whole, waiting, ratios, tally, domain))
    reason = None
    if not ratios:
        reason = "no forward dispatch with known sizes on all ranks of its group"
    imbalance = float(np.mean(ratios)) if ratios else None
    _causes(waiting, partials, imbalance)
    return Peers(
        waiting, matched, imbalance, reason, unmatched, tally, match_pairs(partials), realigned
    )


def _blank(partial: RankPartial) -> Waiting:
    def zeros() -> PerStep:
        return np.zeros(len(partial.step_names), np.int64)

    return Waiting(
        transfer={family: zeros() for family in WAITING_FAMILIES},
        wait={family: zeros() for family in WAITING_FAMILIES},
        wait_host=zeros(),
        wait_imbalance=zeros(),
        wait_compute=zeros(),
        wait_ends_ns=partial.collectives.start_ns.copy(),
        matched=np.zeros(len(partial.collectives), np.bool_),
    )


def _groups(partials: Sequence[RankPartial]) -> dict[str, list[_Member]]:
    """Communicator name -> its members, in rank order.

    Kernels of dispatch libraries carry no communicator: the ranks of one world count as theirs,
    family by family.
    """
    found: dict[str, list[_Member]] = defaultdict(list)
    for partial in sorted(partials, key=lambda one: one.rank):
        table = partial.collectives
        # One number for each communicator, and one for each family without.
        families = [str(family) for family in dict.fromkeys(_FAMILY_OF.tolist())]
        place = np.asarray([families.index(str(family)) for family in _FAMILY_OF], np.int64)
        code = np.where(table.group >= 0, table.group + len(families), place[table.role])
        called: dict[str, list[int]] = defaultdict(list)
        for number in distinct(code):
            at = number - len(families)
            name = partial.group_names[at] if at >= 0 else f"family:{families[number]}"
            called[name].append(number)
        for name, numbers in sorted(called.items()):
            rows = np.flatnonzero(among(code, numbers))
            found[name].append(_Member(partial, _by_step(partial, rows)))
    return found


def _by_step(partial: RankPartial, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Step name -> those of `rows` that are in the step, in their order."""
    step = partial.collectives.step[rows]
    order = np.argsort(step, kind="stable")
    steps, first = np.unique(step[order], return_index=True)
    parts = np.split(rows[order], first[1:])
    return {partial.step_names[n]: part for n, part in zip(steps.tolist(), parts, strict=False)}


def _whole_steps(members: Sequence[_Member]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Steps in which all members launched the same collectives, and those in which they differ."""
    first, *others = members
    common = [step for step in first.rows if all(step in member.rows for member in others)]
    even = [s for s in common if len({len(member.rows[s]) for member in members}) == 1]
    differs: set[int] = set()
    if even:
        rows = [np.concatenate([member.rows[step] for step in even]) for member in members]
        same = np.ones(len(rows[0]), np.bool_)
        table = first.partial.collectives
        for member, mine in zip(others, rows[1:], strict=True):
            same &= fits(table, rows[0], member.partial.collectives, mine, len(members))
        place = np.repeat(np.arange(len(even)), [len(first.rows[step]) for step in even])
        differs = set(place[~same].tolist())
    whole = [step for at, step in enumerate(even) if at not in differs]
    return tuple(whole), tuple(step for step in common if step not in whole)


def _mended(
    name: str,
    members: Sequence[_Member],
    whole: Sequence[str],
    uneven: Sequence[str],
    clocks: Mapping[tuple[int, int], Fit],
    unmatched: dict[str, str],
    realigned: dict[str, int],
) -> list[_Member]:
    """The members with only those rows of uneven steps that are certainly the same collectives."""
    rows: list[dict[str, NDArray[np.int64]]] = [{} for _ in members]
    counts = frozenset(len(members[0].rows[step]) for step in whole)
    for step in uneven:
        found = realign([(one.partial, one.rows[step]) for one in members], counts, clocks)
        numbers = [len(one.rows[step]) for one in members]
        number = len(found.rows[0])
        if number < max(numbers):
            shown = ", ".join(map(str, numbers[:8]))
            unmatched[name] = (
                f"step {step}: ranks launched different collectives ({shown}); "
                f"{max(numbers) - number} of {max(numbers)} stay unmatched"
            )
        if number:
            realigned[found.evidence] = realigned.get(found.evidence, 0) + number
            for mine, at in zip(rows, found.rows, strict=True):
                mine[step] = at
    return [_Member(one.partial, mine) for one, mine in zip(members, rows, strict=True)]


def _match_group(
    name: str,
    steps: tuple[str, ...],
    members: Sequence[_Member],
    waiting: Mapping[int, Waiting],
    ratios: list[float],
    tally: Tally,
    domain: int | None,
) -> Matched:
    """Matches a group's collectives in all of `steps`, which every member has whole."""
    rows = [np.concatenate([member.rows[step] for step in steps]) for member in members]
    place = np.repeat(np.arange(len(steps)), [len(members[0].rows[step]) for step in steps])
    tables = [member.partial.collectives for member in members]

    def stacked(column: str) -> NDArray[np.int64]:
        return np.stack([getattr(t, column)[at] for t, at in zip(tables, rows, strict=True)])

    duration, received = stacked("duration_ns"), stacked("bytes_received")
    transfer = duration.min(axis=0)
    wait = duration - transfer
    last = duration.argmin(axis=0)
    role = tables[0].role[rows[0]]
    forward = (role == Role.EP_DISPATCH) & ~tables[0].backward[rows[0]]
    # What an all-gather delivers is the same everywhere: it says nothing about expert tokens.
    forward &= tables[0].kind[rows[0]] != CollectiveKind.ALL_GATHER
    sized = forward & (received.min(axis=0) >= 0) & (received.sum(axis=0) > 0)
    if sized.any():
        ratios.extend((received.max(axis=0) / received.mean(axis=0))[sized].tolist())
    ranks = tuple(member.partial.rank for member in members)
    compute, gaps = stacked("compute_before_ns"), stacked("gap_before_ns")
    columns = np.arange(len(transfer))
    by_host, by_compute = np.zeros_like(wait), np.zeros_like(wait)
    for position, member in enumerate(members):
        one, at = waiting[member.partial.rank], rows[position]
        number, count = tables[position].step[at], len(member.partial.step_names)
        one.wait_ends_ns[at] += wait[position]
        one.matched[at] = True
        code = _WAITING_NUMBER[tables[position].role[at]]

        def per_step(
            values: NDArray[np.int64],
            mine: NDArray[np.bool_],
            number: NDArray[np.int64] = number,
            count: int = count,
        ) -> PerStep:
            total = np.zeros(count, np.int64)
            np.add.at(total, number[mine], values[mine])
            return total

        for family_code, family in enumerate(WAITING_FAMILIES):
            mine = code == family_code
            one.transfer[family] += per_step(transfer, mine)
            one.wait[family] += per_step(wait[position], mine)
        host, slow = _explained(
            wait[position],
            np.maximum(gaps[last, columns] - gaps[position], 0),
            np.maximum(compute[last, columns] - compute[position], 0),
        )
        by_host[position], by_compute[position] = host, slow
        mine = code == WAITING_FAMILIES.index(Family.EP)
        one.wait_host += per_step(host, mine)
        one.wait_compute += per_step(slow, mine)
        one.instances += int(mine.sum())
        one.arrived_last += int((mine & (last == position)).sum())
    tally.rates.add(
        name, [(m.partial, at) for m, at in zip(members, rows, strict=True)], transfer, domain
    )
    cuts = np.searchsorted(place[sized], np.arange(1, len(steps)))
    for step, part in zip(steps, np.split(received[:, sized], cuts, axis=1), strict=True):
        tally.dispatches.add(ranks, step, part)
    together = _WAITING_NUMBER[role] >= 0
    tally.arrivals.add(
        _FAMILY_OF[role[together]],
        ranks,
        last[together],
        wait[:, together],
        by_host[:, together],
        by_compute[:, together],
        _fullness(role, received)[:, together],
    )
    return Matched(name, ranks, steps, place, role, transfer, wait)


def _fullness(role: NDArray[np.int8], received: NDArray[np.int64]) -> NDArray[np.float64]:
    """[member, collective]: tokens of the experts that ran before each collective, of their mean.

    Only where the payload collective before it is a dispatch did experts run in between; elsewhere,
    and where sizes are unknown, everyone counts as 1.
    """
    number = len(role)
    payload = np.isin(role, (Role.EP_DISPATCH, Role.EP_COMBINE))
    at = np.maximum.accumulate(np.where(payload, np.arange(number), -1))
    before = np.concatenate([[-1], at[:-1]]) if number else at
    mean = received.mean(axis=0) if number else np.zeros(0)
    known = (received >= 0).all(axis=0) & (mean > 0)
    share = np.where(known, received / np.where(known, mean, 1.0), 1.0)
    dispatched = (before >= 0) & (role[before] == Role.EP_DISPATCH) if number else payload
    return np.where(dispatched, share[:, before], 1.0)


def _explained(
    wait: NDArray[np.int64], gap: NDArray[np.int64], compute: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How much of each wait the late rank's extra host gaps and extra compute explain."""
    excess = gap + compute
    share = np.divide(np.minimum(wait, excess), excess, out=np.zeros(len(wait)), where=excess > 0)
    return (gap * share).astype(np.int64), (compute * share).astype(np.int64)


def _causes(
    waiting: Mapping[int, Waiting], partials: Sequence[RankPartial], imbalance: float | None
) -> None:
    """Extra compute of the late rank is imbalance where the tokens received differ."""
    uneven = imbalance is not None and imbalance >= UNEVEN_TOKENS
    for partial in partials:
        one = waiting[partial.rank]
        if uneven:
            one.wait_imbalance, one.wait_compute = one.wait_compute, one.wait_imbalance


def bytes_leaving(table: Collectives, matched: NDArray[np.bool_]) -> tuple[int, int]:
    """(bytes that leave the rank in EP collectives of known size, their rows' count)."""
    ep = np.isin(table.role, (Role.EP_DISPATCH, Role.EP_COMBINE)) & matched
    known = ep & (table.bytes_sent >= 0) & (table.bytes_self >= 0)
    return int((table.bytes_sent - table.bytes_self)[known].sum()), int(known.sum())
