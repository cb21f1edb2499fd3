"""Bounds on what an input may cost, and readers of small files that keep to theirs."""

import contextlib
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from moe_advisor.errors import ConfigError, InputError

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Bounds:
    """What reading one input may cost; a message about each names the option that raises it."""

    file_gib: float = 64.0
    """Size of an input on disk; exports of whole nodes reach some GiB."""
    query_s: float = 1800.0
    """Time for the queries of one SQLite input; 465 MB take below 5 s."""
    memory_gib: float | None = None
    """Of the program and its workers; None for nine tenths of the machine's."""


_CURRENT: ContextVar[Bounds] = ContextVar("bounds")
_DEFAULT = Bounds()


def current() -> Bounds:
    """The bounds that hold here."""
    return _CURRENT.get(_DEFAULT)


@contextlib.contextmanager
def using(bounds: Bounds) -> Iterator[None]:
    """Lets `bounds` hold inside."""
    token = _CURRENT.set(bounds)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def check_size(path: Path, name: str) -> None:
    """Raises InputError where the file, or folder of files, at `path` is larger than allowed."""
    try:
        parts = path.iterdir() if path.is_dir() else (path,)
        size = sum(part.stat().st_size for part in parts)
    except OSError:
        return  # reading it will tell
    if size > current().file_gib * GIB:
        raise InputError(
            f"{name}: {size / GIB:.2f} GiB, more than the {current().file_gib:g} GiB that are "
            "read: if you trust it, raise the limit with --max-file GIB"
        )


LINE_LIMIT = 1 << 16
"""Characters of a line looked at as one; lines of logs are below 2,000."""

LOG_LIMIT_BYTES = 1 << 30
"""Unpacked size of a training log; a week of one line a second is below 200 MB."""


def read_text(path: Path, most_bytes: int, errors: str = "strict") -> str:
    """The text of `path`, a file or pipe, of at most `most_bytes`.

    Raises ConfigError where it is larger or a device, OSError and UnicodeDecodeError as reading.
    """
    with path.open("rb") as file:
        refuse_device(path)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ConfigError(
            f"{path}: larger than {most_bytes >> 20} MiB: cut it to the part that matters"
        )
    return data.decode("utf-8", errors)


def refuse_device(path: Path) -> None:
    """Raises ConfigError for a device, which may never end."""
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise ConfigError(f"{path}: a device, not a file: give a file or a pipe")


def lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a log, cut at `LINE_LIMIT`. Raises ConfigError past `LOG_LIMIT_BYTES`."""
    left = LOG_LIMIT_BYTES
    while line := file.readline(LINE_LIMIT):
        left -= len(line)
        if left < 0:
            raise ConfigError(
                f"{path}: unpacks to more than {LOG_LIMIT_BYTES >> 30} GiB: cut the log to the "
                "steps that were profiled"
            )
        yield line
