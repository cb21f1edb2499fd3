"""How far the reading of many inputs is, and one line for a terminal."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

REDRAW_S = 0.1
"""A terminal line changes at most so often: an eye follows no more, and thousands of ranks would
cost time."""

SLOW_INPUTS = 4
"""From this number of inputs on, a terminal shows progress."""

TICK_S = 0.5
"""How often a large input's line changes while it is read."""

MIB = 1 << 20

LARGE_BYTES = 64 * MIB
"""From this size on reading takes longer than a reader waits without wondering, about 2 s."""


@dataclass(frozen=True, slots=True)
class Advance:
    """One input more is done, read or not. Bytes are sizes of the input files."""

    done: int
    total: int
    bytes_done: int
    bytes_total: int
    name: str


Progress = Callable[[Advance], None]


class TerminalLine:
    """Draws inputs done, bytes, rate and time remaining on one line of a terminal.

    As a context it ends its line, also where the work fails.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._drawn = 0.0
        self._open = False
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "TerminalLine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with self._lock:
            if self._open:
                self._write("\r\x1b[K")

    def begin(self, sizes_bytes: Sequence[int], name: str = "") -> None:
        """Says on a terminal what will take long, before the first input is done.

        Of few inputs, which are read in this process, it then shows the bytes as they are read.
        """
        total = sum(sizes_bytes)
        if total >= LARGE_BYTES and self._stream.isatty():
            count = len(sizes_bytes)
            words = "1 input" if count == 1 else f"{count:,} inputs"
            self._write(
                f"reading {words}, {total / MIB:,.1f} MiB; then roles, measurements, what-if\n"
            )
            if count < SLOW_INPUTS and (before := bytes_read()) is not None:
                arguments = (count, total, before, name)
                threading.Thread(target=self._follow, args=arguments, daemon=True).start()

    def __call__(self, now: Advance) -> None:
        """Draws the line anew, on a terminal and where it takes long."""
        slow = now.total >= SLOW_INPUTS or now.bytes_total >= LARGE_BYTES
        if not slow or not self._stream.isatty():
            return
        moment = time.monotonic()
        last = now.done == now.total
        if last:
            self._over.set()
        elif moment - self._drawn < REDRAW_S:
            return
        with self._lock:
            self._draw(now, moment, last)

    def _follow(self, count: int, total: int, before: int, name: str) -> None:
        while not self._over.wait(TICK_S):
            self.tick(count, total, before, name)

    def tick(self, count: int, total: int, before: int, name: str) -> None:
        """Draws how many of the `total` bytes were read since the process had read `before`."""
        done = min((bytes_read() or before) - before, total)
        with self._lock:
            if self._over.is_set():
                return
            if done < total:
                self._draw(Advance(0, count, done, total, name), time.monotonic(), False)
            else:
                self._write(f"\r\x1b[Kread {total / MIB:,.1f} MiB; roles, measurements")

    def _draw(self, now: Advance, moment: float, last: bool) -> None:
        self._drawn = moment
        text = line(now, moment - self._began)
        self._write(f"\r\x1b[K{text}" + ("\n" if last else ""))

    def _write(self, text: str) -> None:
        self._open = not text.endswith(("\n", "\x1b[K"))
        self._stream.write(text)
        self._stream.flush()


def bytes_read() -> int | None:
    """What this process has read from files so far; None where the system does not tell."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(file.readline().removeprefix("rchar:"))
    except (OSError, ValueError):
        return None


def line(now: Advance, elapsed_s: float) -> str:
    """`read 12 of 1,024 inputs, 3.4 of 290 MiB, 4.2 MiB/s, 68 s left: rank12.json.gz`.

    A store may not tell sizes: then the rest is judged by the number of inputs.
    """
    parts = [f"read {now.done:,} of {now.total:,} input{'s' if now.total != 1 else ''}"]
    done, total = (now.bytes_done, now.bytes_total) if now.bytes_total else (now.done, now.total)
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    left = (total - done) / rate if rate else None
    if now.bytes_total:
        parts.append(f"{done / MIB:,.1f} of {total / MIB:,.1f} MiB")
        parts.append(f"{rate / MIB:,.1f} MiB/s")
    if left is not None:
        parts.append(f"{left:,.0f} s left")
    return f"{', '.join(parts)}: {now.name[:40]}"
