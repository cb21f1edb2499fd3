"""Ends an analysis with one line before the machine runs out of memory and kills it without one."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from moe_advisor import interrupts
from moe_advisor.errors import InputError

SHARE_OF_MACHINE = 0.9
"""Of the memory of the machine or its container: beyond it the kernel begins to kill."""

LOOK_EVERY_S = 0.05
HARD_LIMIT_FACTOR = 1.25
"""Beyond so much of the limit the program ends at once: native code did not come to its end."""

_SIGNAL = getattr(signal, "SIGURG", signal.SIGINT)
"""Breaks into the main thread, also where it waits. Nothing else uses it, and unlike SIGINT it is
not ignored in the background of a script."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PROC = Path("/proc")
_GROUPS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def default_limit_bytes() -> int | None:
    """Nine tenths of what the machine or container has; None where that can't be told."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = (_PROC / "meminfo").read_text().splitlines()[0]
        found.append(int(line.split()[1]) * 1024)
    for path in _GROUPS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return int(min(found) * SHARE_OF_MACHINE) if found else None


def used_bytes() -> int:
    """Resident memory of this process and of those it started; 0 where that can't be told."""
    return sum(_resident(process) for process in _family(os.getpid()))


def _family(process: int) -> Iterator[int]:
    yield process
    with contextlib.suppress(OSError, ValueError):
        text = (_PROC / str(process) / "task" / str(process) / "children").read_text()
        for child in text.split():
            yield from _family(int(child))


def _resident(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((_PROC / str(process) / "statm").read_text().split()[1]) * _PAGE_BYTES
    return 0


class _TooMuch(KeyboardInterrupt):
    """Breaks off the work of the main thread."""


class MemoryGuard:
    """Around work of the main thread: InputError once more than `limit_bytes` are in use.

    Elsewhere than in the main thread, and where the system does not tell, it does nothing.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes or default_limit_bytes()
        self._done = threading.Event()
        self._tripped = False
        self._broken_off = False
        self._thread: threading.Thread | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        if self._limit is None or threading.current_thread() is not threading.main_thread():
            return self
        if used_bytes() > self._limit:
            raise self._error()
        self._before = signal.signal(_SIGNAL, self._break_off)
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        try:
            self._end()
        except _TooMuch:  # met the first line
            self._end()
        if self._tripped and not interrupts.asked():
            raise self._error() from None

    def _end(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        signal.signal(_SIGNAL, self._before or signal.SIG_DFL)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if not self._broken_off and not self._done.is_set():
            self._broken_off = True
            raise _TooMuch

    def _error(self) -> InputError:
        return InputError(
            f"more than {(self._limit or 0) / 2**30:.2f} GiB of memory in use: give fewer ranks "
            "at a time (--sample, --jobs 1), or raise the limit with --max-memory GIB"
        )

    def _watch(self) -> None:
        limit = self._limit or 0
        while not self._done.wait(LOOK_EVERY_S):
            used = used_bytes()
            self._tripped = self._tripped or used > limit
            # Again where the first met the moment before a wait: Python saw it, the wait did not.
            if self._tripped and not self._broken_off:
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            if used > limit * HARD_LIMIT_FACTOR:
                os.write(2, f"moe-advisor: {self._error()}\n".encode())
                os._exit(2)
