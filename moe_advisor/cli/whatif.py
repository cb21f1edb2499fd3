"""`moe-advisor whatif`: what changes would bring, before anyone spends a node-hour."""

import click

from moe_advisor.cli.outputs import bound_options, redact_option, redacting
from moe_advisor.result import Estimate


@click.command(
    epilog="""\b
examples:
  moe-advisor whatif --list
  moe-advisor whatif run.sqlite
  moe-advisor whatif 'rank*.json.gz' --apply ep-overlap --apply cuda-graphs=attn,moe_router
"""
)
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "--apply",
    "names",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A change; several are simulated together.",
)
@click.option("--list", "listed", is_flag=True, help="List the changes and their parameters.")
@click.option("--config", metavar="FILE", help="Run configuration, as for analyze.")
@click.option(
    "--log", metavar="FILE", help="Training log: the unprofiled step time sharpens host gains."
)
@click.option(
    "--set", "values", multiple=True, metavar="KEY=VALUE", help="One configuration value."
)
@click.option("--steps", metavar="A:B", help="Only these steps, counted from 0, B not included.")
@click.option("--nsys", metavar="PROGRAM", envvar="NSYS", help="nsys, to read .nsys-rep files.")
@click.option("--format", "kind", type=click.Choice(["text", "json"]), default="text")
@redact_option()
@bound_options
def whatif(
    paths: tuple[str, ...],
    names: tuple[str, ...],
    listed: bool,
    config: str | None,
    log: str | None,
    values: tuple[str, ...],
    steps: str | None,
    nsys: str | None,
    kind: str,
) -> None:
    """Predict the gain of changes on the traced step, as low, expected and high ms.

    Without --apply every change is tried on its own. Positive is time saved.
    """
    if listed:
        _list(kind)
        return
    from moe_advisor import analysis
    from moe_advisor.errors import ConfigError, InputError
    from moe_advisor.whatif import fault

    if not paths:
        raise InputError("no input given; name a trace, or --list the changes")
    if wrong := fault(names):
        raise ConfigError(f"--apply {wrong}")
    options = analysis.Options(steps=steps, nsys=nsys, config=config, log=log, values=values)
    measured = analysis.measure(paths, options)
    run = analysis.judged(measured, options)
    simulator = analysis.Simulator.of(measured, run, names=not redacting())
    if simulator is None:
        raise InputError("no step with GPU work in the trace: there is nothing to simulate")
    found = simulator.each(names) if names else simulator.all()
    together = simulator.combined(names) if len(names) > 1 else None
    step_ms = run.metrics["step_ms"].value or 0.0
    if kind == "json":
        import msgspec

        document = {
            "step_ms": step_ms,
            "replay": simulator.quality(),
            "changes": found,
            "together": together,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    click.echo(f"step {step_ms:.1f} ms; gain in ms of the traced step, low to high")
    if model := simulator.quality():
        click.echo(
            f"model: {model.step} on {model.ranks} rank{'s' if model.ranks > 1 else ''}, unchanged "
            f"{100 * model.error_share:.2f} % off, {100 * model.unexplained_share:.1f} % unexplained delays"
        )
    for one in found:
        click.echo(_line(one.name, one.estimate, step_ms))
    if together is not None:
        click.echo(_line("together", together, step_ms))
        click.echo(together.basis or "")
    elif len(found) == 1:
        basis = found[0].estimate.basis if found[0].estimate.expected_ms is not None else None
        for text in (basis, *found[0].assumptions):
            click.echo(f"  {text}" if text else "")


def _line(name: str, estimate: Estimate, step_ms: float) -> str:
    if estimate.status == "not_measured":
        return f"{name:<22}not measured: {estimate.reason}"
    if estimate.expected_ms is None:
        return f"{name:<22}{estimate.basis}"
    low, high = estimate.low_ms or 0.0, estimate.high_ms or 0.0
    share = estimate.expected_ms / step_ms if step_ms else 0.0
    risk = "  could cost time" if low < 0 < high else "  costs time" if high <= 0 > low else ""
    wall = f"  then: {estimate.next_wall.replace('_', ' and ')}" if estimate.next_wall else ""
    return (
        f"{name:<22}{estimate.expected_ms:>8.1f} ms ({100 * share:>6.1f} %)   "
        f"{low:>7.1f} to {high:>7.1f}{wall}{risk}"
    )


def _list(kind: str) -> None:
    from moe_advisor.whatif import CHANGES

    if kind == "json":
        import msgspec

        rows = [
            {
                "name": name,
                "title": info.title,
                "description": info.description,
                "parameters": info.parameters,
                "assumptions": info.assumptions,
            }
            for name, info in CHANGES.items()
        ]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=1).decode())
        return
    for name, info in CHANGES.items():
        click.echo(f"{name:<18}{info.title}: {info.description}")
        takes = f"{name}=VALUE: {info.parameters}" if info.parameters else "takes no value"
        click.echo(f"{'':<18}{takes}")
