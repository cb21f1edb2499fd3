"""The report's first screens: walls, and where a step's time goes."""

from typing import Any

from moe_advisor.output import charts, run_view, step_view, verdict_view
from moe_advisor.output.formatting import MINUS, add_up, from_tenths, ms, share, tenths
from moe_advisor.result import Definition, Result

_KIND_ORDER = tuple(step_view.KIND_TITLES)


def walls_section(result: Result) -> dict[str, Any]:
    """The walls with their bars, and what no wall claims."""
    rows = verdict_view.wall_rows(result)
    judged = verdict_view.judged(result)
    shown = []
    for i, row in enumerate(rows):
        lead = None
        if i == 1 and judged:
            unclear = result.walls.verdict in ("mixed", "inconclusive")
            margin = result.walls.margin
            lead = (row.score, rows[0].score, margin, result.walls.threshold, unclear)
        shares = [(f"{label} {share(part)}", part) for label, _, part in row.segments]
        inside = [words for words, part in shares if charts.labelled(words, part)]
        hidden = charts.below_class([one for one in shares if charts.labelled(*one)])
        below = [words for words, part in shares if words not in inside and part >= 0.0005]
        shown.append(
            {
                "row": row,
                "chart": charts.wall(row, lead),
                "score": verdict_view.wall_score(result, row),
                "labelled": " · ".join(inside),
                "labelled_class": hidden,
                "caption": " · ".join(below),
            }
        )
    step = run_view.step_ms(result)
    left = verdict_view.not_recoverable(result)
    values = [row.score * 100 for row in rows] + [left * 100]
    adds = abs(sum(values) - 100) < 0.05
    printed = add_up(values, 100.0, len(values) - 1) if adds else [tenths(v) for v in values]
    return {
        "walls": shown,
        "wall_axis": charts.wall_axis(),
        "rest": {
            "chart": charts.rest_bar(left if judged else 0.0),
            "score": f"{from_tenths(printed[-1])} %" if judged else "–",
            "sum": f"adds up to 100.0 % of {ms(step)} ms" if judged and step and adds else "",
        },
    }


def time_section(result: Result) -> dict[str, Any]:
    """Bars per rank and step, and the tables that add up."""
    mean = step_view.mean_bar(result)
    if mean is None:
        return {"mean": None, "time_lead": step_view.time_lead(result)}
    groups = step_view.bars(result)
    longest = max([mean.total_ms, *(bar.total_ms for group in groups for bar in group)])
    marks = charts.ticks(0, longest, 6)
    hidden = step_view.hidden_ms(result)
    kinds = {s.kind for s in mean.segments} | {
        s.kind for group in groups for bar in group for s in bar.segments if s.ms
    }
    kinds |= {"hidden"} if hidden and hidden >= 0.05 else set()
    return {
        "mean": mean,
        "time_lead": step_view.time_lead(result),
        "legend": [(k, step_view.KIND_TITLES[k]) for k in _KIND_ORDER if k in kinds],
        "mean_brackets": charts.brackets(mean, longest),
        "mean_brackets_below": charts.brackets_below(mean, longest),
        "mean_chart": charts.stack(mean, longest, 36),
        "hidden_chart": charts.hidden_bar(hidden, longest) if hidden and hidden >= 0.05 else None,
        "groups": [[(bar, charts.stack(bar, longest, 20)) for bar in group] for group in groups],
        "bar_scale": charts.scale(marks, longest, "ms"),
        "part_tables": _part_tables(result, mean),
        "many_ranks": len(result.parts_by_rank) > step_view.MANY_RANKS,
    }


def _part_tables(result: Result, mean: step_view.Bar) -> list[dict[str, Any]]:
    columns, rows = step_view.part_rows(result)
    totals = step_view.rank_totals(result)
    top = max((row.segment.ms for row in rows), default=1.0)
    tables = []
    for families, title in (
        (("compute",), "Compute"),
        (("exposed_communication", "rest"), "Exposed communication, idle and total"),
    ):
        own = [row for row in rows if row.segment.family in families]
        tables.append(
            {
                "title": title,
                "columns": columns,
                "rows": [
                    {
                        "segment": row.segment,
                        "per_rank": row.per_rank,
                        "holds": row.holds,
                        "metric": _part_metric(row.segment.key, result.definitions),
                        "mini": charts.mini(row.segment.ms, top, row.segment.kind),
                    }
                    for row in own
                ],
                "families": [
                    _family_row(family, own, len(columns), mean)
                    for family in families
                    if any(row.segment.family == family for row in own)
                ],
                "total": {"per_rank": totals} if "rest" in families else None,
            }
        )
    return tables


def _family_row(
    family: str, rows: list[step_view.PartRow], columns: int, mean: step_view.Bar
) -> dict[str, Any]:
    own = [row for row in rows if row.segment.family == family]

    def total(values: list[str]) -> str:
        return from_tenths(
            sum(int(v.replace(",", "").replace(MINUS, "-").replace(".", "")) for v in values)
        )

    mean_ms = sum(row.segment.ms for row in own)
    return {
        "title": step_view.FAMILY_TITLES[family],
        "per_rank": [total([row.per_rank[i] for row in own]) for i in range(columns)],
        "mean": total([row.segment.printed for row in own]),
        "share": share(mean_ms / mean.total_ms) if mean.total_ms else "",
    }


def _part_metric(key: str, definitions: dict[str, Definition]) -> str:
    special = {
        "ep_a2a_exposed_transfer": "ep_a2a_transfer_ms",
        "ep_a2a_exposed_wait": "ep_a2a_wait_ms",
        "copies": "memcpy_exposed_ms",
        "compute_other": "compute_ms",
    }
    name = special.get(key, f"{key}_ms")
    return name if name in definitions else ""
