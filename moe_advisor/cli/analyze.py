"""`moe-advisor analyze`: the main job."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moe_advisor.cli.loading import inputs_here, refuse_trace_options
from moe_advisor.cli.outputs import (
    bound_options,
    output_options,
    plan_outputs,
    refuse_from_result,
    show_summary,
    write_outputs,
)

if TYPE_CHECKING:
    from moe_advisor.options import Options
    from moe_advisor.progress import Progress
    from moe_advisor.remote import RemoteFile
    from moe_advisor.result import Result


@click.command(
    epilog="""\b
examples:
  moe-advisor analyze run.nsys-rep
  moe-advisor analyze run.sqlite --log train.log --set expert_model_parallel_size=8
  moe-advisor analyze 'traces/rank*.json.gz' --config run.yaml -o report/
  moe-advisor analyze traces/ --fail-on 'm.ep_a2a_exposed_share > 0.15'
  moe-advisor analyze traces/ --format perfetto --format parquet -o out/
"""
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--config",
    metavar="FILE",
    help="Run configuration: Megatron-Bridge YAML, argument dump, launch command.",
)
@click.option(
    "--log", metavar="FILE", help="Training log: unprofiled step time, throughput, memory."
)
@click.option(
    "--set", "values", multiple=True, metavar="KEY=VALUE", help="One configuration value."
)
@click.option("--steps", metavar="A:B", help="Only these steps, counted from 0, B not included.")
@click.option("--step-pattern", metavar="REGEX", help="Name of the ranges that are steps.")
@click.option("--taxonomy", metavar="FILE", help="Kernel families of your own, tried first.")
@click.option(
    "--rules",
    "rules",
    multiple=True,
    metavar="DIR",
    help="Rules of your own: add, override, disable.",
)
@click.option("--nsys", metavar="PROGRAM", envvar="NSYS", help="nsys, to read .nsys-rep files.")
@click.option(
    "--cache", metavar="DIR", help="Keep earlier work and exports of .nsys-rep files here."
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes for many ranks.")
@click.option(
    "--executor",
    type=click.Choice(["local", "dask"]),
    default="local",
    help="Where many ranks are read: processes here, or a Dask cluster.",
)
@click.option("--scheduler", metavar="ADDRESS", help="The Dask scheduler, such as tcp://host:8786.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Read only N inputs that represent the others.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give up on one of many inputs after this time.",
)
@click.option(
    "--max-expansion",
    type=click.IntRange(1),
    metavar="RATIO",
    help="Allow inputs that decompress by more than this ratio (200).",
)
@click.option(
    "--fail-on",
    "fail_on",
    multiple=True,
    metavar="EXPR",
    help="Exit 1 if this CEL expression is true or can't be measured.",
)
@bound_options
@output_options
def analyze(
    paths: tuple[str, ...],
    config: str | None,
    log: str | None,
    values: tuple[str, ...],
    steps: str | None,
    step_pattern: str | None,
    taxonomy: str | None,
    rules: tuple[str, ...],
    nsys: str | None,
    cache: str | None,
    jobs: int | None,
    executor: str,
    scheduler: str | None,
    sample: int | None,
    timeout_s: float | None,
    max_expansion: int | None,
    fail_on: tuple[str, ...],
    folder: Path | None,
    formats: list[tuple[str, Path | None]],
    force: bool,
    quiet: bool,
    color: str,
) -> None:
    """Say where a profile's time goes and what to change.

    PATH is a trace (.nsys-rep, Nsight SQLite or parquet folder, PyTorch JSON or JSON.gz), several,
    a folder of ranks, a glob, or an earlier result.json.
    """
    from moe_advisor import allocator

    allocator.collect_rarely()
    allocator.use_one_arena()  # before the imports below, whose threads take heaps of their own
    allocator.collect_rarely()  # and those make many objects, none of them garbage
    from moe_advisor import finished, remote
    from moe_advisor.cli.gate import check_gates, parse_gates
    from moe_advisor.options import Options
    from moe_advisor.output.writer import TRACE_KINDS
    from moe_advisor.privacy import display_name
    from moe_advisor.progress import TerminalLine

    parse_gates(fail_on)
    options = Options(
        steps=steps,
        step_pattern=step_pattern,
        taxonomy=taxonomy,
        nsys=nsys,
        cache=cache,
        rules=rules,
        config=config,
        log=log,
        values=values,
        jobs=jobs,
        executor=executor,
        scheduler=scheduler,
        sample=sample,
        timeout_s=timeout_s,
        max_expansion=max_expansion,
    )
    progress = None if quiet else TerminalLine()
    with remote.inputs(paths, remote.many_for(executor)) as local, progress or nullcontext():
        inputs = inputs_here(local)
        planned = plan_outputs(formats, inputs, folder, force)
        if any(output.kind == "html" for output in planned):
            threading.Thread(target=_prepare_report, name="templates", daemon=True).start()
        earlier = finished.earlier_result(inputs)
        if progress and earlier is None:
            files = [path for path in inputs if path.is_file()]
            shown = display_name(files[0]) if len(files) == 1 else f"{len(files)} inputs"
            progress.begin([path.stat().st_size for path in files], shown)
        if earlier is not None:
            refuse_from_result(planned, inputs[0].name)
            refuse_trace_options(inputs[0].name)
            result = earlier
            written = write_outputs(result, planned, force)
        elif any(output.kind in TRACE_KINDS for output in planned):
            from moe_advisor import analysis, exports

            allocator.collect_rarely()
            measured = analysis.measure(local, options, progress)
            result = analysis.result_of(measured, options)
            written = write_outputs(
                result,
                planned,
                force,
                lambda kind: exports.writer_of(kind, measured, options, result),
            )
        else:
            result = finished.kept_or(local, options, lambda: _analyzed(local, options, progress))
            written = write_outputs(result, planned, force)
    if not quiet and not any(output.path is None for output in planned):
        show_summary(result, written, color)
    check_gates(result, fail_on)


def _analyzed(
    inputs: "Sequence[str | RemoteFile]", options: "Options", progress: "Progress | None"
) -> "Result":
    from moe_advisor import allocator, analysis

    allocator.collect_rarely()
    return analysis.result_of(analysis.measure(inputs, options, progress), options)


def _prepare_report() -> None:
    """What a report needs of its templates; where it fails, rendering fails and says why."""
    with suppress(Exception):
        from moe_advisor.output import html

        html.prepare()
