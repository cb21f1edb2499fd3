"""The frameworks' own validations as data: which settings exclude or need each other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from moe_advisor.advise import safe_yaml
from moe_advisor.advise.expressions import Context, Evaluator, Truth, evaluate
from moe_advisor.advise.rule import ChangeSpec, blocks

_DATA = Path(__file__).parent / "data" / "validations.yaml"


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One validation. `violated` is an expression over the configuration after the changes.

    `touches` lists the settings that can break it: `key` (any value), `key=value`, or `key~item`
    for a list that contains the item.
    """

    id: str
    kind: Literal["requires", "conflicts"]
    touches: list[str]
    text: str
    violated: str
    consequence: str
    source: str
    framework: Literal["megatron-bridge", "megatron-lm"] | None = None
    resolve: list[ChangeSpec] = []


@dataclass(frozen=True, slots=True)
class Violation:
    """A validation that a configuration breaks, or (unknown) may break."""

    check: Check
    missing: tuple[str, ...] = ()


@cache
def catalogue() -> tuple[Check, ...]:
    """Every known validation, in the order of the data file."""
    rows = safe_yaml.load(_DATA.read_text(encoding="utf-8"))
    return tuple(msgspec.convert(rows, list[Check]))


@cache
def _by_key() -> Mapping[str, tuple[tuple[int, str, str | None], ...]]:
    """Key -> (position of the check, `=` or `~` or empty, value) of everything it touches."""
    found: dict[str, list[tuple[int, str, str | None]]] = {}
    for position, check in enumerate(catalogue()):
        for touch in check.touches:
            for sign in ("=", "~"):
                key, separator, value = touch.partition(sign)
                if separator:
                    found.setdefault(key, []).append((position, sign, value))
                    break
            else:
                found.setdefault(touch, []).append((position, "", None))
    return {key: tuple(rows) for key, rows in found.items()}


def touching(changes: Iterable[ChangeSpec], framework: str | None = None) -> list[Check]:
    """The validations that these changes could break, in catalogue order."""
    positions = {
        position
        for change in changes
        for position, sign, value in _by_key().get(change.key, ())
        if _touches(change.to, sign, value)
    }
    checks = catalogue()
    return [
        checks[position]
        for position in sorted(positions)
        if framework is None or checks[position].framework in (None, framework)
    ]


def _touches(to: Any, sign: str, value: str | None) -> bool:
    if sign == "=":
        return _text(to) == value
    if sign == "~":
        return isinstance(to, list) and value in to
    return True


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def spoken(framework: object) -> str | None:
    """The framework whose own validations hold; None where it is one of several, or not known."""
    return framework if framework in ("megatron-bridge", "megatron-lm") else None


def violations(
    context: Context, *, evaluator: Evaluator = evaluate, among: Sequence[Check] | None = None
) -> Iterator[Violation]:
    """Validations that the configuration in `context` breaks; unknown ones are left out."""
    framework = spoken(context["c"].get("framework"))
    for check in catalogue() if among is None else among:
        if framework is not None and check.framework not in (None, framework):
            continue
        if evaluator(check.violated, context).truth is Truth.YES:
            yield Violation(check)


def blocking(found: Iterable[Violation]) -> list[Violation]:
    """Those violations that stop the run or make a setting void."""
    return [item for item in found if blocks(item.check.consequence)]
