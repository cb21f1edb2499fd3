"""How far the ranks' clocks lie apart, from collectives whose participants leave together.

Small all-reduces and barriers end on all ranks within microseconds; uneven all-to-alls,
reduce-scatters and sends do not across nodes, so they come last. A straight line through the
differences of the ends gives offset and drift. Ranks that share no group are reached over others;
groups that share no rank at all can't be compared, and say so.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import RankPartial
from moe_advisor.model import CollectiveKind
from moe_advisor.result import ClockPair

SMALL_BYTES = 1 << 20
"""An all-reduce of at most 1 MiB is over in some 20 µs wherever its ranks are."""

MIN_MATCHES = 3
"""Fewer common ends than this give no residual to judge by; captures of three steps are usual."""

MIN_DRIFT_SPAN_NS = 100_000_000
"""Drift is fitted over 0.1 s at least: clocks drift by some µs per second, before that it is
noise."""

MAX_ANCHORS = 512
"""Evenly chosen ends per pair: their median does not get better with more."""

MAX_RESIDUAL_NS = 1_000_000
"""Ends that scatter by more than 1 ms did not belong together, or were no common ends."""

MAX_PAIRS = 256
"""Pairs listed; with more ranks those with the largest residual are listed."""

_ANCHORS: tuple[tuple[str, tuple[CollectiveKind, ...], int | None], ...] = (
    (
        "small all-reduces and barriers",
        (CollectiveKind.ALL_REDUCE, CollectiveKind.BARRIER),
        SMALL_BYTES,
    ),
    ("all-reduces", (CollectiveKind.ALL_REDUCE,), None),
    ("all-gathers", (CollectiveKind.ALL_GATHER,), None),
    (
        "all-to-alls and reduce-scatters",
        (CollectiveKind.ALL_TO_ALL, CollectiveKind.REDUCE_SCATTER),
        None,
    ),
    ("sends and receives", (CollectiveKind.SEND_RECV, CollectiveKind.UNKNOWN), None),
)
"""Whose ends are compared, best first; the first with MIN_MATCHES common ends is used."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """`offset_ns` + `drift` x (time - `origin_ns`) is how far the second clock is ahead."""

    offset_ns: float
    drift: float
    origin_ns: float
    residual_ns: float
    matches: int
    anchors: str


def fit_line(times_ns: Ints, ahead_ns: Ints, anchors: str) -> Fit:
    """A robust line (Theil-Sen) through differences of clocks; no drift over a short span."""
    origin = float(np.median(times_ns))
    drift = 0.0
    x = times_ns - origin
    if np.ptp(times_ns) >= MIN_DRIFT_SPAN_NS and len(times_ns) >= 2 * MIN_MATCHES:
        half = len(x) // 2
        order = np.argsort(times_ns, kind="stable")
        first, second = order[:half], order[-half:]
        apart = x[second] - x[first]
        long = apart >= np.ptp(times_ns) / 4  # neighbours tell nothing but noise
        if long.any():
            drift = float(np.median((ahead_ns[second] - ahead_ns[first])[long] / apart[long]))
    offset = float(np.median(ahead_ns - drift * x))
    left = ahead_ns - offset - drift * x
    low, high = np.percentile(left, [5, 95])
    return Fit(offset, drift, origin, float(high - low) / 2, len(times_ns), anchors)


def align(partials: Sequence[RankPartial]) -> dict[tuple[int, int], Fit]:
    """(reference, rank) -> fit, for the lowest rank of every group against its other members."""
    groups: dict[str, list[RankPartial]] = {}
    for one in sorted(partials, key=lambda one: one.rank):
        for group in np.unique(one.collectives.group[one.collectives.group >= 0]).tolist():
            groups.setdefault(one.group_names[group], []).append(one)
    candidates: dict[tuple[int, int], list[tuple[int, Ints, Ints]]] = {}
    for name in sorted(groups):
        first, *others = groups[name]
        for other in others:
            for level, times, ahead in _common_ends(name, first, other):
                pair = (first.rank, other.rank)
                candidates.setdefault(pair, []).append((level, times, ahead))
    found = {}
    for pair, parts in candidates.items():
        for level, (label, _, _) in enumerate(_ANCHORS):
            mine = [(times, ahead) for at, times, ahead in parts if at == level]
            if sum(len(times) for times, _ in mine) >= MIN_MATCHES:
                times, ahead = (np.concatenate(column) for column in zip(*mine, strict=True))
                fit = fit_line(times, ahead, label)
                if fit.residual_ns <= MAX_RESIDUAL_NS:
                    found[pair] = fit
                    break
    return found


def _common_ends(name: str, first: RankPartial, other: RankPartial) -> list[tuple[int, Ints, Ints]]:
    """Per kind of anchor: when a collective of the group ended, and how much later at `other`."""
    mine, theirs = _rows(name, first), _rows(name, other)
    common = [step for step in mine if step in theirs and len(mine[step]) == len(theirs[step])]
    if not common:
        return []
    a, b = first.collectives, other.collectives
    at = np.concatenate([mine[step] for step in common])
    to = np.concatenate([theirs[step] for step in common])
    same = a.kind[at] == b.kind[to]
    at, to = at[same], to[same]
    end = a.start_ns[at] + a.duration_ns[at] + (first.epoch_ns or 0)
    ahead = b.start_ns[to] + b.duration_ns[to] + (other.epoch_ns or 0) - end
    size = np.maximum(a.bytes_sent[at], a.bytes_received[at])
    found = []
    for level, (_, kinds, limit) in enumerate(_ANCHORS):
        chosen = np.isin(a.kind[at], kinds)
        if limit is not None:
            chosen &= (size <= limit) & ((size >= 0) | (a.kind[at] == CollectiveKind.BARRIER))
        rows = np.flatnonzero(chosen)
        if len(rows) > MAX_ANCHORS:
            rows = rows[np.linspace(0, len(rows) - 1, MAX_ANCHORS).astype(np.int64)]
        if len(rows):
            found.append((level, end[rows], ahead[rows]))
    return found


def _rows(name: str, one: RankPartial) -> dict[str, Ints]:
    """Step name -> rows of the group in launch order."""
    table = one.collectives
    numbers = np.unique(table.group[table.group >= 0]).tolist()
    wanted = [n for n in numbers if one.group_names[n] == name]
    rows = np.flatnonzero(np.isin(table.group, wanted))
    steps, first = np.unique(table.step[rows], return_index=True)  # rows are sorted by step
    parts = np.split(rows, first[1:]) if len(rows) else []
    return {one.step_names[s]: part for s, part in zip(steps.tolist(), parts, strict=True)}


def clock_pairs(partials: Sequence[RankPartial]) -> list[ClockPair]:
    """Every rank's clock against the lowest rank's, propagated over the best pairs.

    Ranks that no chain of groups ties to the lowest rank are `not_measured`.
    """
    ranks = sorted(one.rank for one in partials)
    if len(ranks) < 2:
        return []
    fits = align(partials)
    edges: dict[int, list[tuple[float, int, Fit, int]]] = {rank: [] for rank in ranks}
    for (low, high), fit in sorted(fits.items()):
        edges[low].append((fit.residual_ns, high, fit, 1))
        edges[high].append((fit.residual_ns, low, fit, -1))
    reference = ranks[0]
    reached: dict[int, tuple[float, float, float, int, str]] = {reference: (0.0, 0.0, 0.0, 0, "")}
    # Prim's tree of the smallest residuals; equal ones in the order of ranks.
    heap = [(residual, rank, reference, sign) for residual, rank, _, sign in edges[reference]]
    fit_of = {frozenset(pair): fit for pair, fit in fits.items()}
    heapq.heapify(heap)
    while heap:
        residual, rank, source, sign = heapq.heappop(heap)
        if rank in reached:
            continue
        fit = fit_of[frozenset((rank, source))]
        offset, drift, before, matches, _ = reached[source]
        matches = fit.matches if source == reference else min(matches, fit.matches)
        via = "" if source == reference else f", over rank {source}"
        reached[rank] = (
            offset + sign * fit.offset_ns,
            drift + sign * fit.drift,
            float(np.hypot(before, residual)),
            matches,
            fit.anchors + via,
        )
        for more, following, _, turn in edges[rank]:
            if following not in reached:
                heapq.heappush(heap, (more, following, rank, turn))
    found = []
    for rank in ranks[1:]:
        if rank not in reached:
            reason = (
                f"no chain of common groups with ends that fit together ties rank {rank} to rank "
                f"{reference}"
            )
            found.append(
                ClockPair(rank=rank, reference=reference, status="not_measured", reason=reason)
            )
            continue
        offset, drift, residual, matches, anchors = reached[rank]
        found.append(
            ClockPair(
                rank=rank,
                reference=reference,
                status="measured",
                offset_us=round(offset / 1e3, 3),
                drift_ppm=round(drift * 1e6, 3),
                residual_us=round(residual / 1e3, 3),
                matches=matches,
                anchors=anchors,
            )
        )
    found.sort(key=lambda one: (one.status == "measured", -(one.residual_us or 0.0), one.rank))
    return sorted(found[:MAX_PAIRS], key=lambda one: one.rank)
