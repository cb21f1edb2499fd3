"""The terminal summary: the report's story on one screen."""

import io
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from moe_advisor.output import plan_view, run_view, step_view, tile_view, verdict_view
from moe_advisor.output.formatting import (
    MINUS,
    add_up,
    cut,
    has_gain,
    ms,
    number,
    points,
    share,
)
from moe_advisor.output.tidy import tidy
from moe_advisor.result import Estimate, Result

NARROWEST, WIDEST = 60, 100
PLAN_LINES = 6
QUESTION_LINES = 2

_COLOURS = {
    "expert": "#3D9AD6",
    "compute": "#7CC6F0",
    "wire": "#E8762B",
    "unsplit": "#E8762B",
    "wait": "#E8762B",
    "hidden": "#E8762B",
    "comm": "#D993B9",
    "host": "#EDB035",
    "idle": "#8C96A2",
    "memory": "#2DB890",
    "opaque": "#8C96A2",
    "other": "#6F7B88",
    "missing": "#8C96A2",
}
_BLOCKS = {
    "wait": "▒",
    "unsplit": "▓",
    "hidden": "░",
    "comm": "▓",
    "host": "▒",
    "idle": "░",
    "missing": "░",
    "other": "░",
    "opaque": "▓",
}
_LETTERS = {
    "expert": "E",
    "compute": "c",
    "wire": "W",
    "wait": "w",
    "unsplit": "A",
    "hidden": "u",
    "comm": "D",
    "host": "h",
    "idle": "i",
    "memory": "M",
    "opaque": "g",
    "other": "o",
    "missing": "?",
}
_ASCII = str.maketrans(
    {
        MINUS: "-",
        "×": "x",
        "·": "|",
        "→": "->",
        "±": "+/-",
        "≈": "~",
        "…": "~",
        "÷": "/",
        "–": "-",
        "—": "-",
        "’": "'",
        "“": '"',
        "”": '"',
        "│": "|",
        "├": "[",
        "┤": "]",
        "─": "-",
        "●": "*",
        "┊": ":",
        "✓": "ok",
    }
)

Part = tuple[str, str]
"""Text and its rich style."""


def render(
    result: Result,
    *,
    width: int = 100,
    color: bool = False,
    unicode: bool = True,
    outputs: Sequence[tuple[str, str]] = (),
) -> str:
    """The summary, at most 100 columns wide and about 30 lines long.

    Without `color` bars are made of letters that the table repeats, without `unicode` everything is
    ASCII. `outputs` (label, path) are named in the last line.
    """
    canvas = _Canvas(max(NARROWEST, min(width, WIDEST)), color, unicode)
    shown = tidy(result)
    lines = [
        *_verdict(shown, canvas),
        [],
        *_walls(shown, canvas),
        [],
        *_step(shown, canvas),
        *_plan(shown, canvas),
        *_closing(shown, canvas, outputs),
    ]
    return canvas.printed(lines)


class _Canvas:
    """How to draw: width, colour and alphabet."""

    def __init__(self, width: int, color: bool, unicode: bool) -> None:
        self.width, self.color, self.unicode = width, color, unicode

    def block(self, kind: str, length: int) -> Part:
        """A run of a bar."""
        if self.color and self.unicode:
            return _BLOCKS.get(kind, "█") * length, _COLOURS.get(kind, "")
        return _LETTERS.get(kind, "o") * length, _COLOURS.get(kind, "") if self.color else ""

    def plain(self, text: str) -> str:
        """The text in the alphabet that the terminal has."""
        if self.unicode:
            return text
        return text.translate(_ASCII).encode("ascii", "replace").decode()

    def printed(self, lines: Sequence[Sequence[Part]]) -> str:
        """All lines as one string; escape codes only with colour."""
        if not self.color:
            plain = (self.plain("".join(part for part, _ in line)) for line in lines)
            return "".join(line[: self.width].rstrip() + "\n" for line in plain)
        sink = io.StringIO()
        console = Console(
            file=sink,
            width=self.width,
            force_terminal=True,
            color_system="truecolor",
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
            _environ={},
        )
        for line in lines:
            text = Text(no_wrap=True, overflow="ellipsis" if self.unicode else "crop")
            for part, style in line:
                text.append(self.plain(part), style=style or None)
            text.rstrip()
            console.print(text)
        return sink.getvalue()

    def wrapped(self, text: str, style: str, lines: int) -> list[list[Part]]:
        """A sentence over at most so many lines."""
        made: list[list[Part]] = []
        words, line = text.split(" "), ""
        for word in words:
            if line and len(line) + 1 + len(word) > self.width:
                made.append([(line, style)])
                line = word
            else:
                line = f"{line} {word}" if line else word
        made.append([(line, style)])
        if len(made) > lines:
            last = made[lines - 1][0][0]
            made = made[:lines]
            made[-1] = [
                (
                    cut(
                        last + " …" if len(last) < self.width - 2 else last[:-2] + " …", self.width
                    ),
                    style,
                )
            ]
        return [[(cut(part, self.width), style) for part, style in one] for one in made]


