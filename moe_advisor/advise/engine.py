"""Rules on facts: an outcome for every rule, and a recommendation for every finding."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from moe_advisor import paste
from moe_advisor.advise import changes as spelling
from moe_advisor.advise import checks
from moe_advisor.advise.expressions import Answer, Context, Evaluator, Truth, evaluate
from moe_advisor.advise.facts import Facts, effective, questions
from moe_advisor.advise.plan import Plan, Planned, order
from moe_advisor.advise.rule import (
    ChangeSpec,
    ConflictSpec,
    EvidenceSpec,
    RequireSpec,
    Rule,
    blocks,
)
from moe_advisor.result import (
    Change,
    Condition,
    Estimate,
    Evidence,
    PlanChange,
    PlanStep,
    Recommendation,
    RuleOutcome,
)

RESOLVE_ROUNDS = 3
"""A completion may need a completion; no shipped rule needs more than two."""

_STOPPING = ("raises", "hangs")
"""Consequences of a broken validation that keep a run from starting."""

MAX_QUESTIONS = 4
"""Absent facts named in one reason; a reader answers the first ones anyway."""

_PLACE = re.compile(r"\{([a-z]+)\.([A-Za-z_0-9]+)(?::([^{}]*))?\}")

Combine = Callable[[tuple[str, ...]], Estimate | None]


@dataclass(frozen=True)
class Advice:
    """Outcome of every rule, the recommendations best first, and the plan made of them."""

    outcomes: list[RuleOutcome]
    recommendations: list[Recommendation]
    plan: list[PlanStep]
    violations: list[str] = field(default_factory=list)
    """Validations that the configuration would break once the whole plan is applied."""
    change: PlanChange | None = None
    """All settings of the plan as one change to paste, with its check."""


@dataclass(frozen=True, slots=True)
class _State:
    """A condition with what is known of it."""

    condition: Condition
    needs: bool
    broken: bool
    resolve: tuple[ChangeSpec, ...]


def advise(
    facts: Facts,
    rules: Sequence[Rule],
    estimates: Mapping[str, Estimate],
    combine: Combine | None = None,
) -> Advice:
    """Evaluate every rule and merge the findings into one plan.

    `estimates` prices what-if changes by name; `combine`, if given, prices several at once. Rules
    of the user are evaluated in a child process.
    """
    context = effective(facts)
    outcomes: list[RuleOutcome] = []
    planned: list[Planned] = []
    with ExitStack() as stack:
        foreign: Evaluator | None = None
        for rule in rules:
            evaluator: Evaluator = evaluate
            if rule.foreign:
                if foreign is None:
                    from moe_advisor.advise.sandbox import Sandbox

                    foreign = stack.enter_context(Sandbox())
                evaluator = foreign
            outcome = judge(rule, facts, context, evaluator)
            outcomes.append(outcome)
            if outcome.outcome == "finding":
                found, specs = recommend(rule, outcome.reason, facts, context, estimates, evaluator)
                planned.append(Planned(rule, found, specs))
    plan = order(planned, facts, context, combine)
    broken = [f"{item.check.text}: {item.check.consequence}" for item in plan.violations]
    change = whole_plan(plan, facts, context)
    return Advice(outcomes, plan.recommendations, plan.steps, broken, change)


def whole_plan(plan: Plan, facts: Facts, context: Context) -> PlanChange | None:
    """The settings of all steps as one change, and what the validations say of the result.

    None where no step changes a setting of a framework or a variable.
    """
    steps = {step.rules[0] for step in plan.steps}
    made = {
        (change.framework, change.key): change
        for found in plan.recommendations
        if found.rule in steps
        for change in found.changes
        if change.framework not in ("pytorch", "job")
    }
    if not made:
        return None
    specs = [spec for name, own in plan.specs.items() if name in steps for spec in own]
    states = [
        (check, evaluate(check.violated, {**context, "c": plan.config}))
        for check in checks.touching(specs, checks.spoken(context["c"].get("framework")))
    ]
    changes = list(made.values())
    words = {"requires": "needs", "conflicts": "not with"}
    broken = [
        f"{words[check.kind]} {_prose(check.text)}: {_prose(check.consequence)}"
        for check, answer in states
        if answer.truth is Truth.YES
    ]
    # What no step touches, but would stop the run all the same.
    concerned = {check.id for check, _ in states}
    standing = [
        f"{words[item.check.kind]} {_prose(item.check.text)}: {_prose(item.check.consequence)} "
        "(already so in the configuration as given)"
        for item in plan.violations
        if item.check.id not in concerned and item.check.consequence.startswith(_STOPPING)
    ]
    unknown = [
        f"{words[check.kind]} {_prose(check.text)}: {questions(answer.missing, facts)}"
        for check, answer in states
        if answer.truth in (Truth.UNKNOWN, Truth.ERROR)
    ]
    return PlanChange(
        megatron_bridge=paste.bridge_python(changes),
        bridge_overrides=paste.bridge_overrides(changes),
        megatron_lm=paste.megatron_lm_flags(changes),
        environment=paste.environment_lines(changes),
        remarks=paste.remarks(changes),
        checked=len(states) + len(standing),
        passed=len(states) - len(broken) - len(unknown),
        unknown=unknown,
        broken=broken + standing,
    )


def judge(
    rule: Rule, facts: Facts, context: Context, evaluator: Evaluator = evaluate
) -> RuleOutcome:
    """Outcome of one rule with its reason."""
    scope = _with_thresholds(rule, context)
    if rule.applies is not None:
        answer = evaluator(rule.applies, scope)
        if answer.truth is Truth.NO:
            return _outcome(rule, "not_applicable", fill(rule.not_applicable, scope))
        if answer.truth is not Truth.YES:
            return _undecided(rule, answer, facts)
    answer = evaluator(rule.when, scope)
    if answer.truth is Truth.YES:
        return _outcome(rule, "finding", fill(rule.finding, scope))
    if answer.truth is Truth.NO:
        return _outcome(rule, "pass", fill(rule.passes, scope))
    return _undecided(rule, answer, facts)


def recommend(
    rule: Rule,
    finding: str,
    facts: Facts,
    context: Context,
    estimates: Mapping[str, Estimate],
    evaluator: Evaluator = evaluate,
) -> tuple[Recommendation, tuple[ChangeSpec, ...]]:
    """The recommendation of a finding with the settings it wants.

    Changes are completed by what they need; what can't be completed is withheld with the reason.
    """
    scope = _with_thresholds(rule, context)
    before = scope["c"]
    specs = _active(rule.changes, scope, evaluator)
    states: list[_State] = []
    added: list[ChangeSpec] = []
    for _ in range(RESOLVE_ROUNDS):
        after = {**scope, "c": spelling.apply(before, [*specs, *added])}
        states = _conditions(rule, [*specs, *added], after, facts, evaluator)
        missing = [
            msgspec.structs.replace(change, note=change.note or f"needed: {state.condition.text}")
            for state in states
            if state.condition.state == "unmet"
            for change in state.resolve
            if change.key not in {item.key for item in [*specs, *added]}
        ]
        if not missing:
            break
        added += list({change.key: change for change in missing}.values())
    wanted = [*specs, *added]
    final = spelling.apply(before, wanted)
    made: list[Change] = []
    obstacles: list[str] = []
    for spec in wanted:
        if _in_place(spec, before):
            continue
        spelt, problem = spelling.spell(spec, final, before, _version(facts))
        made += spelt
        if problem:
            obstacles.append(problem)
    estimate = _estimate(rule, estimates, facts)
    withheld = _withheld(rule, states, obstacles, specs, before, estimate, scope, evaluator)
    recommendation = Recommendation(
        rule=rule.id,
        whatif=rule.estimate.whatif,
        rank=0,
        title=rule.title,
        wall=rule.wall,
        severity=rule.severity,
        confidence=rule.confidence,
        finding=finding,
        why=_prose(rule.why),
        changes=made,
        requires=[state.condition for state in states if state.needs],
        conflicts=[state.condition for state in states if not state.needs],
        estimate=estimate,
        evidence=[_evidence(item) for item in rule.evidence],
        counter_evidence=[_evidence(item) for item in rule.counter_evidence],
        verify=fill(rule.verify, scope),
        known_problems=[_prose(item) for item in rule.known_problems],
        references=list(rule.references),
        withheld=withheld,
    )
    return recommendation, tuple(wanted)


def fill(template: str, context: Context) -> str:
    """The text with its places (`{m.step_ms:.1f}`) filled; an absent one reads "unknown"."""

    def value(match: re.Match[str]) -> str:
        root, leaf, form = match.groups()
        table = context.get(root, {})
        if leaf not in table:
            return "unknown"
        found = table[leaf]
        if found is None:
            return "none"
        if form and isinstance(found, int | float) and not isinstance(found, bool):
            try:
                return format(float(found), form).replace("%", " %")
            except ValueError:
                return str(found)
        if isinstance(found, float) and found.is_integer():
            return str(int(found))
        return str(found)

    return _prose(_PLACE.sub(value, template))


def _prose(text: str) -> str:
    return " ".join(text.split())


def _with_thresholds(rule: Rule, context: Context) -> dict[str, Mapping[str, Any]]:
    return {**context, "k": {name: item.value for name, item in rule.thresholds.items()}}


def _outcome(rule: Rule, outcome: Any, reason: str) -> RuleOutcome:
    return RuleOutcome(
        id=rule.id,
        title=rule.title,
        topic=rule.topic,
        wall=rule.wall,
        severity=rule.severity,
        outcome=outcome,
        reason=reason,
    )


def _undecided(rule: Rule, answer: Answer, facts: Facts) -> RuleOutcome:
    if answer.truth is Truth.ERROR:
        return _outcome(rule, "error", answer.error)
    known_names = ", ".join(answer.missing[:MAX_QUESTIONS])
    text = (
        rule.ask
        or questions(answer.missing[:MAX_QUESTIONS], facts)
        or "a fact it needs is not known"
    )
    return _outcome(rule, "not_measured", _prose(f"Depends on {known_names}: {text}"))


def _active(specs: Sequence[ChangeSpec], scope: Context, evaluator: Evaluator) -> list[ChangeSpec]:
    """Changes whose own condition holds; one that can't be decided stays, with the condition.

    Of several such changes to one setting the first stays: a setting has one value.
    """
    active: dict[tuple[str | None, str], ChangeSpec] = {}
    for spec in specs:
        truth = Truth.YES if spec.when is None else evaluator(spec.when, scope).truth
        if isinstance(spec.to, str):
            if any(leaf not in scope.get(root, {}) for root, leaf, _ in _PLACE.findall(spec.to)):
                continue  # a value to paste that depends on an unknown one is no value
            spec = msgspec.structs.replace(spec, to=fill(spec.to, scope))
        elif spec.drop is not None:
            spec = msgspec.structs.replace(spec, to=_edited(spec, scope["c"]), drop=None)
        place = (spec.framework, spec.key)
        if truth is Truth.YES:
            active[place] = spec
        elif truth is Truth.UNKNOWN and place not in active:
            note = f"{spec.note}; " if spec.note else ""
            active[place] = msgspec.structs.replace(spec, note=f"{note}only where {spec.when}")
    return list(active.values())


def _edited(spec: ChangeSpec, config: Mapping[str, Any]) -> list[Any]:
    """The list after the change: present items stay, those to drop go, new ones are added."""
    present = config.get(spec.key)
    kept = [item for item in present or () if item not in (spec.drop or ())]
    return kept + [item for item in spec.to if item not in kept]


def _conditions(
    rule: Rule, specs: Sequence[ChangeSpec], after: Context, facts: Facts, evaluator: Evaluator
) -> list[_State]:
    states = [_require(item, after, facts, evaluator) for item in rule.requires]
    states += [_conflict(item, after, facts, evaluator) for item in rule.conflicts]
    framework = checks.spoken(after["c"].get("framework"))
    for check in checks.touching(specs, framework):
        spec = ConflictSpec(
            text=check.text,
            violated=check.violated,
            consequence=check.consequence,
            source=check.source,
            resolve=check.resolve,
        )
        # The catalogue ships with the program, so it is evaluated here even for a user's rule.
        states.append(_conflict(spec, after, facts, evaluate, needs=check.kind == "requires"))
    return states


def _require(spec: RequireSpec, after: Context, facts: Facts, evaluator: Evaluator) -> _State:
    answer = evaluator(spec.met, after)
    flipped = {Truth.YES: Truth.NO, Truth.NO: Truth.YES}.get(answer.truth, answer.truth)
    return _state(spec, Answer(flipped, answer.missing, answer.error), facts, needs=True)


def _conflict(
    spec: ConflictSpec, after: Context, facts: Facts, evaluator: Evaluator, *, needs: bool = False
) -> _State:
    return _state(spec, evaluator(spec.violated, after), facts, needs=needs)


def _state(
    spec: RequireSpec | ConflictSpec, violated: Answer, facts: Facts, *, needs: bool
) -> _State:
    asked = None
    if violated.truth is Truth.UNKNOWN:
        asked = questions(violated.missing, facts)
    elif violated.truth is Truth.ERROR:
        asked = f"could not be evaluated: {violated.error}"
    text = _prose(spec.text)
    condition = Condition(
        text=f"{'Needs' if needs else 'Not with'} {text}",
        state={Truth.YES: "unmet", Truth.NO: "met"}.get(violated.truth, "unknown"),  # type: ignore[arg-type]
        consequence=_prose(spec.consequence),
        source=spec.source,
        question=asked,
    )
    broken = violated.truth is Truth.YES and blocks(spec.consequence)
    return _State(condition, needs, broken, tuple(spec.resolve))


def _in_place(spec: ChangeSpec, before: Mapping[str, Any]) -> bool:
    if spec.framework in ("pytorch", "job") or spec.key not in before:
        return False
    now = before[spec.key]
    if isinstance(spec.to, list) and isinstance(now, list):
        return sorted(map(str, spec.to)) == sorted(map(str, now))
    return bool(now == spec.to) or str(now) == str(spec.to)


def _version(facts: Facts) -> object:
    given = facts.c.get("megatron_core_version")
    return given.value if given else None


def _estimate(rule: Rule, estimates: Mapping[str, Estimate], facts: Facts) -> Estimate:
    name = rule.estimate.whatif
    if name is None:
        reason = _prose(rule.estimate.reason or "")
        most = facts.m.get(rule.estimate.bound or "")
        if most is None:
            return Estimate(status="not_measured", reason=reason)
        most_ms = round(most * rule.estimate.share, 6)
        return Estimate(status="estimated", low_ms=0.0, high_ms=most_ms, basis=reason)
    found = estimates.get(name)
    if found is None:
        return Estimate(status="not_measured", reason=f"the what-if {name!r} gave no estimate")
    return found


def _withheld(
    rule: Rule,
    states: Sequence[_State],
    obstacles: Sequence[str],
    specs: Sequence[ChangeSpec],
    before: Mapping[str, Any],
    estimate: Estimate,
    scope: Context,
    evaluator: Evaluator,
) -> str | None:
    """Why the change should not be made yet, or None."""
    reasons = list(obstacles)
    reasons += [
        f"{state.condition.text}: {state.condition.consequence}" for state in states if state.broken
    ]
    reasons += [
        fill(item.reason, scope)
        for item in rule.withhold
        if evaluator(item.when, scope).truth is Truth.YES
    ]
    settings = [spec for spec in specs if spec.framework not in ("pytorch", "job")]
    steps = any(spec.framework == "job" for spec in specs)
    if settings and not steps and all(_in_place(spec, before) for spec in settings):
        reasons.append(
            "the configuration already has these settings, yet the trace shows the finding: look "
            "in the log for a warning that they were ignored"
        )
    expected = estimate.expected_ms
    if estimate.status != "not_measured" and expected is not None and expected <= 0:
        slower = f" ({-expected:.1f} ms slower per step)" if expected <= -0.05 else ""
        reasons.append(f"the estimate is no gain{slower}")
    return "; ".join(dict.fromkeys(reasons)) or None


def _evidence(spec: EvidenceSpec) -> Evidence:
    return Evidence(text=_prose(spec.text), source=spec.source, change_share=spec.change_share)
