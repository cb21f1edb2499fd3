"""`moe-advisor history`: results over time in one SQLite file."""

from pathlib import Path
from typing import Any

import click

from moe_advisor.cli.loading import analysis_options, load, options_of, refuse_trace_options
from moe_advisor.cli.outputs import redacted
from moe_advisor.cli.reports import refuse_unknown, write

_DB = click.argument("db", metavar="DB", type=click.Path(path_type=Path))
_BRANCH = click.option("--branch", metavar="NAME", help="Only this branch.")
_LAST = click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N runs.")


@click.group(
    epilog="""\b
examples:
  moe-advisor history add runs.db run.moe.json --commit "$SHA"
  moe-advisor history show runs.db --branch main
  moe-advisor history html runs.db -o history.html
"""
)
def history() -> None:
    """Keep results over time, show their trend and where it changed."""


@history.command(
    epilog="""\b
examples:
  moe-advisor history add runs.db run.moe.json --branch main --commit "$SHA"
  moe-advisor history add runs.db traces/ --label nodes=8 --label job=4711
"""
)
@_DB
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--branch", default="main", show_default=True, metavar="NAME", help="Branch of the commit."
)
@click.option("--commit", default="", metavar="ID", help="Commit that the run was made with.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Anything to know it by."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0), default=30.0, show_default=True,
    metavar="S", help="Seconds to wait for other jobs.",
)  # fmt: skip
@analysis_options
def add(
    db: Path,
    paths: tuple[str, ...],
    branch: str,
    commit: str,
    labels: tuple[str, ...],
    timeout_s: float,
    **given: Any,
) -> None:
    """Add one run: a trace, a folder of ranks or a result.json.

    Several jobs may add at once. The same result with the same commit and labels adds once.
    """
    from moe_advisor import remote
    from moe_advisor.compare.sides import is_result
    from moe_advisor.errors import ConfigError
    from moe_advisor.history import store

    pairs: dict[str, str] = {}
    for label in labels:
        key, sep, value = label.partition("=")
        if not (sep and key and value):
            raise ConfigError(f"--label {label[:80]!r}: write KEY=VALUE")
        pairs[key] = value
    with remote.inputs(paths) as local:
        first = local[0]
        if len(local) == 1 and isinstance(first, str) and is_result(Path(first)):
            refuse_trace_options(Path(first).name)
        result = redacted(load(local, options_of(given)))
    number, new = store.add(
        db, result, branch=branch, commit=commit, labels=pairs, timeout_s=timeout_s
    )
    click.echo(f"{'Added' if new else 'Already there:'} run {number}")


@history.command(
    epilog="""\b
examples:
  moe-advisor history show runs.db
  moe-advisor history show runs.db --branch main --last 20
"""
)
@_DB
@_BRANCH
@_LAST
def show(db: Path, branch: str | None, last: int | None) -> None:
    """List the runs, and where a metric changed its level."""
    from moe_advisor.history import store
    from moe_advisor.output import history_html
    from moe_advisor.output.compare_text import value
    from moe_advisor.output.formatting import clean

    rows = store.read(db, branch, last)
    for row in rows:
        metric = row.result.metrics.get("step_ms")
        step = value(metric.value if metric else None, "ms/step")
        labels = " ".join(f"{key}={text}" for key, text in row.labels.items())
        words = (
            row.added_at,
            row.branch,
            row.commit or "-",
            step,
            row.result.walls.verdict,
            labels,
        )
        click.echo(clean(f"{row.number:>5}  " + "  ".join(word for word in words if word), 300))
    for name in dict.fromkeys(row.branch for row in rows):
        for trend in history_html.trends([row for row in rows if row.branch == name]):
            for mark in trend.marks:
                words_of = history_html.words(mark, trend)
                click.echo(clean(f"{name}, {trend.metric.name}: {words_of}", 400))
    if not rows:
        click.echo("no runs")


@history.command(
    epilog="""\b
examples:
  moe-advisor history html runs.db
  moe-advisor history html runs.db --metric step_ms --metric ep_a2a_exposed_ms -o trend.html
"""
)
@_DB
@_BRANCH
@_LAST
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("history.html"),
    show_default=True, metavar="FILE", help="The page to write; - for standard output.",
)  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Only these metrics.")
@click.option("--force", is_flag=True, help="Replace an output that exists.")
def html(
    db: Path,
    branch: str | None,
    last: int | None,
    output: Path,
    metrics: tuple[str, ...],
    force: bool,
) -> None:
    """Write the trends as one HTML page with change points marked."""
    from moe_advisor.history import store
    from moe_advisor.measure.registry import METRICS
    from moe_advisor.output import history_html, writer

    refuse_unknown("--metric", metrics, tuple(METRICS))
    planned = [writer.Output("html", None if str(output) == "-" else output)]
    writer.refuse(planned, [db], force=force)
    rows = store.read(db, branch, last)
    page = history_html.render(rows, metrics or history_html.DEFAULT_METRICS)
    write(planned, lambda _: page, force)
    if str(output) != "-":
        click.echo(f"Wrote {output}")
