"""The report: one HTML file that works offline, without scripts and without styles."""

import base64
import hashlib
import re
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from moe_advisor.output import charts, story, svg
from moe_advisor.output.changes import diffs, short
from moe_advisor.output.formatting import (
    MINUS,
    NOT_MEASURED,
    add_up,
    count,
    cut,
    figure,
    from_tenths,
    middle_cut,
    ms,
    number,
    plural,
    quantity,
    share,
    span,
    tenths,
)
from moe_advisor.output.tidy import tidy
from moe_advisor.output.timeline import Jump, jump_for, jumps, timeline_data
from moe_advisor.resources import templates_dir
from moe_advisor.result import AbsentPart, CollectiveView, Condition, Definition, Result

HEAT_COLUMNS = 64
"""Collectives shown in one heat map: more columns than that can't be read on any screen."""

HEAT_RANKS = 32
"""Above so many ranks a cell is colour only."""

HEAT_VIEWS = 2

UNEVEN = 3.0
"""One rank waits so many times longer than another: then a mean over ranks misleads."""

NOTABLE_WAIT = 0.01
"""Waiting below this share of the step is not worth naming a rank for."""

LONG_LIST = 60
"""Rows of a list before the rest is summed up."""

_FIGURE = re.compile(
    r"(?<![\w.#])(?:≈ )?[−+±]?\d[\d,]*(?:\.\d+)?(?: to [−]?\d[\d,]*(?:\.\d+)?)?"
    r"(?: of \d[\d,]*(?:\.\d+)?)?(?: ?(?:ms|%|GB/s|GiB|GB|×|points))(?![\w/])"
)
_CODE = re.compile(r"(?<![\w/-])(--[a-z][\w-]{1,30}(?:[ =][A-Z][A-Z=]{1,12})?|[a-zA-Z]\w{0,30}_\w{1,40})(?![\w-])")
_HYPHENATED = re.compile(r"[\w(]+(?:-\w+){1,3}[:;,.)]?")
_KIND_ORDER = tuple(story.KIND_TITLES)


def render(result: Result) -> str:
    """The report as one HTML document; the same result gives the same bytes."""
    shown = tidy(result)
    folder = templates_dir()
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": prose, "share": share, "unbroken": unbroken, "signed_share": _signed_share}
    environment.globals |= {"swatch": svg.swatch, "level_mark": _level_mark}
    texts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js", "theme.js")
    }
    context = _context(shown)
    context |= {
        "css": Markup(texts["report.css"]),  # noqa: S704 - our own files
        "js": Markup(texts["report.js"]),  # noqa: S704
        "theme_js": Markup(texts["theme.js"]),  # noqa: S704
        "policy": _policy(texts),
        "patterns": svg.patterns(),
    }
    return environment.get_template("base.html").render(context)


