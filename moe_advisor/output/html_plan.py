"""The report's plan and what-if waterfall."""

from typing import Any

from moe_advisor.output import charts, plan_view, run_view, svg
from moe_advisor.output.changes import diffs, short
from moe_advisor.output.formatting import ms, span
from moe_advisor.output.markup import sort
from moe_advisor.output.timeline import Jump, jump_for
from moe_advisor.result import Condition, Result


def plan_section(
    result: Result, plan: plan_view.Plan, step: float | None, found_jumps: list[Jump]
) -> dict[str, Any]:
    """The recommendations as cards on one scale of gains."""
    low, high = plan_view.gain_domain(result)
    unit = step / 100 if step else 1.0
    marks = [mark * unit for mark in charts.ticks(low / unit, high / unit, 4)]
    low, high = min(low, marks[0] if low < 0 else 0.0), max(high, marks[-1])
    shown_marks = [mark for mark in marks if low <= mark <= high]
    order = {"unmet": 0, "unknown": 1, "met": 2}

    def conditions(items: list[Condition]) -> list[Condition]:
        return sorted(items, key=lambda item: order[item.state])

    def card(advice: plan_view.Advice) -> dict[str, Any]:
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
        "whole": plan_view.whole(result),
        "any_gain": any(advice.expected or advice.range for advice in plan.all()),
        "gain_axis": charts.gain_axis(low, high, shown_marks, step),
        "cards": {
            "main": [card(advice) for advice in plan.main],
            "instead": [card(advice) for advice in plan.instead],
            "waiting": [card(advice) for advice in plan.waiting],
        },
    }


def _replay_note(result: Result) -> str:
    """How far the simulated step is to be trusted; empty for results without it."""
    model = result.replay
    if model is None:
        return ""
    ranks = f"{model.ranks} rank{'s' if model.ranks > 1 else ''}"
    return (
        f"Simulated on {model.step} of {ranks}. Unchanged, the simulation is "
        f"{100 * model.error_share:.2f} % off; {100 * model.unexplained_share:.1f} % of the step "
        "are delays that no launch or dependency explains."
    )


def whatif_section(result: Result) -> dict[str, Any]:
    """The step after each change of the plan; empty without estimates."""
    step = run_view.step_ms(result)
    priced = [one for one in result.plan if one.combined.expected_ms is not None]
    nothing: dict[str, Any] = {"waterfall": []}
    if not step or not priced:
        return nothing
    last = priced[-1].combined
    top = max([step, *(step - (one.combined.low_ms or 0.0) for one in priced)])
    rows = charts.waterfall(step, top, [(one.title, one.combined) for one in result.plan])
    after = step - (last.expected_ms or 0.0)
    lead = f"With the whole plan the step is expected to go from {ms(step)} to {ms(after)} ms"
    if last.low_ms is not None and last.high_ms is not None:
        lead += f" (range {span(step - last.high_ms, step - last.low_ms)} ms)"
    lead += "." + (f" {last.basis[0].upper()}{last.basis[1:].rstrip('.')}." if last.basis else "")
    return {
        "waterfall": rows,
        "waterfall_lead": lead,
        "replay_note": _replay_note(result),
        "waterfall_now": svg.image(
            28, f"Now: {ms(step)} ms", svg.rect(0, 4, step / top, 20, "compute"), kind="chart bar"
        ),
        "whatifs": [
            {
                "name": one.name,
                "title": one.title,
                "cells": [
                    {"text": "" if value is None else ms(value), "v": sort(value)}
                    for value in (
                        one.estimate.expected_ms,
                        one.estimate.low_ms,
                        one.estimate.high_ms,
                    )
                ],
                "reason": (one.estimate.reason or "")
                if one.estimate.status == "not_measured"
                else "",
                "assumes": ""
                if one.estimate.status == "not_measured"
                else " ".join(f"{text.rstrip('.')}." for text in one.assumptions)
                or one.estimate.basis
                or "",
            }
            for one in result.whatif
        ],
    }
