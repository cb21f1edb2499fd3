"""Columns of small whole numbers that stand for names, without sorting millions of rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer[Any]]

_FEW = 16
"""One pass for each value is cheaper than a hash of all, up to about so many."""


_COMPARED_BYTES = 16
"""A comparison reads a column once, fast; a table makes numbers of eight bytes of it first."""


def distinct(codes: Codes) -> list[int]:
    """The values that occur in `codes` (non-negative and small), ascending."""
    return np.flatnonzero(np.bincount(codes)).tolist() if len(codes) else []


def few(values: NDArray[np.int64]) -> list[int]:
    """The distinct values of a column of any numbers that holds only few different ones."""
    found: list[int] = []
    rest = values
    while len(rest) and len(found) < _FEW:
        found.append(int(rest[0]))
        rest = rest[rest != rest[0]]
    return sorted(found) if not len(rest) else np.unique(values).tolist()


def among(codes: Codes, wanted: Iterable[int]) -> NDArray[np.bool_]:
    """Whether each of `codes` (non-negative and small) is one of `wanted`."""
    chosen = np.asarray([one for one in wanted if one >= 0], np.int64)
    if not len(codes) or not len(chosen):
        return np.zeros(len(codes), np.bool_)
    if len(chosen) * codes.itemsize <= _COMPARED_BYTES:
        limit = np.iinfo(codes.dtype).max
        found = np.zeros(len(codes), np.bool_)
        for one in set(chosen.tolist()):
            if one <= limit:
                found |= codes == codes.dtype.type(one)
        return found
    table = np.zeros(max(int(codes.max()), int(chosen.max())) + 1, np.bool_)
    table[chosen] = True
    return np.asarray(table.take(codes), np.bool_)


def compact(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values of `codes` (non-negative and small), ascending, and each one's place."""
    values = np.asarray(distinct(codes), np.int64)
    place = np.zeros(int(values[-1]) + 1 if len(values) else 0, np.int64)
    place[values] = np.arange(len(values))
    return values, place[codes]


_SLOT_BITS = 18
"""A few hundred values in so many slots meet in one of six tries."""

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd numbers without pattern: the golden ratio and two primes that hash functions are made of."""


def hashed(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct `values`, ascending, and each one's place among them; fast where few differ."""
    for factor in _MULTIPLIERS:
        slot = (values.view(np.uint64) * np.uint64(factor)) >> np.uint64(64 - _SLOT_BITS)
        at = slot.view(np.int64)
        kept = np.zeros(1 << _SLOT_BITS, np.int64)
        kept[at] = values
        if (kept.take(at) != values).any():
            continue  # two values met in one slot
        used = np.zeros(1 << _SLOT_BITS, np.bool_)
        used[at] = True
        slots = np.flatnonzero(used)
        found = kept[slots]
        order = np.argsort(found)
        kept[slots[order]] = np.arange(len(slots))
        return found[order], kept.take(at)
    return np.unique(values, return_inverse=True)