def _policy(texts: dict[str, str]) -> str:
    """Nothing may load, and only the three texts of this page may run or style."""

    def digest(name: str) -> str:
        value = hashlib.sha256(texts[name].encode()).digest()
        return f"'sha256-{base64.b64encode(value).decode()}'"

    return (
        f"default-src 'none'; script-src {digest('theme.js')} {digest('report.js')}; "
        f"style-src {digest('report.css')}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def embed(data: Any) -> Markup:
    """JSON that may stand in a script element whatever its strings hold."""
    text = msgspec.json.encode(data).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - no character of it can end the element


def prose(text: str) -> Markup:
    """Text with its figures in bold and its settings in code."""
    made = []
    at = 0
    matches = sorted(
        [(m.start(), m.end(), "b") for m in _FIGURE.finditer(text)]
        + [(m.start(), m.end(), "code") for m in _CODE.finditer(text)]
    )
    for start, end, tag in matches:
        if start < at:
            continue
        made += [escape(text[at:start]), Markup(f"<{tag}>"), escape(text[start:end])]  # noqa: S704
        made.append(Markup(f"</{tag}>"))  # noqa: S704
        at = end
    return Markup("").join([*made, escape(text[at:])])


def unbroken(text: str) -> Markup:
    """Text whose short hyphenated words stay on one line."""
    return Markup("").join(
        Markup('<span class="nb">{}</span>').format(word) if _HYPHENATED.fullmatch(word) else word
        for word in re.split(r"(\s+)", text)
    )


def _signed_share(value: float) -> str:
    text = share(value)
    return text if text.startswith(MINUS) else f"+{text}"


def _level_mark(kind: str, level: int) -> Markup:
    """Chevrons for how bad a finding is, filled dots for how sure its estimate is."""
    shapes = []
    for i in range(3):
        on = i < level
        if kind == "severity":
            y = 13 - 4 * i
            shapes.append(
                svg.element(
                    "path",
                    {"d": f"M3 {y}l5 -4l5 4", "fill": "none", "stroke-width": 1.8,
                     "stroke": "#A33F00" if on else "#D8DEE5",
                     "class": "c-on" if on else "c-off"},
                )
            )
        else:
            shapes.append(
                svg.element(
                    "circle",
                    {"cx": 5 + 10 * i, "cy": 8, "r": 3.8, "stroke": svg.INK,
                     "fill": svg.INK if on else "none", "class": "d-on" if on else "d-off"},
                )
            )
    width = 16 if kind == "severity" else 30
    return svg.element(
        "svg",
        {"width": width, "height": 16, "aria-hidden": "true", "focusable": "false",
         "class": "mark"},
        *shapes,
    )


# ------------------------------------------------------------------------------------- context


def _context(result: Result) -> dict[str, Any]:
    step = story.step_ms(result)
    plan = story.plan(result)
    first = plan.main[0] if plan.main else None
    tone, words = story.capture_state(result)
    whatif = _whatif(result)
    sections = [("verdict", "Verdict"), ("time", "Time"), ("plan", "Plan")]
    sections += [("whatif", "What-if")] if whatif["waterfall"] else []
    sections += [("evidence", "Evidence"), ("method", "Method")]
    found_jumps = jumps(result)
    notes = [issue for issue in result.capture.issues if issue.severity != "info"]
    return {
        "result": result,
        "definitions": result.definitions,
        "run_name": cut(story.run_name(result), 60),
        "identity": story.identity(result),
        "sections": sections,
        "step": ms(step) if step else "",
        "verdict": {
            "label": story.verdict_label(result),
            "tone": story.verdict_tone(result),
            "detail": story.verdict_detail(result),
            "prefix": story.partial_prefix(result),
        },
        "capture": {
            "tone": tone,
            "words": words,
            "rows": story.capture_rows(result),
            "notes": plural(len(notes), "note") + " on this capture" if notes else "",
        },
        "first": first,
        "first_gain": story.gain_text(first, step) if first else "",
        "nothing": story.nothing_to_do(result),
        "questions": story.open_questions(result),
        "tiles": story.tiles(result),
        "ranks_line": story.ranks_line(result),
        **_walls(result),
        **_time(result),
        **_plan(result, plan, step, found_jumps),
        **whatif,
        **_timeline(result, found_jumps),
        **_roles(result),
        **_ranks(result),
        **_idle(result, step),
        **_method(result),
    }


def _walls(result: Result) -> dict[str, Any]:
    rows = story.wall_rows(result)
    judged = story.judged(result)
    shown = []
    for i, row in enumerate(rows):
        lead = None
        if i == 1 and judged:
            unclear = result.walls.verdict in ("mixed", "inconclusive")
            margin = result.walls.margin
            lead = (row.score, rows[0].score, margin, result.walls.threshold, unclear)
        shares = [(f"{label} {share(part)}", part) for label, _, part in row.segments]
        inside = [words for words, part in shares if charts.labelled(words, part)]
        below = [words for words, part in shares if words not in inside and part >= 0.0005]
        shown.append(
            {
                "row": row,
                "chart": charts.wall(row, lead),
                "score": story.wall_score(result, row),
                "labelled": " · ".join(inside),
                "caption": " · ".join(below),
            }
        )
    step = story.step_ms(result)
    left = story.not_recoverable(result)
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


def _time(result: Result) -> dict[str, Any]:
    mean = story.mean_bar(result)
    if mean is None:
        return {"mean": None, "time_lead": story.time_lead(result)}
    groups = story.bars(result)
    longest = max([mean.total_ms, *(bar.total_ms for group in groups for bar in group)])
    marks = charts.ticks(0, longest, 6)
    hidden = story.hidden_ms(result)
    kinds = {s.kind for s in mean.segments} | {
        s.kind for group in groups for bar in group for s in bar.segments if s.ms
    }
    kinds |= {"hidden"} if hidden and hidden >= 0.05 else set()
    return {
        "mean": mean,
        "time_lead": story.time_lead(result),
        "legend": [(k, story.KIND_TITLES[k]) for k in _KIND_ORDER if k in kinds],
        "mean_brackets": charts.brackets(mean, longest),
        "mean_brackets_below": charts.brackets_below(mean, longest),
        "mean_chart": charts.stack(mean, longest, 36),
        "hidden_chart": charts.hidden_bar(hidden, longest) if hidden and hidden >= 0.05 else None,
        "groups": [[(bar, charts.stack(bar, longest, 20)) for bar in group] for group in groups],
        "bar_scale": charts.scale(marks, longest, "ms"),
        "part_tables": _part_tables(result, mean),
        "many_ranks": len(result.parts_by_rank) > story.MANY_RANKS,
    }


def _part_tables(result: Result, mean: story.Bar) -> list[dict[str, Any]]:
    columns, rows = story.part_rows(result)
    totals = story.rank_totals(result)
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
                    _family_row(family, own, len(columns), mean) for family in families
                    if any(row.segment.family == family for row in own)
                ],
                "total": {"per_rank": totals} if "rest" in families else None,
            }
        )
    return tables


