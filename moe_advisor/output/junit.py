"""JUnit XML: one test case per rule.

Without a gate a finding is advice, not a failure: its text goes to `system-out`. With
`findings_fail` (the command line's `--fail-on`) a finding is a failure whose type is its severity.
`not_measured` and `not_applicable` are skipped with their reason, `error` is an error.
"""

from xml.sax.saxutils import escape, quoteattr

from moe_advisor.output import run_view
from moe_advisor.output.changes import diffs
from moe_advisor.output.formatting import figure, gain, has_gain, ms
from moe_advisor.output.tidy import tidy
from moe_advisor.result import Recommendation, Result, RuleOutcome

PROPERTIES = ("step_ms", "ep_a2a_exposed_ms", "ep_a2a_exposed_share", "host_gap_ms", "recompute_ms")


def render(result: Result, *, findings_fail: bool = False) -> str:
    """The outcomes of all rules as JUnit XML with a newline at its end."""
    shown = tidy(result)
    advice = {found.rule: found for found in shown.recommendations}
    rules = sorted(shown.rules, key=lambda rule: (rule.topic, rule.id))
    counts = {
        name: sum(rule.outcome == name for rule in rules)
        for name in ("finding", "error", "not_measured", "not_applicable")
    }
    failures = counts["finding"] if findings_fail else 0
    totals = (
        f'tests="{len(rules)}" failures="{failures}" errors="{counts["error"]}" '
        f'skipped="{counts["not_measured"] + counts["not_applicable"]}"'
    )
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="moe-advisor" {totals}>',
        f"  <testsuite name={quoteattr('moe-advisor ' + run_view.run_name(shown))} {totals}>",
        "    <properties>",
        *(
            f"      <property name={quoteattr(name)} value={quoteattr(value)}/>"
            for name, value in _properties(shown)
        ),
        "    </properties>",
    ]
    for rule in rules:
        lines += _case(rule, advice.get(rule.id), run_view.step_ms(shown), findings_fail)
    lines += ["  </testsuite>", "</testsuites>", ""]
    return "\n".join(lines)


def _properties(result: Result) -> list[tuple[str, str]]:
    rows = [
        ("verdict", result.walls.verdict),
        ("limiter", result.walls.limiter or "none"),
        ("headline", result.walls.headline),
        ("capture", run_view.capture_state(result)[1]),
        ("moe-advisor", result.tool.version),
    ]
    for name in PROPERTIES:
        shown = figure(result.metrics.get(name))
        rows.append((name, str(shown) if shown.measured else f"not measured: {shown.note}"))
    return rows


def _case(
    rule: RuleOutcome, found: Recommendation | None, step: float | None, findings_fail: bool
) -> list[str]:
    topic = quoteattr(f"moe-advisor.{rule.topic}")
    head = f"    <testcase classname={topic} name={quoteattr(rule.id)}"
    reason = quoteattr(rule.reason)
    if rule.outcome == "pass":
        return [head + "/>"]
    if rule.outcome in ("not_measured", "not_applicable"):
        words = quoteattr(f"{rule.outcome.replace('_', ' ')}: {rule.reason}")
        return [head + ">", f"      <skipped message={words}/>", "    </testcase>"]
    if rule.outcome == "error":
        return [head + ">", f'      <error type="rule" message={reason}/>', "    </testcase>"]
    text = escape(_finding(rule, found, step))
    if findings_fail:
        body = f'      <failure type="{rule.severity}" message={reason}>{text}</failure>'
    else:
        body = f"      <system-out>{text}</system-out>"
    return [head + ">", body, "    </testcase>"]


def _finding(rule: RuleOutcome, found: Recommendation | None, step: float | None) -> str:
    lines = [f"{rule.title} (severity {rule.severity})", rule.reason]
    if found is not None:
        of = f", of the {ms(step)} ms step" if step and has_gain(found.estimate) else ""
        lines.append(f"Gain: {gain(found.estimate, step).removeprefix('gain ')}{of}")
        for diff in diffs(found.changes):
            lines.append(f"{diff.title}:")
            lines += [f"  {line.sign} {line.text}" for line in diff.lines]
        if found.withheld:
            lines.append(f"Not yet: {found.withheld}")
        lines.append(f"Check it: {found.verify}")
    return "\n".join(lines)