def _verdict(result: Result, canvas: _Canvas) -> list[list[Part]]:
    tone = {"bad": "bold #FF9A57", "warn": "bold #F0B95A", "good": "bold #6BD19E"}
    detail = " · ".join(
        word
        for word in (
            verdict_view.verdict_detail(result),
            f"capture {run_view.capture_state(result)[1].lower()}",
        )
        if word
    )
    label = verdict_view.verdict_label(result).upper()
    first: list[Part] = [
        (label, tone[verdict_view.verdict_tone(result)]),
        ("   " + cut(detail, canvas.width - len(label) - 3), "dim"),
    ]
    headline = verdict_view.partial_prefix(result) + result.walls.headline
    lines = [first, *canvas.wrapped(headline, "bold", 2)]
    if result.walls.cause:
        lines += canvas.wrapped(result.walls.cause, "dim", 2)
    return lines


def _walls(result: Result, canvas: _Canvas) -> list[list[Part]]:
    room = max(20, canvas.width - 56)
    threshold = points(result.walls.threshold)
    lines: list[list[Part]] = [
        [
            ("Walls", "bold"),
            (f"{'':11}recoverable, % of the step, {threshold} points needed to call it", "dim"),
        ]
    ]
    for row in verdict_view.wall_rows(result):
        parts: list[Part] = [(f"{row.title:<16}", "")]
        used = 0
        for _, kind, part in row.segments:
            length = min(max(round(part * room), 1 if part >= 0.004 else 0), room - used)
            parts.append(canvas.block(kind, length))
            used += length
        if row.missing and room - used >= 2:
            parts.append(canvas.block("missing", 2))
            used += 2
        words = row.tag
        if not words and row.segments:
            words = ", ".join(
                f"{label} {number(part * 100)}" for label, _, part in row.segments[:2]
            )
        if row.missing and row.tag != "next wall":
            words = row.missing
        left = canvas.width - 16 - room - 9
        parts += [
            (" " * (room - used), ""),
            (f"{verdict_view.wall_score(result, row).removesuffix(' %'):>6}", "bold"),
            ("  " + cut(words, left), "dim"),
        ]
        lines.append(parts)
    return lines


def _merged(bar: step_view.Bar) -> list[step_view.Segment]:
    """Host gaps of all causes as one part, rounded as one: a screen has no room for more."""
    merged: dict[str, step_view.Segment] = {}
    for segment in bar.segments:
        key = "host_gaps" if segment.kind == "host" else segment.key
        before = merged.get(key)
        merged[key] = step_view.Segment(
            key=key,
            label="Host gaps" if segment.kind == "host" else segment.label,
            kind=segment.kind,
            family=segment.family,
            ms=segment.ms + (before.ms if before else 0.0),
            tenths=0,
            share=segment.share + (before.share if before else 0.0),
        )
    segments = list(merged.values())
    other = next((i for i, one in enumerate(segments) if one.key == "compute_other"), None)
    printed = add_up([one.ms for one in segments], bar.total_ms, other)
    rounded = [replace(one, tenths=value) for one, value in zip(segments, printed, strict=True)]
    return [one for one in rounded if one.tenths]


def _step(result: Result, canvas: _Canvas) -> list[list[Part]]:
    mean = step_view.mean_bar(result)
    if mean is None:
        return [[("Step", "bold"), ("  not measured: no step in the trace", "dim")], []]
    tile = tile_view.tiles(result)[0]
    note = " · ".join(tile.lines)
    segments = _merged(mean)
    bar: list[Part] = []
    at = 0.0
    for segment in segments:
        # Ends are rounded, not lengths: the bar is as long as the screen is wide.
        start, end = round(at * canvas.width), round((at + segment.share) * canvas.width)
        at += segment.share
        bar.append(canvas.block(segment.kind, max(end - start, 0)))
    lines: list[list[Part]] = [
        [(f"Step {mean.total} ms", "bold"), ("   " + note, "dim")],
        bar,
    ]
    left = [segment for segment in segments if segment.family == "compute"]
    right = [segment for segment in segments if segment.family != "compute"]
    half = canvas.width // 2
    for i in range(max(len(left), len(right))):
        line: list[Part] = []
        for side in (left, right):
            line += _row(side[i] if i < len(side) else None, half, canvas)
        lines.append(line)
    return [*lines, []]