def _family_row(
    family: str, rows: list[story.PartRow], columns: int, mean: story.Bar
) -> dict[str, Any]:
    own = [row for row in rows if row.segment.family == family]

    def total(values: list[str]) -> str:
        return from_tenths(
            sum(int(v.replace(",", "").replace(MINUS, "-").replace(".", "")) for v in values)
        )

    mean_ms = sum(row.segment.ms for row in own)
    return {
        "title": story.FAMILY_TITLES[family],
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


# ---------------------------------------------------------------------------------------- plan


def _plan(
    result: Result, plan: story.Plan, step: float | None, found_jumps: list[Jump]
) -> dict[str, Any]:
    low, high = story.gain_domain(result)
    unit = step / 100 if step else 1.0
    marks = [mark * unit for mark in charts.ticks(low / unit, high / unit, 4)]
    low, high = min(low, marks[0] if low < 0 else 0.0), max(high, marks[-1])
    shown_marks = [mark for mark in marks if low <= mark <= high]
    order = {"unmet": 0, "unknown": 1, "met": 2}

    def conditions(items: list[Condition]) -> list[Condition]:
        return sorted(items, key=lambda item: order[item.state])

    def card(advice: story.Advice) -> dict[str, Any]:
        estimate = advice.found.estimate
        label = f"{advice.found.title}: {advice.expected or 'gain not measured'} {advice.range}"
        low_text = ms(estimate.low_ms) if estimate.low_ms is not None else ""
        return {
            "advice": advice,
            "chart": charts.gain_range(estimate, low, high, shown_marks, label),
            "diffs": [
                {"diff": diff, "id": f"diff-{advice.found.rule}-{diff.framework}"}
                for diff in diffs(advice.found.changes)
            ],
            "low": low_text,
            "range_rest": advice.range.removeprefix(low_text),
            "requires": conditions(advice.found.requires),
            "conflicts": conditions(advice.found.conflicts),
            "change": "; ".join(short(one) for one in advice.found.changes[:1]),
            "jump": jump_for(advice.found, found_jumps),
        }

    return {
        "plan": plan,
        "any_gain": any(advice.expected or advice.range for advice in plan.all()),
        "gain_axis": charts.gain_axis(low, high, shown_marks, step),
        "cards": {
            "main": [card(advice) for advice in plan.main],
            "instead": [card(advice) for advice in plan.instead],
            "waiting": [card(advice) for advice in plan.waiting],
        },
    }


def _whatif(result: Result) -> dict[str, Any]:
    step = story.step_ms(result)
    priced = [one for one in result.plan if one.combined.expected_ms is not None]
    nothing: dict[str, Any] = {"waterfall": []}
    if not step or not priced:
        return nothing
    rows = charts.waterfall(step, [(one.title, one.combined) for one in result.plan])
    last = priced[-1].combined
    top = max([step, *(step - (one.combined.low_ms or 0.0) for one in priced)])
    lead = f"With the whole plan the step is expected to fall from {ms(step)} to {ms(step - (last.expected_ms or 0.0))} ms"
    if last.low_ms is not None and last.high_ms is not None:
        lead += f" (range {span(step - last.high_ms, step - last.low_ms)} ms)"
    lead += "." + (f" {last.basis.capitalize().rstrip('.')}." if last.basis else "")
    return {
        "waterfall": rows,
        "waterfall_lead": lead,
        "waterfall_now": svg.image(
            28, f"Now: {ms(step)} ms", svg.rect(0, 4, step / top, 20, "compute"), kind="chart bar"
        ),
        "whatifs": [
            {
                "name": one.name,
                "title": one.title,
                "cells": [
                    {"text": "" if value is None else ms(value), "v": _sort(value)}
                    for value in (
                        one.estimate.expected_ms,
                        one.estimate.low_ms,
                        one.estimate.high_ms,
                    )
                ],
                "assumes": "; ".join(one.assumptions) or one.estimate.basis or one.estimate.reason or "",
            }
            for one in result.whatif
        ],
    }


def _sort(value: float | None) -> str:
    """A value to sort by; empty sorts last, never among zeros."""
    return "" if value is None else repr(round(float(value), 6))


# ------------------------------------------------------------------------------------ evidence


def _timeline(result: Result, found_jumps: list[Jump]) -> dict[str, Any]:
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
                    "cause": story.gap_cause(str(gap[2])),
                }
                for gap in gaps
            ],
        },
        "timeline_json": embed(timeline_data(timeline, found_jumps)),
    }


