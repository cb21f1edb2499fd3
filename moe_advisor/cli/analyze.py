"""`moe-advisor analyze`: the main job."""

from pathlib import Path

import click

from moe_advisor.cli.loading import refuse_trace_options
from moe_advisor.cli.outputs import (
    bound_options,
    output_options,
    plan_outputs,
    refuse_from_result,
    show_summary,
    write_outputs,
)


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

    allocator.use_one_arena()  # before the imports below, whose threads take heaps of their own
    from moe_advisor import analysis, remote
    from moe_advisor.cli.gate import check_gates, parse_gates
    from moe_advisor.ingest import sources
    from moe_advisor.output.writer import TRACE_KINDS
    from moe_advisor.progress import TerminalLine

    allocator.collect_rarely()
    parse_gates(fail_on)
    options = analysis.Options(
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
    with remote.local_copies(paths) as local:
        inputs = sources.find_inputs(local)
        planned = plan_outputs(formats, inputs, folder, force)
        progress = None if quiet else TerminalLine()
        earlier = analysis.earlier_result(inputs)
        if progress and earlier is None:
            progress.begin([path.stat().st_size for path in inputs if path.is_file()])
        if earlier is not None:
            refuse_from_result(planned, inputs[0].name)
            refuse_trace_options(inputs[0].name)
            result = earlier
            written = write_outputs(result, planned, force)
        elif any(output.kind in TRACE_KINDS for output in planned):
            from moe_advisor import exports

            measured = analysis.measure(local, options, progress)
            result = analysis.result_of(measured, options)
            written = write_outputs(
                result,
                planned,
                force,
                lambda kind: exports.writer_of(kind, measured, options, result),
            )
        else:
            result = analysis.analyze(local, options, progress)
            written = write_outputs(result, planned, force)
    if not quiet and not any(output.path is None for output in planned):
        show_summary(result, written, color)
    check_gates(result, fail_on)
