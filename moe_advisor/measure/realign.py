"""Matches a group's collectives in a step of which some rank has not all of them.

By the operations' numbers where the trace holds them; else by kind and size in order, and by time
where the clocks can be compared. What could be two things at once stays unmatched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.alignment import by_sequence, certain, fits, unmistakable
from moe_advisor.measure.clock import Fit
from moe_advisor.measure.partial import RankPartial
from moe_advisor.model import NONE

SAME_CLOCK_NS = 20_000
"""Participants of one collective overlap within 20 µs, the accuracy to which clocks are aligned
(design.md, section 3)."""

Ints = NDArray[np.int64]
Spans = tuple[Ints, Ints]
Timed = tuple[Spans, float]
"""Starts and ends on a common clock, and how many ns they may be wrong."""

Member = tuple[RankPartial, Ints]
"""A rank and its rows of the group in the step, in launch order."""


@dataclass(frozen=True)
class Realigned:
    """Per member the rows of the same collectives, and what tied them together."""

    rows: tuple[Ints, ...]
    evidence: str
    """`number`, `time` or `size`."""


def realign(
    members: Sequence[Member],
    whole: frozenset[int],
    clocks: Mapping[tuple[int, int], Fit],
) -> Realigned:
    """The collectives that all `members` have without doubt.

    `whole` are the numbers of collectives in steps where all agree: a rank with as many, or two
    ranks with the same most, have lost none. `clocks` is what `clock.align` found.
    """
    tables = [one.collectives for one, _ in members]
    numbered = by_sequence([t.sequence[rows] for t, (_, rows) in zip(tables, members, strict=True)])
    if numbered is not None:
        chosen = [rows[at] for (_, rows), at in zip(members, numbered, strict=True)]
        same = np.ones(len(chosen[0]), np.bool_)
        for table, mine in zip(tables[1:], chosen[1:], strict=True):
            same &= fits(tables[0], chosen[0], table, mine, len(members))
        return Realigned(tuple(mine[same] for mine in chosen), "number")
    counts = [len(rows) for _, rows in members]
    first = counts.index(max(counts))
    alike = sum(
        len(rows) == max(counts)
        and bool(fits(tables[first], members[first][1], table, rows, len(members)).all())
        for (_, rows), table in zip(members, tables, strict=True)
    )
    trusted = max(counts) in whole or alike > 1
    spans = [common_time(one, rows, members[0][0], clocks) for one, rows in members]
    partners: list[Ints] = []  # per member and row of the longest: the member's row, else NONE
    timed = True
    for (_, rows), table, span in zip(members, tables, spans, strict=True):
        fit = fits(table, rows[:, None], tables[first], members[first][1][None, :], len(members))
        by_time = overlap(span, spans[first])
        fit = fit if by_time is None else fit & by_time
        sharp = tells_apart(span, spans[first])
        timed &= sharp
        partner, longest = certain(fit)
        if not sharp and not (trusted and longest == len(rows)):
            partner = unmistakable(fit, partner)
        there = np.full(counts[first], NONE, np.int64)
        found = np.flatnonzero(partner != NONE)
        there[partner[found]] = found
        partners.append(there)
    partners[first] = np.arange(counts[first])
    kept = np.flatnonzero(np.all([there != NONE for there in partners], axis=0))
    return Realigned(
        tuple(rows[there[kept]] for (_, rows), there in zip(members, partners, strict=True)),
        "time" if timed else "size",
    )


def common_time(
    one: RankPartial, rows: Ints, reference: RankPartial, clocks: Mapping[tuple[int, int], Fit]
) -> Timed | None:
    """Starts and ends on the reference's clock; None where the two can't be compared."""
    table = one.collectives
    if one.epoch_ns is None or reference.epoch_ns is None:
        return None
    start = table.start_ns[rows] + one.epoch_ns
    doubt = float(SAME_CLOCK_NS)
    fit = clocks.get((reference.rank, one.rank))
    if fit is not None:
        ahead = fit.offset_ns + fit.drift * (start - fit.origin_ns)
        start = start - np.rint(ahead).astype(np.int64)
        doubt = max(doubt, fit.residual_ns)
    elif not _one_report(one, reference):
        return None
    return (start, start + table.duration_ns[rows]), doubt


def _one_report(one: RankPartial, other: RankPartial) -> bool:
    sources = {one.rank_source, other.rank_source} <= {"communicator", "process-order"}
    return one.rank == other.rank or (
        sources and one.epoch_ns == other.epoch_ns and one.host == other.host
    )


def overlap(one: Timed | None, other: Timed | None) -> NDArray[np.bool_] | None:
    """[of one, of other]: whether both were resident at a time; None where that can't be told."""
    if one is None or other is None:
        return None
    ((start, end), doubt), ((from_, until), more) = one, other
    allowed = doubt + more
    found = start[:, None] <= until[None, :] + allowed
    return np.asarray(found & (from_[None, :] <= end[:, None] + allowed))


def tells_apart(one: Timed | None, other: Timed | None) -> bool:
    """Whether time alone tells neighbours apart: the ends lie further apart than clocks differ."""
    if one is None or other is None:
        return False
    ends = np.sort(other[0][1])
    return len(ends) < 2 or float(np.median(np.diff(ends))) > 2 * (one[1] + other[1])
