"""Takes paths, addresses, assignments and known private values out of names that are kept."""

import re
from collections.abc import Iterable

from moe_advisor.scrub.report import SCRUBBED, Tally

# At least two parts, so that a division sign in a kernel's or range's name is no path.
_PATH = re.compile(
    r"(?<![\w.:/])(?:~|/[\w.+@%~-]+)/[\w.+@%~/-]*|\b[A-Za-z]:\\[^\s\"'|<>]*|\\\\[\w.-]+\\[^\s\"']*"
)
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,15}://[^\s\"'<>]+")
_MAIL = re.compile(r"[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
_ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
# Upper-case NAME=value, also in lists; a template argument such as `T=float` has no underscore.
_ASSIGNMENT = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+=[^;\s]*")

_COMMON = frozenset(
    {
        "root", "user", "users", "home", "python", "python3", "localhost", "torchrun", "true",
        "false", "none", "nccl", "cuda", "default", "training", "megatron", "kernel", "stream",
        "forward", "backward", "iteration", "optimizer", "expert", "experts", "private", "trace",
        "unknown", "linux", "profile", "profiler",
    }
)  # fmt: skip
_SHORTEST = 6
"""Shorter values occur by chance; they go from where they stood all the same."""
_WHOLE_WORDS_BELOW = 10
"""Shorter private values are replaced only as whole words."""
_MOST = 2_000
"""Private values looked for; a launch environment holds some hundreds."""
_PLAIN_WORD = re.compile(r"[A-Za-z]+|[\d.,:;\s-]+")


def distinctive(value: str, *, named: bool = False) -> bool:
    """Whether `value` is worth looking for; `named` says that it is surely a name, as a host's."""
    text = value.strip()
    if len(text) < _SHORTEST or text.lower() in _COMMON or text.startswith("-"):
        return False
    return not text.isdigit() if named else not _PLAIN_WORD.fullmatch(text)


class Cleaner:
    """Cleans text of what every trace must not hold and of this trace's private values."""

    def __init__(self, private: Iterable[str], tally: Tally) -> None:
        values = sorted({value.strip() for value in private}, key=lambda v: (-len(v), v))[:_MOST]
        self._private: re.Pattern[str] | None = None
        if values:
            self._private = re.compile(
                "|".join(
                    rf"(?<!\w){re.escape(value)}(?!\w)"
                    if len(value) < _WHOLE_WORDS_BELOW
                    else re.escape(value)
                    for value in values
                ),
                re.IGNORECASE,
            )
        self._tally = tally

    def clean(self, text: str) -> str:
        """`text` without paths, URLs, addresses, assignments and private values."""
        cleaned = text
        if ":" in cleaned:
            cleaned = _URL.sub(SCRUBBED, cleaned)
        if "=" in cleaned:
            cleaned = _ASSIGNMENT.sub(SCRUBBED, cleaned)
        if "/" in cleaned or "\\" in cleaned:
            cleaned = _PATH.sub(f"/{SCRUBBED}", cleaned)
        if "@" in cleaned:
            cleaned = _MAIL.sub(SCRUBBED, cleaned)
        if "." in cleaned:
            cleaned = _ADDRESS.sub(SCRUBBED, cleaned)
        if self._private is not None:
            cleaned = self._private.sub(SCRUBBED, cleaned)
        if cleaned != text:
            self._tally.add("names with a path, address, assignment or private value in them")
        return cleaned
