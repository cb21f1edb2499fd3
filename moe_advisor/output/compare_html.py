"""A comparison as one self-contained HTML page without scripts."""

import re
from collections.abc import Sequence
from typing import Any

from moe_advisor.compare.model import Comparison, KernelChange, Promise, Share
from moe_advisor.output import charts, compare_text, page, svg
from moe_advisor.output.compare_text import WORDS
from moe_advisor.output.formatting import (
    MINUS,
    clean,
    count,
    middle_cut,
    ms,
    number,
    plural,
    share,
    span,
)
from moe_advisor.output.verdict_view import WALL_TITLES

TONES = {"better": "good", "worse": "bad", "cant_tell": "warn", "changed": "none"}


def render(comparison: Comparison) -> str:
    """The page."""
    deltas = compare_text.listed(comparison.deltas)
    named = {one.name for one in deltas}
    others = [one for one in comparison.deltas if one.name not in named]
    return page.render(
        "compare/compare.html",
        {
            "title": _minus(clean(comparison.headline, 200)),
            "cause": _minus(clean(comparison.cause)),
            "verdict": WORDS[comparison.verdict],
            "tone": TONES.get(comparison.verdict, "none"),
            "sides": [
                {
                    "role": words,
                    "name": clean(side.name, 80),
                    "identity": [clean(one, 120) for one in side.identity],
                    "size": f"{plural(side.repeats, 'run')}, {plural(side.steps, 'step')}",
                }
                for words, side in (("Base", comparison.base), ("New", comparison.new))
            ],
            "checks": [
                {"id": one.id, "state": one.state, "message": clean(one.message, 400)}
                for one in comparison.checks
            ],
            "tables": [
                {"id": "metrics", "title": "What changed", "rows": [_row(one) for one in deltas]},
                {"id": "others", "title": "The rest", "rows": [_row(one) for one in others]},
            ],
            "others_count": len(others),
            "shares": [
                _shares("parts", "Where the step changed", comparison.parts),
                _shares("causes", "Causes", comparison.causes),
                _shares("roles", "Roles", comparison.roles),
                _shares("layers", "Layers", comparison.layers),
                _shares("ranks", "Ranks", comparison.ranks),
            ],
            "walls": _walls(comparison),
            "wall_axis": charts.wall_axis(),
            "kernels": _kernels(comparison.kernels),
            "promises": [_promise(one, comparison) for one in comparison.promises],
            "promise_axis": svg_axis(comparison),
            "config": [
                {
                    "key": clean(one.key, 120),
                    "base": "not known" if one.base is None else clean(str(one.base), 200),
                    "new": "not known" if one.new is None else clean(str(one.new), 200),
                    "source": one.source,
                }
                for one in comparison.config
            ],
        },
    )


