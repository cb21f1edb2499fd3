"""How it was measured: capture, inputs, configuration, rules and every metric."""

from typing import Any

from moe_advisor.output.formatting import count, cut, figure, middle_cut, plural, quantity
from moe_advisor.result import Result

LONG_LIST = 60
"""Rows of a list before the rest is summed up."""


def method_section(result: Result) -> dict[str, Any]:
    """Everything about how the figures came to be."""
    steps = result.steps
    sources = {
        "annotation": f"annotations on the host (“{steps.pattern}”)"
        if steps.pattern
        else "annotations on the host",
        "optimizer": "the optimizer’s kernels",
        "repetition": "the repetition of the kernels",
        "whole-trace": "nothing: the whole trace is one window",
    }
    lead = f"{plural(steps.count, 'step')}, found from {sources[steps.source]}"
    if steps.names:
        first, last = steps.names[0], steps.names[-1]
        lead += f", {first} to {last}" if first != last else f", {first}"
    lead += f"; {len(steps.dropped)} dropped." if steps.dropped else "; none dropped."
    lead += (
        " Gains are ms of the traced step; host time is stretched by a profiler, "
        "wire and GEMM time is not."
    )
    if result.redaction:
        lead += f" Redaction, {result.redaction}."
    outcomes = [rule.outcome for rule in result.rules]
    order = {"finding": 0, "error": 1, "not_measured": 2, "pass": 3, "not_applicable": 4}
    words = {
        "finding": "found something",
        "pass": "passed",
        "not_measured": "could not be measured",
        "not_applicable": "do not apply",
        "error": "failed to run",
    }
    summary = ", ".join(
        f"{count(outcomes.count(name))} {text}" for name, text in words.items() if name in outcomes
    )
    dropped: list[dict[str, Any]] = [
        {"rank": one.rank, "step": one.step, "reason": one.reason}
        for one in steps.dropped[:LONG_LIST]
    ]
    if len(steps.dropped) > LONG_LIST:
        dropped.append(
            {
                "rank": "",
                "step": f"{len(steps.dropped) - LONG_LIST} more",
                "reason": "see result.json",
            }
        )
    return {
        "method_lead": lead,
        "issues": result.capture.issues[:LONG_LIST],
        "dropped": dropped,
        "inputs": _inputs(result),
        "input_count": count(len(result.inputs)),
        "dropped_count": count(len(steps.dropped)),
        "config": [
            {"key": key, "value": cut(_shown(entry.value), 200), "source": entry.source}
            for key, entry in sorted(result.run.config.items())
        ],
        "references": [
            {
                "name": f"{one.model}, {one.gpu}, {one.precision}, release {one.release}",
                "tflops": one.tflops_per_gpu,
                "tokens": count(round(one.tokens_per_s_per_gpu)),
                "differs": "; ".join(
                    f"{key} {there} there, {here} here"
                    for key, (there, here) in sorted(one.differences.items())
                )
                or "nothing that is known",
                "source": one.source,
            }
            for one in result.references
        ],
        "reference_remark": result.references[0].remark if result.references else "",
        "plan_violations": result.plan_violations,
        "rules": sorted(result.rules, key=lambda rule: (order[rule.outcome], rule.id)),
        "rule_summary": f"{plural(len(result.rules), 'rule')}: {summary}."
        if summary
        else "No rule ran.",
        "metrics": _metrics(result),
    }


def _inputs(result: Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "name": middle_cut(one.name, 80),
            "format": one.format,
            "producer": one.producer,
            "ranks": _rank_list(one.ranks),
        }
        for one in result.inputs[:LONG_LIST]
    ]
    left = len(result.inputs) - len(rows)
    if left:
        rows.append(
            {"name": f"{left} more", "format": "", "producer": "see result.json", "ranks": ""}
        )
    return rows


def _rank_list(ranks: list[int]) -> str:
    if len(ranks) > 8 and ranks == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]} to {ranks[-1]}"
    return ", ".join(map(str, ranks[:16])) + (
        f" and {len(ranks) - 16} more" if len(ranks) > 16 else ""
    )


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
