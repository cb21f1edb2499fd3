"""The report's ranks: who waits, who is waited for, and the heat map."""

from typing import Any

from moe_advisor.output import charts, run_view, step_view, tile_view
from moe_advisor.output.formatting import count, from_tenths, ms, number, plural, tenths
from moe_advisor.output.markup import embed, sort
from moe_advisor.result import CollectiveView, RankSummary, Result

HEAT_COLUMNS = 64
"""Collectives shown in one heat map: more columns than that can't be read on any screen."""


HEAT_RANKS = 32
"""Above so many ranks a cell is colour only."""


HEAT_VIEWS = 2


UNEVEN = 3.0
"""One rank waits so many times longer than another: then a mean over ranks misleads."""


NOTABLE_WAIT = 0.01
"""Waiting below this share of the step is not worth naming a rank for."""


def ranks_section(result: Result) -> dict[str, Any]:
    """Rank table, the sentence above it, and the heat maps."""
    named = step_view.extremes(result) if len(result.ranks) > 2 * step_view.EXTREMES else []
    everyone = [_rank_row([rank], f"Rank {rank.rank}") for rank in result.ranks]
    if named:
        rows = [row for row in everyone if row["order"] in named]
        others = [rank for rank in result.ranks if rank.rank not in named]
        rows.append(_rank_row(others, f"{len(others)} others, mean"))
    else:
        rows = everyone
    views = [
        _heat(view)
        for view in sorted(result.collectives, key=_weight)[:HEAT_VIEWS]
        if view.instances
    ]
    limits = charts.HEAT_LIMITS_MS
    words = [
        f"under {limits[0]:g}",
        *(f"to {limit:g}" for limit in limits[1:]),
        f"over {limits[-1]:g}",
    ]
    return {
        "rank_rows": rows,
        "rank_rows_all": everyone if named else [],
        "rank_sub": (
            f"{plural(len(result.ranks), 'rank')}, mean of {plural(result.steps.count, 'step')}"
        ),
        "rank_lead": _rank_lead(result),
        "heat": views,
        "no_heat": _no_heat(result),
        "heat_legend": [
            {"colour": colour, "text": text}
            for colour, text in zip(charts.HEAT_COLOURS, words, strict=True)
        ],
    }


def _weight(view: CollectiveView) -> tuple[float, str]:
    return (-sum(sum(one.wait_ms) for one in view.instances), view.group)


def _rank_row(own: list[RankSummary], name: str) -> dict[str, Any]:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    values = [
        mean([rank.step_ms for rank in own]),
        mean([rank.compute_ms for rank in own]),
        mean([rank.ep_a2a_wait_ms for rank in own]),
        mean([rank.host_gap_ms for rank in own]),
    ]
    late = [rank.arrived_last for rank in own if rank.arrived_last is not None]
    cells = [{"text": "" if value is None else ms(value), "v": sort(value)} for value in values]
    cells.append({"text": count(sum(late)) if late else "", "v": sort(sum(late)) if late else ""})
    return {
        "name": name,
        "order": own[0].rank if len(own) == 1 else 1_000_000,
        "device": ", ".join(sorted({rank.device or "unknown" for rank in own})),
        "cells": cells,
        "source": ", ".join(sorted({rank.rank_source.replace("-", " ") for rank in own})),
    }


