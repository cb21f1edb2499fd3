"""What every option has beyond its own line: an environment variable and completed values."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PREFIX = "MOE_ADVISOR"

_PATHS = ("FILE", "DIR", "PATH", "PATH...", "RESULT", "BASE NEW", "DB", "[DIR]")
"""Metavars whose values are completed as file names."""


class _Lines(click.types.StringParamType):
    """Text; in an environment variable a repeatable option holds one value a line.

    Expressions and file names have spaces in them, at which click would divide.
    """

    envvar_list_splitter = "\n"


class _AnyPath(click.Path):
    """A path that may be no name at all, such as one with a zero byte: the reader says so."""

    envvar_list_splitter = "\n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`value` as it is where the system refuses it."""
        try:
            return super().convert(value, param, ctx)
        except ValueError:
            return value


class _File(_AnyPath):
    """A path as text, whether it exists or not: what is wrong with it is for the reader to say."""

    def __init__(self) -> None:
        super().__init__(readable=False)


class _Folders(_AnyPath):
    """Paths of a repeatable option."""


class _Names(_Lines):
    """One of a list of names, completed from it; the verb itself judges what is typed."""

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self.names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


def _rules() -> list[str]:
    from moe_advisor.advise import load_rules

    return [rule.id for rule in load_rules(())]


def _metrics() -> list[str]:
    from moe_advisor.measure.registry import METRICS

    return list(METRICS)


def _changes() -> list[str]:
    from moe_advisor.whatif import CHANGES

    return list(CHANGES)


_COMPLETED: dict[str, Callable[[], Sequence[str]]] = {
    "--metric": _metrics,
    "--apply": _changes,
    "ID": _rules,
}
"""Option or metavar -> the names it can hold."""


def long_name(option: click.Parameter) -> str | None:
    """`fail-on` for --fail-on; None for arguments, --help and --version."""
    if not isinstance(option, click.Option) or option.is_eager:
        return None
    return next((name[2:] for name in option.opts if name.startswith("--")), None)


def variable(command: Sequence[str], option: str) -> str:
    """MOE_ADVISOR_ANALYZE_FAIL_ON for the option fail-on of the verb analyze."""
    return "_".join((PREFIX, *command, option)).upper().replace("-", "_")


def adopt(command: click.Command, path: tuple[str, ...]) -> click.Command:
    """Gives all options of `command`, and of the verbs below it, what they all have."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            adopt(below, (*path, name))
    for param in command.params:
        _adopt_type(param)
        option = long_name(param)
        if option is not None:
            own = variable(path, option)
            given = param.envvar or ()
            others = (given,) if isinstance(given, str) else tuple(given)
            if own not in others:
                param.envvar = (own, *others)
    return command


def _adopt_type(param: click.Parameter) -> None:
    keys = {*param.opts, param.metavar or ""} & _COMPLETED.keys()
    kind = param.type
    if type(kind) is type(click.STRING):
        if keys:
            param.type = _Names(_COMPLETED[keys.pop()])
        elif param.metavar in _PATHS:
            param.type = _File()
        else:
            param.type = _Lines()
    elif isinstance(kind, click.Path) and getattr(param, "multiple", False):
        param.type = _Folders(path_type=kind.type)


def every(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """`command` and all verbs below it, each with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                yield from every(below, (*path, name))
