"""The report's grounds: bandwidth, who was late and why, expert load, layers, memory."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_advisor.output import charts, run_view, svg
from moe_advisor.output.formatting import (
    NOT_MEASURED,
    count,
    cut,
    figure,
    ms,
    number,
    plural,
    share,
)
from moe_advisor.output.markup import sort
from moe_advisor.result import CollectiveRate, Lateness, MetricValue, Result

FAMILIES = {
    "ep_a2a": "Expert parallel",
    "dp_collective": "Data parallel",
    "tp_collective": "Tensor parallel",
    "cp_collective": "Context parallel",
    "pp_p2p": "Pipeline",
    "other_collective": "Purpose unknown",
}

LATE_CAUSES = {
    "tokens": "more tokens",
    "slow_gpu": "slower GPU",
    "compute": "more compute",
    "host": "late host",
    "garbage_collection": "garbage collection",
    "unexplained": "unexplained",
}

SHOWN_LATE = 16
"""Ranks listed by the waiting they cause: below that nobody looks for a straggler."""

NOTABLE_MS = 0.05
"""Waiting that is printed as 0.0 ms names nobody."""

PHASES = {
    "attention": ("Attention", "compute"),
    "dispatch": ("Dispatch", "wire"),
    "expert_gemm": ("Expert GEMM", "expert"),
    "combine": ("Combine", "wire"),
    "gap": ("GPU idle", "idle"),
}
"""Phase of a layer -> its title and colour, in the order of the forward pass."""

MEMORY_METRICS = (
    "memory_peak_gib",
    "memory_headroom_gib",
    "memory_growth_gib",
    "memory_fragmentation_gib",
    "alloc_retries",
    "device_allocs_per_step",
    "recompute_ms",
    "offload_ms",
)

MAX_LAYERS = 400
"""Layers of a table; no published model has half as many."""


def why_section(result: Result) -> dict[str, Any]:
    """What of the grounds this result holds; older results hold less."""
    why = result.why
    return {
        "rates": [_rate(one) for one in why.rates] if why else [],
        "rates_lead": _rates_lead(why.rates) if why and why.rates else "",
        "late": _late(why.lateness) if why else [],
        "slow_gpus": [
            {
                "rank": one.rank,
                "slowness": number(one.slowness, 3),
                "kernels": "; ".join(
                    f"{cut(kernel.name, 60)} {ms(kernel.ms, 3)} ms against {ms(kernel.peers_ms, 3)}"
                    for kernel in one.kernels[:3]
                ),
            }
            for one in sorted(
                why.slow_gpus if why else [], key=lambda one: (-one.slowness, one.rank)
            )[:SHOWN_LATE]
        ],
        "experts": _experts(result),
        "experts_left": max(0, len(why.experts) - 2 * SHOWN_LATE) if why else 0,
        "clocks": [_clock(one) for one in why.clocks[:SHOWN_LATE]] if why else [],
        "recompute": [
            {"label": one.module, "ms": ms(one.ms), "v": sort(one.ms)}
            for one in (why.recompute if why else [])
        ],
        "memory": _memory(result),
        "layers": layer_table(result),
        "layers_reason": result.layers_reason,
    }


def _rate(one: CollectiveRate) -> dict[str, Any]:
    measured = one.bus_gbps is not None
    return {
        "family": FAMILIES.get(one.family, one.family),
        "kind": one.kind.replace("_", "-"),
        "ranks": count(one.ranks) if one.ranks else "unknown",
        "span": one.span,
        "count": _cell(one.count, count),
        "gb": _cell(one.gb_per_step, lambda value: number(value, 2)),
        "transfer": _cell(one.transfer_ms, ms),
        "alg": _cell(one.alg_gbps, number),
        "bus": _cell(one.bus_gbps, number),
        "approx": "≈ " if one.status == "estimated" else "",
        "link": f"{share(one.link_share)} of {count(one.link_gbps)}"
        if one.link_share is not None and one.link_gbps
        else NOT_MEASURED.lower(),
        "bar": charts.mini(min(one.link_share, 1.0), 1.0, "wire")
        if measured and one.link_share is not None
        else "",
        "remark": one.remark or "",
    }


def _cell(value: float | None, text: Any) -> dict[str, str]:
    return {"text": "" if value is None else text(value), "v": sort(value)}


def _rates_lead(rates: Sequence[CollectiveRate]) -> str:
    known = [one for one in rates if one.bus_gbps is not None and one.transfer_ms]
    if not known:
        return "No collective's rate could be measured: transfer times or sizes are missing."
    heavy = max(known, key=lambda one: one.transfer_ms or 0.0)
    words = (
        f"{FAMILIES.get(heavy.family, heavy.family)} {heavy.kind.replace('_', '-')} carries "
        f"{number(heavy.gb_per_step, 2)} GB a step in {ms(heavy.transfer_ms or 0.0)} ms: "
        f"{number(heavy.bus_gbps or 0.0)} GB/s bus bandwidth"
    )
    if heavy.link_share is not None and heavy.link_gbps:
        words += f", {share(heavy.link_share)} of the link's {count(heavy.link_gbps)} GB/s"
    return words + "."


def _late(rows: Sequence[Lateness]) -> list[dict[str, Any]]:
    """The ranks that others waited for, the most costly first."""
    found = sorted(
        (one for one in rows if one.caused_wait_ms >= NOTABLE_MS),
        key=lambda one: (-one.caused_wait_ms, one.family, one.rank),
    )
    return [
        {
            "rank": one.rank,
            "family": FAMILIES.get(one.family, one.family),
            "group": cut(one.group, 60),
            "last": f"{count(one.arrived_last)} of {count(one.of)}",
            "last_v": sort(one.share),
            "share": share(one.share),
            "pattern": {
                "sticky": "the same rank most times",
                "rotating": "ranks take turns",
                "mixed": "neither one rank nor turns",
            }[one.pattern],
            "ms": ms(one.caused_wait_ms),
            "v": sort(one.caused_wait_ms),
            "why": ", ".join(
                f"{LATE_CAUSES.get(cause, cause)} {ms(value)}"
                for cause, value in sorted(one.why.items(), key=lambda item: (-item[1], item[0]))
                if value >= NOTABLE_MS
            ),
        }
        for one in found[:SHOWN_LATE]
    ]


def _experts(result: Result) -> list[dict[str, Any]]:
    rows = result.why.experts if result.why else []
    top = max((one.gemm_ms for one in rows), default=0.0)
    if len(rows) > 2 * SHOWN_LATE:
        ordered = sorted(rows, key=lambda one: (-one.gemm_ms, one.rank))
        rows = [*ordered[:SHOWN_LATE], *ordered[-SHOWN_LATE:]]
    return [
        {
            "rank": one.rank,
            "bar": charts.mini(one.gemm_ms, top, "expert"),
            "cells": [
                _cell(one.tokens_received, share),
                _cell(one.rows, lambda value: number(value, 0)),
                _cell(one.gemm_ms, ms),
                _cell(one.tflops, lambda value: number(value, 0)),
            ],
        }
        for one in rows
    ]


def _clock(one: Any) -> str:
    if one.status != "measured" or one.offset_us is None:
        return f"rank {one.rank} against {one.reference}: not measured, {one.reason or 'unknown'}"
    return (
        f"rank {one.rank} against {one.reference}: {number(one.offset_us)} µs apart, drift "
        f"{number(one.drift_ppm or 0.0, 2)} ppm, residual {number(one.residual_us or 0.0)} µs "
        f"over {plural(one.matches, 'match', 'matches')}"
    )


# --------------------------------------------------------------------------------------- memory


def _memory(result: Result) -> dict[str, Any]:
    """Peak against the GPU's memory per rank, and every memory metric, measured or not."""
    rows = []
    for name in MEMORY_METRICS:
        metric, known = result.metrics.get(name), result.definitions.get(name)
        if metric is None and known is None:
            continue
        shown = figure(metric)
        rows.append(
            {
                "name": name,
                "title": known.title if known else name,
                "figure": shown,
                "reason": (metric.reason or "") if metric else "not in this result",
            }
        )
    return {"rows": rows, "bars": _peaks(result.metrics), "lead": _memory_lead(result)}


