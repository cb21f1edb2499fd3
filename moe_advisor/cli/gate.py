"""Gates over a result: `--fail-on` expressions, which are budgets that must not be true."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_advisor.errors import GateFailed
from moe_advisor.result import Result

if TYPE_CHECKING:
    from moe_advisor.budgets.model import Budget

_OPTION = "--fail-on"


def parse_gates(expressions: Sequence[str]) -> None:
    """Raises ConfigError for an expression that is wrong or names what no run can have.

    Called before any work: a typing mistake must not cost an analysis.
    """
    if expressions:
        from moe_advisor.budgets import judge

        judge.validate(_budgets(expressions))


def check_gates(result: Result, expressions: Sequence[str]) -> None:
    """Raises GateFailed if an expression is true or can't be measured (fail closed).

    Raises ConfigError for an expression that can't be used on this result.
    """
    if not expressions:
        return
    from moe_advisor.advise.expressions import evaluate
    from moe_advisor.budgets import judge

    failures = []
    for one in judge.judge(_budgets(expressions), result, evaluate):
        if one.outcome == "pass":  # the expression is true
            numbers = f" ({one.detail})" if one.detail else ""
            failures.append(f"{one.budget.where} is true{numbers}")
        elif one.outcome == "not_measured":
            failures.append(f"{one.budget.where} could not be measured ({one.detail})")
    if failures:
        raise GateFailed("; ".join(failures))


def _budgets(expressions: Sequence[str]) -> "list[Budget]":
    from moe_advisor.budgets.model import Budget

    return [
        Budget(name=f"gate-{number}", expect=text, source=_OPTION)
        for number, text in enumerate(expressions, 1)
    ]