def _rank_lead(result: Result) -> str:
    if len(result.ranks) < 2:
        return (
            "One rank was read: who arrives last, and how much of an all-to-all is waiting, can't "
            "be known. Capture all ranks of one expert-parallel group."
        )
    waits = [(r.ep_a2a_wait_ms, r.rank) for r in result.ranks if r.ep_a2a_wait_ms is not None]
    text = tile_view.ranks_line(result)
    if waits:
        most, least = max(waits), min(waits)
        step = run_view.step_ms(result)
        of = f" of {ms(step)}" if step else ""
        mean = sum(wait for wait, _ in waits) / len(waits)
        both = (
            f"Rank {most[1]} waits {ms(most[0])}{of} ms for its peers, "
            f"rank {least[1]} {ms(least[0])} ms"
        )
        if most[0] > UNEVEN * least[0] and most[0] > NOTABLE_WAIT * (step or most[0]):
            both += (
                ": the rank that waits least is the one the others wait for. "
                f"The mean ({ms(mean)} ms) hides that"
            )
        elif most[0] <= NOTABLE_WAIT * (step or 0.0):
            both += ": waiting is small on every rank"
        text = f"{both}. {text}"
    return text


def _no_heat(result: Result) -> str:
    wait = result.metrics.get("ep_a2a_wait_ms")
    if wait is not None and wait.status == "not_measured" and wait.reason:
        return f"waiting per collective: {wait.reason}"
    return "waiting per collective: no collective was matched over its ranks"


def _heat(view: CollectiveView) -> dict[str, Any]:
    """Figures of one heat map; short count exchanges are summed up, not drawn."""
    moving = [i for i, one in enumerate(view.instances) if one.role != "ep_notify"]
    shown = moving or list(range(len(view.instances)))
    left_out = ""
    if len(shown) > HEAT_COLUMNS:
        heaviest = sorted(shown, key=lambda i: (-sum(view.instances[i].wait_ms), i))
        left_out = f", the {HEAT_COLUMNS} with most waiting of {len(shown)}"
        shown = sorted(heaviest[:HEAT_COLUMNS])
    complete = all(len(one.wait_ms) >= len(view.ranks) for one in view.instances)
    many = len(view.ranks) > HEAT_RANKS or not complete
    words = {"ep_dispatch": "D", "ep_combine": "C", "ep_notify": "N"}
    found: dict[str, Any] = {
        "group": view.group,
        "step": view.step,
        "note": f"in launch order{left_out}",
        "picture": charts.heat_picture(view, shown) if many else None,
        "data": embed(charts.heat_data(view, shown)) if many else None,
        "sum": "",
        "columns": [],
        "rows": [],
    }
    if many:
        return found
    found["columns"] = [
        {
            "short": words.get(view.instances[i].role, view.instances[i].role[:2].upper()),
            "title": f"{view.instances[i].role} {view.instances[i].index}, "
            f"transfer {number(view.instances[i].transfer_ms, 2)} ms",
            # Nobody waited for anybody: naming a rank would blame noise.
            "last": view.instances[i].last
            if max(view.instances[i].wait_ms, default=0.0) >= charts.HEAT_LIMITS_MS[0]
            else "·",
        }
        for i in shown
    ]
    for position, rank in enumerate(view.ranks):
        total = sum(one.wait_ms[position] for one in view.instances)
        found["rows"].append(
            {
                "rank": rank,
                "total": ms(total),
                "cells": [_heat_cell(view.instances[i].wait_ms[position]) for i in shown],
            }
        )
    worst = max(
        range(len(view.ranks)),
        key=lambda p: sum(one.wait_ms[p] for one in view.instances),
        default=None,
    )
    if worst is not None:
        drawn = sum(view.instances[i].wait_ms[worst] for i in shown)
        total = sum(one.wait_ms[worst] for one in view.instances)
        other = len(view.instances) - len(shown)
        if other:
            rest = from_tenths(tenths(total) - tenths(drawn))
            found["sum"] = (
                f"rank {view.ranks[worst]}: {ms(drawn)} shown + {rest} in {count(other)} others "
                f"= {ms(total)} ms"
            )
    return found


def _heat_cell(wait_ms: float) -> dict[str, Any]:
    level = charts.heat_level(wait_ms)
    return {
        "text": ms(wait_ms),
        "title": f"{number(wait_ms, 3)} ms",
        "level": level,
        "colour": charts.HEAT_COLOURS[level],
    }
