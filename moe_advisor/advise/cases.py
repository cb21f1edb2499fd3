"""The cases that a rule file carries: facts in, outcome out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moe_advisor.advise import hardware
from moe_advisor.advise.engine import judge, recommend
from moe_advisor.advise.expressions import Evaluator, evaluate
from moe_advisor.advise.facts import Facts, effective
from moe_advisor.advise.rule import Case, Rule
from moe_advisor.result import ConfigValue, Outcome


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What a case gave; `problem` says how that differs from what it expects."""

    rule: str
    case: str
    expected: Outcome
    outcome: Outcome
    reason: str
    problem: str | None


def facts_of(case: Case) -> Facts:
    """The facts a case describes; `gpu` stands for the figures of that GPU."""
    return Facts(
        m=dict(case.m),
        c={key: ConfigValue(value=value, source="config") for key, value in case.c.items()},
        hw=hardware.lookup(case.gpu) | case.hw,
        t=dict(case.t),
    )


def run_case(rule: Rule, case: Case, evaluator: Evaluator = evaluate) -> CaseResult:
    """Judge one case."""
    facts = facts_of(case)
    context = effective(facts)
    outcome = judge(rule, facts, context, evaluator)
    return CaseResult(
        rule=rule.id,
        case=case.name,
        expected=case.expect,
        outcome=outcome.outcome,
        reason=outcome.reason,
        problem=_problem(rule, case, facts, context, outcome.outcome, outcome.reason, evaluator),
    )


def run_cases(rules: Iterable[Rule]) -> list[CaseResult]:
    """All cases of all rules, in order; rules of the user run in a child process."""
    from moe_advisor.advise.sandbox import Sandbox

    with Sandbox() as sandbox:
        return [
            run_case(rule, case, sandbox if rule.foreign else evaluate)
            for rule in rules
            for case in rule.cases
        ]


def _problem(
    rule: Rule,
    case: Case,
    facts: Facts,
    context: Mapping[str, Mapping[str, Any]],
    outcome: Outcome,
    reason: str,
    evaluator: Evaluator,
) -> str | None:
    if outcome != case.expect:
        return f"expected {case.expect}, got {outcome}: {reason}"
    if case.asks and case.asks not in reason:
        return f"the reason does not ask for {case.asks!r}: {reason}"
    if outcome == "finding":
        found, _ = recommend(rule, reason, facts, context, {}, evaluator)
        if case.withheld is not None and (found.withheld is not None) != case.withheld:
            return f"expected withheld: {case.withheld}, got {found.withheld or 'not withheld'}"
        if not found.changes and not found.withheld:
            return "the recommendation changes nothing"
        if "unknown" in reason and "unknown" not in rule.finding:
            return f"the finding shows an unknown value: {reason}"
    return None
