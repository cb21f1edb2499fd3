"""How far the reading of many inputs is, and one line for a terminal."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

REDRAW_S = 0.1
"""A terminal line changes at most so often: an eye follows no more, and thousands of ranks would
cost time."""

SLOW_INPUTS = 4
"""From this number of inputs on, a terminal shows progress."""

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
    """Draws inputs done, bytes, rate and time remaining on one line of a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._drawn = 0.0

    def begin(self, sizes_bytes: Sequence[int]) -> None:
        """Says on a terminal what will take long, before the first input is done."""
        total = sum(sizes_bytes)
        if total >= LARGE_BYTES and self._stream.isatty():
            count = len(sizes_bytes)
            words = "1 input" if count == 1 else f"{count:,} inputs"
            self._stream.write(
                f"reading {words}, {total / MIB:,.1f} MiB; then roles, measurements, what-if\n"
            )
            self._stream.flush()

    def __call__(self, now: Advance) -> None:
        """Draws the line anew, on a terminal and where it takes long."""
        if now.total < SLOW_INPUTS or not self._stream.isatty():
            return
        moment = time.monotonic()
        last = now.done == now.total
        if not last and moment - self._drawn < REDRAW_S:
            return
        self._drawn = moment
        text = line(now, moment - self._began)
        self._stream.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
        self._stream.flush()


def line(now: Advance, elapsed_s: float) -> str:
    """`read 12 of 1,024 inputs, 3.4 of 290 MiB, 4.2 MiB/s, 68 s left: rank12.json.gz`."""
    rate = now.bytes_done / elapsed_s if elapsed_s > 0 else 0.0
    left = (now.bytes_total - now.bytes_done) / rate if rate else None
    parts = [
        f"read {now.done:,} of {now.total:,} inputs",
        f"{now.bytes_done / MIB:,.1f} of {now.bytes_total / MIB:,.1f} MiB",
        f"{rate / MIB:,.1f} MiB/s",
    ]
    if left is not None:
        parts.append(f"{left:,.0f} s left")
    return f"{', '.join(parts)}: {now.name[:40]}"
