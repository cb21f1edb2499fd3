"""What budgets said of a run: terminal text, Markdown, JUnit XML, JSON and GitLab code quality."""

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from moe_advisor import __version__
from moe_advisor.budgets.model import Judged
from moe_advisor.output import junit, run_view
from moe_advisor.output.formatting import clean, plural
from moe_advisor.output.markdown import code, escape
from moe_advisor.result import Result

SCHEMA = "moe-advisor/check"
SCHEMA_VERSION = "1.0"

_WORDS = {"pass": "pass", "fail": "FAIL", "not_measured": "NOT MEASURED"}


def state(one: Judged) -> str:
    """One word or two: pass, FAIL, NOT MEASURED, warn where the level is warn, or excused."""
    if one.outcome == "pass":
        return _WORDS["pass"]
    if not one.missed:
        return "excused"
    words = _WORDS[one.outcome]
    return f"warn ({words.lower()})" if one.budget.level == "warn" else words


def headline(judged: Sequence[Judged]) -> str:
    """The whole check in one sentence."""
    broken = [one for one in judged if one.breaks]
    warned = [one for one in judged if one.missed and not one.breaks]
    unmeasured = sum(one.outcome == "not_measured" for one in broken)
    words = [f"{len(broken)} of {plural(len(judged), 'budget')} missed"]
    if unmeasured:
        words.append(f"{unmeasured} of them not measured")
    if warned:
        words.append(plural(len(warned), "warning"))
    return ", ".join(words)


def text(judged: Sequence[Judged]) -> str:
    """One line a budget, what was measured behind it, then the sentence."""
    width = max((len(one.budget.name) for one in judged), default=0)
    lines = []
    for one in judged:
        budget = one.budget
        lines.append(f"{state(one):<19} {budget.name:<{width}}  {clean(budget.expect, 300)}")
        if one.detail:
            lines.append(f"{'':<19} {'':<{width}}  {clean(one.detail, 600)}")
        if one.outcome != "pass" and budget.message:
            lines.append(f"{'':<19} {'':<{width}}  {clean(budget.message, 600)}")
    return "\n".join([*lines, headline(judged), ""])


def markdown(judged: Sequence[Judged]) -> str:
    """A table for a pull request or a step summary."""
    lines = [
        f"## Budgets: {headline(judged)}",
        "",
        "| | Budget | Expected | Measured |",
        "| --- | --- | --- | --- |",
    ]
    for one in judged:
        words = state(one)
        detail = escape(clean(one.detail, 600))
        if one.outcome != "pass" and one.budget.message:
            detail += f"<br>{escape(clean(one.budget.message, 600))}"
        lines.append(
            f"| {f'**{words}**' if one.missed else words} | {escape(one.budget.name)} | "
            f"{code(clean(one.budget.expect, 300))} | {detail} |"
        )
    return "\n".join([*lines, "", ""])


def junit_xml(judged: Sequence[Judged], result: Result) -> str:
    """JUnit XML: a test case per budget and one per rule."""
    root = ET.fromstring(junit.render(result))  # noqa: S314 - written a moment ago by this program
    suite = ET.Element("testsuite", {"name": "moe-advisor budgets"})
    counts = {"tests": len(judged), "failures": 0, "errors": 0, "skipped": 0}
    for one in judged:
        classname = f"moe-advisor.budget.{one.budget.level}"
        case = ET.SubElement(suite, "testcase", {"classname": classname, "name": one.budget.name})
        words = clean(f"{one.budget.expect}: {one.detail}", 1000)
        if one.breaks:
            counts["failures"] += 1
            failure = ET.SubElement(case, "failure", {"type": one.outcome, "message": words})
            failure.text = clean(one.budget.message, 1000)
        elif one.outcome == "not_measured" and not one.missed:
            counts["skipped"] += 1
            ET.SubElement(case, "skipped", {"message": f"not measured: {words}"})
        else:
            ET.SubElement(case, "system-out").text = f"{state(one)}: {words}"
    suite.attrib |= {name: str(value) for name, value in counts.items()}
    root.insert(0, suite)
    for name, value in counts.items():
        root.set(name, str(int(root.get(name, "0")) + value))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def as_json(judged: Sequence[Judged], result: Result) -> str:
    """The outcomes for programs."""
    rows = [
        {
            "name": one.budget.name,
            "expect": one.budget.expect,
            "level": one.budget.level,
            "scope": one.budget.scope,
            "outcome": one.outcome,
            "missed": one.missed,
            "detail": one.detail,
            "where": list(one.where),
            "message": one.budget.message,
        }
        for one in judged
    ]
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "tool": {"version": __version__},
        "run": run_view.run_name(result),
        "passed": not any(one.breaks for one in judged),
        "budgets": rows,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def gitlab(judged: Sequence[Judged], result: Result) -> str:
    """GitLab code quality: missed budgets at their line, findings of rules at the input."""
    rows = []
    for one in judged:
        if one.missed:
            severity = "blocker" if one.budget.level == "error" else "minor"
            words = f"{one.budget.name}: {one.detail}. {one.budget.message}"
            place = one.budget.source or "moe-advisor.toml"
            rows.append(_issue(f"budget/{one.budget.name}", words, severity, place, one))
    name = result.inputs[0].name if result.inputs else "result.json"
    levels = {"low": "info", "medium": "minor", "high": "major"}
    for rule in result.rules:
        if rule.outcome == "finding":
            words = f"{rule.title}: {rule.reason}"
            rows.append(_issue(f"rule/{rule.id}", words, levels[rule.severity], name, None))
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _issue(
    check: str, words: str, severity: str, path: str, judged: Judged | None
) -> dict[str, Any]:
    # The fingerprint names the check only: the same problem with new figures is the same problem.
    return {
        "description": clean(words, 1000).strip(),
        "check_name": check,
        "fingerprint": hashlib.sha256(check.encode()).hexdigest(),
        "severity": severity,
        "location": {
            "path": clean(path, 300),
            "lines": {"begin": judged.budget.line if judged else 1},
        },
    }
