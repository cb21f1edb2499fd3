"""What the verbs that write outputs share: options, planning, rendering, the terminal summary."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from moe_advisor.result import Result

FORMATS = ("html", "json", "markdown", "junit", "text")
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
                help="html, json, markdown, junit or text; html and json by default.",
            ),
            click.option("--force", is_flag=True, help="Replace outputs that exist."),
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
    if kind == "json":
        from moe_advisor.output import json_output

        return json_output.encode(result)
    if kind == "html":
        from moe_advisor.output import html

        return html.render(result)
    if kind == "markdown":
        from moe_advisor.output import markdown

        return markdown.render(result)
    if kind == "junit":
        from moe_advisor.output import junit

        return junit.render(result)
    from moe_advisor.output import text

    return text.render(result, width=MAX_COLUMNS, color=False, unicode=True)


def write_outputs(result: Result, planned: Sequence[Any], force: bool) -> list[Path]:
    """Renders and writes everything planned; returns the files written."""
    from moe_advisor.output import writer

    written = []
    for output in planned:
        content = render_one(result, output.kind)
        if output.path is None:
            data = content.encode() if isinstance(content, str) else content
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            writer.write(output.path, content, force=force)
            written.append(output.path)
    return written


def show_summary(result: Result, written: Sequence[Path], color: str) -> None:
    """The story in one screen on standard output, plain when piped."""
    from moe_advisor.output import text

    terminal = sys.stdout.isatty()
    colored = color == "always" or (
        color == "auto"
        and (terminal or "FORCE_COLOR" in os.environ)
        and "NO_COLOR" not in os.environ
    )
    width = min(shutil.get_terminal_size((MAX_COLUMNS, 24)).columns, MAX_COLUMNS)
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    click.echo(
        text.render(
            result, width=width if terminal else MAX_COLUMNS, color=colored, unicode=unicode
        ),
        nl=False,
        color=colored,
    )
    if written:
        click.echo("Wrote " + ", ".join(str(path) for path in written))
