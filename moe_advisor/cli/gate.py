"""Gates over a result: CEL expressions that must not be true."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_advisor.errors import ConfigError, GateFailed
from moe_advisor.result import Result

EXTRA_NAMES = ("findings", "capture")
"""What gates may use besides the names of rules."""


def check_gates(result: Result, expressions: Sequence[str]) -> None:
    """Raises GateFailed if an expression is true or can't be measured (fail closed).

    Raises ConfigError for an expression that is wrong, or names a metric that does not exist.
    """
    if not expressions:
        return
    from moe_advisor.advise.expressions import Truth, check_source, evaluate

    context, extra = gate_context(result)
    failures = []
    for expression in expressions:
        if wrong := check_source(expression, extra):
            raise ConfigError(f"--fail-on {expression!r}: {wrong}")
        _refuse_unknown_metrics(expression)
        answer = evaluate(expression, context, extra)
        if answer.truth is Truth.ERROR:
            raise ConfigError(f"--fail-on {expression!r}: {answer.error}")
        if answer.truth is Truth.YES:
            failures.append(f"--fail-on {expression!r} is true")
        elif answer.truth is Truth.UNKNOWN:
            reasons = [f"{name}: {_why(result, name)}" for name in answer.missing]
            failures.append(
                f"--fail-on {expression!r} could not be measured ({'; '.join(reasons)})"
            )
    if failures:
        raise GateFailed("; ".join(failures))


def gate_context(result: Result) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Any]]:
    """The names that gate expressions see, from a result alone."""
    walls = result.walls
    return (
        {
            "m": {n: v.value for n, v in result.metrics.items() if v.value is not None},
            "c": {n: v.value for n, v in result.run.config.items() if v.value is not None},
            "hw": dict(result.run.hardware),
            "t": dict(result.run.facts),
            "walls": {
                "verdict": walls.verdict,
                "limiter": walls.limiter or "",
                "next": walls.next or "",
                "margin": walls.margin,
                **{f"{name}_score": score for name, score in walls.scores.items()},
            },
        },
        {
            "findings": [one.id for one in result.rules if one.outcome == "finding"],
            "capture": {"complete": result.capture.complete},
        },
    )


def _refuse_unknown_metrics(expression: str) -> None:
    from difflib import get_close_matches

    from moe_advisor.advise.expressions import names
    from moe_advisor.measure.registry import METRICS

    for name in names(expression):
        root, _, leaf = name.partition(".")
        if root == "m" and leaf not in METRICS:
            near = get_close_matches(leaf, METRICS, 1)
            hint = f"; did you mean m.{near[0]}?" if near else ""
            raise ConfigError(f"--fail-on {expression!r}: there is no metric {leaf!r}{hint}")


def _why(result: Result, name: str) -> str:
    root, _, leaf = name.partition(".")
    metric = result.metrics.get(leaf) if root == "m" else None
    return (metric.reason or "not measured") if metric else "not known; give --config or --set"
