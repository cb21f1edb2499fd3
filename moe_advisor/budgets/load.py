"""Reads budgets from moe-advisor.toml or the [tool.moe-advisor] table of pyproject.toml."""

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from moe_advisor.budgets.model import Budget, Level, Scope
from moe_advisor.errors import ConfigError

OWN_FILE = "moe-advisor.toml"
PROJECT_FILE = "pyproject.toml"

MAX_BYTES = 1 << 20
"""A budget file of this size is something else."""

MAX_BUDGETS = 500
"""Each is evaluated for every rank and step; more is a mistake."""

SETTINGS = (
    "analyze",
    "whatif",
    "render",
    "rules",
    "check",
    "compare",
    "history",
    "capture",
    "scrub",
    "demo",
    "doctor",
    "completion",
)
"""Tables beside the budgets, one per verb: options, which `moe_advisor.cli.settings` reads."""

_KEYS: dict[str, tuple[str, ...] | None] = {
    "name": None,
    "expect": None,
    "level": ("error", "warn"),
    "message": None,
    "scope": ("run", "rank", "step"),
    "if_not_measured": ("fail", "pass"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find(folder: Path) -> Path:
    """The budget file that holds for `folder`: in it or the nearest folder above.

    moe-advisor.toml goes before pyproject.toml; a pyproject.toml without our table is passed over.
    Raises ConfigError where there is none.
    """
    for place in (folder, *folder.resolve().parents):
        own, project = place / OWN_FILE, place / PROJECT_FILE
        if own.is_file():
            return own
        if project.is_file() and section_of(read_toml(project), project.name) is not None:
            return project
    raise ConfigError(
        f"no {OWN_FILE} and no [tool.moe-advisor] in a {PROJECT_FILE} here or above: write one "
        'with [[budget]] name = "..." expect = "m.step_ms <= 150.0", or give --budgets FILE'
    )


def load(path: Path) -> tuple[Budget, ...]:
    """The budgets of one file, in its order. Raises ConfigError that names file, budget and key."""
    data = read_toml(path)
    section = section_of(data, path.name)
    if section is None:
        raise ConfigError(f"{path.name}: holds no [tool.moe-advisor] table")
    for key in section:
        if key != "budget" and key not in SETTINGS:
            raise ConfigError(
                f"{path.name}: unknown key {key!r}{_hint(key, ('budget', *SETTINGS))}"
            )
    rows = section.get("budget", [])
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path.name}: holds no [[budget]] table: write at least one")
    if len(rows) > MAX_BUDGETS:
        raise ConfigError(f"{path.name}: {len(rows)} budgets; at most {MAX_BUDGETS}")
    lines = path.read_text(encoding="utf-8").splitlines()
    budgets = tuple(_budget(row, number, path.name, lines) for number, row in enumerate(rows, 1))
    seen: set[str] = set()
    for one in budgets:
        if one.name in seen:
            raise ConfigError(f"{path.name}: two budgets are named {one.name!r}: rename one")
        seen.add(one.name)
    return budgets


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file of ours. Raises ConfigError that names it."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path.name}: larger than {MAX_BYTES >> 20} MiB: not a budget file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path.name}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path.name}: not TOML: {text}") from None


def section_of(data: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Our part of a file: all of moe-advisor.toml, [tool.moe-advisor] of pyproject.toml or None."""
    if name != PROJECT_FILE:
        return data
    tool = data.get("tool")
    if not isinstance(tool, dict) or "moe-advisor" not in tool:
        return None
    section = tool["moe-advisor"]
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: tool.moe-advisor is not a table")
    return cast("Mapping[str, Any]", section)


def _budget(row: Any, number: int, file: str, lines: list[str]) -> Budget:
    if not isinstance(row, dict):
        raise ConfigError(f"{file}: budget {number} is not a table: write [[budget]]")
    name = row.get("name")
    where = f"{file}: budget {name!r}" if isinstance(name, str) else f"{file}: budget {number}"
    for key, value in row.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key!r}{_hint(key, tuple(_KEYS))}")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key} is {type(value).__name__}, not a string")
        allowed = _KEYS[key]
        if allowed and value not in allowed:
            hint = _hint(value, allowed)
            raise ConfigError(f"{where}: {key} is {value!r}{hint or f': use {_or(allowed)}'}")
    for key in ("name", "expect"):
        if not row.get(key, "").strip():
            raise ConfigError(f"{where}: {key} is missing")
    if not _NAME.fullmatch(row["name"]):
        raise ConfigError(
            f"{where}: a name has at most 100 letters, digits, dots, dashes and underscores"
        )
    return Budget(
        name=row["name"],
        expect=row["expect"].strip(),
        level=cast("Level", row.get("level", "error")),
        message=" ".join(row.get("message", "").split()),
        scope=cast("Scope", row.get("scope", "run")),
        if_not_measured=row.get("if_not_measured", "fail"),
        source=file,
        line=_line(lines, row["name"]),
    )


def _line(lines: list[str], name: str) -> int:
    own = re.compile(rf"""name\s*=\s*["']{re.escape(name)}["']""")
    return next((number for number, text in enumerate(lines, 1) if own.search(text)), 1)


def _hint(word: str, choices: tuple[str, ...]) -> str:
    near = get_close_matches(word, choices, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
