"""Usage errors in the program's own voice: what, where, what to do, on one line."""

from difflib import get_close_matches

import click
from click.core import ParameterSource

from moe_advisor.cli.options import long_name


def usage(error: click.UsageError) -> str:
    """One line for what click found wrong with a command line."""
    context = error.ctx
    verb = context.command_path.partition(" ")[2] if context else ""
    page = f"moe-advisor {verb} --help" if verb else "moe-advisor --help"
    words = _words(error).strip().rstrip(".")
    stop = "" if words.endswith("?") else ";"
    return f"{verb + ': ' if verb else ''}{words}{stop} see {page}"


def _words(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        known = [name for param in _params(error) for name in param.opts if name.startswith("--")]
        near = get_close_matches(error.option_name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no option {error.option_name}{hint}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{_name(error.param)} is missing"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_origin(error, error.param)}: {error.message}"
    text = error.format_message()
    return text[:1].lower() + text[1:]


def _params(error: click.UsageError) -> list[click.Parameter]:
    return error.ctx.command.params if error.ctx else []


def _name(param: click.Parameter) -> str:
    name = long_name(param)
    return f"--{name}" if name else (param.metavar or param.human_readable_name)


def _origin(error: click.BadParameter, param: click.Parameter) -> str:
    """Where the value was given: an option, a variable or a settings file."""
    context = error.ctx
    source = context.get_parameter_source(param.name or "") if context else None
    if source is ParameterSource.ENVIRONMENT and param.envvar:
        import os

        names = [param.envvar] if isinstance(param.envvar, str) else param.envvar
        return next((f"${name}" for name in names if os.environ.get(name)), _name(param))
    if source is ParameterSource.DEFAULT_MAP and context is not None:
        table = ".".join(context.command_path.split()[1:])
        return f"settings file, {table}.{long_name(param)}"
    return _name(param)
