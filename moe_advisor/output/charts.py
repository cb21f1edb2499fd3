"""The report's charts, each drawn from figures that are printed beside it."""

from collections.abc import Sequence

from markupsafe import Markup

from moe_advisor.output import svg
from moe_advisor.output.formatting import (
    from_tenths,
    has_gain,
    ms,
    number,
    points,
    share,
    span,
)
from moe_advisor.output.step_view import Bar, Segment
from moe_advisor.output.verdict_view import WallRow
from moe_advisor.result import CollectiveView, Estimate, Timeline

_TEXT_ON = {
    "expert": "onexpert",
    "wire": "on",
    "comm": "on",
    "compute": "on",
    "memory": "on",
    "host": "halo",
    "wait": "halo",
    "unsplit": "halo",
    "hidden": "halo",
    "idle": "halo",
    "opaque": "on",
    "other": "ink",
}

HEAT_LIMITS_MS = (0.05, 0.5, 2.0, 5.0)
"""Limits between the five colours of the heat map: below a launch's jitter, then by what a step
of a few hundred ms would notice."""

HEAT_COLOURS = ("#F3F5F7", "#FBE3D3", "#F5B78D", "#E8762B", "#B34700")

NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    reach = max(high - low, 1e-9)
    raw = reach / wanted
    size = 1.0
    while size > raw:
        size /= 10
    while size * 10 <= raw:
        size *= 10
    step = next(size * nice for nice in NICE if size * nice >= raw * 0.999999)
    first = int(low // step)
    last = int(-(-high // step))
    return [i * step for i in range(first, last + 1)]


# --------------------------------------------------------------------------------- stacked bars


def _label(segment: Segment, left: float, width: float, y: float, weight: int) -> Markup:
    if width <= 0:
        return Markup()
    kind = _TEXT_ON.get(segment.kind, "ink")
    need = (svg.text_px(segment.printed) + (10 if kind == "halo" else 5)) / width
    return svg.text(
        left + width / 2, y, segment.printed, anchor="middle", kind=kind, weight=weight, need=need
    )


def describe(bar: Bar) -> str:
    """A bar in words for those who don't see it."""
    parts = ", ".join(f"{s.label} {s.printed}" for s in bar.segments if s.tenths)
    name = " ".join(word for word in (bar.title, bar.subtitle) if word)
    return f"{name}: {bar.total} ms = {parts}"


def stack(bar: Bar, scale_ms: float, height: int) -> Markup:
    """One step as a bar; figures stand in the segments that have room for them."""
    drawn, at = [], 0.0
    for segment in bar.segments:
        width = segment.ms / scale_ms
        if segment.ms > 0:
            title = (
                f"{segment.label}: {segment.printed} ms, {share(segment.share)} of {bar.total} ms"
            )
            drawn.append(svg.rect(at, 0, width, height, segment.kind, title=title))
            drawn.append(_label(segment, at, width, height / 2 + 4, 600))
        at += width
    return svg.image(height, describe(bar), *drawn, kind="chart bar")


BRACKET_GAP_PX = 10
"""Space between the totals of two neighbouring families."""

BOLD_CHAR_PX, BAR_PX = 7.8, 900
PRINT_CHAR_PX, PRINT_BAR_PX = 5.6, 640
"""Widths of a bold 12 px and a printed 8.5 px character in the widest fallback font, and of the
bars they stand over, in the 1280 px layout and on A4."""


def bracket_titles(
    bar: Bar, scale_ms: float, char_px: float, reference_px: float
) -> list[tuple[str, float, float]]:
    """Family totals: words, middle (a fraction) and the width in px of the chart they need.

    Each stands over the middle of its family, moved aside where a narrow neighbour's would touch.
    """
    titles = [
        (f"{title} {from_tenths(tenths)}", (start + length / 2) / scale_ms)
        for title, tenths, start, length in bar.families()
        if tenths > 0
    ]
    reach = [(len(words) * char_px + BRACKET_GAP_PX) / reference_px for words, _ in titles]
    middles = [middle for _, middle in titles]
    limit = 1.0
    for i in reversed(range(len(titles))):
        middles[i] = min(middles[i], limit - reach[i] / 2)
        limit = middles[i] - reach[i] / 2
    limit = 0.0
    for i in range(len(titles)):
        middles[i] = max(middles[i], limit + reach[i] / 2)
        limit = middles[i] + reach[i] / 2
    # Narrower charts would let neighbours touch; the hundredth keeps rounding out of it.
    need = 0.0
    edges, halves = [0.0, *middles, 1.0], [0.0, *(r * reference_px / 2 for r in reach), 0.0]
    for i in range(len(edges) - 1):
        room = edges[i + 1] - edges[i] + 0.001
        need = max(need, (halves[i] + halves[i + 1]) / room)
    return [(words, middle, need) for (words, _), middle in zip(titles, middles, strict=True)]


def _family_lines(bar: Bar, scale_ms: float, y: float, foot: float) -> list[Markup]:
    drawn = []
    for _, tenths, start, length in bar.families():
        if tenths > 0:
            left, right = start / scale_ms, (start + length) / scale_ms
            drawn += [
                svg.line(left, y, right, y, "bracket"),
                svg.line(left, y, left, foot, "bracket"),
                svg.line(right, y, right, foot, "bracket"),
            ]
    return drawn


def brackets(bar: Bar, scale_ms: float) -> Markup:
    """Family totals over the bar, and the names of its parts."""
    drawn = _family_lines(bar, scale_ms, 19, 24)
    placed = bracket_titles(bar, scale_ms, BOLD_CHAR_PX, BAR_PX)
    drawn += [
        svg.text(middle, 12, words, anchor="middle", weight=650, need=min(need, BAR_PX))
        for words, middle, need in placed
    ]
    for name, start, end, anchor, need in place_names(bar, scale_ms):
        drawn.append(
            svg.text(
                start if anchor == "start" else end,
                42,
                name,
                anchor=anchor,
                kind="muted",
                need=need,
                dx=0 if anchor == "start" else -END_GAP_PX,
            )
        )
    return svg.image(47, "", *drawn, hidden=True)


def brackets_below(bar: Bar, scale_ms: float) -> Markup:
    """Family totals under the bar of the printed first page."""
    drawn = _family_lines(bar, scale_ms, 8, 3)
    drawn += [
        svg.text(middle, 21, words, anchor="middle")
        for words, middle, _ in bracket_titles(bar, scale_ms, PRINT_CHAR_PX, PRINT_BAR_PX)
    ]
    return svg.image(25, "", *drawn, hidden=True)


END_GAP_PX = 6
"""A name that ends with its part keeps clear of the name that starts there."""


def place_names(bar: Bar, scale_ms: float) -> list[tuple[str, float, float, str, float]]:
    """Names above the segments that have room: name, start, end, anchor and width needed.

    The longest parts choose first; a name may reach over neighbours that have none.
    """
    edges, at = [], 0.0
    for segment in bar.segments:
        edges.append((at / scale_ms, (at + segment.ms) / scale_ms))
        at += segment.ms
    taken: list[tuple[float, float]] = []
    placed = []
    seen: set[str] = set()
    order = sorted(range(len(edges)), key=lambda i: (-bar.segments[i].ms, i))
    for i in order:
        segment, (start, end) = bar.segments[i], edges[i]
        if segment.short in seen or segment.ms <= 0.004 * scale_ms:
            continue
        reach = (svg.text_px(segment.short) + 10) / svg.REFERENCE_PX
        for anchor, left, right in (
            ("start", start, start + reach),
            ("end", end - reach - END_GAP_PX / svg.REFERENCE_PX, end),
        ):
            inside = left >= 0 and right <= 1.0
            if inside and all(right <= a or left >= b for a, b in taken):
                own = (svg.text_px(segment.short) + 6) / max(end - start, 1e-9)
                need = own if own <= svg.REFERENCE_PX else 900
                placed.append((segment.short, start, end, anchor, need))
                taken.append((left, right))
                seen.add(segment.short)
                break
    return placed


def scale(marks: Sequence[float], top: float, unit: str) -> Markup:
    """The axis below a group of bars."""
    drawn = []
    for i, mark in enumerate(marks):
        if mark > top * 1.0001:
            continue
        label = f"{number(mark, 0)} {unit}" if i == 0 else number(mark, 0)
        drawn.append(svg.line(mark / top, 0, mark / top, 4, "axis"))
        anchor = "start" if i == 0 else "end" if mark / top > 0.97 else "middle"
        drawn.append(svg.text(mark / top, 17, label, anchor=anchor, kind="muted"))
    return svg.image(20, "", *drawn, hidden=True)


def hidden_bar(hidden_ms: float, scale_ms: float) -> Markup:
    """EP communication under compute: a thin bar of its own that is not in the total."""
    words = f"{ms(hidden_ms)} ms of EP all-to-all hidden under compute"
    bar = element_outline(hidden_ms / scale_ms)
    note = " hidden EP all-to-all, drawn under the compute that covers it; not part of the total"
    label = svg.text(
        hidden_ms / scale_ms,
        11,
        ms(hidden_ms) + note,
        dx=8,
        kind="muted",
        need=(svg.text_px(ms(hidden_ms) + note) + 8) / max(1 - hidden_ms / scale_ms, 0.05),
    )
    return svg.image(14, words, bar, label, kind="chart bar")


def element_outline(width: float) -> Markup:
    """The dotted bar with its outline."""
    return svg.element(
        "rect",
        {
            "x": 0,
            "y": 1,
            "width": svg.percent(width),
            "height": 12,
            "fill": svg.FILLS["hidden"],
            "stroke": svg.FILLS["wire"],
            "class": "f-hidden outlined",
        },
    )


def mini(value: float, top: float, kind: str) -> Markup:
    """A bar for a table cell: the same figure as a length."""
    width = value / top if top else 0.0
    return svg.image(12, "", svg.rect(0, 0, width, 12, kind), hidden=True, kind="chart mini")


# --------------------------------------------------------------------------------------- walls


def wall_axis() -> Markup:
    """0 to 100 % of the step, above the walls."""
    drawn = []
    for i in range(5):
        at = i / 4
        label = "0 %" if i == 0 else "100 % of the step" if i == 4 else str(25 * i)
        anchor = "start" if i == 0 else "end" if i == 4 else "middle"
        drawn.append(
            svg.text(at, 12, label, anchor=anchor, kind="muted", need=560 if i == 3 else 0)
        )
    return svg.image(16, "", *drawn, hidden=True)


def _grid(height: float) -> list[Markup]:
    return [svg.line(i / 4, 0, i / 4, height, "grid", svg.GRID) for i in range(5)]


def _inside(words: str, part: float) -> float:
    """Chart width from which a wall's part holds its own label."""
    return (svg.text_px(words) + 12) / max(part, 1e-6)


def labelled(words: str, part: float) -> bool:
    """Whether a part of a wall is labelled inside the bar at the usual width."""
    return _inside(words, part) <= svg.REFERENCE_PX


def below_class(shares: Sequence[tuple[str, float]]) -> str:
    """The class that shows, below a wall's bar, the labels that a narrow bar hides."""
    return svg.need_class(max((_inside(*one) for one in shares), default=0)).replace("q", "u")


def wall(
    row: WallRow, lead: tuple[float, float, float, float, bool] | None, height: int = 30
) -> Markup:
    """One wall's bar; `lead` draws the measured margin on the second one.

    `lead`: end of this bar, end of the first bar, the margin, the threshold, and whether the
    verdict is open.
    """
    drawn = _grid(height + 6)
    at = 0.0
    for label, kind, part in row.segments:
        title = f"{label}: {share(part)} of the step"
        drawn.append(svg.rect(at, 3, part, height, kind, title=title))
        words = f"{label} {share(part)}"
        own = _TEXT_ON.get(kind, "ink")
        drawn.append(
            svg.text(
                at, height / 2 + 7, words, kind=own, dx=8, weight=600, need=_inside(words, part)
            )
        )
        at += part
    if row.missing:
        drawn.append(
            svg.element(
                "rect",
                {
                    "x": svg.percent(at),
                    "y": 3.5,
                    "width": 28,
                    "height": height - 1,
                    "fill": svg.FILLS["missing"],
                    "stroke": svg.LINE,
                    "stroke-dasharray": "3 2",
                    "class": "f-missing outlined",
                },
                svg.element("title", {}, f"Not measured: {row.missing}"),
            )
        )
    if lead is not None:
        drawn += _margin(*lead, height, offset=36 if row.missing else 0)
    label = f"{row.title}: {share(row.score)} of the step is recoverable; " + (
        ", ".join(f"{name} {share(part)}" for name, _, part in row.segments) or "no part measured"
    )
    if row.missing:
        label += f"; not measured: {row.missing}"
    return svg.image(height + 6, label, *drawn, kind="chart bar")


def _margin(
    end: float,
    first: float,
    margin: float,
    threshold: float,
    unclear: bool,
    height: int,
    offset: int,
) -> list[Markup]:
    """The distance between the ends of two bars, with the threshold ticked on it."""
    middle = 3 + height / 2
    drawn = []
    if offset == 0 and first - end > 0.001:
        drawn.append(
            svg.element(
                "line",
                {
                    "x1": svg.percent(end),
                    "x2": svg.percent(first),
                    "y1": middle,
                    "y2": middle,
                    "stroke": svg.INK,
                    "stroke-width": 1.2,
                    "class": "l-ink",
                    "stroke-dasharray": "4 3" if unclear else None,
                },
            )
        )
        drawn += [svg.line(x, middle - 5, x, middle + 5, "ink", svg.INK, 1.2) for x in (end, first)]
        tick = end + threshold
        if tick <= 1:
            drawn.append(svg.line(tick, middle - 8, tick, middle + 8, "ink", svg.INK, 1.2))
    words = f"margin {number(margin * 100)} points"
    need_words = f"({points(threshold)} needed to call it)"
    room = (first - end) * svg.REFERENCE_PX
    full = svg.text_px(words) + svg.text_px(need_words) + 40
    both = Markup("").join(
        [
            svg.element("tspan", {"font-weight": 650}, words),
            svg.element("tspan", {"class": "t-muted", "fill": svg.MUTED}, f" {need_words}"),
        ]
    )
    inside = room > full + 80
    after = 1 - max(first, end)
    need = full / max(first - end, 0.01) if inside else full / max(after, 0.01)
    drawn.append(
        svg.element(
            "text",
            {
                "x": svg.percent((end + first) / 2 if inside else max(first, end)),
                "y": middle + 4,
                "dx": None if inside else 14 + offset,
                "text-anchor": "middle" if inside else None,
                "fill": svg.INK,
                "class": "t-plate " + svg.need_class(need),
                "stroke": svg.PAGE,
                "stroke-width": 8,
                "paint-order": "stroke",
            },
            both,
        )
    )
    return drawn


def rest_bar(left_over: float) -> Markup:
    """What no wall claims: drawn so that the four bars add up to the step."""
    words = "compute at its floor, idle, copies"
    return svg.image(
        24,
        f"Not recoverable here: {share(left_over)} of the step",
        *_grid(24),
        svg.rect(0, 1, left_over, 22, "other"),
        svg.text(
            0, 16, words, dx=8, kind="muted", need=(svg.text_px(words) + 16) / max(left_over, 1e-6)
        ),
        kind="chart bar",
    )


# ---------------------------------------------------------------------------------------- plan


def gain_range(
    estimate: Estimate, low: float, high: float, marks: Sequence[float], label: str
) -> Markup:
    """A range on the scale that all recommendations share; what could cost time is striped."""
    reach = (high - low) or 1.0

    def at(value: float) -> float:
        return (value - low) / reach

    drawn = [svg.line(at(mark), 0, at(mark), 34, "grid", svg.GRID) for mark in marks if mark]
    if not has_gain(estimate):
        drawn.append(svg.line(at(0), 0, at(0), 34, "ink", svg.INK, 1.2))
        drawn.append(
            svg.element(
                "rect",
                {
                    "x": svg.percent(at(0)),
                    "y": 11.5,
                    "width": "30%",
                    "height": 11,
                    "fill": svg.FILLS["missing"],
                    "stroke": svg.LINE,
                    "stroke-dasharray": "3 2",
                    "class": "f-missing outlined",
                },
            )
        )
        return svg.image(34, label, *drawn, kind="chart range")
    first = estimate.low_ms if estimate.low_ms is not None else estimate.expected_ms
    last = estimate.high_ms if estimate.high_ms is not None else estimate.expected_ms
    first, last = first or 0.0, last or 0.0
    if first < 0:
        drawn.append(_range_part(at(first), at(min(last, 0.0)), "loss"))
    if last > 0:
        drawn.append(_range_part(at(max(first, 0.0)), at(last), "range"))
    drawn.append(svg.line(at(0), 0, at(0), 34, "ink", svg.INK, 1.2))
    if estimate.expected_ms is not None:
        drawn.append(
            svg.line(at(estimate.expected_ms), 7, at(estimate.expected_ms), 27, "ink", svg.INK, 3.5)
        )
    return svg.image(34, label, *drawn, kind="chart range")


def _range_part(left: float, right: float, kind: str) -> Markup:
    return svg.element(
        "rect",
        {
            "x": svg.percent(left),
            "y": 11.5,
            "width": svg.percent(max(right - left, 0.002)),
            "height": 11,
            "fill": svg.FILLS[kind],
            "class": f"f-{kind} outlined",
            "stroke": "#A33F00" if kind == "loss" else "#2F7FB3",
        },
    )


def gain_axis(low: float, high: float, marks: Sequence[float], step: float | None) -> Markup:
    """The shared scale in % of the step (ms where no step is known)."""
    reach = (high - low) or 1.0
    drawn = []
    for mark in marks:
        value = mark / step * 100 if step else mark
        words = number(value, 0) + (" %" if mark == 0 and step else "")
        at = (mark - low) / reach
        anchor = "start" if at < 0.03 else "end" if at > 0.97 else "middle"
        drawn.append(svg.text(at, 12, words, anchor=anchor, kind="muted"))
    return svg.image(16, "", *drawn, hidden=True)


def waterfall(
    step: float, top: float, rows: Sequence[tuple[str, Estimate]]
) -> list[tuple[str, str, str, Markup, str]]:
    """Step time after each plan step: title, expected step, range, bar up to `top` ms, a note."""
    drawn = []
    before = step
    for title, estimate in rows:
        expected = estimate.expected_ms
        if not has_gain(estimate) or expected is None:
            drawn.append((title, "", estimate.reason or "no estimate", Markup(), ""))
            continue
        after = step - expected
        low = step - (estimate.high_ms if estimate.high_ms is not None else expected)
        high = step - (estimate.low_ms if estimate.low_ms is not None else expected)
        children = [
            svg.rect(0, 4, after / top, 20, "compute"),
            svg.rect(
                min(after, before) / top,
                4,
                abs(before - after) / top,
                20,
                "range" if after <= before else "loss",
            ),
            svg.line(max(low, 0) / top, 14, high / top, 14, "ink", svg.INK, 1.5),
            svg.line(max(low, 0) / top, 10, max(low, 0) / top, 18, "ink", svg.INK, 1.5),
            svg.line(high / top, 10, high / top, 18, "ink", svg.INK, 1.5),
        ]
        # A step without an estimate leaves the sum as it was: say so.
        note = "no gain of its own counted" if after == before else ""
        label = f"{title}: step {ms(after)} ms, {span(low, high)} ms"
        drawn.append((title, ms(after), span(low, high), svg.image(28, label, *children), note))
        before = after
    return drawn


# ------------------------------------------------------------------------------------ timeline

_BINS = 1200
"""Columns of the still picture of the timeline: a pixel each at the widest usual layout."""

_STILL_ORDER = ("compute", "expert", "comm", "wire", "other", "opaque")


def role_kind(role: str) -> str:
    """Colour of a role."""
    if role == "expert_gemm":
        return "expert"
    if role.startswith("ep_"):
        return "wire"
    if role.startswith(("dp_", "tp_", "cp_", "pp_", "collective_")):
        return "comm"
    if role in ("memcpy", "memset"):
        return "other"
    return "opaque" if role == "graph_opaque" else "compute"


def still_lane(slices: Sequence[tuple[float, float, str]], step_us: float) -> Markup:
    """One lane without script: slices snapped to columns, one path per colour."""
    paths: dict[str, list[tuple[int, int]]] = {}
    for start, length, kind in slices:
        first = int(max(0.0, min(start / step_us, 1.0)) * _BINS)
        last = int(max(0.0, min((start + length) / step_us, 1.0)) * _BINS)
        runs = paths.setdefault(kind, [])
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    drawn = []
    for kind in sorted(paths, key=lambda k: _STILL_ORDER.index(k) if k in _STILL_ORDER else -1):
        d = "".join(f"M{a} 0h{max(b - a, 1)}v10h-{max(b - a, 1)}z" for a, b in sorted(paths[kind]))
        drawn.append(
            svg.element(
                "path",
                {"d": d, "fill": svg.FILLS.get(kind, svg.FILLS["other"]), "class": f"f-{kind}"},
            )
        )
    return svg.element(
        "svg",
        {
            "viewBox": f"0 0 {_BINS} 10",
            "preserveAspectRatio": "none",
            "width": "100%",
            "height": "100%",
        },
        *drawn,
    )


def still_rows(timeline: Timeline) -> list[tuple[str, str, Markup, str]]:
    """Lanes of the still timeline: name, note, drawing and total."""
    step_us = timeline.step_ms * 1000 or 1.0
    kinds = [role_kind(role) for role in timeline.roles]
    lanes: dict[int, list[tuple[float, float, str]]] = {}
    columns = timeline.slices
    for lane, start, length, role in zip(
        columns.lane, columns.start_us, columns.dur_us, columns.role, strict=True
    ):
        lanes.setdefault(lane, []).append((start, length, kinds[role]))
    rows = []
    for lane, slices in sorted(lanes.items()):
        sums: dict[str, float] = {}
        for _, length, kind in slices:
            sums[kind] = sums.get(kind, 0.0) + length
        main = max(sorted(sums), key=lambda kind: sums[kind])
        note = {
            "expert": "compute",
            "wire": "EP all-to-all",
            "comm": "other communication",
            "other": "copies",
            "opaque": "CUDA graphs",
        }.get(main, "compute")
        rows.append(
            (
                timeline.lanes[lane].capitalize(),
                note,
                _still_image(still_lane(slices, step_us), 34, f"{timeline.lanes[lane]}: {note}"),
                "",
            )
        )
    for title, note, kind, spans in (
        ("Exposed", "nothing hides it", "wire", timeline.exposed),
        ("Hidden", "under compute", "hidden", timeline.hidden),
    ):
        if spans:
            total = sum(max(0.0, pair[1] - pair[0]) for pair in spans) / 1000
            lane_slices = [(pair[0], pair[1] - pair[0], kind) for pair in spans]
            label = f"{title} communication: {ms(total)} ms"
            rows.append(
                (title, note, _still_image(still_lane(lane_slices, step_us), 16, label), ms(total))
            )
    if timeline.gaps:
        total = sum(gap[1] for gap in timeline.gaps) / 1000
        lane_slices = [
            (gap[0], gap[1], "idle" if gap[2] == "dependency_idle" else "host")
            for gap in timeline.gaps
        ]
        label = f"GPU idle: {ms(total)} ms"
        rows.append(
            (
                "Gaps",
                "GPU idle",
                _still_image(still_lane(lane_slices, step_us), 16, label),
                ms(total),
            )
        )
    return rows


def _still_image(inner: Markup, height: int, label: str) -> Markup:
    return svg.image(height, label, inner, kind="chart lane")


# ------------------------------------------------------------------------------------ heat map


def heat_level(wait_ms: float) -> int:
    """Which of the five colours a waiting time has."""
    return sum(wait_ms >= limit for limit in HEAT_LIMITS_MS)


HEAT_LEFT, HEAT_TOP, HEAT_SIZE, HEAT_GAP, HEAT_NODE = 96, 18, 12, 5, 8
"""Pixels of the heat map of many ranks; a gap after every eight ranks, a usual node."""


def heat_picture(view: CollectiveView, shown: Sequence[int]) -> Markup:
    """Collectives in launch order as rows, ranks as columns; colour only, for many ranks."""
    drawn = []

    def x_of(position: int) -> int:
        return HEAT_LEFT + position * HEAT_SIZE + (position // HEAT_NODE) * HEAT_GAP

    def label(x: float, y: float, words: str, anchor: str | None = None) -> Markup:
        return svg.element(
            "text",
            {"x": x, "y": y, "text-anchor": anchor, "fill": svg.MUTED, "class": "t-muted"},
            words,
        )

    for position, rank in enumerate(view.ranks):
        if position % HEAT_NODE == 0:
            drawn.append(label(x_of(position), 11, str(rank)))
    cells: list[list[str]] = [[] for _ in HEAT_COLOURS]
    side = HEAT_SIZE - 1
    for row, index in enumerate(shown):
        instance = view.instances[index]
        y = HEAT_TOP + row * HEAT_SIZE
        if row % 4 == 0:
            words = f"{instance.index} {instance.role.removeprefix('ep_')}"
            drawn.append(label(HEAT_LEFT - 8, y + 10, words, "end"))
        for position, wait in enumerate(instance.wait_ms[: len(view.ranks)]):
            cells[heat_level(wait)].append(f"M{x_of(position)} {y}h{side}v{side}h-{side}z")
    for level, marks in enumerate(cells):
        if marks:
            drawn.append(
                svg.element(
                    "path",
                    {"d": "".join(marks), "fill": HEAT_COLOURS[level], "class": f"h{level}"},
                )
            )
    width = x_of(len(view.ranks)) + HEAT_GAP
    words = (
        f"Waiting per collective and rank, {len(shown)} collectives × {len(view.ranks)} ranks; "
        "a light column in a dark field is a rank that everyone waits for"
    )
    picture = svg.image(HEAT_TOP + 4 + len(shown) * HEAT_SIZE, words, *drawn, kind="chart heat")
    return Markup(str(picture).replace('width="100%"', f'width="{width}"', 1))  # noqa: S704


def heat_data(view: CollectiveView, shown: Sequence[int]) -> dict[str, object]:
    """What the script needs to name the cell under the pointer."""
    return {
        "left": HEAT_LEFT,
        "top": HEAT_TOP,
        "size": HEAT_SIZE,
        "gap": HEAT_GAP,
        "node": HEAT_NODE,
        "ranks": view.ranks,
        "rows": [
            [
                f"{view.instances[i].role} {view.instances[i].index}",
                [round(wait, 2) for wait in view.instances[i].wait_ms[: len(view.ranks)]],
            ]
            for i in shown
        ],
    }
