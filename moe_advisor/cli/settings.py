"""Options from a file: moe-advisor.toml, or [tool.moe-advisor] in pyproject.toml.

A table per verb, a key per option: `[analyze]` with `fail-on = ["m.step_ms > 150.0"]`. The command
line goes before the environment, the environment before the file.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from moe_advisor.budgets.load import OWN_FILE, PROJECT_FILE, read_toml, section_of
from moe_advisor.cli.options import long_name
from moe_advisor.errors import ConfigError

NONE = "none"
"""`--settings none` reads no file."""

ROOT_UID = 0

BUDGETS = "budget"
"""The one table that is no verb's: `check` reads it."""


def find(folder: Path) -> Path | None:
    """The settings file that holds for `folder`: in it or the nearest folder above, else None.

    moe-advisor.toml goes before a pyproject.toml, which counts only if it has our table.
    """
    start = folder.resolve()
    for place in (start, *start.parents):
        own, project = place / OWN_FILE, place / PROJECT_FILE
        if own.is_file():
            return own
        if project.is_file() and _mentions_us(project):
            try:
                if section_of(read_toml(project), project.name) is not None:
                    return project
            except ConfigError:
                continue  # a project file that is broken is not ours to complain about
    return None


def _mentions_us(project: Path) -> bool:
    try:
        return b"moe-advisor" in project.read_bytes()
    except OSError:
        return False


def chosen(given: str | None) -> Path | None:
    """The file of --settings, else the one found from the working folder."""
    if given == NONE:
        return None
    return Path(given) if given else find(Path())


def defaults(file: Path, group: click.Group, verb: str | None = None) -> dict[str, Any]:
    """What click takes as default map, of one verb or of all.

    Raises ConfigError that names file, table and key, with the nearest name there is.
    """
    section = section_of(read_toml(file), file.name)
    if section is None:
        raise ConfigError(f"{file.name}: holds no [tool.moe-advisor] table")
    context = click.Context(group)
    verbs = group.list_commands(context)
    found: dict[str, Any] = {}
    for key, value in section.items():
        if key == BUDGETS:
            continue
        if key not in verbs:
            raise ConfigError(f"{file.name}: unknown key {key!r}{_hint(key, [*verbs, BUDGETS])}")
        if verb is None or key == verb:
            command = group.get_command(context, key)
            if command is not None:
                found[key] = _of_command(file, (key,), command, value)
    return found


def _of_command(
    file: Path, path: tuple[str, ...], command: click.Command, table: object
) -> dict[str, Any]:
    where = ".".join(path)
    if not isinstance(table, Mapping):
        raise ConfigError(f"{file.name}: {where} is not a table: write [{where}]")
    below = command.commands if isinstance(command, click.Group) else {}
    options = {name: param for param in command.params if (name := long_name(param))}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key in below:
            found[key] = _of_command(file, (*path, key), below[key], value)
        elif key in options:
            param = options[key]
            found[param.name or key] = _value(file, f"{where}.{key}", param, value)
        else:
            hint = _hint(key, [*options, *below])
            raise ConfigError(f"{file.name}: {where}: unknown key {key!r}{hint}")
    return found


def _value(file: Path, where: str, param: click.Parameter, value: object) -> object:
    """A value of the kind the option takes; paths count from the folder of the file."""
    flag, multiple = getattr(param, "is_flag", False), getattr(param, "multiple", False)
    if flag:
        if not isinstance(value, bool):
            raise ConfigError(f"{file.name}: {where}: {value!r:.80} is not true or false")
        return value
    values = value if multiple and isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            kind = "a list of texts" if multiple else "a text or a number"
            raise ConfigError(f"{file.name}: {where}: {one!r:.80} is not {kind}")
    placed = [_placed(file, where, param, one) for one in values]
    return placed if multiple else placed[0]


def _placed(file: Path, where: str, param: click.Parameter, value: object) -> object:
    if not isinstance(value, str):
        return value
    if param.metavar == "PROGRAM":
        _refuse_foreign(file, where)
        return str(file.parent / value) if "/" in value else value
    if param.metavar in ("FILE", "DIR") and value != "-":
        return str(file.parent / value)
    return value


def _refuse_foreign(file: Path, where: str) -> None:
    """A file that someone else can write must not choose the program that we run."""
    try:
        owner = file.stat().st_uid
    except OSError:
        return
    if owner not in (os.getuid(), ROOT_UID):
        raise ConfigError(
            f"{file.name}: {where} names a program, but the file belongs to another user: give it "
            "on the command line or in the environment"
        )


def _hint(word: str, choices: list[str]) -> str:
    near = get_close_matches(word.replace("_", "-"), choices, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
