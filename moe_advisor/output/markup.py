"""Text and data made safe for the report, with figures and settings marked up."""

import re
from typing import Any

import msgspec
from markupsafe import Markup, escape

from moe_advisor.output import svg
from moe_advisor.output.formatting import MINUS, share

_FIGURE = re.compile(
    r"(?<![\w.#])(?:≈ )?[−+±]?\d[\d,]*(?:\.\d+)?(?: to [−]?\d[\d,]*(?:\.\d+)?)?"
    r"(?: of \d[\d,]*(?:\.\d+)?)?(?: ?(?:ms|%|GB/s|GiB|GB|×|points))(?![\w/])"
)


_CODE = re.compile(
    r"(?<![\w/-])(--[a-z][\w-]{1,30}(?:[ =][A-Z][A-Z=]{1,12})?|[a-zA-Z]\w{0,30}_\w{1,40})(?![\w-])"
)


_HYPHENATED = re.compile(r"[\w(]+(?:-\w+){1,3}[:;,.)]?")


def embed(data: Any) -> Markup:
    """JSON that may stand in a script element whatever its strings hold."""
    text = msgspec.json.encode(data).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - no character of it can end the element


def prose(text: str) -> Markup:
    """Text with its figures in bold and its settings in code."""
    made = []
    at = 0
    matches = sorted(
        [(m.start(), m.end(), "b") for m in _FIGURE.finditer(text)]
        + [(m.start(), m.end(), "code") for m in _CODE.finditer(text)]
    )
    for start, end, tag in matches:
        if start < at:
            continue
        made += [escape(text[at:start]), Markup(f"<{tag}>"), escape(text[start:end])]  # noqa: S704
        made.append(Markup(f"</{tag}>"))  # noqa: S704
        at = end
    return Markup("").join([*made, escape(text[at:])])


def unbroken(text: str) -> Markup:
    """Text whose short hyphenated words stay on one line."""
    return Markup("").join(
        Markup('<span class="nb">{}</span>').format(word) if _HYPHENATED.fullmatch(word) else word
        for word in re.split(r"(\s+)", text)
    )


def signed_share(value: float) -> str:
    """A change as per cent with its sign, also where it is positive."""
    text = share(value)
    return text if text.startswith(MINUS) else f"+{text}"


def level_mark(kind: str, level: int) -> Markup:
    """Chevrons for how bad a finding is, filled dots for how sure its estimate is."""
    shapes = []
    for i in range(3):
        on = i < level
        if kind == "severity":
            y = 13 - 4 * i
            shapes.append(
                svg.element(
                    "path",
                    {
                        "d": f"M3 {y}l5 -4l5 4",
                        "fill": "none",
                        "stroke-width": 1.8,
                        "stroke": "#A33F00" if on else "#D8DEE5",
                        "class": "c-on" if on else "c-off",
                    },
                )
            )
        else:
            shapes.append(
                svg.element(
                    "circle",
                    {
                        "cx": 5 + 10 * i,
                        "cy": 8,
                        "r": 3.8,
                        "stroke": svg.INK,
                        "fill": svg.INK if on else "none",
                        "class": "d-on" if on else "d-off",
                    },
                )
            )
    width = 16 if kind == "severity" else 30
    return svg.element(
        "svg",
        {
            "width": width,
            "height": 16,
            "aria-hidden": "true",
            "focusable": "false",
            "class": "mark",
        },
        *shapes,
    )


def sort(value: float | None) -> str:
    """A value to sort by; empty sorts last, never among zeros."""
    return "" if value is None else repr(round(float(value), 6))
