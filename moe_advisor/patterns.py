"""Regular expressions that users bring, matched in time linear in the name: by Rust's engine.

Python's own engine tries every way to match: `(a+)+$` on a name of 40 letters takes hours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_advisor.errors import ConfigError

MAX_CHARACTERS = 1_000
"""Of a pattern; those of the built-in taxonomy have below 300."""

MAX_REPEATS = 1_000
"""Product of a pattern's counted repetitions: each unrolls what it repeats."""

MATCHED_CHARACTERS = 4_096
"""Only this much of a name is matched: longer ones are hostile or template noise at the end."""

_COUNTED = re.compile(r"\{(\d{1,9})(?:,(\d{0,9}))?\}")


class Screen:
    """Whether any pattern of a file is in a name: the engine keeps few patterns compiled."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._joined = "|".join(f"(?:{one})" for one in patterns)
        self._usable = len(patterns) > 1 and _compile_error(self._joined) is None
        self._last: tuple[str, bool] | None = None

    def lets_through(self, text: str) -> bool:
        """False where no pattern is in `text`."""
        if not self._usable:
            return True
        if self._last is None or self._last[0] != text:
            self._last = text, _found(self._joined, text)
        return self._last[1]


@dataclass(frozen=True, slots=True)
class UserPattern:
    """A pattern that `user_pattern` let through; `search` as in `re`, of a name's beginning."""

    pattern: str
    screen: Screen | None = field(default=None, compare=False, repr=False)

    def search(self, text: str) -> bool:
        """Whether the pattern is somewhere in the first MATCHED_CHARACTERS of `text`."""
        head = text[:MATCHED_CHARACTERS]
        if self.screen is not None and not self.screen.lets_through(head):
            return False
        return _found(self.pattern, head)


def user_pattern(pattern: str, where: str) -> UserPattern:
    """The pattern, or ConfigError that begins with `where` and says what is wrong with it."""
    if len(pattern) > MAX_CHARACTERS:
        raise ConfigError(
            f"{where}: a pattern of {len(pattern)} characters; at most {MAX_CHARACTERS}"
        )
    repeats = 1
    for low, high in _COUNTED.findall(pattern):
        repeats *= max(int(high or low), 1)
    if repeats > MAX_REPEATS:
        raise ConfigError(
            f"{where}: {pattern!r}: counted repetitions multiply to {repeats}; "
            f"at most {MAX_REPEATS}: use + or *"
        )
    if wrong := _compile_error(pattern):
        raise ConfigError(f"{where}: {pattern!r}: not a regular expression: {wrong}")
    return UserPattern(pattern)


def _found(pattern: str, text: str) -> bool:
    import polars as pl

    return bool(pl.Series([text]).str.contains(pattern)[0])


def _compile_error(pattern: str) -> str | None:
    import polars as pl

    try:
        _found(pattern, "")
    except pl.exceptions.PolarsError as error:
        said = [line.strip() for line in str(error).splitlines()]
        told = next((line for line in said if line.startswith("error:")), said[0] if said else "")
        return told.removeprefix("error:").removeprefix("regex error:").strip() or "not readable"
    return None
