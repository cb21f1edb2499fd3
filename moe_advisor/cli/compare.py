"""`moe-advisor compare`: two runs, with a verdict that knows noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_advisor.cli.loading import analysis_options, load, options_of

if TYPE_CHECKING:
    from moe_advisor.compare.model import Comparison

FILES = {"html": "compare.html", "json": "compare.json", "markdown": "compare.md"}
"""Format -> name of its file."""


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
  moe-advisor compare before.moe.json after.moe.json
  moe-advisor compare traces/base/ traces/overlap/ --gate
  moe-advisor compare run.nsys-rep --baseline history.db:main~20 --gate

\b
A folder of results, or of run1, run2 ..., holds the repeats of one side.
"""
)
@click.argument("paths", nargs=-1, required=True, metavar="BASE NEW")
@click.option(
    "--baseline",
    metavar="DB:BRANCH~N",
    help="Instead of BASE: the last N runs of a branch in a history file.",
)
@click.option("--gate", is_flag=True, help="Exit 1 if worse, or if it can't be told.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Metric the gate looks at, repeatable (step_ms).",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="CHECK",
    help="Compare although this differs: hardware, world-size, parallelism, model or link.",
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
    help="html, json or markdown.",
)
@click.option("--force", is_flag=True, help="Replace outputs that exist.")
@click.option("-q", "--quiet", is_flag=True, help="No text on standard output.")
def compare(
    paths: tuple[str, ...],
    baseline: str | None,
    gate: bool,
    metrics: tuple[str, ...],
    allow: tuple[str, ...],
    folder: Path | None,
    formats: list[tuple[str, Path | None]],
    force: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Say what changed from BASE to NEW, beyond noise, and which parts changed it.

    Each is a trace, a folder of ranks, a glob, an earlier result.json or a folder of repeats.
    """
    from moe_advisor.cli.check import append_step_summary, write
    from moe_advisor.compare import checks, judge, sides
    from moe_advisor.errors import ConfigError
    from moe_advisor.output import compare_text, writer

    wanted = 1 if baseline else 2
    if len(paths) != wanted:
        raise click.UsageError(
            f"give {'NEW only, with --baseline' if baseline else 'BASE and NEW'}: "
            f"{len(paths)} paths were given"
        )
    _known("--allow", allow, checks.ALLOWED)
    from moe_advisor.measure.registry import METRICS

    _known("--metric", metrics, tuple(METRICS))
    options = options_of(given)
    planned = _plan(formats, folder)
    writer.refuse(planned, [Path(path) for path in paths], force=force)
    new_text = paths[-1]
    new = [load([run], options) for run in sides.runs_of(new_text)]
    new_name = sides.name_of(new_text)
    if baseline:
        from moe_advisor.history import store

        rows = store.baseline(baseline, exclude=new)
        base = [row.result for row in rows]
        base, left_out = _comparable(base, new[0], allow)
        if left_out:
            click.echo(
                f"moe-advisor: warning: {left_out} of {len(rows)} runs of the baseline are of "
                "another machine, layout or model: left out",
                err=True,
            )
        base_name = baseline.rpartition(":")[2]
    else:
        base = [load([run], options) for run in sides.runs_of(paths[0])]
        base_name = sides.name_of(paths[0])
        if base_name == new_name:
            base_name, new_name = f"{base_name} (base)", f"{new_name} (new)"
    if not base:
        raise ConfigError(f"--baseline {baseline}: no run of it can be compared with {new_name}")
    comparison = judge.compare(base, new, (base_name, new_name), allow)
    write(planned, lambda kind: _render(kind, comparison), force)
    append_step_summary(lambda: compare_text.markdown(comparison))
    if not quiet and not any(one.path is None for one in planned):
        click.echo(compare_text.text(comparison), nl=False)
    if gate:
        _gate(comparison, metrics or ("step_ms",))


def _known(option: str, values: tuple[str, ...], choices: tuple[str, ...]) -> None:
    from difflib import get_close_matches

    for value in values:
        if value not in choices:
            near = get_close_matches(value, choices, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(choices[:8])}"
            raise click.UsageError(f"{option} {value}: there is no such name; {hint}")


def _comparable(base: list[Any], new: Any, allow: tuple[str, ...]) -> tuple[list[Any], int]:
    from moe_advisor.compare import checks

    kept = [
        one
        for one in base
        if not any(check.state == "refused" for check in checks.compare_runs(one, new, allow))
    ]
    return kept, len(base) - len(kept)


def _plan(formats: list[tuple[str, Path | None]], folder: Path | None) -> list[Any]:
    from moe_advisor.output.writer import Output

    wanted = formats or ([(kind, None) for kind in FILES] if folder else [])
    return [
        Output(kind, None)
        if str(path) == "-"
        else Output(kind, path or (folder or Path()) / FILES[kind])
        for kind, path in wanted
    ]


def _render(kind: str, comparison: "Comparison") -> str | bytes:
    from moe_advisor.output import compare_html, compare_text

    if kind == "html":
        return compare_html.render(comparison)
    if kind == "json":
        return compare_text.as_json(comparison)
    return compare_text.markdown(comparison)


def _gate(comparison: "Comparison", metrics: tuple[str, ...]) -> None:
    from moe_advisor.errors import GateFailed

    failed = []
    for one in comparison.deltas:
        if one.name in metrics and one.verdict == "worse":
            failed.append(f"{one.name} is worse ({(one.relative or 0) * 100:+.1f} %)")
        elif one.name in metrics and one.verdict == "cant_tell":
            failed.append(f"{one.name} can't be told: {one.reason}")
    if failed:
        raise GateFailed(f"gate: {'; '.join(failed)}")
