"""`moe-advisor demo`: the main job on the bundled real trace."""

from pathlib import Path

import click

from moe_advisor.cli.outputs import plan_outputs, show_summary, write_outputs

STEM = "moe-advisor-demo"


@click.command(
    epilog="""\b
examples:
  moe-advisor demo
  moe-advisor demo -o /tmp/moe -q
"""
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder for the outputs; the current one by default.",
)
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour the summary.",
)
def demo(folder: Path, quiet: bool, color: str) -> None:
    """Analyze the bundled capture: two H200 ranks training a small MoE over a slow link.

    Writes moe-advisor-demo.html and moe-advisor-demo.json and replaces its own earlier files.
    """
    from moe_advisor import analysis, resources
    from moe_advisor.errors import InputError

    traces = resources.demo_traces()
    if not traces:
        raise InputError("the demo trace is missing from this installation: install it again")
    formats: list[tuple[str, Path | None]] = [
        ("html", folder / f"{STEM}.html"),
        ("json", folder / f"{STEM}.json"),
    ]
    planned = plan_outputs(formats, traces, None, force=True)
    result = analysis.analyze([str(path) for path in traces])
    written = write_outputs(result, planned, force=True)
    if not quiet:
        show_summary(result, written, color)
