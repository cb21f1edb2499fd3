"""What a notebook shows for a result: the first screen, without scripts and without a style sheet.

Notebooks keep neither style elements nor ids apart, so everything stands in the elements, and
colours come with a label. Text takes the notebook's own colour, so that a dark one stays readable.
"""

from collections.abc import Mapping

from markupsafe import Markup, escape

from moe_advisor.output import plan_view, run_view, verdict_view
from moe_advisor.output.formatting import figure, gain, ms
from moe_advisor.output.markup import prose
from moe_advisor.output.tidy import tidy
from moe_advisor.result import MetricValue, Result

COLOURS = {"memory": "#009E73", "communication": "#D55E00", "compute_host": "#56B4E9"}
"""The report's, which are told apart without colour vision; each bar has its name beside it."""

BAR_PIXELS = 320
SHOWN_STEPS = 6

_CELL = Markup('<td style="text-align:{}">{}</td>')
_HEAD = Markup('<th scope="col" style="text-align:{}">{}</th>')


def card(result: Result) -> str:
    """Verdict, walls and plan in one screen."""
    shown = tidy(result)
    step = run_view.step_ms(shown)
    plan = plan_view.plan(shown)
    parts = [
        Markup("<div><p><strong>{}{}</strong></p>").format(
            verdict_view.partial_prefix(shown), shown.walls.headline
        ),
        Markup("<p>{}</p>").format(prose(shown.walls.cause)) if shown.walls.cause else Markup(),
        _walls(shown, step),
    ]
    advice = plan.all()[:SHOWN_STEPS]
    if advice:
        parts.append(_plan(advice, step, len(plan.all()) - len(advice)))
    else:
        parts.append(Markup("<p>{}</p>").format(plan_view.nothing_to_do(shown)))
    tone, words = run_view.capture_state(shown)
    if tone != "good":
        issues = [one.message for one in shown.capture.issues if one.severity != "info"]
        parts.append(Markup("<p>Capture: {}. {}</p>").format(words, prose(" · ".join(issues[:3]))))
    parts.append(
        Markup(
            "<p><small>{}. <code>.to_html()</code> is the whole report.</small></p></div>"
        ).format(" · ".join([run_view.run_name(shown), *run_view.identity(shown)]))
    )
    return str(Markup("").join(parts))


def _walls(result: Result, step: float | None) -> Markup:
    rows = []
    for row in verdict_view.wall_rows(result):
        bar = Markup(
            '<div style="width:{}px;height:12px;background:{};display:inline-block"></div>'
        ).format(round(BAR_PIXELS * min(max(row.score, 0.0), 1.0)), COLOURS[row.wall])
        note = Markup("{}{}").format(
            row.limiter, Markup("; not measured: {}").format(row.missing) if row.missing else ""
        )
        rows.append(
            _row(
                ("left", row.title),
                ("left", bar),
                ("right", verdict_view.wall_score(result, row)),
                ("left", note),
            )
        )
    of = f"% of the {ms(step)} ms step" if step else "% of the step"
    return _table(
        f"Recoverable time by wall, {of}",
        [("left", "Wall"), ("left", ""), ("right", "Score"), ("left", "Of which")],
        rows,
    )


def _plan(advice: tuple[plan_view.Advice, ...], step: float | None, more: int) -> Markup:
    rows = [
        _row(
            ("left", one.mark),
            ("left", one.found.title + (" (not yet)" if one.found.withheld else "")),
            ("left", gain(one.found.estimate, step)),
            ("left", f"severity {one.found.severity}, confidence {one.found.confidence}"),
        )
        for one in advice
    ]
    if more > 0:
        rows.append(
            _row(("left", ""), ("left", f"{more} more in .findings"), ("left", ""), ("left", ""))
        )
    return _table(
        "The plan, in the order to try",
        [("left", ""), ("left", "Change"), ("left", "Gain per step"), ("left", "How sure")],
        rows,
    )


def metrics(values: Mapping[str, MetricValue]) -> str:
    """The metrics as a table; what was not measured says why."""
    rows = []
    for name, metric in values.items():
        shown = figure(metric)
        rows.append(
            _row(
                ("left", Markup("<code>{}</code>").format(name)),
                ("right", f"{shown.text} {shown.unit}" if shown.measured else "not measured"),
                ("left", metric.reason or metric.basis or shown.note),
            )
        )
    return str(
        _table("Metrics per step", [("left", "Metric"), ("right", "Value"), ("left", "Note")], rows)
    )


def _row(*cells: tuple[str, str | Markup]) -> Markup:
    return Markup("<tr>{}</tr>").format(
        Markup("").join(_CELL.format(side, escape(text)) for side, text in cells)
    )


def _table(caption: str, head: list[tuple[str, str]], rows: list[Markup]) -> Markup:
    return Markup(
        '<table><caption style="text-align:left">{}</caption><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format(
        caption,
        Markup("").join(_HEAD.format(side, text) for side, text in head),
        Markup("").join(rows),
    )
