"""Fetches chosen columns of SQLite files fast."""

import contextlib
import functools
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import polars as pl
from adbc_driver_manager import Error as AdbcError
from adbc_driver_sqlite import dbapi

from moe_advisor import interrupts
from moe_advisor.errors import InputError
from moe_advisor.ingest import sqlite_pages
from moe_advisor.ingest.sqlite_file import (
    HARDENING,
    IMMUTABLE,
    SqliteFile,
    quoted,
)
from moe_advisor.ingest.sqlite_pages import (
    CHUNK_BYTES,
    PORTION_BYTES,
    Int64s,
    UnusualError,
    Values,
    Wanted,
)
from moe_advisor.model import NONE
from moe_advisor.table_source import (
    BLOB_LIMIT_BYTES,
    TEXT_LIMIT_BYTES,
    Among,
    Column,
    Numbers,
    T,
    decode_text,
    no_rows,
    numbers,
)

U = TypeVar("U")

# One cursor costs 40 ns a cell and two cost 20, but a second connection costs a millisecond.
_CURSORS = 2
_PARTS_FROM_ROWS = 100_000
_PART_ROWS = 131_072  # about 10 MB of raw cells in flight for each cursor
_MOST_PARTS = 10_000
_BATCH_ROWS = 16_384  # larger batches are no faster and double the memory in flight
_PAGES_FROM = 256  # of a table: below it SQLite takes milliseconds
_LATE_S = 1.0  # after the deadline: a part that is nearly read ends by itself


class _EndlessError(sqlite3.DatabaseError):
    """A table gave more rows than the file can hold: its pages refer to each other in circles."""


_DAMAGE = (sqlite3.DatabaseError, UnicodeError, MemoryError)
"""What reading a damaged page ends in. A damaged length asks for gigabytes at once: MemoryError."""


def _expression(column: Column) -> str:
    """SQL for one column whose type can't depend on the rows, which ADBC needs."""
    name = quoted(column.name)
    if isinstance(column.default, int):
        number, nothing = f"CAST({name} AS INTEGER)", str(column.default)
        # A text that is no whole number would be cast to 0, which is a time like another.
        whole = f"CASE WHEN CAST({number} AS TEXT) = CAST({name} AS TEXT) THEN {number}"
        return (
            f"CASE typeof({name}) WHEN 'integer' THEN {name} WHEN 'real' THEN {number}"
            f" WHEN 'null' THEN {nothing} ELSE {whole} ELSE {nothing} END END AS {name}"
        )
    limit = _limit(column.default)
    # As a blob, because text cells may hold bytes that are not UTF-8, or payloads with zeros.
    return f"coalesce(substr(CAST({name} AS BLOB), 1, {limit}), x'') AS {name}"


def _limit(default: str | bytes) -> int:
    return TEXT_LIMIT_BYTES if isinstance(default, str) else BLOB_LIMIT_BYTES


def _wanted(place: int, default: int | str | bytes) -> Wanted:
    if isinstance(default, int):
        return Wanted(place, default)
    return Wanted(place, limit=_limit(default))


def _literal(value: int | str) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _finished(
    frame: pl.DataFrame, columns: Sequence[Column], present: frozenset[str]
) -> pl.DataFrame:
    """`frame` with text decoded, absent columns filled in and the order of `columns`."""
    series: list[pl.Series] = []
    for column in columns:
        if column.name not in present:
            filler = pl.Series(column.name, [column.default], dtype=column.dtype)
            series.append(filler.new_from_index(0, frame.height))
        elif isinstance(column.default, str):
            text = decode_text(frame[column.name].cast(pl.Binary))
            series.append(text.replace("", column.default) if column.default else text)
        else:
            series.append(frame[column.name].cast(column.dtype))
    return pl.DataFrame(series)


