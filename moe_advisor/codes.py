"""Columns of small whole numbers that stand for names, without sorting millions of rows."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer[Any]]

_FEW = 16
"""One pass for each value is cheaper than a hash of all, up to about so many."""


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
    table = np.zeros(max(int(codes.max()), int(chosen.max())) + 1, np.bool_)
    table[chosen] = True
    return np.asarray(table[codes], np.bool_)


def compact(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values of `codes` (non-negative and small), ascending, and each one's place."""
    values = np.asarray(distinct(codes), np.int64)
    place = np.zeros(int(values[-1]) + 1 if len(values) else 0, np.int64)
    place[values] = np.arange(len(values))
    return values, place[codes]
