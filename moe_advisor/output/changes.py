"""A recommendation's changes as diffs to read and as text to paste."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe_advisor import paste
from moe_advisor.result import Change, PlanChange

TITLES = {
    "megatron-bridge": "Megatron-Bridge",
    "bridge-cli": "Bridge CLI (Hydra)",
    "megatron-lm": "Megatron-LM",
    "env": "Environment",
    "pytorch": "PyTorch",
    "job": "Job",
}


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a diff: sign is `-`, `+` or a space for a remark."""

    sign: str
    text: str


@dataclass(frozen=True, slots=True)
class Diff:
    """The changes of one framework; `copy` is what to paste, without diff signs."""

    framework: str
    title: str
    version: str
    lines: tuple[DiffLine, ...]
    copy: str


def diffs(changes: Sequence[Change]) -> list[Diff]:
    """One diff per framework, in a fixed order."""
    found = []
    for framework, title in TITLES.items():
        own = [change for change in changes if change.framework == framework]
        if framework == "bridge-cli":
            found += _overrides(changes)
        elif own:
            lines = [line for change in own for line in _lines(change)]
            copy = [line.text for line in lines if line.sign == "+"]
            copy += [f"# remove: {line.text}" for line in lines if _only_removed(line, lines)]
            found.append(
                Diff(framework, title, _version(own), tuple(lines), "\n".join(copy) + "\n")
            )
    return found


def whole(change: PlanChange) -> list[Diff]:
    """The whole plan, one text per way of giving it."""
    parts = (
        ("megatron-bridge", "Megatron-Bridge Python", change.megatron_bridge),
        ("bridge-cli", TITLES["bridge-cli"], change.bridge_overrides),
        ("megatron-lm", "Megatron-LM flags", change.megatron_lm),
        ("env", TITLES["env"], change.environment),
    )
    return [
        Diff(framework, title, "", tuple(_plus(line) for line in lines), "\n".join(lines) + "\n")
        for framework, title, lines in parts
        if lines
    ]


def _plus(line: str) -> DiffLine:
    removed = line.removeprefix("# remove: ")
    return DiffLine("+", line) if removed == line else DiffLine("-", removed)


def _overrides(changes: Sequence[Change]) -> list[Diff]:
    """The Bridge settings once more, as a command line takes them."""
    lines = paste.bridge_overrides(changes)
    if not lines:
        return []
    shown = tuple(DiffLine("+", line) for line in lines)
    return [Diff("bridge-cli", TITLES["bridge-cli"], "", shown, "\n".join(lines) + "\n")]


def short(change: Change) -> str:
    """`key: from → to` for a narrow place."""
    before = "" if change.from_ is None else f"{_python(change.from_)} → "
    return f"{change.key}: {before}{_python(change.to)}"


def _only_removed(line: DiffLine, lines: Sequence[DiffLine]) -> bool:
    """A setting that goes away; where it is set anew the new line says so."""
    if line.sign != "-":
        return False
    key = line.text.replace("=", " ").split(" ")[0]
    return not any(
        other.sign == "+" and other.text.replace("=", " ").split(" ")[0] == key for other in lines
    )


def _lines(change: Change) -> list[DiffLine]:
    lines = {
        "megatron-bridge": _bridge,
        "megatron-lm": _flag,
        "env": _environment,
        "pytorch": _plain,
        "job": _plain,
    }[change.framework](change)
    if change.old_key:
        lines.append(DiffLine(" ", f"# older name: {change.old_key}"))
    if change.note:
        lines.append(DiffLine(" ", f"# {change.note}"))
    return lines


def _bridge(change: Change) -> list[DiffLine]:
    key = change.key if change.key.startswith("cfg.") else f"cfg.{change.key}"
    lines = []
    if change.from_ is not None:
        lines.append(DiffLine("-", f"{key} = {_python(change.from_)}"))
    lines.append(DiffLine("+", f"{key} = {_python(change.to)}"))
    return lines


def _flag(change: Change) -> list[DiffLine]:
    key, before, line = change.key, change.from_, paste.flag_line(change)
    if line.startswith("#"):
        return [DiffLine("-", key)]
    lines = []
    if before not in (None, True, False, []) and line != key:
        lines.append(DiffLine("-", f"{key} {paste.flag_value(before)}"))
    lines.append(DiffLine("+", line))
    return lines


def _environment(change: Change) -> list[DiffLine]:
    lines = []
    if change.from_ is not None:
        lines.append(DiffLine("-", f"export {change.key}={change.from_}"))
    if change.to is not None:
        lines.append(DiffLine("+", f"export {change.key}={change.to}"))
    elif change.from_ is None:
        lines.append(DiffLine("-", f"export {change.key}"))
    return lines


def _plain(change: Change) -> list[DiffLine]:
    lines = []
    if change.from_ is not None:
        lines.append(DiffLine("-", f"{change.key}: {_python(change.from_)}"))
    if change.to is not None:
        lines.append(DiffLine("+", f"{change.key}: {_python(change.to)}"))
    return lines or [DiffLine("+", change.key)]


def _python(value: Any) -> str:
    """Code for settings; prose stays prose."""
    if isinstance(value, str) and " " in value:
        return value
    return repr(value)


def _version(changes: Sequence[Change]) -> str:
    since = sorted({change.since for change in changes if change.since})
    until = sorted({change.until for change in changes if change.until})
    words = [f"since {since[-1]}"] if since else []
    words += [f"until {until[0]}"] if until else []
    return ", ".join(words)
