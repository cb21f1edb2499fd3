"""An export whose tables take hours to read: every row claims the same endless cell."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.nsys_builder import two_steps

PAGE = 4096
LEAST = (PAGE - 12) * 32 // 255 - 23
"""Bytes of a long cell that stay in the leaf; the rest is in overflow pages."""
HEADER = 6
CELL_BYTES = LEAST + 14_000 * (PAGE - 4) - HEADER
"""57 MB, below the limit of a cell, so that nothing but the clock ends a query."""
LEAVES, ROWS = 500, 7


def _varint(value: int, length: int) -> bytes:
    groups = [value >> 7 * at & 127 for at in reversed(range(length))]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def _leaf(rows: range, overflow: int) -> bytes:
    """A table leaf whose rows (id NULL, value blob) go on in the page `overflow`."""
    body = b"\x06\x00" + _varint(2 * CELL_BYTES + 12, 4) + bytes(LEAST - HEADER)
    payload = _varint(HEADER + CELL_BYTES, 4)
    cells = [payload + _varint(row, 3) + body + overflow.to_bytes(4, "big") for row in rows]
    page, at, pointers = bytearray(PAGE), PAGE, b""
    for cell in cells:
        at -= len(cell)
        page[at : at + len(cell)] = cell
        pointers += at.to_bytes(2, "big")
    start = b"\x0d\x00\x00" + len(cells).to_bytes(2, "big") + at.to_bytes(2, "big") + b"\x00"
    page[: 8 + len(pointers)] = start + pointers
    assert 8 + len(pointers) <= at
    return bytes(page)


def write(path: Path, table: str = "StringIds") -> Path:
    """Two sound steps, but for `table`: 3,507 rows of 57 MB each, all of one page."""
    two_steps().write(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"pragma page_size={PAGE}")
        database.execute("vacuum")
        root = database.execute("select rootpage from sqlite_master where name = ?", [table])
        place = root.fetchone()[0]
        pages = database.execute("pragma page_count").fetchone()[0]
    overflow, first, last = pages + 1, pages + 2, pages + 3
    count = last + CELL_BYTES // PAGE + 1  # SQLite refuses a cell larger than its file
    inner = bytearray(PAGE)
    at, pointers = PAGE, b""
    for _ in range(LEAVES):
        cell = first.to_bytes(4, "big") + b"\x01"
        at -= len(cell)
        inner[at : at + len(cell)] = cell
        pointers += at.to_bytes(2, "big")
    start = b"\x05\x00\x00" + LEAVES.to_bytes(2, "big") + at.to_bytes(2, "big") + b"\x00"
    inner[: 12 + len(pointers)] = start + last.to_bytes(4, "big") + pointers
    with path.open("r+b") as file:
        for page, data in (
            (place, bytes(inner)),
            (overflow, overflow.to_bytes(4, "big") + bytes(PAGE - 4)),
            (first, _leaf(range(1, 1 + ROWS), overflow)),
            (last, _leaf(range(60_000, 60_000 + ROWS), overflow)),
        ):
            file.seek((page - 1) * PAGE)
            file.write(data)
        file.seek(28)
        file.write(count.to_bytes(4, "big"))
        file.truncate(count * PAGE)
    return path
