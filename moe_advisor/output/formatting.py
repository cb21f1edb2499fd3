"""The only place that rounds and formats numbers; every output prints them the same way."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from moe_advisor.result import Estimate, MetricValue

MINUS = "−"
NOT_MEASURED = "Not measured"

_HUGE = 1e9
"""From here digits say nothing to a reader: scientific notation."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_BREAKS = re.compile(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+")
_DROPPED = frozenset({"Cc", "Cs", "Co", "Cn"})
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as it is printed: `text` and its unit apart, `note` the spread or the range."""

    text: str
    unit: str
    note: str = ""
    measured: bool = True

    def __str__(self) -> str:
        """The figure on one line."""
        return f"{self.text} {self.unit}".strip()


def number(value: float, decimals: int = 1) -> str:
    """Thousands separated by commas, a real minus, never a negative zero."""
    if abs(value) >= _HUGE:
        return f"{value:.2e}".replace("-", MINUS)
    text = f"{value:,.{decimals}f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0.,") else MINUS + text[1:]
    return text


def ms(value: float, decimals: int = 1) -> str:
    """Milliseconds without their unit, one decimal unless told."""
    return number(value, decimals)


def share(value: float) -> str:
    """A share of 1 as per cent with one decimal: `55.1 %`."""
    return f"{number(value * 100)} %"


def points(value: float) -> str:
    """A difference of shares in points: `54.8`, whole numbers without a decimal."""
    text = number(value * 100)
    return text.removesuffix(".0")


def count(value: float) -> str:
    """A number of things: whole, or one decimal where it is a small mean."""
    if value == int(value) or abs(value) >= 100:
        return number(value, 0)
    return number(value)


def significant(value: float) -> str:
    """Two to four digits, whatever the size."""
    size = abs(value)
    if size >= 100:
        return number(value, 0)
    if size >= 10 or size == 0:
        return number(value)
    return number(value, 2)


def plural(value: float, one: str, many: str | None = None) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def span(low: float, high: float) -> str:
    """A range in words, so that a minus is never read as a dash: `−16.0 to 12.0`."""
    return f"{ms(low)} to {ms(high)}"


def quantity(value: float, unit: str) -> tuple[str, str]:
    """A value of a metric's unit as text and printed unit."""
    if unit == "ms/step":
        return ms(value), "ms"
    if unit == "share":
        return number(value * 100), "%"
    if unit == "ratio":
        return significant(value) if value < 1 else number(value), "×"
    if unit == "max/mean":
        return number(value, 2), "max/mean"
    if unit == "count/step":
        return count(value), "per step"
    if unit in ("GB/s", "GiB", "TFLOP/s"):
        return number(value), unit
    if unit == "tokens/s":
        return number(value, 0), unit
    return significant(value), unit


def headline_tokens(value: float) -> tuple[str, str]:
    """Tokens per second for a headline: `49.6`, `k tokens/s`."""
    if value >= 1e6:
        return number(value / 1e6, 2), "M tokens/s"
    if value >= 10_000:
        return number(value / 1e3), "k tokens/s"
    return number(value, 0), "tokens/s"


def figure(metric: MetricValue | None) -> Figure:
    """A metric as it is printed; `≈` marks an estimate, whose range is the note."""
    if metric is None or metric.status == "not_measured":
        return Figure(NOT_MEASURED, "", (metric.reason or "") if metric else "", measured=False)
    if metric.value is None:
        if metric.low is not None and metric.high is not None:
            low, unit = quantity(metric.low, metric.unit)
            return Figure(f"{low} to {quantity(metric.high, metric.unit)[0]}", unit)
        return Figure(NOT_MEASURED, "", metric.reason or "", measured=False)
    text, unit = quantity(metric.value, metric.unit)
    if metric.status == "estimated":
        note = ""
        if metric.low is not None and metric.high is not None:
            low = quantity(metric.low, metric.unit)[0]
            note = f"{low} to {quantity(metric.high, metric.unit)[0]}"
        return Figure(f"≈ {text}", unit, note)
    spread = quantity(metric.spread, metric.unit)[0] if metric.spread else ""
    return Figure(text, unit, f"±{spread}" if spread else "")


def gain(estimate: Estimate, step_ms: float | None) -> str:
    """An estimate in one phrase: `expected 26.6 ms (8.0 %), range 6.7 to 47.0 ms`."""
    if not has_gain(estimate):
        return f"gain not measured: {estimate.reason or 'no estimate'}"
    parts = []
    if estimate.expected_ms is not None:
        of = f" ({share(estimate.expected_ms / step_ms)})" if step_ms else ""
        parts.append(f"expected {ms(estimate.expected_ms)} ms{of}")
    if estimate.low_ms is not None and estimate.high_ms is not None:
        parts.append(f"range {span(estimate.low_ms, estimate.high_ms)} ms")
    return ", ".join(parts)


def has_gain(estimate: Estimate) -> bool:
    """Whether there is any number to show."""
    return estimate.status != "not_measured" and any(
        value is not None for value in (estimate.low_ms, estimate.expected_ms, estimate.high_ms)
    )


def tenths(value: float) -> int:
    """A value in whole tenths, rounded as `ms` prints it."""
    return int(f"{value:.1f}".replace(".", ""))


def add_up(values: Sequence[float], total: float, absorbing: int | None = None) -> list[int]:
    """Whole tenths whose sum is the printed total.

    Each value is rounded on its own; what is then missing goes to the part at `absorbing` ("other")
    where that leaves it at zero or more, else a tenth each to the parts whose rounding was worst.
    """
    if not values:
        return []
    rounded = [tenths(value) for value in values]
    missing = tenths(total) - sum(rounded)
    # Beyond rounding the parts just don't make up the total: show that, don't hide it.
    if missing == 0 or abs(missing) > len(values):
        return rounded
    if absorbing is not None and rounded[absorbing] + missing >= 0:
        rounded[absorbing] += missing
        return rounded
    sign = 1 if missing > 0 else -1
    by_error = sorted(range(len(values)), key=lambda i: (sign * (rounded[i] - values[i] * 10), i))
    for i in by_error[: abs(missing)]:
        rounded[i] += sign
    return rounded


def from_tenths(value: int) -> str:
    """Whole tenths as they are printed."""
    return number(value / 10)


def clean(text: str, limit: int = 1500) -> str:
    """Text from a trace or a rule, made harmless: no control or direction characters, one line."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    if len(text) > 4 * limit:
        text = text[: 4 * limit]
    text = _BREAKS.sub(" ", _ANSI.sub("", text))
    if not text.isascii():
        text = "".join(
            char
            for char in text
            if char not in _DIRECTION and unicodedata.category(char) not in _DROPPED
        )
    elif not text.isprintable():
        text = "".join(char for char in text if char.isprintable())
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, the end replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def middle_cut(text: str, limit: int) -> str:
    """At most `limit` characters with the middle left out: both ends of a kernel name matter."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return text[: limit - 1 - tail] + "…" + text[-tail:]
