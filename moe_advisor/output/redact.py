"""`--redact strict`: a result without the names that a company may not want to let out.

Figures, roles and verdict stay. Hidden are file names, names of steps, ranges and process groups,
arguments and template values of kernels, kernels of no known family, and published models of the
same shape. Works on a result alone, so that every output of it is redacted the same way.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from moe_advisor.privacy import safe_text
from moe_advisor.result import Result

STATEMENT = (
    "strict: names of files, steps, ranges and process groups, arguments of kernels, kernels of "
    "no known family and published models of the same shape are hidden"
)

_TOLD_LIMIT = 200  # characters of a kernel's name that are looked at
_DISTINCT = re.compile(r"[^a-z ]")
_SHORTEST = 4  # shorter names, and plain words, are replaced only where they stand alone
_WITH_NAMES = frozenset(
    {
        "inputs", "steps", "parts_by_rank", "parts_by_step", "collectives", "timeline", "kernels",
        "unclassified", "idle_causes", "why", "replay",
    }
)  # fmt: skip
"""Parts of a result that hold names of the run."""
_LEFT_OUT = frozenset({"input-skipped", "input-unreadable"})
"""Issues whose message starts with the name of a file that is none of the inputs."""
_NAME_KEYS = frozenset({"name", "names", "step", "group", "host", "module", "pattern"})
_CALL = re.compile(r"(?:cu|cuda|nccl|hip)[A-Za-z0-9_]{0,60}")
_PARAMETERS = re.compile(r"[<(\[{].*", re.DOTALL)
_UNNAMED = re.compile(r"^(?:<unnamed>|\(anonymous namespace\))::")


def strict(result: Result) -> Result:
    """`result` with its names hidden; the same names get the same replacements everywhere."""
    if result.redaction is not None:
        return result
    tree = msgspec.to_builtins(result)
    names = _Names()
    for number, one in enumerate(tree["inputs"], 1):
        names.add(one["name"], f"input-{number}")
    left_out = [one["message"] for one in tree["capture"]["issues"] if one["id"] in _LEFT_OUT]
    for number, message in enumerate(left_out, 1):
        names.add(message.partition(": ")[0], f"left-out input {number}")
    for number, name in enumerate(tree["steps"]["names"], 1):
        names.add(name, f"step {number}")
    for number, one in enumerate(tree["steps"]["dropped"], 1):
        names.add(one["step"], f"dropped step {number}")
    names.add(tree["steps"].get("pattern"), "pattern")
    for number, one in enumerate(tree["unclassified"], 1):
        names.add(one["name"], f"unclassified kernel {number}")
    for number, one in enumerate(tree["collectives"], 1):
        names.add(one["group"], f"group {number}")
    for name in _ranges(tree):
        names.add(name, f"range {len(names.ranges) + 1}", is_range=True)
    for name in _kernels(tree):
        names.add(name, kernel(name))
    for cause in tree["idle_causes"]:
        for detail in cause.get("detail", ()):
            names.add(detail.get("name"), _held(str(detail.get("name", "")), names))
    # What the program itself says beside the figures holds no name of the trace.
    fixed = {key: tree.pop(key) for key in ("definitions", "tool", "schema", "schema_version")}
    hidden = {**names.apply(tree), **fixed, "references": [], "redaction": STATEMENT}
    return msgspec.convert(hidden, Result)


def kernel(name: str) -> str:
    """A kernel's name without template values, parameters and what a compiler appended."""
    text = _UNNAMED.sub("", name[:_TOLD_LIMIT])
    text = text.removeprefix("void ").strip()
    text = _PARAMETERS.sub("", text).strip()
    return safe_text(text, 80) or "kernel"


def _ranges(tree: dict[str, Any]) -> Iterator[str]:
    timeline = tree.get("timeline")
    for row in timeline["host"] if timeline else ():
        if len(row) > 2 and isinstance(row[2], str):
            yield row[2]
    for part in (tree.get("why") or {}).get("recompute", ()):
        yield part["module"]


def _kernels(tree: dict[str, Any]) -> Iterator[str]:
    timeline = tree.get("timeline")
    yield from timeline["names"] if timeline else ()
    for one in tree.get("kernels", ()):
        if isinstance(one.get("name"), str):
            yield one["name"]
    for slow in (tree.get("why") or {}).get("slow_gpus", ()):
        yield from (one["name"] for one in slow["kernels"] if isinstance(one.get("name"), str))


def _held(text: str, names: "_Names") -> str:
    """A call or a range that held the host: the call's name stays."""
    call, found, place = text.partition(" in ")
    if not found:
        if _CALL.fullmatch(text):
            return text
        return names.exact.get(text) or names.new_range(text)
    shown = names.exact.get(place) or names.new_range(place)
    return f"{call if _CALL.fullmatch(call) else 'host code'} in {shown}"


class _Names:
    """Names to hide and what stands for them, first come first served."""

    def __init__(self) -> None:
        self.exact: dict[str, str] = {}
        self.ranges: list[str] = []

    def add(self, name: str | None, shown: str, *, is_range: bool = False) -> None:
        """Hides `name` behind `shown`, unless it is hidden already."""
        if name and name not in self.exact:
            self.exact[name] = shown
            if is_range:
                self.ranges.append(name)

    def new_range(self, name: str) -> str:
        """What stands for a range that was not met before."""
        self.add(name, f"range {len(self.ranges) + 1}", is_range=True)
        return self.exact[name]

    def apply(self, tree: Any) -> Any:
        """`tree` with every name replaced, alone or inside a text."""
        inside = [
            name
            for name in sorted(self.exact, key=len, reverse=True)
            if len(name) >= _SHORTEST and _DISTINCT.search(name) and self.exact[name] != name
        ]
        pattern = (
            re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, inside)) + r")(?!\w)")
            if inside
            else None
        )
        known: dict[str, str] = {}

        def text(value: str) -> str:
            if value not in known:
                known[value] = (
                    pattern.sub(lambda match: self.exact[match[0]], value) if pattern else value
                )
            return known[value]

        def walk(value: Any, is_name: bool, inside: bool) -> Any:
            if isinstance(value, str):
                # A range may be called "optimizer", as a role is: names go where names stand.
                return self.exact.get(value, text(value)) if is_name else text(value)
            if isinstance(value, list):
                return [walk(item, is_name, inside) for item in value]
            if isinstance(value, dict):
                return {
                    key: walk(item, inside and key in _NAME_KEYS, inside)
                    for key, item in value.items()
                }
            return value

        return {key: walk(value, False, key in _WITH_NAMES) for key, value in tree.items()}
