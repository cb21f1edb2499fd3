"""Builds inline SVG: every colour is a presentation attribute, so charts survive without styles.

Widths are percentages of the place a chart stands in, heights are pixels: text keeps its size on
every screen. A class of the same name as a colour lets the style sheet change it in dark mode.
"""

from collections.abc import Mapping

from markupsafe import Markup, escape

Attribute = str | int | float | None

FILLS = {
    "expert": "#0072B2",
    "compute": "#56B4E9",
    "wire": "#D55E00",
    "wait": "url(#p-wait)",
    "unsplit": "url(#p-unsplit)",
    "hidden": "url(#p-hidden)",
    "comm": "#CC79A7",
    "host": "url(#p-host)",
    "idle": "url(#p-idle)",
    "memory": "#009E73",
    "opaque": "#9AA5B1",
    "other": "#E3E7EC",
    "missing": "url(#p-missing)",
    "loss": "url(#p-loss)",
    "range": "#B5D6EB",
}
"""Fill of each kind of part: Okabe-Ito colours, patterns as the second cue."""

INK, MUTED, LINE, GRID, PAGE = "#14181F", "#4A5563", "#8C96A2", "#E3E7EC", "#FFFFFF"

CHAR_PX = 6.9
"""Width of a 12 px character in the widest of the fallback fonts, with room to spare."""

REFERENCE_PX = 1000
"""Width of a chart in the 1280 px layout: labels are placed for it and hidden where it is less."""

_STEPS_PX = (240, 320, 420, 560, 720, 900, 1000)


