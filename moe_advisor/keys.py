"""Configuration keys as the frameworks spell them: paths, flags, releases, older spellings."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

_DATA = Path(__file__).parent / "advise" / "data" / "known_keys.json"

MAIN = (999, 0)
"""Release number of a development branch: newer than every release."""

Framework = Literal["megatron-bridge", "megatron-lm", "env", "pytorch", "job"]


@dataclass(frozen=True, slots=True)
class OldKey:
    """An older spelling of a key. `to` maps a value of the new key to the old one's."""

    key: str
    flag: str | None
    since: str | None
    until: str | None
    to: Mapping[str, Any] = field(default_factory=dict)
    backend: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key by its Megatron-Core field name, with both frameworks' spellings."""

    name: str
    bridge: str | None
    flag: str | None
    off: str | None
    """Flag that turns off a switch whose default is on."""
    kind: Literal["bool", "int", "float", "str", "list"]
    default: Any
    since: str | None
    until: str | None
    dump: str | None
    """Name in a Megatron-LM argument dump, where it differs."""
    values: tuple[str, ...]
    value_since: Mapping[str, str]
    old: tuple[OldKey, ...]


@cache
def known() -> Mapping[str, KnownKey]:
    """Every known key by its Megatron-Core field name."""
    rows = json.loads(_DATA.read_text(encoding="utf-8"))["keys"]
    return {
        name: KnownKey(
            name=name,
            bridge=row.get("bridge"),
            flag=row.get("flag"),
            off=row.get("off"),
            kind=row["kind"],
            default=row.get("default"),
            since=row.get("since"),
            until=row.get("until"),
            dump=row.get("dump"),
            values=tuple(row.get("values", ())),
            value_since=row.get("value_since", {}),
            old=tuple(
                OldKey(
                    key=old["key"],
                    flag=old.get("flag"),
                    since=old.get("since"),
                    until=old.get("until"),
                    to=old.get("to", {}),
                    backend=old.get("backend"),
                    note=old.get("note"),
                )
                for old in row.get("old", ())
            ),
        )
        for name, row in rows.items()
    }


@cache
def environment_names() -> frozenset[str]:
    """Environment variables that rules may set and configurations may show."""
    return frozenset(json.loads(_DATA.read_text(encoding="utf-8"))["env"])


def release(version: object) -> tuple[int, int] | None:
    """(major, minor) of a Megatron-Core version such as 0.16.1, core_r0.16.0 or main; else None."""
    if version is None:
        return None
    text = str(version).strip().lower()
    if text in ("main", "dev"):
        return MAIN
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def in_release(since: str | None, until: str | None, version: tuple[int, int] | None) -> bool:
    """Whether a spelling is valid in a release; for an unknown release, in the current one."""
    current = version or MAIN
    first, last = release(since), release(until)
    return (first is None or first <= current) and (last is None or current <= last)
