"""`moe-advisor compare`: two runs, with a verdict that knows noise."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_advisor.cli.loading import analysis_options, load, options_of, refuse_trace_options
from moe_advisor.cli.outputs import redacted, redacting
from moe_advisor.cli.reports import (
    append_step_summary,
    gate_output_options,
    plan,
    refuse_unknown,
    write,
)

if TYPE_CHECKING:
    from moe_advisor.compare.model import Comparison
    from moe_advisor.remote import RemoteFile
    from moe_advisor.result import Result

FILES = {"html": "compare.html", "json": "compare.json", "markdown": "compare.md"}
"""Format -> name of its file."""


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
@click.option("--gate", is_flag=True, help="Exit 1 if worse, or if noise could explain the change.")
@click.option(
    "--if-cant-tell",
    type=click.Choice(["fail", "pass"]),
    default="fail",
    show_default=True,
    help="What the gate makes of a change that noise could explain.",
)
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
@gate_output_options(FILES, "html, json or markdown.")
def compare(
    paths: tuple[str, ...],
    baseline: str | None,
    gate: bool,
    if_cant_tell: str,
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
    from moe_advisor.compare import checks, judge, sides
    from moe_advisor.output import compare_text, writer

    wanted = 1 if baseline else 2
    if len(paths) != wanted:
        raise click.UsageError(
            f"give {'NEW only, with --baseline' if baseline else 'BASE and NEW'}: "
            f"{len(paths)} given"
        )
    refuse_unknown("--allow", allow, checks.ALLOWED)
    from moe_advisor.measure.registry import METRICS

    refuse_unknown("--metric", metrics, tuple(METRICS))
    options = options_of(given)
    planned = plan(formats, folder, FILES)
    inputs = [Path(path) for path in paths]
    if baseline:
        inputs.append(Path(baseline.rpartition(":")[0]))
    writer.refuse(planned, inputs, force=force)
    with ExitStack() as stack:
        runs = [_runs(path, stack) for path in paths]
        given_runs = [one for side in runs for run in side for one in run]
        if all(isinstance(one, str) and sides.is_result(Path(one)) for one in given_runs):
            refuse_trace_options(Path(str(given_runs[-1])).name)
        new = [load(run, options) for run in runs[-1]]
        old = [] if baseline else [load(run, options) for run in runs[0]]
    new_name = _name(paths[-1])
    if baseline:
        base = _baseline(baseline, new, allow, new_name)
        base_name = baseline.rpartition(":")[2]
    else:
        base, base_name = old, _name(paths[0])
        if base_name == new_name:
            base_name, new_name = f"{base_name} (base)", f"{new_name} (new)"
    if redacting():
        base_name, new_name = "base", "new"
        base, new = [redacted(one) for one in base], [redacted(one) for one in new]
    comparison = judge.compare(base, new, (base_name, new_name), allow)
    write(planned, lambda kind: _render(kind, comparison), force)
    append_step_summary(lambda: compare_text.markdown(comparison))
    if not quiet and not any(one.path is None for one in planned):
        click.echo(compare_text.text(comparison), nl=False)
    if gate:
        _gate(comparison, metrics or ("step_ms",), if_cant_tell == "fail")


def _runs(path: str, stack: ExitStack) -> "list[Sequence[str | RemoteFile]]":
    """The runs that a side names, each by its inputs; copies of remote ones go with `stack`."""
    from moe_advisor import remote
    from moe_advisor.compare import sides

    local = stack.enter_context(remote.inputs([path], repeats=True))
    if len(local) == 1 and isinstance(local[0], str):
        return [[run] for run in sides.runs_of(local[0])]
    return [local]


def _name(path: str) -> str:
    """A short name for a side."""
    from moe_advisor import remote
    from moe_advisor.compare import sides

    return sides.name_of(remote.name_of(path) if remote.is_remote(path) else path)


def _baseline(
    text: str, new: "list[Result]", allow: tuple[str, ...], new_name: str
) -> "list[Result]":
    """The runs of the baseline that NEW may be held against; what is left out is said."""
    from moe_advisor.compare import checks
    from moe_advisor.errors import ConfigError
    from moe_advisor.history import store
    from moe_advisor.history.trend import since_change

    def comparable(one: "Result") -> bool:
        found = checks.compare_runs(one, new[0], allow)
        return not any(check.state == "refused" for check in found)

    def warn(count: int, why: str) -> None:
        if count:
            words = "run" if count == 1 else "runs"
            click.echo(f"moe-advisor: warning: baseline: {count} {words} left out: {why}", err=True)

    rows = store.baseline(text, exclude=new)
    kept = [row for row in rows if comparable(row.result)]
    warn(len(rows) - len(kept), "of another machine, layout or model")
    if not kept:
        raise ConfigError(f"--baseline {text}: no run of it can be compared with {new_name}")
    same = [row for row in kept if checks.profiler(row.result) == checks.profiler(new[0])]
    if same:
        warn(len(kept) - len(same), "of another profiler")
        kept = same
    first = since_change([row.result for row in kept])
    if first:
        at = kept[first]
        commit = f", commit {at.commit}" if at.commit else ""
        warn(first, f"from before the step time changed at run {at.number}{commit}")
    return [row.result for row in kept[first:]]


def _render(kind: str, comparison: "Comparison") -> str | bytes:
    from moe_advisor.output import compare_html, compare_text

    if kind == "html":
        return compare_html.render(comparison)
    if kind == "json":
        return compare_text.as_json(comparison)
    return compare_text.markdown(comparison)


def _gate(comparison: "Comparison", metrics: tuple[str, ...], closed: bool) -> None:
    from moe_advisor.errors import GateFailed

    failed = []
    for one in comparison.deltas:
        if one.name in metrics and one.verdict == "worse":
            failed.append(f"{one.name} is worse ({(one.relative or 0) * 100:+.1f} %)")
        elif one.name in metrics and one.verdict == "cant_tell" and closed:
            failed.append(f"{one.name} can't be told: {one.reason}")
    if failed:
        raise GateFailed(f"gate: {'; '.join(failed)}")
