"""What only several ranks together can tell: waiting and transfer, who is late, and why.

Collectives are matched per communicator and step in launch order. The last participant to arrive
has the shortest duration: that duration is the transfer, what the others spent beyond it is
waiting. No clock is compared, so ranks of different hosts match as well as those of one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import Collectives, PerStep, RankPartial
from moe_advisor.roles.roles import Family, Role

WAITING_FAMILIES = (Family.EP, Family.DP, Family.TP, Family.CP)
"""Families whose collectives all participants leave together. A pipeline receive does not end
with its sender's last kernel, so its waiting is the bubble's business."""

_FAMILY_OF = np.asarray([role.family for role in Role], dtype=object)

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
class Peers:
    """Everything that matching found; `imbalance` is the mean over forward dispatches, or None."""

    by_rank: dict[int, Waiting]
    instances: list[Instance]
    imbalance: float | None
    imbalance_reason: str | None
    unmatched_groups: dict[str, str]


@dataclass(frozen=True)
class _Member:
    partial: RankPartial
    rows: dict[str, NDArray[np.int64]]  # step name -> rows in launch order


def match_peers(partials: Sequence[RankPartial]) -> Peers:
    """Matches the collectives of all ranks; ranks that lack a partner stay unmatched."""
    waiting = {one.rank: _blank(one) for one in partials}
    groups = _groups(partials)
    instances: list[Instance] = []
    unmatched: dict[str, str] = {}
    ratios: list[float] = []
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
        for step in _common_steps(members):
            _match_step(name, step, members, waiting, instances, ratios, unmatched)
    reason = None
    if not ratios:
        reason = "no forward dispatch with known sizes on all ranks of its group"
    imbalance = float(np.mean(ratios)) if ratios else None
    _causes(waiting, partials, imbalance)
    return Peers(waiting, instances, imbalance, reason, unmatched)


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
        families = _FAMILY_OF[table.role]
        names = np.asarray(
            [
                partial.group_names[group] if group >= 0 else f"family:{family}"
                for group, family in zip(table.group.tolist(), families, strict=True)
            ],
            dtype=object,
        )
        for name in sorted(set(names.tolist())):
            rows = np.flatnonzero(names == name)
            by_step = {
                partial.step_names[step]: rows[table.step[rows] == step]
                for step in np.unique(table.step[rows]).tolist()
            }
            found[name].append(_Member(partial, by_step))
    return found


def _common_steps(members: Sequence[_Member]) -> list[str]:
    first = members[0].rows
    return [step for step in first if all(step in member.rows for member in members[1:])]


def _match_step(
    name: str,
    step: str,
    members: Sequence[_Member],
    waiting: Mapping[int, Waiting],
    instances: list[Instance],
    ratios: list[float],
    unmatched: dict[str, str],
) -> None:
    rows = [member.rows[step] for member in members]
    if len({len(one) for one in rows}) > 1:
        counts = ", ".join(str(len(one)) for one in rows[:8])
        unmatched[name] = f"step {step}: ranks launched different numbers of collectives ({counts})"
        return
    tables = [member.partial.collectives for member in members]
    duration = np.stack([t.duration_ns[r] for t, r in zip(tables, rows, strict=True)])
    transfer = duration.min(axis=0)
    wait = duration - transfer
    last = duration.argmin(axis=0)
    received = np.stack([t.bytes_received[r] for t, r in zip(tables, rows, strict=True)])
    role = tables[0].role[rows[0]]
    forward = (role == Role.EP_DISPATCH) & ~tables[0].backward[rows[0]]
    sized = forward & (received.min(axis=0) >= 0) & (received.sum(axis=0) > 0)
    if sized.any():
        ratios.extend((received.max(axis=0) / received.mean(axis=0))[sized].tolist())
    ranks = tuple(member.partial.rank for member in members)
    compute = np.stack([t.compute_before_ns[r] for t, r in zip(tables, rows, strict=True)])
    gaps = np.stack([t.gap_before_ns[r] for t, r in zip(tables, rows, strict=True)])
    columns = np.arange(len(transfer))
    for position, member in enumerate(members):
        one, at = waiting[member.partial.rank], rows[position]
        number = member.partial.step_names.index(step)
        one.wait_ends_ns[at] += wait[position]
        one.matched[at] = True
        families = _FAMILY_OF[tables[position].role[at]]
        for family in WAITING_FAMILIES:
            mine = families == family
            one.transfer[family][number] += int(transfer[mine].sum())
            one.wait[family][number] += int(wait[position][mine].sum())
        host, slow = _explained(
            wait[position],
            np.maximum(gaps[last, columns] - gaps[position], 0),
            np.maximum(compute[last, columns] - compute[position], 0),
        )
        mine = families == Family.EP
        one.wait_host[number] += int(host[mine].sum())
        one.wait_compute[number] += int(slow[mine].sum())
        one.instances += int(mine.sum())
        one.arrived_last += int((mine & (last == position)).sum())
    instances.extend(
        Instance(
            name,
            step,
            index,
            Role(role[index]),
            ranks,
            int(transfer[index]),
            tuple(int(value) for value in wait[:, index]),
        )
        for index in range(len(transfer))
    )


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
