"""What check, compare and history share: where their reports go and how they get there."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def gate_output_options(
    files: Mapping[str, str], kinds: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """-o, --format, --force and --quiet; `files` are the formats with their names under -o."""

    def parsed(
        _: click.Context, __: click.Parameter, values: tuple[str, ...]
    ) -> list[tuple[str, Path | None]]:
        found: list[tuple[str, Path | None]] = []
        for value in values:
            kind, _sep, path = value.partition("=")
            if kind not in files:
                raise click.BadParameter(f"unknown format {kind!r}: use {', '.join(files)}")
            found.append((kind, Path(path) if path else None))
        return found

    def adopt(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(
            (
                click.option(
                    "-o",
                    "--output",
                    "folder",
                    type=click.Path(path_type=Path),
                    metavar="DIR",
                    help="Write every format into this folder.",
                ),
                click.option(
                    "--format",
                    "formats",
                    multiple=True,
                    callback=parsed,
                    metavar="KIND[=PATH]",
                    help=kinds,
                ),
                click.option("--force", is_flag=True, help="Replace outputs that exist."),
                click.option(
                    "-q", "--quiet", is_flag=True, help="Only what failed, on standard error."
                ),
            )
        ):
            command = option(command)
        return command

    return adopt


def plan(
    formats: Sequence[tuple[str, Path | None]], folder: Path | None, files: Mapping[str, str]
) -> list[Any]:
    """Where each format goes; with -o and no format, all of them into that folder.

    Raises OutputError where two would go to one place.
    """
    from moe_advisor.errors import OutputError
    from moe_advisor.output.writer import Output

    if folder == Path("-"):
        if len(formats) != 1:
            raise OutputError(
                f"-o - writes one format to standard output, {len(formats)} were asked for: "
                "name one with --format"
            )
        return [Output(formats[0][0], None)]
    wanted = list(formats) or ([(kind, None) for kind in files] if folder else [])
    planned = [
        Output(kind, None)
        if str(path) == "-"
        else Output(kind, path or (folder or Path()) / files[kind])
        for kind, path in wanted
    ]
    places = [one.path.resolve() if one.path else None for one in planned]
    for one, place in zip(planned, places, strict=True):
        if places.count(place) > 1:
            where = one.path or "standard output"
            raise OutputError(f"{where}: two formats would go there: give each its own path")
    return planned


def write(planned: Sequence[Any], render: Callable[[str], str | bytes], force: bool) -> None:
    """Renders and writes every planned output; `path` None is standard output."""
    from moe_advisor.output import writer

    for output in planned:
        content = render(output.kind)
        if output.path is None:
            data = content if isinstance(content, bytes) else content.encode()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            writer.write(output.path, content, force=force)


def append_step_summary(markdown: Callable[[], str]) -> None:
    """Adds Markdown to the file that GitHub Actions shows under the job, where it names one.

    A summary that can't be written is a warning: the gate itself must not depend on it.
    """
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(markdown() + "\n")
    except OSError as error:
        click.echo(
            f"moe-advisor: warning: $GITHUB_STEP_SUMMARY can't be written: {error.strerror}",
            err=True,
        )


def refuse_unknown(option: str, values: Sequence[str], choices: Sequence[str]) -> None:
    """A usage error for a value that is none of the choices, with the near one."""
    from difflib import get_close_matches

    for value in values:
        if value not in choices:
            near = get_close_matches(value, choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(choices[:8])}"
            raise click.UsageError(f"{option} {value}: there is no such name; {hint}")
