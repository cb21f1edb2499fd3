"""Markdown for a pull request or a step summary."""

import re

from moe_advisor.output import plan_view, run_view, step_view, tile_view, verdict_view
from moe_advisor.output.changes import Diff, diffs
from moe_advisor.output.formatting import count, cut, from_tenths, ms, share
from moe_advisor.output.tidy import tidy
from moe_advisor.result import Result

LARGEST = 60_000
"""Bytes: a comment holds 65,536 characters, and something may stand around this text."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!@$&])")
_MARKS = {"met": "met", "unmet": "**not met**", "unknown": "unknown"}
_LINK = re.compile(r"\b(https?|ftp)://", re.IGNORECASE)


def render(result: Result) -> str:
    """The report in Markdown, at most 60 kB; what is left out is said."""
    shown = tidy(result)
    plan = plan_view.plan(shown)
    head = _head(shown)
    tail = _tail(shown)
    details = [_advice(advice) for advice in plan.all()]
    left_out = 0
    while True:
        note = (
            [f"_{count(left_out)} more recommendations are in the report: no room here._", ""]
            if left_out
            else []
        )
        body = [line for block in details for line in block]
        text = "\n".join([*head, *body, *note, *tail]).rstrip() + "\n"
        if len(text.encode()) <= LARGEST:
            return text
        if not details:
            return _cut_bytes(text)
        details.pop()
        left_out += 1


def _cut_bytes(text: str) -> str:
    end = "\n\n_Cut: more is in the report._\n"
    return text.encode()[: LARGEST - len(end.encode())].decode(errors="ignore") + end


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no mention, no link, no table border."""
    return _LINK.sub(r"\1&#58;//", _SPECIAL.sub(r"\\\1", text))


