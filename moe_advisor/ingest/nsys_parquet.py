"""Reads the folder that `nsys export -t parquetdir` writes: one Parquet file per table."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from moe_advisor.errors import InputError
from moe_advisor.ingest.nsys_build import build
from moe_advisor.ingest.nsys_tables import KNOWN_TABLES
from moe_advisor.model import NONE, LoadedInput
from moe_advisor.privacy import display_name
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

FORMAT = "nsys-parquet"
_SUFFIX = ".parquet"
_MAGIC = b"PAR1"


def sniff(path: Path) -> bool:
    """Whether `path` is a folder with Parquet files named like Nsight Systems tables."""
    if not path.is_dir():
        return False
    return any(_is_parquet(path / (table + _SUFFIX)) for table in KNOWN_TABLES)


def load(path: Path) -> LoadedInput:
    """The ranks in the export folder at `path`. Raises InputError when nothing can be read."""
    name = display_name(path)
    if not sniff(path):
        raise InputError(
            f"{name}: no Nsight Systems tables in this folder; give the one that"
            " nsys export -t parquetdir wrote"
        )
    source = ParquetSource(path)
    loaded = build(source, name, FORMAT)
    if source.damaged and not loaded.ranks and not source.saved:
        raise InputError(f"{name}: none of the tables can be read; export the report again")
    return loaded


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class ParquetSource:
    """The tables of a Parquet export; see `TableSource`."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            file.stem: file for file in sorted(folder.glob("*" + _SUFFIX)) if file.is_file()
        }
        self._schemas: dict[str, frozenset[str]] = {}
        self._damaged: dict[str, int] = {}
        self.saved = 0  # rows read from any table

    @property
    def damaged(self) -> dict[str, int]:
        """Tables that could not be read -> 0: a Parquet file is read as a whole or not."""
        return dict(self._damaged)

    def tables(self) -> frozenset[str]:
        """The names of the tables in the folder."""
        return frozenset(self._files)

    def columns(self, table: str) -> frozenset[str]:
        """The columns of `table`; empty if there is no such table."""
        if table not in self._files:
            return frozenset()
        if table not in self._schemas:
            try:
                names = pl.read_parquet_schema(self._files[table])
            except (pl.exceptions.PolarsError, OSError):
                self._damaged[table] = 0
                names = {}
            self._schemas[table] = frozenset(names)
        return self._schemas[table]

    def fetch(
        self, table: str, columns: Sequence[Column], where: Among | None = None
    ) -> pl.DataFrame:
        """The rows of `table`; see `TableSource.fetch`."""
        present = self.columns(table)
        wanted = [column for column in columns if column.name in present]
        if not wanted or (where is not None and where.column not in present):
            return no_rows(columns)
        names = {column.name for column in wanted} | ({where.column} if where else set())
        try:
            frame = pl.read_parquet(self._files[table], columns=sorted(names), glob=False)
        except (pl.exceptions.PolarsError, OSError):
            self._damaged[table] = 0
            return no_rows(columns)
        if where is not None:
            # Nothing that is asked for is empty or negative, so what stands for NULL is left out.
            kind: int | str = "" if isinstance(where.values[0], str) else NONE
            kept = _converted(frame[where.column], Column(where.column, kind))
            frame = frame.filter(kept.is_in(list(where.values)))
        self.saved += frame.height
        return pl.DataFrame(
            [
                _converted(frame[column.name], column)
                if column.name in present
                else pl.Series(column.name, [column.default], dtype=column.dtype).new_from_index(
                    0, frame.height
                )
                for column in columns
            ]
        )

    def stretches(
        self, table: str, columns: Sequence[Column], work: Callable[[Iterator[Numbers]], T]
    ) -> list[T]:
        """What `work` makes of `table`, in one part."""
        return [work(iter((numbers(self.fetch(table, columns)),)))]


def _converted(series: pl.Series, column: Column) -> pl.Series:
    """`series` in the type of `column`, whatever type the exporter chose, without nulls.

    A type that holds no such value, as a list or bytes, counts as a column that is missing.
    """
    try:
        return _cast(series, column)
    except pl.exceptions.PolarsError:
        return pl.Series(series.name, [column.default], dtype=column.dtype).new_from_index(
            0, len(series)
        )


def _cast(series: pl.Series, column: Column) -> pl.Series:
    if series.dtype.is_nested():
        raise pl.exceptions.InvalidOperationError(f"no {column.dtype}")
    if isinstance(column.default, int):
        if series.dtype == pl.UInt64:
            return series.reinterpret(signed=True).fill_null(column.default)
        return series.cast(pl.Int64, strict=False).fill_null(column.default)
    if isinstance(column.default, str):
        text = decode_text(series) if series.dtype == pl.Binary else series.cast(pl.String)
        return text.fill_null(column.default).str.slice(0, TEXT_LIMIT_BYTES)
    return series.cast(pl.Binary).fill_null(column.default).bin.head(BLOB_LIMIT_BYTES)
