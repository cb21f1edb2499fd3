"""Trends of a history as one self-contained HTML page without scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe_advisor.compare.floors import MEASURED_REPEATS, floor
from moe_advisor.history.store import Row
from moe_advisor.history.trend import ChangePoint, change_points
from moe_advisor.measure.registry import METRICS, Metric
from moe_advisor.output import page
from moe_advisor.output.compare_text import signed, value
from moe_advisor.output.formatting import clean, plural, quantity

WIDTH, HEIGHT = 900, 200
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 16, 28

DEFAULT_METRICS = (
    *("step_ms", "comm_exposed_ms", "ep_a2a_exposed_ms", "ep_a2a_transfer_ms", "compute_ms"),
    *("expert_gemm_ms", "host_gap_ms", "recompute_ms", "memory_peak_gib"),
    *("tokens_per_s_per_gpu", "mfu"),
)


@dataclass(frozen=True, slots=True)
class Trend:
    """One metric over the runs that measured it."""

    metric: Metric
    rows: tuple[Row, ...]
    values: tuple[float, ...]
    marks: tuple[ChangePoint, ...]


def trends(rows: Sequence[Row], names: Sequence[str] = DEFAULT_METRICS) -> list[Trend]:
    """The metrics that at least two runs measured, with their change points."""
    found = []
    for name in names:
        metric = METRICS[name]
        known = [
            (row, one.value)
            for row in rows
            if (one := row.result.metrics.get(name)) is not None
            and one.status == "measured"
            and one.value is not None
        ]
        if len(known) < 2:
            continue
        values = tuple(amount for _, amount in known)
        found_steps = [row.result.metrics.get("step_ms") for row, _ in known]
        steps = [(one.value if one else None) or 0.0 for one in found_steps]
        least = floor(
            name,
            metric.unit,
            sorted(steps)[len(steps) // 2],
            MEASURED_REPEATS,
            cross_profiler=False,
        )
        marks = tuple(change_points(values, least))
        found.append(Trend(metric, tuple(row for row, _ in known), values, marks))
    return found


def render(rows: Sequence[Row], names: Sequence[str] = DEFAULT_METRICS) -> str:
    """The page: a chart and the change points of every branch and metric, then all runs."""
    branches = list(dict.fromkeys(row.branch for row in rows))
    groups = [
        {
            "branch": clean(branch, 100),
            "charts": [
                _chart(one) for one in trends([r for r in rows if r.branch == branch], names)
            ],
        }
        for branch in branches
    ]
    return page.render(
        "compare/history.html",
        {
            "title": f"{plural(len(rows), 'run')} on {plural(len(branches), 'branch', 'branches')}",
            "groups": groups,
            "width": WIDTH,
            "height": HEIGHT,
            "rows": [_row(row) for row in reversed(rows)],
        },
    )


def words(mark: ChangePoint, trend: Trend) -> str:
    """A change point in one sentence."""
    row, unit = trend.rows[mark.index], trend.metric.unit
    change = signed(mark.after - mark.before, unit)
    share = f" ({signed(mark.after / mark.before - 1, 'share')})" if mark.before else ""
    at = f"run {row.number}" + (f", commit {clean(row.commit, 60)}" if row.commit else "")
    return f"From {at} on: {value(mark.before, unit)} to {value(mark.after, unit)}, {change}{share}"


def _chart(trend: Trend) -> dict[str, Any]:
    low, high = min(trend.values), max(trend.values)
    pad = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (0.0 if low >= 0 and low - pad < 0 else low - pad), high + pad
    last = max(len(trend.values) - 1, 1)

    def x(index: float) -> float:
        return round(LEFT + index / last * (WIDTH - LEFT - RIGHT), 1)

    def y(amount: float) -> float:
        return round(TOP + (high - amount) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    unit = trend.metric.unit
    points = [
        {
            "x": x(index),
            "y": y(amount),
            "title": f"run {row.number} {clean(row.commit, 60)} {row.added_at}: "
            f"{value(amount, unit)}",
        }
        for index, (row, amount) in enumerate(zip(trend.rows, trend.values, strict=True))
    ]
    return {
        "title": trend.metric.title,
        "name": trend.metric.name,
        "unit": quantity(0.0, unit)[1],
        "summary": f"{plural(len(points), 'run')}, last {value(trend.values[-1], unit)}",
        "path": "M" + "L".join(f"{point['x']} {point['y']}" for point in points),
        "points": points,
        "marks": [{"x": x(mark.index - 0.5), "words": words(mark, trend)} for mark in trend.marks],
        "ticks": [
            {"y": y(amount), "text": quantity(amount, unit)[0]}
            for amount in (min(trend.values), max(trend.values))
        ],
        "ends": [_run(trend.rows[0]), _run(trend.rows[-1])],
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
    }


def _run(row: Row) -> str:
    return f"run {row.number}" + (f", {clean(row.commit, 12)}" if row.commit else "")


def _row(row: Row) -> dict[str, str]:
    step = row.result.metrics.get("step_ms")
    return {
        "number": str(row.number),
        "added_at": row.added_at,
        "branch": clean(row.branch, 60),
        "commit": clean(row.commit, 60),
        "labels": clean(", ".join(f"{key}={text}" for key, text in row.labels.items()), 200),
        "name": clean(row.name, 80),
        "step": value(step.value if step else None, "ms/step"),
        "verdict": row.result.walls.verdict,
    }