def _minus(text: str) -> str:
    """Text of a terminal with real minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)


def _row(one: Any) -> dict[str, str]:
    bounds = ""
    if one.low is not None and one.high is not None:
        low, high = (compare_text.signed(value, one.unit) for value in (one.low, one.high))
        bounds = f"{low} to {high}"
    change = one.window_change
    return {
        "name": one.name,
        "title": one.title,
        "base": compare_text.value(one.base, one.unit),
        "new": compare_text.value(one.new, one.unit),
        "change": "" if change is None else compare_text.signed(change, one.unit),
        "relative": compare_text.relative(one),
        "bounds": bounds,
        "verdict": WORDS[one.verdict],
        "tone": TONES.get(one.verdict, "none"),
        "reason": clean(one.reason, 300),
    }


def _shares(name: str, title: str, shares: Sequence[Share]) -> dict[str, Any]:
    """Bars from the middle: left of it shorter, right of it longer; widths in per cent."""
    largest = max((abs(one.change_ms) for one in shares), default=0.0) or 1.0
    rows = []
    for one in shares[:20]:
        width = 50 * abs(one.change_ms) / largest
        rows.append(
            {
                "label": clean(one.label, 120),
                "base": ms(one.base_ms),
                "new": ms(one.new_ms),
                "change": compare_text.signed(one.change_ms, "ms/step"),
                "x": f"{50 - width if one.change_ms < 0 else 50:.2f}%",
                "width": f"{width:.2f}%",
                "kind": "less" if one.change_ms < 0 else "more",
            }
        )
    return {"id": name, "title": title, "rows": rows}


WALL_KINDS = {"memory": "memory", "communication": "wire", "compute_host": "compute"}

KERNEL_TONES = {"new": "warn", "gone": "none", "slower": "bad", "faster": "good"}


def _walls(comparison: Comparison) -> list[dict[str, Any]]:
    """Both sides' bars of each wall, on one scale from 0 to 100 % of each side's step."""
    rows = []
    for one in comparison.walls:
        title = WALL_TITLES.get(one.wall, one.wall)
        kind = WALL_KINDS.get(one.wall, "other")
        sides = [
            ("Base", one.base, one.base_limits, one.base_missing and not one.base),
            ("New", one.new, one.new_limits, one.new_missing and not one.new),
        ]
        unknown = any(side[3] for side in sides)
        points = f"{compare_text.signed(one.new - one.base, 'share')[:-2]} points"
        rows.append(
            {
                "title": title,
                "change": "partly measured" if unknown else points,
                "sides": [
                    {
                        "side": side,
                        "share": "–" if missing else share(score),
                        "limits": limits,
                        "chart": svg.image(
                            18,
                            f"{title}, {side.lower()}: "
                            + ("not measured" if missing else f"{share(score)} of the step"),
                            svg.rect(0, 1, max(0.0, min(score, 1.0)), 16, kind),
                            kind="chart bar",
                        ),
                    }
                    for side, score, limits, missing in sides
                ],
            }
        )
    return rows


def _kernels(changes: Sequence[KernelChange]) -> list[dict[str, Any]]:
    def once(value: float | None) -> str:
        return "" if value is None else number(value, 1)

    return [
        {
            "name": middle_cut(clean(one.name, 160), 90),
            "role": one.role,
            "state": one.state,
            "tone": KERNEL_TONES.get(one.state, "none"),
            "base": ms(one.base_ms, 2),
            "new": ms(one.new_ms, 2),
            "change": ("+" if one.change_ms >= 0 else "") + ms(one.change_ms, 2),
            "counts": f"{count(one.base_count)} to {count(one.new_count)}",
            "once": " to ".join(filter(None, (once(one.base_us), once(one.new_us)))),
        }
        for one in changes
    ]


def _domain(comparison: Comparison) -> tuple[float, float]:
    """The scale of all promises, ms: zero, every bound and what was measured lie inside."""
    values = [0.0]
    for one in comparison.promises:
        values += [
            value
            for value in (
                one.low_ms,
                one.high_ms,
                one.measured_ms,
                one.measured_low_ms,
                one.measured_high_ms,
            )
            if value is not None
        ]
    low, high = min(values), max(values)
    room = 0.05 * ((high - low) or 1.0)
    return (low - room if low < 0 else 0.0), high + room


def svg_axis(comparison: Comparison) -> Any:
    """The scale under the promises."""
    low, high = _domain(comparison)
    marks = [mark for mark in charts.ticks(low, high, 6) if low <= mark <= high]
    drawn = []
    for mark in marks:
        at = (mark - low) / (high - low)
        drawn.append(svg.line(at, 0, at, 5))
        anchor = "start" if at < 0.05 else "end" if at > 0.95 else "middle"
        drawn.append(svg.text(at, 18, f"{mark:g}", anchor=anchor, kind="muted"))
    return svg.image(22, "", *drawn, hidden=True)


def _promise(one: Promise, comparison: Comparison) -> dict[str, Any]:
    """A range bar with the expected gain as a mark and the measured one as a diamond."""
    low, high = _domain(comparison)

    def place(value: float) -> float:
        return (value - low) / (high - low)

    drawn = [svg.line(place(0.0), 0, place(0.0), 26, "ink", svg.INK)]
    if one.low_ms is not None and one.high_ms is not None:
        drawn.append(
            svg.rect(place(one.low_ms), 7, place(one.high_ms) - place(one.low_ms), 12, "range")
        )
    if one.expected_ms is not None:
        at = place(one.expected_ms)
        drawn.append(svg.line(at, 4, at, 22, "ink", svg.INK, 4))
    if one.measured_low_ms is not None and one.measured_high_ms is not None:
        drawn.append(
            svg.line(
                place(one.measured_low_ms), 13, place(one.measured_high_ms), 13, "ink", svg.INK, 2
            )
        )
    drawn.append(
        svg.element(
            "svg",
            {"x": svg.percent(place(one.measured_ms)), "y": 4, "overflow": "visible"},
            svg.element(
                "path",
                {
                    "d": "M0 0L8 9L0 18L-8 9Z",
                    "fill": svg.PAGE,
                    "stroke": "#106B3E",
                    "stroke-width": 2.5,
                    "class": "diamond",
                },
            ),
        )
    )
    estimate = (
        "no estimate"
        if one.low_ms is None or one.high_ms is None
        else f"{'' if one.expected_ms is None else ms(one.expected_ms) + ', '}"
        f"{span(one.low_ms, one.high_ms)} ms"
    )
    words = {True: "inside the range", False: "outside the range", None: "nothing was promised"}
    note = words[one.inside]
    if one.together:
        note += "; other recommendations were followed too, the gain belongs to all"
    elif one.others:
        note += f"; {', '.join(one.others[:3])} changed too"
    label = f"{one.title}: promised {estimate}, measured {ms(one.measured_ms)} ms, {note}"
    return {
        "title": one.title,
        "rule": one.rule,
        "promised": estimate,
        "measured": f"{ms(one.measured_ms)} ms",
        "note": note,
        "chart": svg.image(26, label, *drawn),
    }
