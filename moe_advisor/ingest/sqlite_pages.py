"""Reads chosen columns of large tables straight from the pages of a SQLite file.

A cell costs SQLite and ADBC 40 ns, nearly all of it in handing it over one by one; decoding a few
thousand pages at once with array operations costs 5. The format is fixed for good
(sqlite.org/fileformat2.html). Only what every export looks like is decoded here: `UnusualError`
says that SQLite itself has to read the table, be it damaged or merely rare.
"""

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]
Values = Int64s | pl.Series
"""Whole numbers, or a series of Binary."""

_LEAF, _INTERIOR = 0x0D, 0x05  # pages of a table with row ids
_LEAF_HEADER, _INTERIOR_HEADER = 8, 12
_DEEPEST = 20  # SQLite's own limit for a tree
CHUNK_BYTES = 1 << 20
"""Pages decoded at once: with what is made of them they fit a core's cache. 8 MB take twice as long
a page."""

PORTION_BYTES = 4 << 20
"""Pages whose rows are handed on at once: enough that Python's share in what follows is small."""

_UTF_8 = bytes([0, 0, 0, 1])
_WIDE = 0x80
"""A byte from here on is not the last one of its number."""
_LOCAL_MARGIN = 35
"""A payload longer than a page without these bytes goes on in overflow pages."""