class SqliteSource(SqliteFile):
    """The tables of a SQLite file; see `TableSource`. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns: dict[str, frozenset[str]] = {}
        self._damaged: dict[str, int] = {}

    def _refuse_late(self) -> None:
        """Raises InputError past the deadline: what SQLite says then reads like damage.

        So does what it says where a signal met the look at the clock: KeyboardInterrupt.
        """
        interrupts.check()
        if self._late():
            raise InputError(
                f"{self._shown}: not read after {self._query_s:g} s: if you trust it, raise the "
                "limit with --max-seconds"
            )

    @property
    def damaged(self) -> dict[str, int]:
        """Tables that could not be read to their end -> rows that were saved."""
        return dict(self._damaged)

    def columns(self, table: str) -> frozenset[str]:
        """The columns of `table`; empty if there is no such table."""
        if table not in self._tables:
            return frozenset()
        if table not in self._columns:
            try:
                rows = self._plain.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
            except _DAMAGE:
                self._damaged.setdefault(table, 0)
                rows = []
            self._columns[table] = frozenset(row[1].decode("utf-8", "replace") for row in rows)
        return self._columns[table]

    def fetch(
        self, table: str, columns: Sequence[Column], where: Among | None = None
    ) -> pl.DataFrame:
        """The rows of `table`; see `TableSource.fetch`."""
        present = self.columns(table)
        wanted = [column for column in columns if column.name in present]
        if not wanted or (where is not None and where.column not in present):
            return no_rows(columns)

        def tables(stretch: Iterator[pl.DataFrame]) -> list[pl.DataFrame]:
            return [_finished(rows, columns, present) for rows in stretch]

        def frames(parts: Iterator[dict[str, Values]]) -> list[pl.DataFrame]:
            return tables(map(pl.DataFrame, parts))

        stretches = self._read(table, wanted, where, frames, tables)
        return pl.concat([rows for stretch in stretches for rows in stretch])

    def stretches(
        self, table: str, columns: Sequence[Column], work: Callable[[Iterator[Numbers]], T]
    ) -> list[T]:
        """What `work` makes of the stretches of `table`; see `TableSource.stretches`."""
        present = self.columns(table)
        wanted = [column for column in columns if column.name in present]
        if not wanted:
            return [work(iter((numbers(no_rows(columns)),)))]

        def whole(part: Mapping[str, Values]) -> Numbers:
            rows = len(part[wanted[0].name])
            found: dict[str, Int64s] = {}
            for column in columns:
                held = part.get(column.name)
                if not isinstance(held, np.ndarray):  # the default of a column of numbers is one
                    held = np.full(rows, column.default, dtype=np.int64)
                found[column.name] = held
            return found

        return self._read(
            table,
            wanted,
            None,
            lambda parts: work(map(whole, parts)),
            lambda parts: work(numbers(_finished(rows, columns, present)) for rows in parts),
            CHUNK_BYTES,
        )

    def _read(
        self,
        table: str,
        wanted: Sequence[Column],
        where: Among | None,
        pages: Callable[[Iterator[dict[str, Values]]], T],
        tables: Callable[[Iterator[pl.DataFrame]], T],
        portion_bytes: int = PORTION_BYTES,
    ) -> list[T]:
        """What `pages` or else `tables` makes of each stretch of the rows, by who can read them."""
        with contextlib.suppress(UnusualError, OSError):
            return self._read_pages(table, wanted, where, pages, portion_bytes)
        select = ", ".join(_expression(column) for column in wanted)
        # Identifiers and literals are quoted above.
        query = _Query(
            f"SELECT {select}",
            table,
            tuple(dict.fromkeys([*(c.name for c in wanted), *([where.column] if where else [])])),
            _condition(where) if where else "",
        )
        try:
            return self._read_in_parts(query, tables)
        except (AdbcError, *_DAMAGE):
            self._refuse_late()
            return [tables(iter((self._read_up_to_damage(query, wanted),)))]

    def _row_range(self, table: str) -> tuple[int, int] | None:
        """First and last rowid, or None where the rows can't be split by it."""
        if any(name.lower() == "rowid" for name in self.columns(table)):
            return None
        try:
            # Two queries: asked together, SQLite scans the whole table for them.
            low, high = (
                self._plain.execute(
                    f"SELECT {end}(rowid) FROM {quoted(table)}"  # noqa: S608
                ).fetchone()[0]
                for end in ("min", "max")
            )
        except sqlite3.OperationalError:  # WITHOUT ROWID
            return None
        if not isinstance(low, int) or not isinstance(high, int):
            return None
        return low, high

    def _read_in_parts(
        self, query: "_Query", work: Callable[[Iterator[pl.DataFrame]], T]
    ) -> list[T]:
        ends = self._row_range(query.table)
        most = self._most_rows
        if ends is None or ends[1] - ends[0] < _PARTS_FROM_ROWS:
            if ends is not None:
                most = min(most, ends[1] - ends[0] + 1)

            def read_all() -> pl.DataFrame:
                with self._connection() as connection:
                    return _run(connection, query, most)

            return [work(iter((rows,))) for rows in self._in_time([read_all])]
        first, last = ends
        # Rowids have no gaps in an export; where they do, parts are only uneven.
        count = _CURSORS * min(max((last - first) // (_CURSORS * _PART_ROWS), 1), _MOST_PARTS)
        edges = [first + (last - first) * i // count for i in range(1, count)]
        bounds = list(zip([first, *edges], [*edges, last + 1], strict=True))

        def parts(share: list[tuple[int, int]]) -> Iterator[pl.DataFrame]:
            with self._connection() as connection:
                for low, high in share:
                    self._refuse_late()
                    rows = replace(query, rows=f"rowid >= {low} AND rowid < {high}")
                    yield _run(connection, rows, min(most, high - low))

        def read(share: list[tuple[int, int]]) -> T:
            return work(parts(share))

        # Each cursor reads one stretch of the file from front to back.
        length = count // _CURSORS
        shares = [bounds[i : i + length] for i in range(0, count, length)]
        return self._in_time([functools.partial(read, share) for share in shares])

    def _read_pages(
        self,
        table: str,
        wanted: Sequence[Column],
        where: Among | None,
        work: Callable[[Iterator[dict[str, Values]]], T],
        portion_bytes: int,
    ) -> list[T]:
        """What `work` makes of a large table, read without SQLite.

        Raises UnusualError where only SQLite can read it, or does so as fast.
        """
        if not self._uri.endswith(IMMUTABLE):
            raise UnusualError("changes wait beside the file")
        default_of = {column.name: column.default for column in wanted}
        chosen: list[int] | list[bytes] = []
        if where:
            texts = [one.encode() for one in where.values if isinstance(one, str)]
            numbers = [one for one in where.values if isinstance(one, int)]
            default = default_of.setdefault(where.column, NONE if numbers else "")
            chosen = texts or numbers
            if not chosen or default in where.values or isinstance(default, int) == bool(texts):
                raise UnusualError("condition")
        names = list(default_of)
        try:
            root, places = sqlite_pages.stored(self._plain, table, names)
        except _DAMAGE:
            raise UnusualError("schema") from None
        shape = sqlite_pages.layout(self._path)
        leaves = sqlite_pages.leaves(self._path, shape, root)
        if len(leaves) < _PAGES_FROM:
            raise UnusualError("small")
        columns = [_wanted(*pair) for pair in zip(places, default_of.values(), strict=True)]
        portions = sqlite_pages.portions(shape, leaves, portion_bytes)

        def parts(share: list[Int64s]) -> Iterator[dict[str, Values]]:
            for arrays in sqlite_pages.decoded(self._path, shape, share, columns):
                self._refuse_late()
                part = dict(zip(names, arrays, strict=True))
                if where:
                    rows = pl.DataFrame(part)
                    part = dict(rows.filter(pl.col(where.column).is_in(chosen)).to_dict())
                yield part

        def read(share: list[Int64s]) -> T:
            return work(parts(share))

        half = (len(portions) + 1) // _CURSORS
        shares = [portions[low : low + half] for low in range(0, len(portions), half)]
        return self._in_time([functools.partial(read, share) for share in shares])

    def _in_time(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What `works` return, each done in a thread of its own. Raises InputError when late.

        A query of ADBC can't be interrupted. One that is late is left behind in a thread that
        does not keep the program from ending; so is one that an interrupt meets.
        """
        self._refuse_late()
        done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

        def run(number: int) -> None:
            try:
                done.put((number, works[number](), None))
            except BaseException as error:  # handed to the thread that waits
                done.put((number, None, error))

        threads = [
            threading.Thread(target=run, args=(number,), name="sqlite", daemon=True)
            for number in range(len(works))
        ]
        found: dict[int, T | None] = {}
        failed: BaseException | None = None
        try:
            for thread in threads:
                thread.start()
            for _ in works:
                number, rows, error = self._next(done)
                found[number] = rows
                failed = failed or error
        except queue.Empty:
            self._refuse_late()
            raise
        except BaseException:
            self._until = -math.inf  # the threads end with the part they are at
            for thread in threads:
                thread.join(_LATE_S)
            raise
        if failed is not None:
            raise failed
        return [cast("T", found[number]) for number in range(len(works))]

    def _next(self, done: "queue.SimpleQueue[U]") -> U:
        """What comes next. Raises queue.Empty past the deadline."""
        while True:
            left_s = self._until + _LATE_S - time.monotonic()
            try:
                return done.get(timeout=min(max(left_s, 0.0), interrupts.WAIT_S))
            except queue.Empty:
                if left_s <= interrupts.WAIT_S:
                    raise

    @contextlib.contextmanager
    def _connection(self) -> Iterator[dbapi.Connection]:
        with dbapi.connect(self._uri) as connection:
            with connection.cursor() as cursor:
                for pragma in HARDENING:
                    cursor.execute(pragma)
            yield connection

    def _read_up_to_damage(self, query: "_Query", columns: Sequence[Column]) -> pl.DataFrame:
        """The rows before the damage; none where they never end: nothing tells the true ones."""
        rows: list[tuple[Any, ...]] = []
        ends = None
        with contextlib.suppress(*_DAMAGE):
            ends = self._row_range(query.table)
        most = min(self._most_rows, ends[1] - ends[0] + 1) if ends else self._most_rows
        # SQLite looks at the clock after many instructions, and one may read 64 MiB of a cell.
        alarm = threading.Timer(max(self._until - time.monotonic(), 0.0), self._plain.interrupt)
        alarm.daemon = True
        alarm.start()
        try:
            rows.extend(self._plain.execute(query.text(most + 1)))
        except _DAMAGE:
            self._refuse_late()
            self._damaged[query.table] = len(rows)
        finally:
            alarm.cancel()
        if len(rows) > most:
            rows.clear()
            self._damaged[query.table] = 0
        types: dict[str, Any] = {
            column.name: pl.Int64 if isinstance(column.default, int) else pl.Binary
            for column in columns
        }
        return pl.DataFrame(rows, schema=types, orient="row")


@dataclass(frozen=True, slots=True)
class _Query:
    """A SELECT over one table, in pieces so that the rows it walks through can be bounded."""

    select: str
    table: str
    columns: tuple[str, ...]
    condition: str
    rows: str = ""

    def text(self, most_rows: int) -> str:
        """The statement, which walks through at most `most_rows` rows."""
        where = f" WHERE {self.rows}" if self.rows else ""
        source = f"{quoted(self.table)}{where} LIMIT {most_rows}"
        if not self.condition:
            return f"{self.select} FROM {source}"
        # A limit behind the condition would count only the rows that fulfil it.
        names = ", ".join(map(quoted, self.columns))
        return f"{self.select} FROM (SELECT {names} FROM {source}) WHERE {self.condition}"  # noqa: S608


def _run(connection: dbapi.Connection, query: _Query, most_rows: int) -> pl.DataFrame:
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": _BATCH_ROWS})
        cursor.execute(query.text(most_rows + 1))
        found = pl.DataFrame(cursor.fetch_arrow())
    if found.height > most_rows:
        raise _EndlessError("more rows than the file can hold")
    return found


def _condition(where: Among) -> str:
    return f"{quoted(where.column)} IN ({', '.join(_literal(value) for value in where.values)})"


@contextlib.contextmanager
def open_sqlite(path: Path) -> Iterator[SqliteSource]:
    """The tables of `path`, closed and cleaned up afterwards. Raises InputError."""
    with SqliteSource(path) as source:
        yield source
