"""What the verbs that write outputs share: options, planning, rendering, the terminal summary."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import click

from moe_advisor.result import Result

FORMATS = ("html", "json", "markdown", "junit", "text", "perfetto", "parquet", "csv")
DEFAULT_FORMATS = ("html", "json")
MAX_COLUMNS = 100


def parse_format(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, Path | None]]:
    """KIND[=PATH], repeatable."""
    found: list[tuple[str, Path | None]] = []
    for value in values:
        kind, _sep, path = value.partition("=")
        if kind not in FORMATS:
            from difflib import get_close_matches

            near = get_close_matches(kind, FORMATS, 1)
            hint = f" Did you mean {near[0]}?" if near else f" Choose from {', '.join(FORMATS)}."
            raise click.BadParameter(f"unknown format {kind!r}.{hint}")
        found.append((kind, Path(path) if path else None))
    return found


_REDACTION = "moe_advisor.redact"


def redact_option() -> Callable[..., Any]:
    """--redact, for every verb that shows a result; `redacted` applies it."""

    def keep(context: click.Context, _: click.Parameter, value: str | None) -> None:
        context.meta[_REDACTION] = value

    return click.option(
        "--redact",
        type=click.Choice(["strict"]),
        callback=keep,
        expose_value=False,
        help="Hide names of files, steps, ranges and process groups, and kernels' arguments.",
    )


def redacting() -> bool:
    """Whether the running verb was given --redact."""
    context = click.get_current_context(silent=True)
    return context is not None and context.meta.get(_REDACTION) is not None


def redacted(result: Result) -> Result:
    """`result` as the running verb's --redact asks for it."""
    if not redacting():
        return result
    from moe_advisor.output import redact

    return redact.strict(result)


def bound_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--max-file, --max-seconds and --max-memory, for every verb that reads traces."""

    def keep(context: click.Context, parameter: click.Parameter, value: float | None) -> None:
        if value is None:
            return
        from dataclasses import replace

        from moe_advisor import bounded

        names = {"max_file": "file_gib", "max_seconds": "query_s", "max_memory": "memory_gib"}
        bounds = replace(bounded.current(), **{names[str(parameter.name)]: value})
        context.with_resource(bounded.using(bounds))

    for name, unit, text in (
        ("--max-memory", "GIB", "End once so much memory is in use (nine tenths of the machine)."),
        ("--max-seconds", "SECONDS", "Longest time for the queries of one SQLite input (1800)."),
        ("--max-file", "GIB", "Largest input that is read (64)."),
    ):
        command = click.option(
            name,
            type=click.FloatRange(0, min_open=True),
            metavar=unit,
            callback=keep,
            expose_value=False,
            help=text,
        )(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """-o, --format, --force, --quiet and --color, for every verb that writes outputs."""
    for option in reversed(
        (
            click.option(
                "-o",
                "--output",
                "folder",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help="Folder for the outputs; - writes one format to standard output.",
            ),
            click.option(
                "--format",
                "formats",
                multiple=True,
                callback=parse_format,
                metavar="KIND[=PATH]",
                help="html, json, markdown, junit, text; from a trace also perfetto, parquet, csv. "
                "html and json by default.",
            ),
            click.option("--force", is_flag=True, help="Replace outputs that exist."),
            redact_option(),
            click.option("-q", "--quiet", is_flag=True, help="No summary and no progress."),
            click.option(
                "--color",
                type=click.Choice(["auto", "always", "never"]),
                default="auto",
                help="Colour the summary.",
            ),
        )
    ):
        command = option(command)
    return command


def plan_outputs(
    formats: Sequence[tuple[str, Path | None]],
    inputs: Sequence[Path],
    folder: Path | None,
    force: bool,
) -> list[Any]:
    """The planned outputs; one that exists is refused before any work."""
    from moe_advisor.output import writer

    wanted = list(formats) or [(kind, None) for kind in DEFAULT_FORMATS]
    planned = writer.plan(wanted, inputs, folder)
    writer.refuse(planned, inputs, force=force)
    return planned


def render_one(result: Result, kind: str) -> bytes | str:
    """One output as its whole content."""
    from moe_advisor.privacy import no_commands

    if kind == "json":
        from moe_advisor.output import json_output

        return json_output.encode(result)
    if kind == "html":
        from moe_advisor.output import html

        return html.render(result)
    if kind == "markdown":
        from moe_advisor.output import markdown

        return no_commands(markdown.render(result))
    if kind == "junit":
        from moe_advisor.output import junit

        return junit.render(result)
    from moe_advisor.output import text

    return no_commands(text.render(result, width=MAX_COLUMNS, color=False, unicode=True))


Fill = Callable[[IO[bytes]], None]


def write_outputs(
    result: Result,
    planned: Sequence[Any],
    force: bool,
    from_trace: Callable[[str], Fill] | None = None,
) -> list[Path]:
    """Renders and writes everything planned; returns the files written.

    `from_trace` gives what fills a file of one of the kinds that a result does not hold.
    """
    from moe_advisor import interrupts
    from moe_advisor.output import writer

    shown = redacted(result)
    written = []
    for output in planned:
        interrupts.check()
        content: bytes | str | Fill
        if output.kind in writer.TRACE_KINDS:
            if from_trace is None:
                raise _no_activities(output.kind)
            if shown is not result:
                raise _names_left(output.kind)
            content = from_trace(output.kind)
        else:
            content = render_one(shown, output.kind)
        if output.path is None:
            _to_stdout(content)
        else:
            writer.write(output.path, content, force=force)
            written.append(output.path)
    return written


def _names_left(kind: str) -> Exception:
    from moe_advisor.errors import OutputError

    return OutputError(
        f"--format {kind} writes every activity with its name: leave it or --redact out, or give "
        "it the output of moe-advisor scrub"
    )


def _to_stdout(content: bytes | str | Fill) -> None:
    if callable(content):
        with tempfile.TemporaryFile() as file:  # a table is written with seeks, a pipe has none
            content(file)
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
    else:
        sys.stdout.buffer.write(content.encode() if isinstance(content, str) else content)
    sys.stdout.buffer.flush()


def refuse_from_result(planned: Sequence[Any], name: str) -> None:
    """Raises OutputError where a planned output needs the trace and `name` is a result."""
    from moe_advisor.output import writer

    for output in planned:
        if output.kind in writer.TRACE_KINDS:
            raise _no_activities(output.kind, name)


def _no_activities(kind: str, name: str = "the input") -> Exception:
    from moe_advisor.errors import OutputError

    return OutputError(
        f"{name}: is a result, which does not hold every activity: give the trace for "
        f"--format {kind}"
    )


def show_summary(result: Result, written: Sequence[Path], color: str) -> None:
    """The story in one screen on standard output, plain when piped."""
    from moe_advisor.output import text

    result = redacted(result)
    terminal = sys.stdout.isatty()
    colored = color == "always" or (
        color == "auto"
        and (terminal or "FORCE_COLOR" in os.environ)
        and "NO_COLOR" not in os.environ
    )
    width = min(shutil.get_terminal_size((MAX_COLUMNS, 24)).columns, MAX_COLUMNS)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    from moe_advisor.privacy import no_commands

    click.echo(
        no_commands(
            text.render(
                result, width=width if terminal else MAX_COLUMNS, color=colored, unicode=unicode
            )
        ),
        nl=False,
        color=colored,
    )
    if written:
        click.echo("Wrote " + ", ".join(str(path) for path in written))