def _roles(result: Result) -> dict[str, Any]:
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
            ),
            "v": {
                "ms": _sort(role.ms),
                "exposed": _sort(role.exposed_ms),
                "share": _sort(role.share),
                "count": _sort(role.count),
                "confidence": confidence[role.confidence],
            },
        }
        for role in result.roles
    ]
    kept = result.unclassified[:LONG_LIST]
    unclassified = [
        {"name": middle_cut(one.name, 120), "ms": ms(one.ms), "count": count(one.count),
         "v": _sort(one.ms), "n": _sort(one.count)}
        for one in kept
    ]
    rest = result.unclassified[LONG_LIST:]
    if rest:
        total, calls = sum(one.ms for one in rest), sum(one.count for one in rest)
        unclassified.append(
            {"name": f"{len(rest)} others", "ms": ms(total), "count": count(calls),
             "v": _sort(total), "n": _sort(calls)}
        )
    return {"roles": rows, "unclassified": unclassified}


def _ranks(result: Result) -> dict[str, Any]:
    named = story.extremes(result) if len(result.ranks) > 2 * story.EXTREMES else []
    everyone = [_rank_row(result, [rank.rank], f"Rank {rank.rank}") for rank in result.ranks]
    if named:
        rows = [row for row in everyone if row["order"] in named]
        others = [rank.rank for rank in result.ranks if rank.rank not in named]
        rows.append(_rank_row(result, others, f"{len(others)} others, mean"))
    else:
        rows = everyone
    views = [
        _heat(view) for view in sorted(result.collectives, key=_weight)[:HEAT_VIEWS]
        if view.instances
    ]
    limits = charts.HEAT_LIMITS_MS
    words = [f"under {limits[0]:g}", *(f"to {limit:g}" for limit in limits[1:]), f"over {limits[-1]:g}"]
    return {
        "rank_rows": rows,
        "rank_rows_all": everyone if named else [],
        "rank_sub": f"{plural(len(result.ranks), 'rank')}, mean of {plural(result.steps.count, 'step')}",
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


def _rank_row(result: Result, ranks: list[int], name: str) -> dict[str, Any]:
    own = [rank for rank in result.ranks if rank.rank in ranks]

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
    cells = [{"text": "" if value is None else ms(value), "v": _sort(value)} for value in values]
    cells.append(
        {"text": count(sum(late)) if late else "", "v": _sort(sum(late)) if late else ""}
    )
    return {
        "name": name,
        "order": ranks[0] if len(ranks) == 1 else 1_000_000,
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
    text = story.ranks_line(result)
    if waits:
        most, least = max(waits), min(waits)
        step = story.step_ms(result)
        of = f" of {ms(step)}" if step else ""
        mean = sum(wait for wait, _ in waits) / len(waits)
        both = f"Rank {most[1]} waits {ms(most[0])}{of} ms for its peers, rank {least[1]} {ms(least[0])} ms"
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
            if max(view.instances[i].wait_ms, default=0.0) >= charts.HEAT_LIMITS_MS[0] else "·",
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


def _idle(result: Result, step: float | None) -> dict[str, Any]:
    absent = result.compute_absent
    shown: dict[str, Any] = {"absent": None, "idle": None, "layers": None}
    if absent is not None and absent.ms > 0:
        kinds = {"launch_starved": "host", "copies": "other", "opaque": "opaque",
                 "unresolved": "idle"}
        rows = [
            (_blocked(part), _absent_kind(part.role) if part.cause == "blocked"
             else kinds.get(part.cause, "other"), part.ms)
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
                {"label": label, "kind": kind, "ms": from_tenths(value),
                 "share": share(exact / step) if step else ""}
                for (label, kind, exact), value in zip(rows, printed, strict=True)
            ],
            "total": ms(absent.ms),
            "share": share(absent.ms / step) if step else "",
        }
    if result.idle_causes:
        total = sum(cause.ms for cause in result.idle_causes)
        printed = add_up([cause.ms for cause in result.idle_causes], total)
        host = sum(cause.ms for cause in result.idle_causes if cause.cause != "dependency")
        shown["idle"] = {
            "lead": f"The GPU does nothing at all for {ms(total)}"
            + (f" of {ms(step)} ms" if step else " ms")
            + f"; {ms(host)} ms of it are host gaps: the next work was launched too late.",
            "total": from_tenths(sum(printed)),
            "rows": [
                {
                    "label": cause.label,
                    "kind": "idle" if cause.cause == "dependency" else "host",
                    "ms": from_tenths(value),
                    "detail": " · ".join(_idle_detail(row) for row in cause.detail[:4]),
                }
                for cause, value in zip(result.idle_causes, printed, strict=True)
            ],
        }
    if result.layers:
        shown["layers"] = _layers(result.layers)
    return shown


def _blocked(part: AbsentPart) -> str:
    if part.cause != "blocked" or part.role is None:
        return part.label
    return f"Blocked by {story.limiter(part.role.removesuffix('_p2p'))}"


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


def _layers(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """A table of whatever the layers hold: the keys of the first are the columns."""
    keys = list(layers[0])

    def cell(value: Any) -> dict[str, Any]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return {"text": NOT_MEASURED if value is None else cut(str(value), 80), "v": None}
        text = count(value) if isinstance(value, int) else ms(value)
        return {"text": text, "v": _sort(value)}

    def title(key: str) -> str:
        words = key.removesuffix("_ms").replace("_", " ").capitalize()
        return f"{words}, ms" if key.endswith("_ms") else words

    return {
        "titles": [title(key) for key in keys],
        "rows": [[cell(row.get(key)) for key in keys] for row in layers[:400]],
    }


# -------------------------------------------------------------------------------------- method


def _method(result: Result) -> dict[str, Any]:
    steps = result.steps
    sources = {
        "annotation": f"annotations on the host (“{steps.pattern}”)" if steps.pattern else "annotations on the host",
        "optimizer": "the optimizer’s kernels",
        "repetition": "the repetition of the kernels",
        "whole-trace": "nothing: the whole trace is one window",
    }
    lead = f"{plural(steps.count, 'step')}, found from {sources[steps.source]}"
    if steps.names:
        first, last = steps.names[0], steps.names[-1]
        lead += f", {first} to {last}" if first != last else f", {first}"
    lead += f"; {len(steps.dropped)} dropped." if steps.dropped else "; none dropped."
    lead += " Gains are ms of the traced step; host time is stretched by a profiler, wire and GEMM time is not."
    outcomes = [rule.outcome for rule in result.rules]
    order = {"finding": 0, "error": 1, "not_measured": 2, "pass": 3, "not_applicable": 4}
    words = {"finding": "found something", "pass": "passed", "not_measured": "could not be measured",
             "not_applicable": "do not apply", "error": "failed to run"}
    summary = ", ".join(
        f"{count(outcomes.count(name))} {text}"  # type: ignore[arg-type]
        for name, text in words.items()
        if name in outcomes
    )
    dropped: list[dict[str, Any]] = [
        {"rank": one.rank, "step": one.step, "reason": one.reason}
        for one in steps.dropped[:LONG_LIST]
    ]
    if len(steps.dropped) > LONG_LIST:
        dropped.append({"rank": "", "step": f"{len(steps.dropped) - LONG_LIST} more", "reason": "see result.json"})
    return {
        "method_lead": lead,
        "issues": result.capture.issues[:LONG_LIST],
        "dropped": dropped,
        "inputs": [
            {"name": one.name, "format": one.format, "producer": one.producer,
             "ranks": _rank_list(one.ranks)}
            for one in result.inputs[:LONG_LIST]
        ],
        "config": [
            {"key": key, "value": cut(_shown(entry.value), 200), "source": entry.source}
            for key, entry in sorted(result.run.config.items())
        ],
        "rules": sorted(result.rules, key=lambda rule: (order[rule.outcome], rule.id)),
        "rule_summary": f"{plural(len(result.rules), 'rule')}: {summary}." if summary else "No rule ran.",
        "metrics": _metrics(result),
    }


def _rank_list(ranks: list[int]) -> str:
    if len(ranks) > 8 and ranks == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks[:16])) + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    return str(value)


def _metrics(result: Result) -> list[dict[str, Any]]:
    names = list(result.definitions) + [n for n in result.metrics if n not in result.definitions]
    rows = []
    for name in names:
        metric, text = result.metrics.get(name), result.definitions.get(name)
        known = [r for r in metric.per_rank if r.value is not None] if metric else []
        worst = ""
        if len(known) > 1 and metric is not None:
            top = max(known, key=lambda one: (one.value or 0.0, -one.rank))
            shown, unit = quantity(top.value or 0.0, metric.unit)
            worst = f"{shown} (rank {top.rank})" if unit else shown
        absent = metric is None or metric.status == "not_measured"
        rows.append(
            {
                "name": name,
                "title": text.title if text else name,
                "figure": figure(metric),
                "worst": worst,
                "zero": metric is not None and metric.value == 0,
                "definition": text.definition if text else "",
                "pitfall": text.pitfall if text else "",
                "why": (metric.reason if metric else "not in this result") if absent else "",
                "basis": metric.basis if metric and metric.status == "estimated" else "",
            }
        )
    return rows
