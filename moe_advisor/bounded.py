"""Reads the small files a user names, so that none of them can fill the memory or never end."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from moe_advisor.errors import ConfigError

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
