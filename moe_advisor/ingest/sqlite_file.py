"""Opens SQLite files without ever changing them.

Without the libraries that reading their tables takes: a second analysis needs to know what a file
is, and no table.
"""

import contextlib
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from moe_advisor import bounded
from moe_advisor.errors import InputError
from moe_advisor.privacy import display_name

MAGIC = b"SQLite format 3\x00"
HARDENING = (
    "PRAGMA query_only=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA mmap_size=0",
)
IMMUTABLE = "&immutable=1"
_LOCK_WAIT_S = 5.0
_LOOK_EVERY = 100_000  # of SQLite's instructions: about a millisecond
_CELL_LIMIT_BYTES = 64 << 20  # of a whole cell before it is cut; SQLite's own limit is 1 GB
# The smallest row: two bytes of pointer, one each of size, row id, header size and one type.
_LEAST_ROW_BYTES = 6


def is_sqlite(path: Path) -> bool:
    """Whether the file begins like a SQLite database."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _missing_bytes(path: Path) -> int:
    """How much of the file its header promises is not there; SQLite reads that as empty pages."""
    with path.open("rb") as file:
        header = file.read(100)
    page = int.from_bytes(header[16:18], "big")
    pages = int.from_bytes(header[28:32], "big")
    counted = header[24:28] == header[92:96]  # else the page count is not maintained
    size = (65_536 if page == 1 else page) * pages
    return max(size - path.stat().st_size, 0) if counted else 0


def read_only_uri(path: Path) -> str:
    """The URI that opens `path` so that SQLite can't write, lock or create anything.

    `immutable` would hide rows that are still in a write-ahead log or rollback journal, so it is
    left out when one lies beside the file.
    """
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    suffix = "" if any(other.exists() for other in beside) else IMMUTABLE
    return f"{path.absolute().as_uri()}?mode=ro{suffix}"


def quoted(identifier: str) -> str:
    """`identifier` as a SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


class SqliteFile:
    """A SQLite file and the names of its tables. Use it as a context manager.

    A file with a write-ahead log is copied with it into a temporary folder first: SQLite would
    have to create files beside it to read the log.
    """

    def __init__(self, path: Path) -> None:
        self._shown = display_name(path)
        self._stack = contextlib.ExitStack()
        self._query_s = bounded.current().query_s
        self._until = time.monotonic() + self._query_s
        self.missing_bytes = 0
        """How much shorter the file is than its header says."""
        if not is_sqlite(path):
            raise InputError(f"{self._shown}: not a SQLite database; give an nsys export")
        try:
            found = self._without_log(path)
            if found == path:
                self.missing_bytes = _missing_bytes(path)
            self._most_rows = found.stat().st_size // _LEAST_ROW_BYTES + 1
            self._path = found
            self._uri = read_only_uri(found)
            self._plain = sqlite3.connect(
                self._uri,
                uri=True,
                timeout=_LOCK_WAIT_S,
                check_same_thread=False,  # one thread asks at a time, but not always the same
            )
            self._stack.callback(self._plain.close)
            self._plain.text_factory = bytes
            self._plain.set_progress_handler(self._late, _LOOK_EVERY)
            self._plain.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _CELL_LIMIT_BYTES)
            for pragma in HARDENING:
                self._plain.execute(pragma)
            self._tables = self._read_tables()
        except (sqlite3.Error, UnicodeError, MemoryError, OSError) as error:
            # UnicodeError: SQLite repeats damaged bytes of the schema in its own message.
            self._stack.close()
            raise InputError(
                f"{self._shown}: a damaged SQLite database ({_reason(error)}); "
                "export the report again"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _late(self) -> bool:
        return time.monotonic() > self._until

    @property
    def uri(self) -> str:
        """What opens the same file read-only, for as long as this source is open."""
        return self._uri

    @property
    def most_rows(self) -> int:
        """More rows than this no table of the file can hold."""
        return self._most_rows

    def tables(self) -> frozenset[str]:
        """The names of the plain tables: no views, no virtual tables."""
        return self._tables

    def _without_log(self, path: Path) -> Path:
        log = path.with_name(path.name + "-wal")
        if not log.exists() or log.stat().st_size == 0:
            return path
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-advisor-")))
        copy = folder / "export.sqlite"
        shutil.copyfile(path, copy)
        shutil.copyfile(log, folder / "export.sqlite-wal")
        return copy

    def _read_tables(self) -> frozenset[str]:
        rows = self._plain.execute(
            "SELECT CAST(name AS BLOB) FROM sqlite_master WHERE type = 'table'"
            " AND name NOT LIKE 'sqlite!_%' ESCAPE '!' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        )
        return frozenset(row[0].decode("utf-8", "replace") for row in rows)


def _reason(error: Exception) -> str:
    """What SQLite or the system says, without the path that an OSError carries."""
    return (error.strerror or "I/O error") if isinstance(error, OSError) else str(error)
