"""The plan in the order to show it: what to do, instead of what, and what has to wait."""

from dataclasses import dataclass

from moe_advisor.output.changes import Diff
from moe_advisor.output.changes import whole as whole_diffs
from moe_advisor.output.formatting import count, gain, has_gain, ms, plural, share, span
from moe_advisor.output.run_view import step_ms
from moe_advisor.output.step_view import mean_bar
from moe_advisor.result import Estimate, Recommendation, Result


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation with its place in the plan: `1`, or `A` where it replaces another."""

    mark: str
    found: Recommendation
    instead_of: str | None
    expected: str
    of_step: str
    range: str
    range_low_is_loss: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan in the order to try it, the alternatives, what has to wait, and the total."""

    main: tuple[Advice, ...]
    instead: tuple[Advice, ...]
    waiting: tuple[Advice, ...]
    combined: str
    combined_note: str

    def all(self) -> tuple[Advice, ...]:
        """Every recommendation in the order shown."""
        return self.main + self.instead + self.waiting


def plan(result: Result) -> Plan:
    """The recommendations in the order to show them."""
    step = step_ms(result)
    ordered = sorted(result.recommendations, key=lambda found: (found.rank, found.rule))
    waiting = [found for found in ordered if found.withheld]
    instead = [found for found in ordered if found.alternative_to and not found.withheld]
    main = [found for found in ordered if not found.alternative_to and not found.withheld]
    marks = {found.rule: str(i) for i, found in enumerate(main, start=1)}
    alternatives = [
        _advice(chr(ord("A") + i) if i < 26 else f"A{i}", found, step, marks)
        for i, found in enumerate(instead)
    ]
    combined, note = _combined(result, step)
    return Plan(
        main=tuple(_advice(marks[found.rule], found, step, marks) for found in main),
        instead=tuple(alternatives),
        waiting=tuple(_advice("–", found, step, marks) for found in waiting),
        combined=combined,
        combined_note=note,
    )


def _advice(mark: str, found: Recommendation, step: float | None, marks: dict[str, str]) -> Advice:
    estimate = found.estimate
    expected = of_step = reach = ""
    if has_gain(estimate):
        about = "≈ " if estimate.status == "estimated" else ""
        if estimate.expected_ms is not None:
            expected = f"{about}{ms(estimate.expected_ms)} ms"
            of_step = share(estimate.expected_ms / step) if step else ""
        if not expected and not estimate.low_ms and estimate.high_ms is not None:
            reach = f"at most {ms(estimate.high_ms)} ms"
        elif estimate.low_ms is not None and estimate.high_ms is not None:
            reach = f"{span(estimate.low_ms, estimate.high_ms)} ms"
    other = found.alternative_to
    return Advice(
        mark=mark,
        found=found,
        instead_of=marks.get(other, other) if other else None,
        expected=expected,
        of_step=of_step,
        range=reach,
        range_low_is_loss=(estimate.low_ms or 0.0) < 0,
    )


def _combined(result: Result, step: float | None) -> tuple[str, str]:
    if len(result.plan) < 2:
        return "", ""
    last = result.plan[-1].combined
    if not has_gain(last) or last.expected_ms is None:
        return "", ""
    of = f" ({share(last.expected_ms / step)})" if step else ""
    text = f"Steps 1 to {len(result.plan)} together: {ms(last.expected_ms)} ms{of}"
    if last.low_ms is not None and last.high_ms is not None:
        text += f", {span(last.low_ms, last.high_ms)}"
    if step:
        text += f" → step {ms(step - last.expected_ms)} ms"
    return text, last.basis or ""


@dataclass(frozen=True, slots=True)
class Whole:
    """The whole plan as one change: texts to paste, remarks, and what the validations say."""

    diffs: tuple[Diff, ...]
    remarks: tuple[str, ...]
    verdict: str
    good: bool
    broken: tuple[str, ...]
    unknown: tuple[str, ...]


def whole(result: Result) -> Whole | None:
    """The plan's settings together; None where no step changes a setting."""
    change = result.plan_change
    if change is None:
        return None
    parts = [f"{count(change.passed)} hold"]
    if change.unknown:
        parts.append(f"{count(len(change.unknown))} can't be told")
    parts.append(f"{count(len(change.broken))} broken" if change.broken else "none is broken")
    return Whole(
        diffs=tuple(whole_diffs(change)),
        remarks=tuple(change.remarks),
        verdict=f"Checked on the configuration after the plan: of "
        f"{plural(change.checked, 'known validation')} that concern these settings "
        f"{', '.join(parts)}.",
        good=not change.broken,
        broken=tuple(change.broken),
        unknown=tuple(change.unknown),
    )


def gain_domain(result: Result) -> tuple[float, float]:
    """The common scale of all range bars, in ms: whole ticks around every range and zero."""
    low, high = 0.0, 0.0
    for found in result.recommendations:
        for value in _bounds(found.estimate):
            low, high = min(low, value), max(high, value)
    return low, high or 1.0


def _bounds(estimate: Estimate) -> list[float]:
    if not has_gain(estimate):
        return []
    values = (estimate.low_ms, estimate.expected_ms, estimate.high_ms)
    return [value for value in values if value is not None]


def nothing_to_do(result: Result) -> str:
    """What to say where there is no recommendation."""
    passed = sum(rule.outcome == "pass" for rule in result.rules)
    unknown = sum(rule.outcome == "not_measured" for rule in result.rules)
    mean = mean_bar(result)
    if result.walls.verdict == "inconclusive":
        return (
            "No change can be named from this capture: see what could not be measured. "
            f"{plural(passed, 'rule')} passed, {count(unknown)} could not be measured."
        )
    words = ["Nothing to change was found."]
    if mean is not None and mean.segments:
        largest = max(mean.segments, key=lambda s: s.ms)
        words.append(
            f"The largest part of the step is {largest.label} with {largest.printed} of "
            f"{mean.total} ms."
        )
    words.append(f"{plural(passed, 'rule')} passed, {count(unknown)} could not be measured.")
    return " ".join(words)


def gain_text(advice: Advice, step: float | None) -> str:
    """What the first step of the plan is expected to bring."""
    return gain(advice.found.estimate, step)
