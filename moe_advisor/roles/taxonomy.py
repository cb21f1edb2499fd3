"""Reads the taxonomy: what the names of kernels, ranges, process groups and calls mean."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from moe_advisor import bounded
from moe_advisor.errors import ConfigError
from moe_advisor.patterns import MATCHED_CHARACTERS, Screen, UserPattern, user_pattern
from moe_advisor.roles.roles import Role

MAX_BYTES = 1 << 20
"""Largest taxonomy of a user; the built-in one is below 64 KiB."""

REMEMBERED_NAMES = 20_000
"""A capture has a few thousand names; beyond this they are hostile, and memory counts more."""

NATURES = frozenset(
    {role.label for role in Role}
    | {"collective", "gemm", "softmax", "index", "accumulate", "elementwise"}
)
"""What a kernel's name can prove: a role, or what kind of work needs a context to become one."""

GROUP_FAMILIES = frozenset({"ep", "dp", "tp", "cp", "pp", "norm", "other", "none"})


@dataclass(frozen=True, slots=True)
class KernelFamily:
    """A family of kernels that share a nature; `cases` are names that must match it first."""

    id: str
    pattern: re.Pattern[str] | UserPattern
    nature: str
    source: str
    seen: bool
    cases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A pattern and what a name that holds it means."""

    pattern: re.Pattern[str] | UserPattern
    meaning: str


T = TypeVar("T", KernelFamily, NamePattern)


@dataclass(frozen=True)
class Taxonomy:
    """Everything that names mean; the first pattern found in a name decides."""

    kernels: tuple[KernelFamily, ...]
    ranges: tuple[NamePattern, ...]
    groups: tuple[NamePattern, ...]
    calls: tuple[NamePattern, ...]

    @cached_property
    def _met(self) -> tuple[dict[str, KernelFamily | None], dict[str, str | None]]:
        """Kernel and range names that were asked for: ranks share them, and so do all questions."""
        return {}, {}

    def kernel(self, name: str) -> KernelFamily | None:
        """The family of a kernel name, or None if no family knows it."""
        head = name[:MATCHED_CHARACTERS]
        met = self._met[0]
        if head not in met:
            _make_room(met)
            met[head] = next((one for one in self.kernels if one.pattern.search(head)), None)
        return met[head]

    def context(self, name: str) -> str | None:
        """What work under a host range of this name is for, or None."""
        head = name[:MATCHED_CHARACTERS]
        met = self._met[1]
        if head not in met:
            _make_room(met)
            met[head] = _meaning(self.ranges, head)
        return met[head]

    def group_family(self, description: str) -> str | None:
        """ep, dp, tp, cp, pp, norm, other or none (a CPU group); None if unknown."""
        return _meaning(self.groups, description)

    def call_kind(self, name: str) -> str | None:
        """What kind of CUDA call this is, or None where it does not matter."""
        return _meaning(self.calls, name)


def _make_room(met: dict[str, Any]) -> None:
    if len(met) >= REMEMBERED_NAMES:
        met.clear()


def _meaning(patterns: Sequence[NamePattern], name: str) -> str | None:
    head = name[:MATCHED_CHARACTERS]
    return next((one.meaning for one in patterns if one.pattern.search(head)), None)


@cache
def builtin() -> Taxonomy:
    """The taxonomy that ships with the package."""
    text = resources.files("moe_advisor.roles").joinpath("taxonomy.yaml").read_text("utf-8")
    return parse(text, "taxonomy.yaml", trusted=True)


def load(extra: Path | None) -> Taxonomy:
    """The built-in taxonomy, with the patterns of the file `extra` tried first.

    Raises ConfigError if the file can't be read or breaks the format.
    """
    if extra is None:
        return builtin()
    try:
        text = bounded.read_text(extra, MAX_BYTES)
    except UnicodeDecodeError:
        raise ConfigError(f"--taxonomy {extra.name}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"--taxonomy {extra.name}: can't be read: {error.strerror}") from None
    own, base = _screened(parse(text, extra.name)), builtin()
    return Taxonomy(
        own.kernels + base.kernels,
        own.ranges + base.ranges,
        own.groups + base.groups,
        own.calls + base.calls,
    )


def _screened(own: Taxonomy) -> Taxonomy:
    """`own` with one question before the patterns of each section."""

    def together(entries: tuple[T, ...]) -> tuple[T, ...]:
        patterns = [one.pattern for one in entries if isinstance(one.pattern, UserPattern)]
        screen = Screen([one.pattern for one in patterns])
        return tuple(
            replace(one, pattern=UserPattern(one.pattern.pattern, screen)) for one in entries
        )

    return Taxonomy(
        together(own.kernels), together(own.ranges), together(own.groups), together(own.calls)
    )


def parse(text: str, name: str, trusted: bool = False) -> Taxonomy:
    """The taxonomy that `text` describes; ConfigError names the entry that is wrong.

    The patterns of a `trusted` one are our own and may look around themselves.
    """
    import yaml

    try:
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date of month 99
        raise ConfigError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected the sections kernels, ranges, groups and calls")
    return Taxonomy(
        tuple(_kernel(name, entry, trusted) for entry in _entries(name, data, "kernels")),
        tuple(_named(name, entry, "context", trusted) for entry in _entries(name, data, "ranges")),
        tuple(_named(name, entry, "family", trusted) for entry in _entries(name, data, "groups")),
        tuple(_named(name, entry, "kind", trusted) for entry in _entries(name, data, "calls")),
    )


def _entries(name: str, data: dict[str, Any], section: str) -> list[dict[str, Any]]:
    entries = data.get(section) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{name}: {section}: expected a list of entries")
    return entries


def _kernel(name: str, entry: dict[str, Any], trusted: bool) -> KernelFamily:
    nature = str(entry.get("nature"))
    if nature not in NATURES:
        raise ConfigError(f"{name}: kernels: {entry.get('id')}: unknown nature {nature!r}")
    return KernelFamily(
        id=str(entry.get("id")),
        pattern=_pattern(name, entry, trusted),
        nature=nature,
        source=str(entry.get("source", "")),
        seen=entry.get("seen", True) is True,
        cases=tuple(str(case) for case in entry.get("cases", ())),
    )


def _named(name: str, entry: dict[str, Any], field: str, trusted: bool) -> NamePattern:
    if not isinstance(entry.get(field), str):
        raise ConfigError(f"{name}: {entry.get('pattern')!r}: needs a {field}")
    return NamePattern(_pattern(name, entry, trusted), entry[field])


def _pattern(name: str, entry: dict[str, Any], trusted: bool) -> re.Pattern[str] | UserPattern:
    where = f"{name}: {entry.get('id', entry)}: bad pattern"
    try:
        text = str(entry["pattern"])
        return re.compile(text) if trusted else user_pattern(text, where)
    except (KeyError, re.error) as error:
        raise ConfigError(f"{where}: {error}") from None
