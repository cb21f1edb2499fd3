"""`moe-advisor scrub`: a copy of a trace that is safe to share."""

import json
from pathlib import Path

import click

from moe_advisor.cli.outputs import bound_options


@click.command(
    epilog="""\b
examples:
  moe-advisor scrub run.sqlite shared.sqlite
  moe-advisor scrub rank0.json.gz shared.rank0.json.gz --json
"""
)
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Say as JSON what was removed.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--max-expansion",
    type=click.IntRange(1),
    metavar="RATIO",
    help="Allow an input that decompresses by more than this ratio (200).",
)
@bound_options
def scrub(source: str, target: Path, as_json: bool, force: bool, max_expansion: int | None) -> None:
    """Write a copy of IN, a PyTorch or Nsight SQLite trace, that is safe to share.

    Hosts, users, paths, environment, commands, unknown tables and fields are left out; times, names
    of kernels, ranges and process groups stay, so that an analysis gives the same.
    """
    from moe_advisor import remote
    from moe_advisor.errors import InputError
    from moe_advisor.ingest.json_stream import DEFAULT_LIMITS, StreamLimits
    from moe_advisor.ingest.sources import find_inputs
    from moe_advisor.scrub import scrub as write

    limits = StreamLimits(max_ratio=max_expansion) if max_expansion else DEFAULT_LIMITS
    with remote.local_copies([source]) as local:
        found = [Path(one) for one in local if Path(one).is_dir()] or find_inputs(local)
        if len(found) != 1:
            raise InputError(f"{remote.shown(source)}: {len(found)} files: give one trace")
        report = write(found[0], target, force=force, limits=limits)
    if as_json:
        document = {
            "format": report.format,
            "kept": report.kept,
            "removed": [{"what": one.what, "count": one.count} for one in report.removed],
        }
        click.echo(json.dumps(document, indent=1))
        return
    noun = "events" if report.format == "kineto" else "rows"
    click.echo(f"Wrote {target}: {report.kept:,} {noun} kept. Removed:")
    for one in report.removed:
        click.echo(f"  {one.count:>9,}  {one.what}")
    click.echo(
        "Names of kernels, ranges and process groups are still in it: look at them before you share."
    )
