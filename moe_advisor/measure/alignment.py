"""Which of two ranks' collectives are the same one, where one rank's are not all there.

Both rows are parts of one true order. An alignment keeps that order and pairs only what fits
together; what has the same partner in every longest alignment is certain, all else is left alone.
"""

import numpy as np
from numpy.typing import NDArray

from moe_advisor.measure.partial import Collectives
from moe_advisor.model import NONE, CollectiveKind

MAX_CELLS = 1 << 24
"""Pairs that are compared at most: 4,096 collectives on each side, in two tables of 64 MB."""

_SAME_SIZE = np.isin(
    np.arange(max(CollectiveKind) + 1),
    (
        CollectiveKind.ALL_REDUCE,
        CollectiveKind.ALL_GATHER,
        CollectiveKind.REDUCE_SCATTER,
        CollectiveKind.BROADCAST,
    ),
)
"""Kinds whose whole buffer is as large on every rank."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def fits(a: Collectives, at: Ints, b: Collectives, to: Ints, ranks: int) -> Bools:
    """[of `at`, of `to`]: whether two ranks' rows may be one collective of `ranks` ranks.

    Rows broadcast against each other: `at[:, None]` compares all pairs, equal lengths each its own.
    """
    kind, other = a.kind[at], b.kind[to]
    unknown = int(CollectiveKind.UNKNOWN)
    found = (kind == other) | (kind == unknown) | (other == unknown)
    size = np.maximum(a.bytes_sent[at], a.bytes_received[at])
    size_there = np.maximum(b.bytes_sent[to], b.bytes_received[to])
    known = (size >= 0) & (size_there >= 0)
    found &= ~(_SAME_SIZE[kind] & (kind == other) & known & (size != size_there))
    number, there_number = a.sequence[at], b.sequence[to]
    found &= (number == there_number) | (number == NONE) | (there_number == NONE)
    if ranks == 2:  # what leaves the one arrives at the other
        for one, rows, there, others in ((a, at, b, to), (b, to, a, at)):
            told = (one.kind[rows] == CollectiveKind.ALL_TO_ALL) & (
                there.kind[others] == CollectiveKind.ALL_TO_ALL
            )
            for part in (one.bytes_sent[rows], one.bytes_self[rows]):
                told = told & (part >= 0)
            for part in (there.bytes_received[others], there.bytes_self[others]):
                told = told & (part >= 0)
            leaves = one.bytes_sent[rows] - one.bytes_self[rows]
            arrives = there.bytes_received[others] - there.bytes_self[others]
            found &= ~(told & (leaves != arrives))
    return np.asarray(found)


def by_sequence(sequences: list[Ints]) -> list[Ints] | None:
    """Per rank the places of the numbers that all have; None where numbers lack or repeat."""
    for one in sequences:
        if not len(one) or (one == NONE).any() or (np.diff(one) <= 0).any():
            return None
    common = sequences[0]
    for one in sequences[1:]:
        common = np.intersect1d(common, one, assume_unique=True)
    return [np.searchsorted(one, common) for one in sequences]


def certain(fit: Bools) -> tuple[Ints, int]:
    """(per row of `fit` its column in every longest alignment, else NONE; that length)."""
    rows, columns = fit.shape
    found = np.full(rows, NONE, np.int64)
    if not rows or not columns or rows * columns > MAX_CELLS:
        return found, 0
    before = _lengths(fit)
    after = _lengths(fit[::-1, ::-1])[::-1, ::-1]
    longest = int(before[-1, -1])
    # before[i, j]: best of the first i rows and j columns; after[i, j]: of the rest from i and j.
    through = fit & (before[:-1, :-1] + 1 + after[1:, 1:] == longest)
    skipped = (before[:-1] + after[1:] == longest).any(axis=1)
    alone = (through.sum(axis=1) == 1) & ~skipped
    found[alone] = through[alone].argmax(axis=1)
    return found, longest


def _lengths(fit: Bools) -> NDArray[np.int32]:
    """[i, j]: pairs in the longest alignment of the first i rows with the first j columns."""
    table = np.zeros((fit.shape[0] + 1, fit.shape[1] + 1), np.int32)
    for i, row in enumerate(fit):
        best = np.maximum(table[i, 1:], table[i, :-1] + row)
        np.maximum.accumulate(best, out=table[i + 1, 1:])
    return table


def unmistakable(fit: Bools, partner: Ints) -> Ints:
    """`partner` where neither side fits anything else: safe even if both sides lost rows."""
    alone = (fit.sum(axis=1) == 1) & (partner != NONE)
    alone &= fit.sum(axis=0)[np.maximum(partner, 0)] == 1
    return np.where(alone, partner, NONE)
