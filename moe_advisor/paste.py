"""Changes as text to paste: Bridge Python, Bridge CLI overrides, Megatron-LM flags, exports."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_advisor.result import Change

OPTIONAL_SECTIONS: Mapping[str, str] = {
    "comm_overlap": "a recipe without cfg.comm_overlap needs "
    "CommOverlapConfig(tp_comm_overlap=False) first",
    "mixed_precision": "where cfg.mixed_precision is a recipe's name, set another name instead",
}
"""Sections of a Bridge configuration that may be absent or a plain name, with what to do then."""

_TURNS_OFF = re.compile(r"--(?:no-|disable-|grad-reduce-in-bf16$)")
_HYDRA_PLAIN = re.compile(r"[\w.:+/-]+")


def turns_off(flag: str) -> bool:
    """Whether a Megatron-LM flag, when given, switches its setting off."""
    return _TURNS_OFF.match(flag) is not None


def bridge_python(changes: Iterable[Change]) -> list[str]:
    """Statements for a Megatron-Bridge recipe, one per change."""
    return [f"cfg.{item.key} = {item.to!r}" for item in _of(changes, "megatron-bridge")]


def bridge_overrides(changes: Iterable[Change]) -> list[str]:
    """Hydra overrides for a Megatron-Bridge command line, quoted for a shell, one per change."""
    found = [f"{item.key}={_hydra(item.to)}" for item in _of(changes, "megatron-bridge")]
    return [shlex.quote(text) for text in found]


def megatron_lm_flags(changes: Iterable[Change]) -> list[str]:
    """Megatron-LM flags quoted for a shell, one per change.

    A flag to take out of the command is written as the comment `# remove: --flag`.
    """
    return [line for item in _of(changes, "megatron-lm") if (line := flag_line(item))]


def flag_line(change: Change) -> str:
    """The line of one Megatron-LM change."""
    if turns_off(change.key):
        given = change.to is False
    elif isinstance(change.to, bool) or change.to is None or change.to == []:
        given = change.to is True
    else:
        return f"{change.key} {flag_value(change.to)}"
    return change.key if given else f"# remove: {change.key}"


def flag_value(value: Any) -> str:
    """A flag's value or values as a shell takes them."""
    values = value if isinstance(value, list) else [value]
    return " ".join(shlex.quote(str(item)) for item in values)


def environment_lines(changes: Iterable[Change]) -> list[str]:
    """Shell lines that set the environment variables."""
    return [
        f"export {item.key}={shlex.quote(str(item.to))}"
        if item.to is not None
        else f"unset {item.key}"
        for item in _of(changes, "env")
    ]


def remarks(changes: Iterable[Change]) -> list[str]:
    """What a Bridge recipe may lack before the statements hold, one sentence per section."""
    sections = {item.key.partition(".")[0] for item in _of(changes, "megatron-bridge")}
    return [text for name, text in OPTIONAL_SECTIONS.items() if name in sections]


def _of(changes: Iterable[Change], framework: str) -> Sequence[Change]:
    return [item for item in changes if item.framework == framework]


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    text = str(value)
    return text if _HYDRA_PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
