"""Findings to one ordered plan: the current wall first, causes before symptoms, no double gain."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from moe_advisor.advise import checks
from moe_advisor.advise.changes import apply
from moe_advisor.advise.expressions import Context
from moe_advisor.advise.facts import Facts
from moe_advisor.advise.rule import ChangeSpec, Rule
from moe_advisor.result import Estimate, PlanStep, Recommendation

_PHASES = {"fit": 0, "scale": 1, "profile": 2, "measure": 3}
_SEVERITIES = {"high": 0, "medium": 1, "low": 2}

POOLS: Mapping[str, tuple[str, ...]] = {
    "ep-overlap": ("ep_a2a_exposed_ms",),
    "dispatcher": ("ep_a2a_exposed_ms", "permute_ms"),
    "link": ("ep_a2a_exposed_ms",),
    "balanced-experts": ("ep_a2a_exposed_ms",),
    "stragglers": ("ep_a2a_exposed_ms",),
    "cuda-graphs": ("host_gap_ms",),
    "host-syncs": ("host_gap_ms",),
    "grouped-gemm": ("host_gap_ms", "expert_gemm_ms"),
    "permute-fusion": ("permute_ms",),
    "recompute": ("recompute_ms",),
}
"""The measured time each what-if draws on: two that share a pool can't gain more than it holds."""

LIMITERS: Mapping[str, tuple[str, ...]] = {
    "ep_a2a": ("ep-overlap", "dispatcher", "link"),
    "imbalance": ("balanced-experts",),
    "host": ("cuda-graphs", "host-syncs", "grouped-gemm"),
    "compute": ("permute-fusion", "grouped-gemm", "dispatcher"),
    "recompute": ("recompute",),
}
"""What-if changes that act on each part of a wall."""

LIMITER_TOPICS: Mapping[str, tuple[str, ...]] = {
    "host": ("host", "cuda-graphs"),
    "imbalance": ("balance",),
    "dp_collective": ("data-parallel",),
    "tp_collective": ("data-parallel",),
    "cp_collective": ("data-parallel",),
    "pp": ("pipeline",),
    "compute": ("permutation", "precision"),
    "allocator": ("memory",),
    "capacity": ("memory",),
}
"""Topics of rules that act on each part of a wall, for rules without a what-if."""

UNDONE_STEP = 0.015
"""A change takes back what those before it gain where it makes the step that they leave longer by
more than steps of one job differ from run to run."""

UNDONE_GAIN = 0.5
"""Or where it takes back half of a gain that is small beside the step."""

Combine = Callable[[tuple[str, ...]], Estimate | None]


