"""Keeps the tables of a very large input in temporary files that memory only mirrors.

A spilled table is an ordinary data frame whose columns lie in a file without a name, which goes
with the table. The system reads what is touched; `release` gives the memory back.
"""

import contextlib
import io
import mmap
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import polars as pl

from moe_advisor import allocator

SPILL_ROWS = 4_000_000
"""GPU activities of an input above which its tables are spilled. In memory they and their calls
take 0.2 GB for a million; below this that is less than what measuring them takes."""

RELEASE_EVERY_S = 0.05
"""Two cores read about 0.1 GB of tables in this time, which bounds what of them is in memory."""

_ALIGN = 64

_mirrors: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def spilled(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame`, which has no nulls, with its numbers in a temporary file.

    It is `frame` itself where the temporary folder has no room. Bits stay in memory.
    """
    bits = [name for name, kind in frame.schema.items() if kind == pl.Boolean]
    spool = Spool()
    kept = spool.put(frame.drop(bits))
    return frame if isinstance(kept, pl.DataFrame) else frame.with_columns(spool.table(kept))


@dataclass(frozen=True, slots=True)
class Spooled:
    """Where the columns of a table begin in the file of a spool."""

    starts: dict[str, int]
    dtypes: dict[str, np.dtype[Any]]
    rows: int


class Spool:
    """Takes tables of numbers without nulls into one temporary file, as they come in any thread."""

    def __init__(self, *, in_memory: bool = False) -> None:
        """With `in_memory` tables stay as they are."""
        self._in_memory = in_memory
        self._lock = threading.Lock()
        self._mirror: mmap.mmap | bytes = b""
        self._file: IO[bytes] | None = None

    def put(self, frame: pl.DataFrame) -> Spooled | pl.DataFrame:
        """What `table` gives `frame` back for: `frame` itself where there is no room for it."""
        if self._in_memory or not len(frame):
            return frame
        starts: dict[str, int] = {}
        try:
            with self._lock:
                if self._file is None:
                    self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `table`
                file = self._file
                for column in frame:
                    end = file.seek(0, io.SEEK_END)
                    starts[column.name] = file.seek(end + -end % _ALIGN)
                    for chunk in column.get_chunks():
                        chunk.to_numpy().tofile(file)
                file.flush()
        except OSError:
            return frame
        return Spooled(starts, {column.name: _dtype(column) for column in frame}, len(frame))

    def table(self, kept: Spooled | pl.DataFrame) -> pl.DataFrame:
        """A table that was put in. Nothing more can be put in then."""
        if isinstance(kept, pl.DataFrame):
            return kept
        if self._file is not None:
            with self._file as file:
                self._mirror = _mirrored(file)
            self._file = None
        return pl.DataFrame(
            {
                name: np.frombuffer(self._mirror, kept.dtypes[name], kept.rows, start)
                for name, start in kept.starts.items()
            }
        )


def _mirrored(file: IO[bytes]) -> mmap.mmap | bytes:
    try:
        mirror = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # no address space left
        file.seek(0)
        return file.read()
    _mirrors.add(mirror)
    return mirror


def _dtype(column: pl.Series) -> np.dtype[Any]:
    kind: np.dtype[Any] = column.head(0).to_numpy().dtype
    return kind


def release() -> None:
    """Gives back the memory that mirrors spilled tables; they are read again where needed."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for mirror in list(_mirrors):
        with contextlib.suppress(OSError, ValueError):
            mirror.madvise(mmap.MADV_DONTNEED)
    if len(_mirrors):
        allocator.trim()


@contextlib.contextmanager
def releasing() -> Iterator[None]:
    """Calls `release` again and again until the context ends."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(RELEASE_EVERY_S):
            release()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release()