def _memory_lead(result: Result) -> str:
    metrics = result.metrics
    peak, headroom = metrics.get("memory_peak_gib"), metrics.get("memory_headroom_gib")
    recompute = metrics.get("recompute_ms")
    if peak is not None and peak.value is not None:
        words = f"The fullest rank holds {number(peak.value)} GiB"
        if headroom is not None and headroom.value is not None:
            words += f" of {number(peak.value + headroom.value)} GiB"
    else:
        words = "How full the memory is was not measured"
    if recompute is not None and recompute.value is not None:
        step = run_view.step_ms(result)
        of = f" of {ms(step)}" if step else ""
        words += f"; recompute, which buys memory with time, takes {ms(recompute.value)}{of} ms"
    return words + "."


def _peaks(metrics: Mapping[str, MetricValue]) -> list[dict[str, Any]]:
    """Peak memory of each rank on the scale of the GPU's memory."""
    peak, headroom = metrics.get("memory_peak_gib"), metrics.get("memory_headroom_gib")
    if peak is None or peak.value is None:
        return []
    total = peak.value + headroom.value if headroom and headroom.value is not None else None
    ranks = [(f"Rank {one.rank}", one.value) for one in peak.per_rank if one.value is not None]
    known = ranks[:SHOWN_LATE] or [("Highest", peak.value)]
    scale = total or max(value for _, value in known)
    words = f" of {number(total)} GiB" if total else " GiB"
    return [
        {
            "name": name,
            "value": f"{number(value)}{words}",
            "chart": svg.image(
                20,
                f"{name}: peak memory {number(value)}{words}",
                svg.rect(0, 0, 1.0, 20, "other"),
                svg.rect(0, 0, value / scale if scale else 0.0, 20, "memory"),
                kind="chart bar",
            ),
        }
        for name, value in known
    ]


