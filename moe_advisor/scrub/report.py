"""What a scrub took out, in words that repeat nothing of it."""

from collections import Counter
from dataclasses import dataclass, field

SCRUBBED = "scrubbed"
"""Stands for text that was taken out of a name."""


@dataclass(frozen=True, slots=True)
class Removed:
    """`count` things of one kind; `what` names the kind, never a value of the input."""

    what: str
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """The format, the kept rows or events, and what was removed, most first."""

    format: str
    kept: int
    removed: tuple[Removed, ...]


@dataclass(slots=True)
class Tally:
    """Counts removals while a trace is written."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, count: int = 1) -> None:
        """Counts `count` more of `what`."""
        if count:
            self.counts[what] += count

    def removed(self) -> tuple[Removed, ...]:
        """Everything counted, most first, then by name."""
        rows = sorted(self.counts.items(), key=lambda row: (-row[1], row[0]))
        return tuple(Removed(what, count) for what, count in rows)
