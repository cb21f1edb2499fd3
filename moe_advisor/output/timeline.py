"""The timeline's data for the script, and the places that findings point to."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from moe_advisor.output import charts
from moe_advisor.output.formatting import ms
from moe_advisor.output.step_view import gap_cause
from moe_advisor.result import Recommendation, Result, Timeline

MARGIN = 1.0
"""A jump shows the place and as much again on both sides: enough to see what stands around it."""


@dataclass(frozen=True, slots=True)
class Jump:
    """A place in the timeline worth going to."""

    key: str
    label: str
    start_us: float
    length_us: float
    slice: int
    """Row of the slice to select, or -1 for a gap."""


def jumps(result: Result) -> list[Jump]:
    """The longest of each thing that findings are about (label, place, slice to select)."""
    timeline = result.timeline
    if timeline is None or not timeline.slices.start_us:
        return []
    columns = timeline.slices
    found = []
    for key, title, roles in (
        ("exposed", "Exposed EP all-to-all", ("ep_dispatch", "ep_combine", "ep_notify")),
        ("dp", "DP collective", ("dp_grad_reduce", "dp_param_gather", "dp_norm")),
        ("permute", "Permutation", ("permute",)),
        ("expert", "Expert GEMM", ("expert_gemm",)),
    ):
        wanted = {i for i, role in enumerate(timeline.roles) if role in roles}
        rows = [i for i, role in enumerate(columns.role) if role in wanted]
        if not rows:
            continue
        if key == "exposed":
            spans = timeline.exposed
            starts = [pair[0] for pair in spans]
            best = max(
                rows,
                key=lambda i: (_within(spans, starts, columns.start_us[i], columns.dur_us[i]), -i),
            )
        else:
            best = max(rows, key=lambda i: (columns.dur_us[i], -i))
        length = columns.dur_us[best]
        found.append(
            Jump(key, f"{title}, {ms(length / 1000, 2)} ms", columns.start_us[best], length, best)
        )
    for key, title, causes in (
        ("gap", "Host gap", {str(gap[2]) for gap in timeline.gaps} - {"dependency_idle"}),
        ("sync", "Gap in a synchronising call", {"host_gap_sync"}),
    ):
        gaps = [gap for gap in timeline.gaps if gap[2] in causes]
        wanted_here = key != "sync" or any(r.whatif == "host-syncs" for r in result.recommendations)
        if gaps and wanted_here:
            gap = max(gaps, key=lambda one: (one[1], -one[0]))
            found.append(Jump(key, f"{title}, {ms(gap[1] / 1000, 2)} ms", gap[0], gap[1], -1))
    return found


def _within(spans: list[list[float]], starts: list[float], start: float, length: float) -> float:
    """How much of a slice lies in the sorted spans, us."""
    end = start + length
    total = 0.0
    at = max(bisect_left(starts, start) - 1, 0)
    while at < len(spans) and spans[at][0] < end:
        total += max(0.0, min(end, spans[at][1]) - max(start, spans[at][0]))
        at += 1
    return total


_BY_WHATIF = {
    "ep-overlap": "exposed",
    "dispatcher": "exposed",
    "link": "exposed",
    "balanced-experts": "exposed",
    "stragglers": "exposed",
    "cuda-graphs": "gap",
    "host-syncs": "sync",
    "permute-fusion": "permute",
    "grouped-gemm": "expert",
}


def jump_for(found: Recommendation, places: list[Jump]) -> int | None:
    """The number of the place that a finding is about, or None where the step shows none."""
    keys = [place.key for place in places]
    wanted = [
        _BY_WHATIF.get(found.whatif or ""),
        {"communication": "exposed", "compute_host": "gap"}.get(found.wall)
        if not found.whatif
        else None,
        "gap" if found.whatif == "host-syncs" else None,
    ]
    return next((keys.index(key) for key in wanted if key in keys), None)


def timeline_data(timeline: Timeline, places: list[Jump]) -> dict[str, Any]:
    """What the script draws; times in us, rounded to 0.1."""

    def rounded(values: list[float]) -> list[float]:
        return [round(value, 1) for value in values]

    columns = timeline.slices
    return {
        "step": timeline.step_ms * 1000,
        "lanes": timeline.lanes,
        "names": timeline.names,
        "roles": timeline.roles,
        "kinds": [charts.role_kind(role) for role in timeline.roles],
        "lane": columns.lane,
        "start": rounded(columns.start_us),
        "dur": rounded(columns.dur_us),
        "name": columns.name,
        "role": columns.role,
        "host": [
            [round(row[0], 1), round(row[1], 1), str(row[2]), int(row[3])]
            for row in timeline.host
            if isinstance(row[3], int) and 0 <= row[3] < 16
        ],
        "exposed": [rounded(pair[:2]) for pair in timeline.exposed],
        "hidden": [rounded(pair[:2]) for pair in timeline.hidden],
        "gaps": [[round(gap[0], 1), round(gap[1], 1), str(gap[2])] for gap in timeline.gaps],
        "causes": {
            cause: gap_cause(cause) for cause in sorted({str(gap[2]) for gap in timeline.gaps})
        },
        "jumps": [
            {
                "start": round(place.start_us, 1),
                "dur": round(place.length_us, 1),
                "slice": place.slice,
                "label": place.label,
            }
            for place in places
        ],
    }
