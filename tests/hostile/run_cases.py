"""Runs one case through the whole program, in this process, and says how it ended."""

import hashlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 300
"""Most cases take below a second, a thousand ranks eight: only a hang reaches it on a busy machine."""


class HungError(BaseException):
    """The program did not end in time; no `except Exception` catches this."""


@dataclass(frozen=True)
class Ended:
    """How a run ended and what it said and wrote."""

    code: int
    stdout: str
    stderr: str


@contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise HungError(f"not done after {seconds} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _Stdout(io.TextIOWrapper):
    """Standard output that is kept; bytes may be written to its buffer."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


def program(arguments: Sequence[str], limit_s: int = LIMIT_S) -> Ended:
    """Runs `moe-advisor` with `arguments` in this process."""
    from moe_advisor.cli import main

    out, err, before = _Stdout(), io.StringIO(), sys.stdout
    code: object = 0
    with _deadline(limit_s), redirect_stderr(err):
        sys.stdout = out
        try:
            main(list(arguments))
        except SystemExit as done:
            code = done.code
        finally:
            sys.stdout = before
    return Ended(
        code if isinstance(code, int) else int(code is not None), out.text(), err.getvalue()
    )


def state(folder: Path) -> list[tuple[str, int, int, str]]:
    """Every name below `folder` with its mode, change time and content."""
    found = []
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if regular else os.fspath(path)
        found.append((os.fspath(path), status.st_mode, status.st_mtime_ns, digest))
    return found
