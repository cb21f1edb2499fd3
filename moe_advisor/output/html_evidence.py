"""The report's evidence: timeline, roles and idle time."""

from typing import Any

from moe_advisor.output import charts, step_view, svg, verdict_view
from moe_advisor.output.formatting import (
    add_up,
    count,
    cut,
    from_tenths,
    middle_cut,
    ms,
    number,
    share,
)
from moe_advisor.output.html_method import LONG_LIST
from moe_advisor.output.markup import embed, sort
from moe_advisor.output.timeline import Jump, timeline_data
from moe_advisor.result import AbsentPart, Result

SHOWN_SOURCE = 0.005
"""Evidence for less than this share of a role's time would be printed as 0 %."""


def timeline_section(result: Result, found_jumps: list[Jump]) -> dict[str, Any]:
    """The still picture of one step, and the data that the script draws."""
    timeline = result.timeline
    if timeline is None or not timeline.slices.start_us:
        return {"timeline": None, "timeline_json": None}
    exposed = sum(max(0.0, pair[1] - pair[0]) for pair in timeline.exposed) / 1000
    hidden = sum(max(0.0, pair[1] - pair[0]) for pair in timeline.hidden) / 1000
    idle = sum(gap[1] for gap in timeline.gaps) / 1000
    step = timeline.step_ms
    gaps = sorted(timeline.gaps, key=lambda gap: (-gap[1], gap[0]))[:5]
    return {
        "timeline": {
            "rank": timeline.rank,
            "step": timeline.step,
            "step_ms": ms(step),
            "count": count(len(timeline.slices.start_us) + timeline.omitted),
            "omitted": count(timeline.omitted) if timeline.omitted else "",
            "lead": (
                f"In this step communication is exposed for {ms(exposed)} ms of {ms(step)} ms and "
                f"hidden under compute for {ms(hidden)} ms; the GPU idles for {ms(idle)} ms."
            ),
            "rows": charts.still_rows(timeline),
            "scale": charts.scale(charts.ticks(0, step, 6), step or 1.0, "ms"),
            "jumps": found_jumps,
            "longest": [
                {
                    "start": ms(gap[0] / 1000, 2),
                    "ms": ms(gap[1] / 1000, 2),
                    "cause": step_view.gap_cause(str(gap[2])),
                }
                for gap in gaps
            ],
        },
        "timeline_json": embed(timeline_data(timeline, found_jumps)),
    }


def roles_section(result: Result) -> dict[str, Any]:
    """Roles and unclassified kernels as table rows."""
    confidence = {"low": "1", "medium": "2", "high": "3"}
    rows = [
        {
            "role": role.role,
            "kind": charts.role_kind(role.role),
            "ms": ms(role.ms),
            "exposed": "" if role.exposed_ms is None else ms(role.exposed_ms),
            "share": share(role.share),
            "count": count(role.count),
            "confidence": role.confidence,
            "sources": ", ".join(
                f"{name.replace('_', ' ')} {number(part * 100, 0)} %"
                for name, part in sorted(role.sources.items(), key=lambda item: (-item[1], item[0]))
                if part >= SHOWN_SOURCE
            ),
            "reason": role.reason or "",
            "v": {
                "ms": sort(role.ms),
                "exposed": sort(role.exposed_ms),
                "share": sort(role.share),
                "count": sort(role.count),
                "confidence": confidence[role.confidence],
            },
        }
        for role in result.roles
    ]
    kept = result.unclassified[:LONG_LIST]
    unclassified = [
        {
            "name": middle_cut(one.name, 120),
            "ms": ms(one.ms),
            "count": count(one.count),
            "v": sort(one.ms),
            "n": sort(one.count),
        }
        for one in kept
    ]
    rest = result.unclassified[LONG_LIST:]
    if rest:
        total, calls = sum(one.ms for one in rest), sum(one.count for one in rest)
        unclassified.append(
            {
                "name": f"{len(rest)} others",
                "ms": ms(total),
                "count": count(calls),
                "v": sort(total),
                "n": sort(calls),
            }
        )
    return {"roles": rows, "unclassified": unclassified}


def idle_section(result: Result, step: float | None) -> dict[str, Any]:
    """Compute-absent time and idle causes."""
    absent = result.compute_absent
    shown: dict[str, Any] = {"absent": None, "idle": None}
    if absent is not None and absent.ms > 0:
        kinds = {
            "launch_starved": "host",
            "copies": "other",
            "opaque": "opaque",
            "unresolved": "idle",
        }
        rows = [
            (
                _blocked(part),
                _absent_kind(part.role)
                if part.cause == "blocked"
                else kinds.get(part.cause, "other"),
                part.ms,
            )
            for part in absent.parts
        ]
        if abs(absent.residual_ms) >= 0.05:
            rows.append(("Residual", "missing", absent.residual_ms))
        printed = add_up([row[2] for row in rows], absent.ms)
        largest = max(rows, key=lambda row: row[2]) if rows else None
        at, drawn = 0.0, []
        for label, kind, value in rows:
            title = f"{label}: {ms(value)} ms"
            drawn.append(svg.rect(at, 0, max(value, 0) / absent.ms, 20, kind, title=title))
            at += max(value, 0) / absent.ms
        lead = f"No compute kernel runs for {ms(absent.ms)}" + (
            f" of {ms(step)} ms" if step else " ms"
        )
        if largest is not None:
            lead += f"; the largest cause is “{largest[0]}” with {ms(largest[2])} ms"
        shown["absent"] = {
            "lead": lead + ".",
            "chart": svg.image(20, lead, *drawn, kind="chart bar"),
            "rows": [
                {
                    "label": label,
                    "kind": kind,
                    "ms": from_tenths(value),
                    "share": share(exact / step) if step else "",
                }
                for (label, kind, exact), value in zip(rows, printed, strict=True)
            ],
            "total": ms(absent.ms),
            "share": share(absent.ms / step) if step else "",
        }
    if result.idle_causes:
        total = sum(cause.ms for cause in result.idle_causes)
        printed = add_up([cause.ms for cause in result.idle_causes], total)
        host = sum(
            cause.ms for cause in result.idle_causes if not cause.cause.startswith("dependency")
        )
        shown["idle"] = {
            "lead": f"The GPU does nothing at all for {ms(total)}"
            + (f" of {ms(step)} ms" if step else " ms")
            + f"; {ms(host)} ms of it are host gaps: the next work was launched too late.",
            "total": from_tenths(sum(printed)),
            "rows": [
                {
                    "label": cause.label,
                    "kind": "idle" if cause.cause.startswith("dependency") else "host",
                    "ms": from_tenths(value),
                    "detail": " · ".join(_idle_detail(row) for row in cause.detail[:4]),
                }
                for cause, value in zip(result.idle_causes, printed, strict=True)
            ],
        }
    return shown


def _blocked(part: AbsentPart) -> str:
    if part.cause != "blocked" or part.role is None:
        return part.label
    return f"Blocked by {verdict_view.limiter(part.role.removesuffix('_p2p'))}"


def _absent_kind(role: str | None) -> str:
    if role is None:
        return "idle"
    return "wire" if role.startswith("ep_") else "comm"


def _idle_detail(row: dict[str, Any]) -> str:
    words = cut(str(row.get("name", "")), 60)
    times, took = row.get("count"), row.get("ms")
    if isinstance(times, int | float):
        words += f" × {count(times)}"
    if isinstance(took, int | float):
        words += f", {ms(took, 2 if took < 0.1 else 1)} ms"
    return words
