"""`moe-advisor check`: budgets on a run, for CI."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_advisor.cli.loading import analysis_options, load, options_of

if TYPE_CHECKING:
    from moe_advisor.budgets.model import Judged
    from moe_advisor.result import Result

FILES = {
    "json": "check.json",
    "junit": "junit.xml",
    "markdown": "check.md",
    "gitlab": "gl-code-quality-report.json",
    "openmetrics": "metrics.txt",
    "html": "report.html",
    "result": "result.json",
}
"""Format -> name of its file under -o."""


def _formats(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, Path | None]]:
    found: list[tuple[str, Path | None]] = []
    for value in values:
        kind, _sep, path = value.partition("=")
        if kind not in FILES:
            raise click.BadParameter(f"unknown format {kind!r}: use {', '.join(FILES)}")
        found.append((kind, Path(path) if path else None))
    return found


@click.command(
    epilog="""\b
examples:
  moe-advisor check traces/
  moe-advisor check run.moe.json --budgets ci/moe-advisor.toml
  moe-advisor check run.nsys-rep --format junit=junit.xml --format html=report.html

\b
moe-advisor.toml:
  [[budget]]
  name = "exposed-all-to-all"
  expect = "m.ep_a2a_exposed_share <= 0.10"
"""
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--budgets",
    metavar="FILE",
    help="Budget file; else moe-advisor.toml or [tool.moe-advisor] here or above.",
)
@analysis_options
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write every format into this folder.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    callback=_formats,
    metavar="KIND[=PATH]",
    help="json, junit, markdown, gitlab, openmetrics, html (the report) or result.",
)
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Only what failed, on standard error.")
def check(
    paths: tuple[str, ...],
    budgets: str | None,
    folder: Path | None,
    formats: list[tuple[str, Path | None]],
    force: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Hold a run against its budgets: exit 0 met, 1 missed or not measured, 2 can't be used.

    PATH is a trace, a folder of ranks, a glob or an earlier result.json.
    """
    from moe_advisor.budgets import judge
    from moe_advisor.budgets import load as files
    from moe_advisor.errors import GateFailed
    from moe_advisor.ingest import sources
    from moe_advisor.output import budget_report, writer

    limits = files.load(Path(budgets) if budgets else files.find(Path()))
    judge.validate(limits)  # before the traces are read: a slip costs a second, not a minute
    planned = plan(formats, folder)
    writer.refuse(planned, sources.find_inputs(paths), force=force)
    result = load(paths, options_of(given))
    judged = judge.judge(limits, result)
    write(planned, lambda kind: _render(kind, judged, result), force)
    append_step_summary(lambda: budget_report.markdown(judged))
    to_stdout = any(one.path is None for one in planned)
    if not quiet and not to_stdout:
        click.echo(budget_report.text(judged), nl=False)
    broken = [one for one in judged if one.breaks]
    if broken:
        some = "; ".join(
            f"{one.budget.name} ({'not measured' if one.outcome == 'not_measured' else 'missed'})"
            for one in broken[:10]
        )
        raise GateFailed(f"{budget_report.headline(judged)}: {some}")


def plan(formats: Sequence[tuple[str, Path | None]], folder: Path | None) -> list[Any]:
    """Where each format goes; with -o and no format, all of them into that folder."""
    from moe_advisor.output.writer import Output

    wanted = list(formats) or ([(kind, None) for kind in FILES] if folder else [])
    return [
        Output(kind, None)
        if str(path) == "-"
        else Output(kind, path or (folder or Path()) / FILES[kind])
        for kind, path in wanted
    ]


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


def _render(kind: str, judged: "list[Judged]", result: "Result") -> str | bytes:
    from moe_advisor.output import budget_report, openmetrics

    if kind in ("html", "result"):
        from moe_advisor.cli.outputs import render_one

        return render_one(result, "json" if kind == "result" else kind)
    if kind == "openmetrics":
        return openmetrics.render(result, judged)
    if kind == "junit":
        return budget_report.junit_xml(judged, result)
    if kind == "markdown":
        return budget_report.markdown(judged)
    if kind == "gitlab":
        return budget_report.gitlab(judged, result)
    return budget_report.as_json(judged, result)
