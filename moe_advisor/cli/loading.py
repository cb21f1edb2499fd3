"""What the verbs that take a trace or a result share: the options and the reading."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from moe_advisor.cli.outputs import bound_options, redact_option

if TYPE_CHECKING:
    from moe_advisor.options import Options
    from moe_advisor.remote import RemoteFile
    from moe_advisor.result import Result


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config, --log, --set, --rules, --steps and --nsys, as for analyze."""
    for option in reversed(
        (
            click.option("--config", metavar="FILE", help="Run configuration, as for analyze."),
            click.option("--log", metavar="FILE", help="Training log, as for analyze."),
            click.option(
                "--set", "values", multiple=True, metavar="KEY=VALUE", help="One config value."
            ),
            click.option(
                "--rules", multiple=True, metavar="DIR", help="Rules of your own, as for analyze."
            ),
            click.option("--steps", metavar="A:B", help="Only these steps, counted from 0."),
            click.option("--step-pattern", metavar="REGEX", help="Name of the step ranges."),
            click.option("--nsys", metavar="PROGRAM", envvar="NSYS", help="nsys, for .nsys-rep."),
            redact_option(),
        )
    ):
        command = option(command)
    return bound_options(command)


def options_of(given: dict[str, Any]) -> "Options":
    """The analysis options among the parameters of a verb that has `analysis_options`."""
    from moe_advisor.options import Options

    return Options(
        steps=given["steps"],
        step_pattern=given["step_pattern"],
        nsys=given["nsys"],
        rules=given["rules"],
        config=given["config"],
        log=given["log"],
        values=given["values"],
    )


def inputs_here(paths: "Sequence[str | RemoteFile]") -> list[Path]:
    """The inputs that `paths` mean, without those elsewhere that are copied when they are read."""
    from moe_advisor.ingest import sources

    texts = [one for one in paths if isinstance(one, str)]
    return sources.find_inputs(texts) if texts or not paths else []


def load(paths: "Sequence[str | RemoteFile]", options: "Options") -> "Result":
    """The result that the paths mean: an earlier one, or that of analysing the traces.

    With its names: the caller redacts what it shows or keeps.
    """
    from moe_advisor import finished, remote

    with remote.inputs(paths) as local:
        earlier = finished.earlier_result(inputs_here(local))
        if earlier is not None:
            return earlier
        from moe_advisor import analysis

        return analysis.analyze(local, options)


NEEDS_TRACE = ("config", "log", "values", "steps", "step_pattern", "taxonomy", "rules")
"""Options that shape an analysis: beside an earlier result they would change nothing."""


def refuse_trace_options(name: str) -> None:
    """Raises ConfigError for an analysis option typed beside the earlier result `name`.

    One from the environment or a settings file is meant for traces and stays without a word.
    """
    from moe_advisor.errors import ConfigError

    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in NEEDS_TRACE and source is ParameterSource.COMMANDLINE:
            raise ConfigError(
                f"{name}: is an earlier result, which {parameter.opts[0]} can't change: give the "
                "trace it was made from"
            )