def element(name: str, attributes: Mapping[str, Attribute], *children: str | Markup) -> Markup:
    """One SVG element; text is escaped, `Markup` children are not. None drops an attribute."""
    written = "".join(
        f' {key}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(str(escape(child)) for child in children)
    if not inside:
        return Markup(f"<{name}{written}/>")  # noqa: S704 - built from escaped parts only
    return Markup(f"<{name}{written}>{inside}</{name}>")  # noqa: S704


def _value(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
    return str(value)


def percent(fraction: float) -> str:
    """A fraction of the chart's width."""
    return f"{_value(round(fraction * 100, 3) + 0.0)}%"


def image(
    height: int, label: str, *children: Markup, kind: str = "chart", hidden: bool = False
) -> Markup:
    """A drawing as wide as its place; `label` states what it shows."""
    attributes: dict[str, Attribute] = {
        "class": kind,
        "width": "100%",
        "height": height,
        "role": None if hidden else "img",
        "aria-hidden": "true" if hidden else None,
        "aria-label": None if hidden else label,
        "focusable": "false",
        "font-family": "system-ui, sans-serif",
        "font-size": "12",
    }
    if not hidden:
        children = (element("title", {}, label), *children)
    return element("svg", attributes, *children)


def rect(
    x: float, y: float, width: float, height: float, kind: str, *, title: str = "", gap: bool = True
) -> Markup:
    """A bar from `x` over `width` (fractions), with a hairline of the page's colour around it."""
    children = (element("title", {}, title),) if title else ()
    return element(
        "rect",
        {
            "x": percent(x),
            "y": y,
            "width": percent(max(width, 0.0)),
            "height": height,
            "fill": FILLS.get(kind, FILLS["other"]),
            "class": f"f-{kind}{' gap' if gap else ''}",
            "stroke": PAGE if gap else None,
            "stroke-width": 1 if gap else None,
        },
        *children,
    )


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    kind: str = "axis",
    colour: str = LINE,
    width: float = 1,
) -> Markup:
    """A straight line; x are fractions, y pixels."""
    return element(
        "line",
        {
            "x1": percent(x1),
            "y1": y1,
            "x2": percent(x2),
            "y2": y2,
            "stroke": colour,
            "stroke-width": width,
            "class": f"l-{kind}",
        },
    )


def text(
    x: float,
    y: float,
    content: str,
    *,
    anchor: str = "start",
    kind: str = "ink",
    dx: float = 0,
    weight: int | None = None,
    need: float = 0,
    size: int | None = None,
) -> Markup:
    """A label at `x` (a fraction) moved by `dx` pixels; hidden where the chart is below `need` px.

    A label that needs more than the reference width is left out: the table has its figure.
    """
    if need > _STEPS_PX[-1]:
        return Markup()
    colour = {"muted": MUTED, "onexpert": PAGE}.get(kind, INK)
    return element(
        "text",
        {
            "x": percent(x),
            "y": y,
            "dx": dx or None,
            "text-anchor": None if anchor == "start" else anchor,
            "fill": colour,
            "font-weight": weight,
            "font-size": size,
            "class": f"t-{kind} {need_class(need)}".rstrip(),
        },
        content,
    )


def need_class(need: float) -> str:
    """The class that hides a label where the chart is narrower than `need` px."""
    if need <= 0:
        return ""
    return f"q{next((width for width in _STEPS_PX if need <= width), _STEPS_PX[-1])}"


def text_px(content: str, size: float = 12) -> float:
    """An upper estimate of a label's width."""
    return len(content) * CHAR_PX * size / 12


def patterns() -> Markup:
    """The page's patterns, defined once; they work without styles and in grey print."""

    def pattern(name: str, size: float, turn: int, *children: Markup) -> Markup:
        return element(
            "pattern",
            {
                "id": f"p-{name}",
                "width": size,
                "height": size,
                "patternUnits": "userSpaceOnUse",
                "patternTransform": f"rotate({turn})" if turn else None,
            },
            *children,
        )

    def box(size: float, fill: str, name: str) -> Markup:
        return element("rect", {"width": size, "height": size, "fill": fill, "class": f"pf-{name}"})

    def stroke(path: str, colour: str, name: str, width: float) -> Markup:
        return element(
            "path",
            {
                "d": path,
                "stroke": colour,
                "stroke-width": width,
                "fill": "none",
                "class": f"ps-{name}",
            },
        )

    wire, page = FILLS["wire"], PAGE
    defs = element(
        "defs",
        {},
        pattern("wait", 7, 45, box(7, page, "page"), stroke("M2 0V7", wire, "wire", 4)),
        pattern("unsplit", 12, 45, box(12, wire, "wire"), stroke("M1 0V12", page, "page", 1.5)),
        pattern(
            "hidden",
            5,
            0,
            box(5, page, "page"),
            element("circle", {"cx": 2.5, "cy": 2.5, "r": 1.3, "fill": wire, "class": "pf-wire"}),
        ),
        pattern(
            "host", 6, 0, box(6, "#E69F00", "host"), stroke("M0 .5H6M.5 0V6", "#7A4F00", "grid", 1)
        ),
        pattern("idle", 4, 45, box(4, page, "page"), stroke("M1 0V4", "#9AA5B1", "idle", 1.4)),
        pattern("missing", 9, -45, box(9, page, "page"), stroke("M1 0V9", "#9AA5B1", "idle", 1)),
        pattern("loss", 5, 45, box(5, "#FCEBE0", "tint"), stroke("M1 0V5", "#A33F00", "bad", 2)),
    )
    return element(
        "svg",
        {"width": 0, "height": 0, "class": "defs", "aria-hidden": "true", "focusable": "false"},
        defs,
    )


def swatch(kind: str) -> Markup:
    """A square of a kind's colour and pattern for legends and tables."""
    return element(
        "svg",
        {"class": "swatch", "width": 14, "height": 14, "aria-hidden": "true", "focusable": "false"},
        element(
            "rect",
            {
                "x": 0.5,
                "y": 0.5,
                "width": 13,
                "height": 13,
                "fill": FILLS.get(kind, FILLS["other"]),
                "class": f"f-{kind}",
                "stroke": FILLS["wire"] if kind == "hidden" else None,
            },
        ),
    )
