"""A comparison on a terminal, in Markdown and as JSON."""

from collections.abc import Sequence

import msgspec

from moe_advisor.compare.model import Comparison, Delta, KeyChange, Share
from moe_advisor.output.formatting import NOT_MEASURED, clean, ms, number, plural, quantity
from moe_advisor.output.markdown import code, escape

WORDS = {
    "better": "better",
    "worse": "worse",
    "changed": "changed",
    "unchanged": "unchanged",
    "cant_tell": "can't tell",
}
MOST = 12
"""Rows of one list on a terminal and in Markdown; the JSON and the HTML hold all."""

ALWAYS = ("step_ms", "comm_exposed_ms", "ep_a2a_exposed_ms", "host_gap_ms", "memory_peak_gib")


def signed(value: float, unit: str) -> str:
    """A change in a metric's unit, with its sign."""
    text, printed = quantity(value, unit)
    sign = "" if text.startswith("−") else "+"
    return f"{sign}{text} {printed}"


def value(amount: float | None, unit: str) -> str:
    """A value in a metric's unit, or that there is none."""
    return NOT_MEASURED if amount is None else " ".join(quantity(amount, unit))


def relative(delta: Delta) -> str:
    """The change as per cent of the base; empty where the base is 0."""
    if delta.relative is None:
        return ""
    return f"{'+' if delta.relative >= 0 else ''}{number(100 * delta.relative)} %"


def listed(deltas: Sequence[Delta]) -> list[Delta]:
    """What to show first: what got worse, better, changed, then the headline metrics."""
    order = {"worse": 0, "better": 1, "changed": 2, "cant_tell": 3, "unchanged": 4}
    kept = [
        one for one in deltas if one.verdict in ("worse", "better", "changed") or one.name in ALWAYS
    ]
    return sorted(
        kept,
        key=lambda one: (one.name != "step_ms", order[one.verdict], -abs(one.relative or 0.0)),
    )


def text(comparison: Comparison) -> str:
    """The comparison for a terminal of 100 columns."""
    lines = [clean(comparison.headline)]
    if comparison.cause:
        lines.append(clean(comparison.cause))
    for side, words in ((comparison.base, "base"), (comparison.new, "new")):
        lines.append(
            f"  {words:<5}{clean(side.name, 60)}: {', '.join(map(clean, side.identity))}, "
            f"{plural(side.repeats, 'run')}, {plural(side.steps, 'step')}"
        )
    warned = [one for one in comparison.checks if one.state in ("differs", "unknown", "refused")]
    for check in warned:
        words = "note" if check.state == "unknown" else "warning"
        lines.append(f"  {words}: {clean(check.message, 300)}")
    lines += ["", f"  {'metric':<29}{'base':>16}{'new':>16}{'change':>16}{'':>11}  verdict"]
    rows = listed(comparison.deltas)
    for one in rows[:MOST]:
        change = "" if one.window_change is None else signed(one.window_change, one.unit)
        lines.append(
            f"  {one.name:<29}{value(one.base, one.unit):>16}{value(one.new, one.unit):>16}"
            f"{change:>16}{relative(one):>11}  {WORDS[one.verdict]}"
        )
        if one.verdict == "cant_tell" or ", but" in one.reason:
            lines.append(f"      {clean(one.reason, 200)}")
    if len(rows) > MOST:
        lines.append(f"  {plural(len(rows) - MOST, 'more row')}: --format markdown, html or json")
    for title, shares in (
        ("Where the step changed, ms", comparison.parts),
        ("Causes, ms", comparison.causes),
        ("Layers, ms", comparison.layers),
    ):
        if shares:
            lines += ["", f"  {title}"]
            lines += [
                f"    {clean(one.label, 60):<60}{ms(one.base_ms):>9} to {ms(one.new_ms):>7}"
                f"{signed(one.change_ms, 'ms/step'):>14}"
                for one in shares[:6]
            ]
    if comparison.config:
        lines += ["", "  Configuration that differs"]
        lines += [f"    {key}" for key in _keys(comparison.config)]
    return "\n".join([*lines, ""])


def _keys(config: Sequence[KeyChange]) -> list[str]:
    def shown(value: object) -> str:
        return "not known" if value is None else clean(str(value), 80)

    return [f"{clean(one.key, 80)}: {shown(one.base)} to {shown(one.new)}" for one in config[:MOST]]


def markdown(comparison: Comparison) -> str:
    """The comparison for a pull request."""
    lines = [f"## {escape(clean(comparison.headline))}", ""]
    if comparison.cause:
        lines += [escape(clean(comparison.cause)), ""]
    for check in comparison.checks:
        if check.state == "differs":
            lines.append(f"- **warning**: {escape(clean(check.message, 300))}")
    lines += [
        "",
        "| Metric | Base | New | Change | | Verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in listed(comparison.deltas)[: 2 * MOST]:
        change = "" if one.window_change is None else signed(one.window_change, one.unit)
        verdict = f"**{WORDS[one.verdict]}**" if one.verdict == "worse" else WORDS[one.verdict]
        if one.verdict == "cant_tell":
            verdict += f": {escape(clean(one.reason, 200))}"
        lines.append(
            f"| {code(one.name)} | {value(one.base, one.unit)} | {value(one.new, one.unit)} | "
            f"{change} | {relative(one)} | {verdict} |"
        )
    lines.append("")
    for title, shares in (
        ("Where the step changed", comparison.parts),
        ("Causes", comparison.causes),
        ("Roles", comparison.roles),
        ("Layers", comparison.layers),
    ):
        lines += _table(title, shares)
    if comparison.config:
        lines += ["### Configuration that differs", ""]
        lines += [f"- {escape(key)}" for key in _keys(comparison.config)]
    return "\n".join([*lines, "", ""])


def _table(title: str, shares: Sequence[Share]) -> list[str]:
    if not shares:
        return []
    lines = [f"### {title}", "", "| | Base, ms | New, ms | Change, ms |"]
    lines.append("| --- | ---: | ---: | ---: |")
    lines += [
        f"| {escape(clean(one.label, 120))} | {ms(one.base_ms)} | {ms(one.new_ms)} | "
        f"{signed(one.change_ms, 'ms/step')} |"
        for one in shares[:MOST]
    ]
    return [*lines, ""]


def as_json(comparison: Comparison) -> bytes:
    """The comparison for programs."""
    return msgspec.json.format(msgspec.json.encode(comparison), indent=1) + b"\n"
