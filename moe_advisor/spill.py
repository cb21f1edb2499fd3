"""Keeps the tables of a very large input in temporary files that memory only mirrors.

A spilled table is an ordinary data frame whose columns lie in a file without a name, which goes
with the table. The system reads what is touched; `release` gives the memory back.
"""

import contextlib
import mmap
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from moe_advisor import allocator

SPILL_ROWS = 4_000_000
"""GPU activities of an input above which its tables are spilled. In memory they and their calls
take 0.2 GB for a million; below this that is less than what measuring them takes."""

RELEASE_EVERY_S = 0.2
"""A core reads about 0.2 GB of tables in this time, which bounds what of them is in memory."""

_ALIGN = 64

_mirrors: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def spilled(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame`, which has no nulls, with its numbers in a temporary file.

    It is `frame` itself where the temporary folder has no room. Bits stay in memory.
    """
    columns = {name: frame[name] for name, kind in frame.schema.items() if kind != pl.Boolean}
    starts: dict[str, int] = {}
    try:
        with tempfile.TemporaryFile() as file:
            for name, column in columns.items():
                starts[name] = file.tell() + -file.tell() % _ALIGN
                file.seek(starts[name])
                for chunk in column.get_chunks():
                    chunk.to_numpy().tofile(file)
            file.flush()
            mirror = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return frame
    _mirrors.add(mirror)
    return frame.with_columns(
        pl.Series(name, np.frombuffer(mirror, _dtype(column), len(frame), starts[name]))
        for name, column in columns.items()
    )


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