def _row(segment: step_view.Segment | None, width: int, canvas: _Canvas) -> list[Part]:
    if segment is None:
        return [(" " * width, "")]
    label = cut(segment.label, width - 22)
    figures = f"{segment.printed:>7}{share(segment.share):>9}"
    block, style = canvas.block(segment.kind, 1)
    pad = " " * max(0, width - 2 - len(label) - len(figures) - 3)
    return [(block, style), (f" {label}{pad}", ""), (figures, ""), ("   ", "")]


def _plan(result: Result, canvas: _Canvas) -> list[list[Part]]:
    plan = plan_view.plan(result)
    if not plan.all():
        return [[("Plan", "bold")], *canvas.wrapped(plan_view.nothing_to_do(result), "dim", 3), []]
    low, high = plan_view.gain_domain(result)
    step = run_view.step_ms(result)
    priced = any(has_gain(advice.found.estimate) for advice in plan.all())
    title_width = min(46, canvas.width - 54)
    strip = canvas.width - title_width - 28 if priced else 0
    scale = f"gain in ms{f' of {ms(step)}' if step else ''}, scale {ms(low)} to {ms(high)}"
    lines: list[list[Part]] = [
        [("Plan", "bold"), (f"   {scale if priced else 'in the order to try'}", "dim")]
    ]
    shown = plan.all()[:PLAN_LINES]
    for advice in shown:
        title = advice.found.title
        if advice.instead_of:
            title = f"instead of {advice.instead_of}: {title}"
        if advice.found.withheld:
            title = f"not yet: {title}"
        if not has_gain(advice.found.estimate):
            reason = "gain not measured"
            lines.append(
                [
                    (f"{advice.mark:<2}", "bold"),
                    (f"{cut(title, canvas.width - 4 - len(reason))}  ", ""),
                    (reason, "dim"),
                ]
            )
            continue
        lines.append(
            [
                (f"{advice.mark:<2}", "bold"),
                (f"{cut(title, title_width - 3):<{title_width - 2}}", ""),
                *_strip(advice.found.estimate, low, high, strip),
                (f"{advice.expected:>12} ", "bold"),
                (
                    advice.range.removesuffix(" ms"),
                    "#FF9A57" if advice.range_low_is_loss else "dim",
                ),
            ]
        )
    left_over = len(plan.all()) - len(shown)
    if left_over:
        lines.append([(f"  and {left_over} more in the report", "dim")])
    if plan.combined:
        lines.append([(cut(plan.combined, canvas.width), "dim")])
    return [*lines, []]


def _strip(estimate: Estimate, low: float, high: float, width: int) -> list[Part]:
    """A range on the common scale: ends, expected value, zero line."""
    reach = (high - low) or 1.0

    def at(value: float) -> int:
        return max(0, min(width - 1, round((value - low) / reach * (width - 1))))

    expected = estimate.expected_ms or 0.0
    first = at(estimate.low_ms if estimate.low_ms is not None else expected)
    last = at(estimate.high_ms if estimate.high_ms is not None else expected)
    zero = at(0.0)
    parts: list[Part] = []
    for i in range(width):
        style = "#FF9A57" if i < zero else "#5FA8D3"
        if estimate.expected_ms is not None and i == at(expected):
            parts.append(("●", "bold"))
        elif i == first:
            parts.append(("├", style))
        elif i == last:
            parts.append(("┤", style))
        elif first < i < last:
            parts.append(("─", style))
        else:
            parts.append(("┊" if i == zero else " ", "dim"))
    return parts


def _closing(
    result: Result, canvas: _Canvas, outputs: Sequence[tuple[str, str]]
) -> list[list[Part]]:
    questions = verdict_view.open_questions(result)
    lines: list[list[Part]] = [
        [("? not measured  ", "#F0B95A"), (cut(text, canvas.width - 16), "")]
        for text in questions[:QUESTION_LINES]
    ]
    if len(questions) > QUESTION_LINES:
        lines.append([(f"  and {len(questions) - QUESTION_LINES} more in the report", "dim")])
    lines += [
        [("! capture  ", "#FF9A57"), (cut(issue.message, canvas.width - 11), "")]
        for issue in result.capture.issues
        if issue.severity == "error"
    ][:QUESTION_LINES]
    named = "   ".join(f"{label} {path}" for label, path in outputs)
    rules = [rule.rule for rule in result.recommendations[:1]]
    if rules:
        named += ("   " if named else "") + f"Why moe-advisor rules show {rules[0]}"
    if named:
        lines.append([(cut(named, canvas.width), "dim")])
    return lines