def code(text: str) -> str:
    """Text in code type, whatever backticks it holds, fit for a table cell."""
    inside = text.replace("|", "¦")
    longest = max((len(run) for run in re.findall(r"`+", inside)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if inside.startswith("`") or inside.endswith("`") else ""
    return f"{fence}{pad}{inside}{pad}{fence}"


def _table(titles: list[str], align: str, rows: list[list[str]]) -> list[str]:
    """A table; `align` has `l` or `r` for each column."""
    marks = ["---:" if one == "r" else "---" for one in align]
    lines = ["| " + " | ".join(titles) + " |", "| " + " | ".join(marks) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def _head(result: Result) -> list[str]:
    words = [run_view.run_name(result), *run_view.identity(result)]
    state = run_view.capture_state(result)[1]
    headline = verdict_view.partial_prefix(result) + result.walls.headline
    lines = [
        f"## {escape(verdict_view.verdict_label(result))}: {escape(cut(headline, 300))}",
        "",
    ]
    if result.walls.cause:
        lines += [escape(result.walls.cause), ""]
    detail = " · ".join(
        word for word in (verdict_view.verdict_detail(result), f"capture {state.lower()}") if word
    )
    lines += [f"{escape(cut(' · '.join(words), 300))}  ", escape(detail), ""]
    step = run_view.step_ms(result)
    rows = []
    for row in verdict_view.wall_rows(result):
        parts = ", ".join(
            f"{escape(label)} {share(part)}" for label, _, part in row.segments if part >= 0.0005
        )
        if row.missing:
            parts += ("; " if parts else "") + f"**not measured**: {escape(row.missing)}"
        tag = f" ({row.tag})" if row.tag else ""
        rows.append(
            [
                f"{row.title.replace('&', 'and')}{tag}",
                verdict_view.wall_score(result, row),
                parts or "nothing found",
            ]
        )
    of = f" of the {ms(step)} ms step" if step else ""
    lines += _table(["Wall", f"Recoverable{of}", "Of which"], "lrl", rows)
    lines += _table(
        ["Figure", "Value", ""],
        "lrl",
        [
            [
                escape(tile.title),
                f"**{tile.figure}**" if tile.figure.measured else "**not measured**",
                escape("; ".join(tile.lines)),
            ]
            for tile in tile_view.tiles(result)
        ],
    )
    lines += _parts(result)
    lines += _plan(result)
    return lines


def _parts(result: Result) -> list[str]:
    mean = step_view.mean_bar(result)
    if mean is None:
        return ["### Where a step's time goes", "", "**Not measured**: no step in the trace.", ""]
    titles, rows = step_view.part_rows(result)
    made = [
        [
            escape(row.segment.label),
            *row.per_rank,
            f"**{row.segment.printed}**",
            share(row.segment.share),
            escape(row.holds),
        ]
        for row in rows
    ]
    made.append(["**Step**", *step_view.rank_totals(result), f"**{mean.total}**", "100 %", ""])
    families = ", ".join(
        f"{title.lower()} {from_tenths(tenths)}" for title, tenths, _, _ in mean.families()
    )
    return [
        "### Where a step's time goes",
        "",
        f"Mean of {mean.subtitle}, ms; each instant is counted once: {families}.",
        "",
        *_table(
            ["Part", *titles, "Mean, ms", "of step", "What it holds"],
            "l" + "r" * (len(titles) + 2) + "l",
            made,
        ),
    ]


def _plan(result: Result) -> list[str]:
    plan = plan_view.plan(result)
    lines = ["### The plan", ""]
    if not plan.all():
        return [*lines, escape(plan_view.nothing_to_do(result)), ""]
    rows = []
    for advice in plan.all():
        found = advice.found
        title = escape(found.title)
        if advice.instead_of:
            title += f" (instead of {escape(advice.instead_of)})"
        if found.withheld:
            title += f" (not yet: {escape(cut(found.withheld, 200))})"
        gain = f"{advice.expected}{f' ({advice.of_step})' if advice.of_step else ''}"
        rows.append(
            [
                advice.mark,
                title,
                gain or "not measured",
                advice.range or escape(cut(found.estimate.reason or "", 120)),
                found.severity,
                found.confidence,
            ]
        )
    lines += _table(["", "Change", "Expected", "Range", "Severity", "Confidence"], "llrrll", rows)
    if plan.combined:
        lines += [f"{plan.combined}. {escape(plan.combined_note)}".strip(), ""]
    return lines + _whole(result)


def _whole(result: Result) -> list[str]:
    """The plan's settings together, to paste, with what the validations say of them."""
    whole = plan_view.whole(result)
    if whole is None:
        return []
    lines = [
        f"**{escape(whole.verdict)}**",
        "",
        "<details><summary>The whole plan as one change</summary>",
        "",
    ]
    for diff in whole.diffs:
        lines += [f"**{diff.title}**", "", *_fenced(diff.copy.splitlines(), "text"), ""]
    lines += [f"- Megatron-Bridge: {escape(text)}" for text in whole.remarks]
    lines += [f"- **broken**: {escape(text)}" for text in whole.broken]
    lines += [f"- can't be told yet: {escape(cut(text, 300))}" for text in whole.unknown]
    return [*lines, "", "</details>", ""]


def _advice(advice: plan_view.Advice) -> list[str]:
    found = advice.found
    title = entities(cut(found.title, 200))
    lines = [f"<details><summary>{advice.mark} {title}</summary>", ""]
    lines += [escape(found.finding), "", escape(found.why), ""]
    for diff in diffs(found.changes):
        lines += _diff(diff)
    for name, conditions in (("Requires", found.requires), ("Conflicts", found.conflicts)):
        if conditions:
            lines += [f"**{name}**", ""]
            for one in conditions:
                extra = one.question if one.state == "unknown" and one.question else ""
                if one.state == "unmet":
                    extra = f"otherwise: {one.consequence}"
                lines.append(
                    f"- {_MARKS[one.state]}: {escape(one.text)}"
                    + (f" ({escape(extra)})" if extra else "")
                )
            lines.append("")
    for name, items in (("Evidence", found.evidence), ("Counter-evidence", found.counter_evidence)):
        if items:
            lines += [f"**{name}**", ""]
            for item in items:
                change = ""
                if item.change_share is not None:
                    sign = "+" if item.change_share > 0 else ""
                    change = f"**{sign}{share(item.change_share)}** step time. "
                lines.append(f"- {change}{escape(item.text)} ({escape(item.source)})")
            lines.append("")
    lines += [f"**Check it:** {escape(found.verify)}", ""]
    if found.estimate.basis:
        lines += [f"Range: {escape(found.estimate.basis)}", ""]
    return [*lines, "</details>", ""]


def entities(text: str) -> str:
    """Text inside a raw HTML element, where backslashes may not hold: entities only."""
    special = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)
    return _LINK.sub(r"\1&#58;//", special)


def _diff(diff: Diff) -> list[str]:
    body = [f"{line.sign} {line.text}" for line in diff.lines]
    version = f" ({escape(diff.version)})" if diff.version else ""
    return [f"**{diff.title}**{version}", "", *_fenced(body, "diff"), ""]


def _fenced(body: list[str], language: str) -> list[str]:
    """Lines as a block of code, whatever backticks they hold."""
    longest = max((len(run) for line in body for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *body, fence]


def _tail(result: Result) -> list[str]:
    lines: list[str] = []
    questions = verdict_view.open_questions(result)
    if questions:
        lines += ["### Not measured", "", *(f"- {escape(text)}" for text in questions[:20]), ""]
    notable = [issue for issue in result.capture.issues if issue.severity != "info"]
    if notable:
        lines += [
            "### Capture",
            "",
            *(
                f"- {issue.severity}: {code(issue.id)}: {escape(cut(issue.message, 300))}"
                for issue in notable[:20]
            ),
            "",
        ]
    counts = {
        name: sum(rule.outcome == name for rule in result.rules)
        for name in ("finding", "pass", "not_measured", "not_applicable", "error")
    }
    words = ", ".join(f"{count(n)} {name.replace('_', ' ')}" for name, n in counts.items() if n)
    lines += [
        f"<sub>moe-advisor {escape(result.tool.version)} · rules: {words or 'none ran'} · "
        "gains are ms of the traced step</sub>"
    ]
    return lines
