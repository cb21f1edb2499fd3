"""`moe-advisor render`: any format again from a result."""

from pathlib import Path

import click

from moe_advisor.cli.outputs import (
    output_options,
    plan_outputs,
    refuse_from_result,
    show_summary,
    write_outputs,
)


@click.command(
    epilog="""\b
examples:
  moe-advisor render run.moe.json --format html=report.html
  moe-advisor render run.moe.json --format markdown -o -
"""
)
@click.argument("path", metavar="RESULT")
@output_options
def render(
    path: str,
    folder: Path | None,
    formats: list[tuple[str, Path | None]],
    force: bool,
    quiet: bool,
    color: str,
) -> None:
    """Write any format again from RESULT, a result.json, byte for byte."""
    from moe_advisor import finished, remote
    from moe_advisor.errors import InputError
    from moe_advisor.ingest import sources

    with remote.local_copies([path]) as local:
        inputs = sources.find_inputs(local)
        result = finished.earlier_result(inputs)
        if result is None:
            raise InputError(
                f"{inputs[0].name}: not a result: give the .moe.json that analyze wrote"
            )
        wanted = formats or [("html", None)]
        planned = plan_outputs(wanted, inputs, folder, force)
    refuse_from_result(planned, inputs[0].name)
    written = write_outputs(result, planned, force)
    if not quiet and not any(output.path is None for output in planned):
        show_summary(result, written, color)
