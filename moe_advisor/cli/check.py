"""`moe-advisor check`: budgets on a run, for CI."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_advisor.cli.loading import (
    analysis_options,
    inputs_here,
    options_of,
    refuse_trace_options,
)
from moe_advisor.cli.outputs import redacted
from moe_advisor.cli.reports import append_step_summary, gate_output_options, plan, write

if TYPE_CHECKING:
    from moe_advisor.analysis import Options
    from moe_advisor.budgets.model import Budget, Judged
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
@gate_output_options(
    FILES, "json, junit, markdown, gitlab, openmetrics, html (the report) or result."
)
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
    from moe_advisor import analysis, finished, remote
    from moe_advisor.budgets import judge
    from moe_advisor.budgets import load as files
    from moe_advisor.errors import GateFailed
    from moe_advisor.output import budget_report, writer

    limits = files.load(Path(budgets) if budgets else files.find(Path()))
    judge.validate(limits)  # before the traces are read: a slip costs a second, not a minute
    planned = plan(formats, folder, FILES)
    options = options_of(given)
    with remote.inputs(paths) as local:
        inputs = inputs_here(local)
        writer.refuse(planned, inputs, force=force)
        earlier = finished.earlier_result(inputs)
        if earlier is not None:
            refuse_trace_options(inputs[0].name)
        else:
            judge.validate(limits, rules=_rules(limits, options), keys=_keys(options))
        result = redacted(earlier or analysis.analyze(local, options))
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


def _rules(limits: "Sequence[Budget]", options: "Options") -> list[str] | None:
    """The ids of all rules that the run will be held against, read only where a budget names one."""
    from moe_advisor.advise import load_rules
    from moe_advisor.budgets.judge import uses_rules

    return [rule.id for rule in load_rules(options.rules)] if uses_rules(limits) else None


def _keys(options: "Options") -> "Collection[str] | None":
    """All configuration keys that a run can have; None where a file or option may add others."""
    from moe_advisor.keys import known

    return None if options.config or options.log or options.values else known()


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
