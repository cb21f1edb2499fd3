"""How the tables of a Nsight Systems export are read, whatever holds them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_advisor.model import NONE

TEXT_LIMIT_BYTES = 16_384
"""Longest text taken from a cell. CUTLASS kernel names reach about 8 KB; beyond it is abuse."""

BLOB_LIMIT_BYTES = 512
"""Longest blob taken from a cell. NCCL's payloads are below 100 bytes."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column to fetch. The default's type decides the column's: int, str or bytes.

    The default stands for NULL and for a column that the table does not have.
    """

    name: str
    default: int | str | bytes = NONE

    @property
    def dtype(self) -> pl.DataType:
        """The polars type of the fetched column: Int64, String or Binary."""
        if isinstance(self.default, int):
            return pl.Int64()
        return pl.String() if isinstance(self.default, str) else pl.Binary()


@dataclass(frozen=True, slots=True)
class Among:
    """Keep only the rows whose `column` is one of `values`."""

    column: str
    values: tuple[int, ...] | tuple[str, ...]


T = TypeVar("T")

Numbers = Mapping[str, NDArray[np.int64]]
"""Columns of whole numbers by name, row for row."""


class TableSource(Protocol):
    """A read-only set of tables."""

    def tables(self) -> frozenset[str]:
        """The names of the tables that exist."""

    def columns(self, table: str) -> frozenset[str]:
        """The columns of `table`; empty if there is no such table."""

    def fetch(
        self, table: str, columns: Sequence[Column], where: Among | None = None
    ) -> pl.DataFrame:
        """The rows of `table`, with exactly `columns` in their types and without nulls.

        Rows come in no particular order. A missing table gives no rows; one that is damaged
        gives what could be read and is named in `damaged`.
        """

    def stretches(
        self, table: str, columns: Sequence[Column], work: Callable[[Iterator[Numbers]], T]
    ) -> list[T]:
        """What `work` makes of each stretch of `table`, in file order; at least one stretch.

        A stretch comes in parts of some ten thousand rows, which are not to be kept: a table never
        needs to be in memory as a whole. Stretches are read in threads. `columns` are numbers.
        """

    @property
    def damaged(self) -> dict[str, int]:
        """Tables that could not be read to their end -> rows that were saved."""


def no_rows(columns: Sequence[Column]) -> pl.DataFrame:
    """A table of `columns` without rows."""
    return pl.DataFrame(schema={column.name: column.dtype for column in columns})


def numbers(frame: pl.DataFrame) -> Numbers:
    """A table that holds nothing but whole numbers, as arrays."""
    return {column.name: column.to_numpy() for column in frame}


def decode_text(column: pl.Series) -> pl.Series:
    """Binary `column` as text; bytes that are not UTF-8 become replacement characters."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series(
            column.name,
            [None if cell is None else cell.decode("utf-8", "replace") for cell in column],
            dtype=pl.String,
        )