# --------------------------------------------------------------------------------------- layers


def layer_table(result: Result) -> dict[str, Any] | None:
    """One row a layer: its phases forward and backward, their sum, and its token imbalance."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    for row in result.layers:
        layer, phase = row.get("layer"), row.get("phase")
        if isinstance(layer, int) and isinstance(phase, str):
            found.setdefault(layer, {})[phase] = (
                float(row.get("forward_ms") or 0.0),
                float(row.get("backward_ms") or 0.0),
            )
    if not found:
        return None
    phases = [name for name in PHASES if any(name in one for one in found.values())]
    phases += sorted({name for one in found.values() for name in one} - set(PHASES))
    totals = {layer: sum(map(sum, one.values())) for layer, one in found.items()}
    top = max(totals.values()) or 1.0
    loads = {one.layer: one for one in result.why.layers} if result.why else {}
    rows = []
    for layer in sorted(found)[:MAX_LAYERS]:
        cells, drawn, at = [], [], 0.0
        for phase in phases:
            title, kind = PHASES.get(phase, (phase.replace("_", " "), "other"))
            forward, backward = found[layer].get(phase, (0.0, 0.0))
            cells.append({"text": f"{ms(forward)} + {ms(backward)}", "v": sort(forward + backward)})
            width = max(forward + backward, 0.0) / top
            drawn.append(
                svg.rect(at, 0, width, 14, kind, title=f"{title}: {ms(forward + backward)} ms")
            )
            at += width
        load = loads.get(layer)
        rows.append(
            {
                "layer": layer,
                "chart": svg.image(14, "", *drawn, hidden=True, kind="chart layer"),
                "cells": cells,
                "total": {"text": ms(totals[layer]), "v": sort(totals[layer])},
                "load": {
                    "text": f"{number(load.max_over_mean, 2)}, rank {load.fullest}" if load else "",
                    "v": sort(load.max_over_mean if load else None),
                },
            }
        )
    slow = max(totals, key=lambda layer: (totals[layer], -layer))
    fast = min(totals, key=lambda layer: (totals[layer], layer))
    lead = (
        f"Layer {slow} takes longest with {ms(totals[slow])} ms, layer {fast} least with "
        f"{ms(totals[fast])} ms, forward and backward together."
        if len(totals) > 1
        else f"Layer {slow} takes {ms(totals[slow])} ms, forward and backward together."
    )
    if loads:
        worst = max(loads.values(), key=lambda one: (one.max_over_mean, -one.layer))
        lead += (
            f" Tokens are least even in layer {worst.layer}: rank {worst.fullest} receives "
            f"{number(worst.max_over_mean, 2)} × the mean."
        )
    return {
        "lead": lead,
        "titles": [PHASES.get(phase, (phase.replace("_", " "), ""))[0] for phase in phases],
        "rows": rows,
        "loads": bool(loads),
        "more": max(0, len(found) - MAX_LAYERS),
    }
