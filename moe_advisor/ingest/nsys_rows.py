"""The rows of large tables apart for each owner, gathered into long columns as they come.

A first touch of memory is a third of what moving these rows costs. numpy asks for huge pages for
columns from 4 MB on, so rows go straight from the part they were read in, which is in a core's
cache, into columns of that size.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.spill import Spooled

Column = NDArray[Any]
Columns = Mapping[str, Column]

_BLOCK_ROWS = 1 << 19
"""Columns of eight bytes then have the 4 MB from which on numpy asks for huge pages."""

_FIRST_ROWS = 1 << 14
"""A block begins with so many, and each next one is twice as large: most owners have few rows."""


class Gathered:
    """The rows of one owner in one stretch of a table."""

    def __init__(self, put: Callable[[pl.DataFrame], pl.DataFrame | Spooled]) -> None:
        """`put` takes each block that is full, and each part that `close` finds."""
        self._put = put
        self._blocks: list[pl.DataFrame | Spooled] = []
        self._block: dict[str, Column] = {}
        self._used, self._room, self._next = 0, 0, _FIRST_ROWS

    def add(self, columns: Columns, rows: NDArray[np.int64] | None, count: int) -> None:
        """Copies the `count` rows at `rows` of `columns`, or all of them."""
        done = 0
        while done < count:
            if self._used == self._room:
                self._open(columns)
            some = min(count - done, self._room - self._used)
            low, high = self._used, self._used + some
            if rows is None:
                for name, column in columns.items():
                    self._block[name][low:high] = column[done : done + some]
            else:
                at = rows[done : done + some]
                for name, column in columns.items():
                    # The mode only spares a buffer: no row is out of bounds.
                    np.take(column, at, out=self._block[name][low:high], mode="clip")
            self._used, done = high, done + some

    def close(self) -> list[pl.DataFrame | Spooled]:
        """All rows, in order."""
        if self._used:
            self._blocks.append(
                self._put(pl.DataFrame({n: c[: self._used] for n, c in self._block.items()}))
            )
        self._block = {}
        return self._blocks

    def _open(self, columns: Columns) -> None:
        if self._room:
            self._blocks.append(self._put(pl.DataFrame(self._block)))
        self._used, self._room = 0, self._next
        self._next = min(2 * self._next, _BLOCK_ROWS)
        self._block = {n: np.empty(self._room, dtype=c.dtype) for n, c in columns.items()}


Piece = tuple[int, int, int]
"""Rows of one of several parts: its number, the first row and the one behind the last."""


def joined(parts: list[pl.DataFrame], name: str, pieces: Sequence[Piece] | None = None) -> Column:
    """The column `name` of all parts, which lose it: never are two copies of all columns there.

    With `pieces` they come in that order.
    """
    found = [part.drop_in_place(name).to_numpy() for part in parts]
    if pieces:
        found = [found[number][low:high] for number, low, high in pieces]
    return found[0] if len(found) == 1 else np.concatenate(found)


_MOST_PIECES = 64
"""An export that was put together from others has a few; a table in no order has millions."""


def runs_by_start(parts: list[pl.DataFrame], name: str) -> list[Piece] | None:
    """The rows of all parts by the column `name`, stable, where few runs in order make them up.

    None where they are too many: then sorting costs less.
    """
    starts = [part[name].to_numpy() for part in parts]
    edges = np.cumsum([0, *map(len, starts)])
    start = starts[0] if len(starts) == 1 else np.concatenate(starts)
    falls = np.flatnonzero(start[1:] < start[:-1]) + 1
    if len(falls) >= _MOST_PIECES:
        return None
    merged: list[tuple[int, int]] = []
    for low, high in itertools.pairwise([0, *falls.tolist(), len(start)]):
        merged = _merged(start, merged, low, high)
        if len(merged) > _MOST_PIECES:
            return None
    pieces: list[Piece] = []
    for low, high in merged:
        first, last = np.searchsorted(edges, [low, high - 1], side="right") - 1
        for number in range(int(first), int(last) + 1):
            begin, end = edges[number], edges[number + 1]
            pieces.append((number, int(max(low, begin) - begin), int(min(high, end) - begin)))
    return pieces


def _merged(
    start: Column, runs: list[tuple[int, int]], low: int, high: int
) -> list[tuple[int, int]]:
    """`runs`, in order one behind the other, and the later run of [low, high) in between."""
    found: list[tuple[int, int]] = []
    for first, last in runs:
        while low < high and start[last - 1] > start[low]:
            until = first + int(np.searchsorted(start[first:last], start[low], side="right"))
            upto = low + int(np.searchsorted(start[low:high], start[until], side="left"))
            found += [(first, until)] if until > first else []
            found.append((low, upto))
            first, low = until, upto
            if len(found) > _MOST_PIECES:
                return found
        found.append((first, last))
    return [*found, (low, high)] if low < high else found


def by_time(start: Column, end: Column, *, longest_first: bool = False) -> NDArray[np.int64] | None:
    """The order of rows by start and then by end, stable; None where they are in order."""
    order: NDArray[np.int64] | None = None
    if (start[1:] < start[:-1]).any():
        order = np.argsort(start, kind="stable")  # fast where long runs are in order
        start, end = start.take(order), end.take(order)
    second = -end if longest_first else end
    same = start[1:] == start[:-1]
    if not (same & (second[1:] < second[:-1])).any():
        return order
    # Only rows that start together change places, and only among themselves.
    together = np.zeros(len(start), dtype=np.bool_)
    together[1:] = same
    together[:-1] |= same
    at = np.flatnonzero(together)
    if order is None:
        order = np.arange(len(start))
    order[at] = order[at[np.lexsort((second[at], start[at]))]]
    return order