_NULL, _ONE, _LAST_NUMBER, _FLOAT, _FIRST_TEXT = 0, 9, 9, 7, 12
_SIZES = np.array(
    [0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0, *((kind - _FIRST_TEXT) // 2 for kind in range(12, 128))],
    dtype=np.uint8,
)
"""Bytes of a value by its serial type, for the types of one byte."""
_NUMBER_SIZES = _SIZES[: _LAST_NUMBER + 1].astype(np.int64)
_UNUSED_BITS = 64 - 8 * _NUMBER_SIZES
"""Of the eight bytes that end with a number, by its serial type."""


class UnusualError(Exception):
    """The table holds what is not decoded here, or what no sound table holds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A column by its place in the table's rows, and what stands for NULL.

    It holds whole numbers, or texts and blobs if `limit` says how many of their bytes to keep.
    """

    place: int
    default: int = 0
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Size of a page and of the part of it that SQLite uses; the number of pages."""

    page: int
    usable: int
    pages: int


def layout(path: Path) -> Layout:
    """The page layout of the SQLite file at `path`."""
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100:
        raise UnusualError("no header")
    if header[56:60] != _UTF_8:
        raise UnusualError("text encoding")
    told = int.from_bytes(header[16:18], "big")
    page = 65_536 if told == 1 else told
    if page < 512 or page & (page - 1):
        raise UnusualError("page size")
    return Layout(page, page - header[20], path.stat().st_size // page)


def stored(
    connection: sqlite3.Connection, table: str, names: Sequence[str]
) -> tuple[int, list[int]]:
    """The first page of `table`, and the places of the columns `names` in its rows.

    The connection gives texts as bytes.
    """
    info = connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,)).fetchall()
    roots = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).fetchall()
    # A primary key may be the row id, which is not stored; a hidden column is made up.
    if len(roots) != 1 or any(row[5] or row[6] for row in info):
        raise UnusualError("schema")
    place_of = {row[1].decode("utf-8", "replace"): row[0] for row in info}
    if len(place_of) != len(info) or not place_of.keys() >= set(names):
        raise UnusualError("schema")
    return int(roots[0][0]), [place_of[name] for name in names]


def leaves(path: Path, shape: Layout, root: int) -> Int64s:
    """The numbers of the pages that hold the rows of the table at `root`, in row order."""
    level = np.array([root], dtype=np.int64)
    with path.open("rb", buffering=0) as file:
        for _ in range(_DEEPEST):
            if len(level) > shape.pages or int(level.min()) < 2 or int(level.max()) > shape.pages:
                raise UnusualError("page number")
            # Only the first page tells whether this is the level of the leaves.
            kind = int(_read(file, shape, level[:1])[0, 0])
            if kind == _LEAF:
                if len(np.unique(level)) < len(level):
                    raise UnusualError("a page twice")
                return level
            if kind != _INTERIOR:
                raise UnusualError("page type")
            level = np.concatenate(
                [
                    _children(one, shape)
                    for some in portions(shape, level)
                    for one in _read(file, shape, some)
                ]
            )
    raise UnusualError("depth")


def _read(file: BinaryIO, shape: Layout, pages: Int64s, into: Bytes | None = None) -> Bytes:
    """The contents of `pages`, one row each; neighbours in one go."""
    found = np.empty((len(pages), shape.page), dtype=np.uint8) if into is None else into
    edges = [0, *(np.flatnonzero(np.diff(pages) != 1) + 1).tolist(), len(pages)]
    for low, high in itertools.pairwise(edges):
        file.seek((int(pages[low]) - 1) * shape.page)
        view = found[low:high].data.cast("B")
        got = 0
        while got < len(view):
            more = file.readinto(view[got:])  # type: ignore[attr-defined]
            if not more:
                raise UnusualError("end of file")
            got += more
    return found


def _children(page: Bytes, shape: Layout) -> Int64s:
    if page[0] != _INTERIOR:
        raise UnusualError("page type")
    count = int(page[3]) << 8 | int(page[4])
    end = _INTERIOR_HEADER + 2 * count
    if end > shape.usable:
        raise UnusualError("cell count")
    cells = page[_INTERIOR_HEADER:end].view(">u2").astype(np.int64)
    if count and (int(cells.min()) < end or int(cells.max()) + 4 > shape.usable):
        raise UnusualError("cell pointer")
    last = page[8:12].view(">u4").astype(np.int64)
    bytes_of = [page.take(cells + place).astype(np.int64) << (24 - 8 * place) for place in range(4)]
    return np.concatenate([sum(bytes_of[1:], bytes_of[0]), last])


def portions(shape: Layout, pages: Int64s, size_bytes: int = PORTION_BYTES) -> list[Int64s]:
    """`pages` in portions of about as many rows as work on tables of them needs to be cheap."""
    size = max(size_bytes // shape.page, 1)
    return [pages[low : low + size] for low in range(0, len(pages), size)]


def decoded(
    path: Path, shape: Layout, shares: Sequence[Int64s], wanted: Sequence[Wanted]
) -> Iterator[list[Values]]:
    """The `wanted` columns of the leaves of each of `shares`."""
    size = max(CHUNK_BYTES // shape.page, 1)
    # Behind the last page there is room for a value that a damaged cell places there.
    buffer = np.zeros((size + 1) * shape.page, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        for share in shares:
            parts: list[list[Values]] = []
            for low in range(0, len(share), size):
                pages = share[low : low + size]
                found = buffer[: len(pages) * shape.page].reshape(len(pages), shape.page)
                _read(file, shape, pages, found)
                try:
                    parts.append(_rows(buffer, found, shape, wanted))
                except IndexError:
                    raise UnusualError("cell") from None
            yield [_joined(column) for column in zip(*parts, strict=True)]


def _joined(parts: Sequence[Values]) -> Values:
    if len(parts) == 1:
        return parts[0]
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if arrays:
        return np.concatenate(arrays)
    return pl.concat([part for part in parts if isinstance(part, pl.Series)], rechunk=True)


def _rows(buffer: Bytes, pages: Bytes, shape: Layout, wanted: Sequence[Wanted]) -> list[Values]:
    """The columns of all rows of `pages`, which lie at the start of `buffer`."""
    if (pages[:, 0] != _LEAF).any():
        raise UnusualError("page type")
    counts = pages[:, 3].astype(np.int64) << 8 | pages[:, 4]
    most = int(counts.max())
    if not counts.all() or _LEAF_HEADER + 2 * most > shape.usable:
        raise UnusualError("cell count")
    pointers = pages[:, _LEAF_HEADER : _LEAF_HEADER + 2 * most].view(">u2")
    used = np.arange(most) < counts[:, None]
    cell = pointers[used].astype(np.int64)
    page_start = np.repeat(np.arange(len(pages), dtype=np.int64) * shape.page, counts)
    first = np.repeat(_LEAF_HEADER + 2 * counts, counts)
    if (cell < first).any() or int(cell.max()) >= shape.usable:
        raise UnusualError("cell pointer")
    at = page_start + cell
    payload, at = _payload(buffer, at, shape)
    at = _behind_rowid(buffer, at)
    end = at + payload
    if (end > page_start + shape.usable).any():
        raise UnusualError("cell end")
    return _values(buffer, at, end, wanted)


def _payload(buffer: Bytes, at: Int64s, shape: Layout) -> tuple[Int64s, Int64s]:
    """The length of each cell's payload, and where the row id begins."""
    low = buffer.take(at)
    payload, after = low.astype(np.int64), at + 1
    if int(low.max()) >= _WIDE:
        long = low >= _WIDE
        second = buffer.take(after)
        if (second[long] >= _WIDE).any():
            raise UnusualError("payload size")
        payload = np.where(long, (payload & 0x7F) << 7 | second, payload)
        after += long
    if int(payload.max()) > shape.usable - _LOCAL_MARGIN:
        raise UnusualError("overflow page")
    return payload, after


def _behind_rowid(buffer: Bytes, at: Int64s) -> Int64s:
    goes_on = buffer.take(at) >= _WIDE
    at = at + 1
    for _ in range(8):
        if not goes_on.any():
            return at
        following = buffer.take(at) >= _WIDE
        at += goes_on
        goes_on &= following
    raise UnusualError("row id")


def _values(buffer: Bytes, at: Int64s, end: Int64s, wanted: Sequence[Wanted]) -> list[Values]:
    """The wanted columns of the records that begin at `at` and end before `end`."""
    header = buffer.take(at)
    if int(header.max()) >= _WIDE:
        raise UnusualError("header size")
    body = at + header
    header_end = body.copy()
    place_of = {column.place: number for number, column in enumerate(wanted)}
    found: list[Values] = [body] * len(wanted)
    at = at + 1
    for place in range(max(place_of) + 1):
        kind = buffer.take(at)
        at += 1
        number = place_of.get(place)
        if number is None or wanted[number].limit is not None:
            sizes = _sizes(buffer, at, kind)
            if number is not None:
                found[number] = _texts(buffer, body, kind, sizes, wanted[number].limit or 0)
            body += sizes
        else:
            found[number], size = _numbers(buffer, body, kind, wanted[number].default)
            body += size
    # With the last column in hand, the record has to end where its values do.
    if (at > header_end).any() or (body > end).any() or (body != end)[at == header_end].any():
        raise UnusualError("record")
    return found


def _sizes(buffer: Bytes, at: Int64s, kind: Bytes) -> NDArray[np.integer[Any]]:
    """Bytes of each value of any type, one number if all are alike.

    Moves `at` behind types of two bytes.
    """
    most = int(kind.max())
    if most < _WIDE:
        return _SIZES[most : most + 1] if int(kind.min()) == most else _SIZES.take(kind)
    long = kind >= _WIDE
    second = buffer.take(at)
    if (second[long] >= _WIDE).any():
        raise UnusualError("value size")
    at += long
    text = ((kind.astype(np.int64) & 0x7F) << 7 | second) - _FIRST_TEXT >> 1
    return np.where(long, text, _SIZES.take(np.minimum(kind, _WIDE - 1)))


def _numbers(
    buffer: Bytes, body: Int64s, kind: Bytes, default: int
) -> tuple[Int64s, Int64s | np.int64]:
    """Whole numbers at `body`, and the bytes that each takes."""
    least, most = int(kind.min()), int(kind.max())
    if most > _LAST_NUMBER or (most >= _FLOAT and (kind == _FLOAT).any()):
        raise UnusualError("not a whole number")
    sizes: Int64s | np.int64
    unused: Int64s | np.int64
    if least == most:
        sizes, unused = _NUMBER_SIZES[least], _UNUSED_BITS[least]
    else:
        sizes, unused = _NUMBER_SIZES.take(kind), _UNUSED_BITS.take(kind)
    if least == most and not sizes:
        constant = default if least == _NULL else int(least == _ONE)
        return np.full(len(body), constant, dtype=np.int64), sizes
    # The eight bytes that end with the value; a shift by all 64 bits gives zero.
    eights = as_strided(buffer[:8].view(">i8"), shape=(len(buffer) - 7,), strides=(1,))
    at = body + sizes
    at -= 8
    values = eights[at].astype(np.int64)
    values <<= unused
    values >>= unused
    if least == _NULL:
        values[kind == _NULL] = default
    if most == _ONE:
        values[kind == _ONE] = 1
    return values, sizes


def _texts(
    buffer: Bytes, body: Int64s, kind: Bytes, sizes: NDArray[np.integer[Any]], limit: int
) -> pl.Series:
    """Texts or blobs at `body`; empty ones for NULL."""
    if ((kind != _NULL) & (kind < _FIRST_TEXT)).any():
        raise UnusualError("not a text")
    sizes = np.broadcast_to(sizes, body.shape)
    held = np.flatnonzero(sizes)
    lows = body[held]
    highs = lows + np.minimum(sizes[held].astype(np.int64), limit)
    if len(held) and int(highs.max()) > len(buffer):
        raise UnusualError("text")
    # Cells of one length become Python's bytes together, in an eighth of the time.
    lengths = highs - lows
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    cells = [b""]
    for first, last in itertools.pairwise(edges if len(held) else []):
        length = int(lengths[first])
        every = np.ndarray((len(buffer) - length + 1,), f"V{length}", buffer.data, 0, (1,))
        cells += every[lows[order[first:last]]].tolist()
    place = np.zeros(len(body), dtype=np.int64)
    place[held[order]] = np.arange(1, len(held) + 1)
    return pl.Series(cells, dtype=pl.Binary).gather(place)