@dataclass(frozen=True, slots=True)
class Planned:
    """A finding's rule, its recommendation and the settings that it wants, completed."""

    rule: Rule
    found: Recommendation
    specs: tuple[ChangeSpec, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Ranked recommendations, the steps made of them, and the configuration they lead to."""

    recommendations: list[Recommendation]
    steps: list[PlanStep]
    config: dict[str, Any]
    specs: dict[str, tuple[ChangeSpec, ...]]
    """Rule id of each recommendation -> the settings it wants."""
    violations: list[checks.Violation]
    """Validations that the resulting configuration breaks; known ones only."""


def order(
    planned: Sequence[Planned],
    facts: Facts,
    context: Context,
    combine: Combine | None = None,
) -> Plan:
    """Recommendations in the order to try them, ranked from 1, and the plan's steps.

    A symptom follows its cause and is withheld until the cause is dealt with. Of options that
    exclude each other the first is in the plan and the others name it. A change that would break
    a validation together with the changes before it is withheld.
    """
    by_key = sorted(planned, key=lambda item: _sort_key(item, facts))
    by_id = {item.rule.id: item for item in by_key}
    owners = _owners(by_key, by_id)
    choices = _choices(by_key, owners)
    found: dict[str, Recommendation] = {}
    config: dict[str, Any] = dict(context["c"])
    setters: dict[str, str] = {}
    priced: list[Recommendation] = []
    combine = _remembering(combine)
    for item in _after_needs(by_key, by_id):
        name = item.rule.id
        recommendation = item.found
        owner = owners.get(name)
        if owner:
            reason = f"a symptom of {by_id[owner].rule.title!r}: change that first, measure again"
            recommendation = msgspec.structs.replace(recommendation, withheld=reason)
        if not recommendation.withheld and name not in choices:
            rival = _rival(item, config, setters)
            if rival:
                choices[name] = rival
            else:
                clash = _clash(item, config, context) or _undone(
                    recommendation, priced, combine, context.get("m", {}).get("step_ms")
                )
                if clash:
                    recommendation = msgspec.structs.replace(recommendation, withheld=clash)
                else:
                    config = apply(config, item.specs)
                    setters |= {spec.key: name for spec in _settings(item)}
                    if recommendation.wall != "capture":
                        priced.append(recommendation)
        found[name] = msgspec.structs.replace(recommendation, alternative_to=choices.get(name))
    # What should not be done yet comes after what should, in the same order otherwise.
    sequence = sorted(found.values(), key=lambda item: item.withheld is not None)
    ranked = [
        msgspec.structs.replace(item, rank=rank) for rank, item in enumerate(sequence, start=1)
    ]
    return Plan(
        recommendations=ranked,
        steps=_steps(ranked, owners, choices, context, combine),
        config=config,
        specs={item.rule.id: item.specs for item in planned},
        violations=list(checks.violations({**context, "c": config})),
    )


def _settings(item: Planned) -> list[ChangeSpec]:
    return [spec for spec in item.specs if spec.framework not in ("pytorch", "job")]


def _rival(item: Planned, config: Mapping[str, Any], setters: Mapping[str, str]) -> str | None:
    """The recommendation before this one that gives one of its settings another value."""
    for spec in _settings(item):
        if spec.key in setters and config.get(spec.key) != spec.to:
            return setters[spec.key]
    return None


def _clash(item: Planned, config: Mapping[str, Any], context: Context) -> str | None:
    """Why this change does not go with those before it in the plan, or None."""
    among = checks.touching(item.specs)
    after = {**context, "c": apply(config, item.specs)}
    broken = checks.blocking(checks.violations(after, among=among))
    if not broken:
        return None
    check = broken[0].check
    word = "needs" if check.kind == "requires" else "not with"
    return f"together with the changes before it: {word} {check.text}: {check.consequence}"


def _remembering(combine: Combine | None) -> Combine | None:
    """The same, simulating no set of changes twice."""
    if combine is None:
        return None
    known: dict[tuple[str, ...], Estimate | None] = {}

    def remembered(names: tuple[str, ...]) -> Estimate | None:
        if names not in known:
            known[names] = combine(names)
        return known[names]

    return remembered


def _undone(
    found: Recommendation,
    before: Sequence[Recommendation],
    combine: Combine | None,
    step_ms: float | None,
) -> str | None:
    """Why this change takes back what those before it gain, or None."""
    names = {one.whatif for one in before if one.whatif and _has_gain(one.estimate)}
    if combine is None or not names or not found.whatif or found.whatif in names:
        return None
    if not _has_gain(found.estimate):
        return None
    alone = names.pop() if len(names) == 1 else None
    without = (
        next(one.estimate for one in before if one.whatif == alone)
        if alone
        else combine(tuple(sorted(names)))
    )
    together = combine(tuple(sorted({found.whatif, *names, *([alone] if alone else [])})))
    if without is None or together is None:
        return None
    most, now = without.expected_ms, together.expected_ms
    if most is None or now is None:
        return None
    least = UNDONE_GAIN * most
    if step_ms is not None:
        least = min(least, UNDONE_STEP * max(step_ms - most, 0.0))
    if most - now <= max(least, 0.0):
        return None
    return (
        f"the changes before it gain {most:.1f} ms without this one and {now:.1f} ms with it: "
        "try it once they are in place"
    )


def _has_gain(estimate: Estimate) -> bool:
    return estimate.status != "not_measured" and estimate.expected_ms is not None


def _sort_key(item: Planned, facts: Facts) -> tuple[int, ...]:
    """Current wall, what limits it, phase of the workflow; in a phase gains before checks."""
    wall = facts.walls.verdict if facts.walls else None
    limiter = facts.walls.limiter if facts.walls else None
    kind, gain = _worth(item)
    current = 0 if item.rule.wall == wall else 1
    if item.rule.wall == "capture":
        current = 2
    return (
        current,
        0 if _acts_on(item.rule, limiter or "") else 1,
        _PHASES[item.rule.phase],
        kind,
        -round(gain * 1000),
        _SEVERITIES[item.rule.severity],
    )


def _worth(item: Planned) -> tuple[int, float]:
    """0 for an expected gain, 1 for one that may be a loss or is known by its bound or from others.

    2 for none. The ms go with it, as far as there are any.
    """
    estimate = item.found.estimate
    if estimate.expected_ms is not None:
        may_lose = estimate.low_ms is not None and estimate.low_ms < 0
        return (1 if may_lose else 0), estimate.expected_ms
    if estimate.high_ms is not None:
        return 1, estimate.high_ms
    published = any((found.change_share or 0.0) < 0 for found in item.found.evidence)
    return (1 if published else 2), 0.0


def _acts_on(rule: Rule, limiter: str) -> bool:
    return rule.estimate.whatif in LIMITERS.get(limiter, ()) or (
        rule.topic in LIMITER_TOPICS.get(limiter, ())
    )


def _owners(items: Sequence[Planned], by_id: Mapping[str, Planned]) -> dict[str, str]:
    """Symptom -> the finding that causes it; chains end at the root."""
    direct = {
        item.rule.id: cause
        for item in items
        for cause in item.rule.symptom_of[::-1]
        if cause in by_id and cause != item.rule.id
    }
    roots = {}
    for symptom in direct:
        seen, cause = {symptom}, direct[symptom]
        while cause in direct and cause not in seen:
            seen.add(cause)
            cause = direct[cause]
        if cause != symptom:
            roots[symptom] = cause
    return roots


def _choices(items: Sequence[Planned], owners: Mapping[str, str]) -> dict[str, str]:
    """Alternative -> the option that stands in the plan in its place."""
    chosen: dict[str, str] = {}
    open_items = [item for item in items if not item.found.withheld and item.rule.id not in owners]
    for position, item in enumerate(open_items):
        for earlier in open_items[:position]:
            exclusive = (
                earlier.rule.id in item.rule.excludes or item.rule.id in earlier.rule.excludes
            )
            if exclusive and earlier.rule.id not in chosen:
                chosen[item.rule.id] = earlier.rule.id
                break
    return chosen


def _after_needs(items: Sequence[Planned], by_id: Mapping[str, Planned]) -> list[Planned]:
    """The items with each after those it names in `after`; the order holds otherwise."""
    done: dict[str, Planned] = {}

    def visit(item: Planned, path: tuple[str, ...]) -> None:
        if item.rule.id in done or item.rule.id in path:
            return
        for need in item.rule.after:
            if need in by_id:
                visit(by_id[need], (*path, item.rule.id))
        done[item.rule.id] = item

    for item in items:
        visit(item, ())
    return list(done.values())


def _steps(
    ranked: Sequence[Recommendation],
    owners: Mapping[str, str],
    choices: Mapping[str, str],
    context: Context,
    combine: Combine | None,
) -> list[PlanStep]:
    steps: list[PlanStep] = []
    taken: list[Recommendation] = []
    for found in ranked:
        if found.withheld or found.rule in choices or found.wall == "capture":
            continue  # a better capture is advice, but no change of the run
        taken.append(found)
        symptoms = [symptom for symptom, owner in owners.items() if owner == found.rule]
        options = [other for other, chosen in choices.items() if chosen == found.rule]
        title = found.title + (f" (or: {', '.join(options)})" if options else "")
        steps.append(
            PlanStep(
                rules=[found.rule, *symptoms],
                title=title,
                combined=_combined(taken, context, combine),
            )
        )
    return steps


def _combined(
    taken: Sequence[Recommendation], context: Context, combine: Combine | None
) -> Estimate:
    """Gain of all changes so far together: never more than the time they draw on."""
    priced = {
        found.whatif: found.estimate
        for found in taken
        if found.whatif and found.estimate.status != "not_measured"
    }
    if not priced:
        reason = next((found.estimate.reason for found in taken if found.estimate.reason), None)
        return Estimate(
            status="not_measured", reason=reason or "no change of this step has an estimate"
        )
    if combine is not None and len(priced) > 1:
        together = combine(tuple(sorted(priced)))
        if together is not None:
            return together
    unpriced = sum(1 for found in taken if found.estimate.status == "not_measured")
    metrics = context["m"]
    step_ms = metrics.get("step_ms")
    return Estimate(
        status="estimated",
        low_ms=max((item.low_ms or 0.0 for item in priced.values()), default=0.0),
        expected_ms=_together(priced, metrics, step_ms, "expected_ms"),
        high_ms=_together(priced, metrics, step_ms, "high_ms"),
        basis="gains that draw on the same time are not added: each takes its share of what the "
        "ones before leave, and the low bound is the best single low bound"
        + (f"; {unpriced} of the changes have no estimate" if unpriced else ""),
    )


def _together(
    priced: Mapping[str, Estimate], metrics: Mapping[str, Any], step_ms: float | None, part: str
) -> float:
    """Gains in one pool shrink each other; pools together shrink the step the same way."""
    pools: dict[tuple[str, ...], list[float]] = {}
    for name, estimate in sorted(priced.items()):
        gain = max(0.0, getattr(estimate, part) or 0.0)
        pools.setdefault(POOLS.get(name, (name,))[:1], []).append(gain)
    per_pool = []
    for names, gains in pools.items():
        size = metrics.get(names[0])
        # A change can gain more than its first pool holds (a dispatcher also saves permutation).
        size = max([*gains, size]) if size is not None else sum(gains)
        per_pool.append(_shrinking(gains, size))
    if step_ms is None or step_ms <= 0:
        return sum(per_pool)
    return _shrinking(per_pool, step_ms)


def _shrinking(gains: Iterable[float], size: float) -> float:
    """What several gains of one time amount to: size × (1 - product of (1 - gain / size))."""
    left = 1.0
    for gain in gains:
        left *= 1.0 - min(1.0, gain / size) if size > 0 else 1.0
    return size * (1.0 - left)
