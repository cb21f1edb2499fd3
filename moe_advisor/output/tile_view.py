"""The six headline figures, each with its denominator, and who arrives last."""

from dataclasses import dataclass

from moe_advisor.output.formatting import (
    Figure,
    count,
    figure,
    headline_tokens,
    ms,
    number,
    plural,
    share,
    span,
)
from moe_advisor.output.run_view import config, ranks_read, step_ms, unprofiled_ms
from moe_advisor.result import MetricValue, Result


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure with its denominator; `metric` is the definition it links to."""

    metric: str
    title: str
    figure: Figure
    lines: tuple[str, ...]


def tiles(result: Result) -> list[Tile]:
    """The six headline figures."""
    m = result.metrics
    step = step_ms(result)
    return [
        _step_tile(result),
        _exposed_tile(m, step),
        _ratio_tile(m),
        _rate_tile(result),
        _throughput_tile(result),
        _memory_tile(m),
    ]


def value(metrics: dict[str, MetricValue], name: str) -> float | None:
    """A metric's value, or None where it was not measured."""
    metric = metrics.get(name)
    return None if metric is None or metric.status == "not_measured" else metric.value


def _absent(metric: MetricValue | None) -> tuple[str, ...]:
    return (metric.reason or "the reason is not recorded",) if metric else ("not in this result",)


def _step_tile(result: Result) -> Tile:
    metric = result.metrics.get("step_ms")
    shown = figure(metric)
    if not shown.measured:
        return Tile("step_ms", "Step time", shown, _absent(metric))
    ranks = len(result.ranks) or len(ranks_read(result))
    lines = [f"{plural(result.steps.count, 'step')} × {plural(ranks, 'rank')}"]
    if shown.note:
        lines[0] += f", {shown.note} ms"
    bare = unprofiled_ms(result)
    lines.append(f"{ms(bare)} without profiler" if bare else "with the profiler running")
    return Tile("step_ms", "Step time", Figure(shown.text, "ms"), tuple(lines))


def _exposed_tile(m: dict[str, MetricValue], step: float | None) -> Tile:
    metric = m.get("ep_a2a_exposed_ms")
    shown = figure(metric)
    title = "Exposed EP all-to-all"
    if not shown.measured or metric is None or metric.value is None:
        return Tile("ep_a2a_exposed_ms", title, shown, _absent(metric))
    lines = [f"{share(metric.value / step)} of {ms(step)} ms"] if step else []
    transfer, wait = m.get("ep_a2a_transfer_ms"), m.get("ep_a2a_wait_ms")
    if transfer and wait and transfer.status == wait.status == "measured":
        lines.append(f"transfer {ms(transfer.value or 0)}, wait {ms(wait.value or 0)}")
        total = m.get("ep_a2a_ms")
        hidden = (total.value or 0) - metric.value if total and total.status == "measured" else 0
        if hidden >= 0.05:
            lines[-1] += f", hidden {ms(hidden)}"
    elif transfer and transfer.low is not None and transfer.high is not None:
        lines.append(f"transfer ≈ {span(transfer.low, transfer.high)} ms")
    return Tile("ep_a2a_exposed_ms", title, Figure(shown.text, "ms/step"), tuple(lines))


def _ratio_tile(m: dict[str, MetricValue]) -> Tile:
    metric = m.get("a2a_to_expert_gemm")
    shown = figure(metric)
    title = "All-to-all : expert GEMM"
    if not shown.measured:
        return Tile("a2a_to_expert_gemm", title, shown, _absent(metric))
    exposed, gemm = value(m, "ep_a2a_exposed_ms"), value(m, "expert_gemm_ms")
    lines = (
        (f"{ms(exposed)} ms exposed", f"÷ {ms(gemm)} ms expert GEMM")
        if exposed is not None and gemm is not None
        else ()
    )
    return Tile("a2a_to_expert_gemm", title, shown, lines)


def _rate_tile(result: Result) -> Tile:
    m = result.metrics
    metric = m.get("ep_a2a_bus_gbps")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("ep_a2a_bus_gbps", "EP wire rate", shown, _absent(metric))
    lines = []
    transfer = value(m, "ep_a2a_transfer_ms")
    if transfer:
        lines.append(f"{number(metric.value * transfer / 1e3, 2)} GB/GPU ÷ {ms(transfer)} ms")
    link = result.run.hardware.get("nvlink_gbps_per_direction")
    if isinstance(link, int | float) and link > 0:
        lines.append(f"{share(metric.value / link)} of NVLink's {count(link)}")
    return Tile("ep_a2a_bus_gbps", "EP wire rate", Figure(shown.text, "GB/s"), tuple(lines))


def _throughput_tile(result: Result) -> Tile:
    metric = result.metrics.get("tokens_per_s_per_gpu")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("tokens_per_s_per_gpu", "Throughput", shown, _absent(metric))
    text, unit = headline_tokens(metric.value)
    bare = unprofiled_ms(result)
    lines = []
    if bare:
        lines.append(f"{count(round(metric.value * bare / 1e3))} tokens ÷ {ms(bare)} ms")
        lines.append("per GPU, unprofiled step")
    else:
        lines.append(f"per GPU: {metric.basis}" if metric.basis else "per GPU")
    approx = "≈ " if metric.status == "estimated" else ""
    return Tile("tokens_per_s_per_gpu", "Throughput", Figure(approx + text, unit), tuple(lines))


def _memory_tile(m: dict[str, MetricValue]) -> Tile:
    metric, headroom = m.get("memory_peak_gib"), m.get("memory_headroom_gib")
    shown = figure(metric)
    if not shown.measured or metric is None or metric.value is None:
        return Tile("memory_peak_gib", "Peak memory", shown, _absent(metric))
    lines = []
    if headroom is not None and headroom.value is not None:
        total = metric.value + headroom.value
        lines.append(f"{share(metric.value / total)} of {number(total)} GiB")
        lines.append(f"{number(headroom.value)} GiB free")
    return Tile("memory_peak_gib", "Peak memory", shown, tuple(lines))


def ranks_line(result: Result) -> str:
    """Who arrives last, and which stage or rank is the slowest."""
    words = []
    totals: dict[str, int] = {}
    for view in result.collectives:
        for rank, times in view.arrived_last.items():
            totals[rank] = totals.get(rank, 0) + times
    known = {str(r.rank): r.arrived_last for r in result.ranks if r.arrived_last is not None}
    late = known or totals
    if late and sum(late.values()):
        first = min(late, key=lambda rank: (-late[rank], rank))
        words.append(
            f"Last to arrive: rank {first}, in {count(late[first])} of "
            f"{count(sum(late.values()))} matched collectives."
        )
    stages = config(result, "pipeline_model_parallel_size")
    if stages == 1:
        words.append("One pipeline stage, so no slowest stage.")
    if len(result.ranks) > 1:
        slow = max(result.ranks, key=lambda r: (r.step_ms, -r.rank))
        words.append(f"Slowest: rank {slow.rank}, {ms(slow.step_ms)} ms.")
    return " ".join(words)
