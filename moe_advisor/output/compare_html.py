"""A comparison as one self-contained HTML page without scripts."""

from collections.abc import Sequence
from typing import Any

from moe_advisor.compare.model import Comparison, Share
from moe_advisor.output import compare_text, page
from moe_advisor.output.compare_text import WORDS
from moe_advisor.output.formatting import clean, ms, plural

TONES = {"better": "good", "worse": "bad", "cant_tell": "warn", "changed": "none"}


def render(comparison: Comparison) -> str:
    """The page."""
    deltas = compare_text.listed(comparison.deltas)
    named = {one.name for one in deltas}
    others = [one for one in comparison.deltas if one.name not in named]
    return page.render(
        "compare/compare.html",
        {
            "title": clean(comparison.headline, 200),
            "cause": clean(comparison.cause),
            "verdict": WORDS[comparison.verdict],
            "tone": TONES.get(comparison.verdict, "none"),
            "sides": [
                {
                    "role": words,
                    "name": clean(side.name, 80),
                    "identity": [clean(one, 120) for one in side.identity],
                    "size": f"{plural(side.repeats, 'run')}, {plural(side.steps, 'step')}",
                }
                for words, side in (("Base", comparison.base), ("New", comparison.new))
            ],
            "checks": [
                {"id": one.id, "state": one.state, "message": clean(one.message, 400)}
                for one in comparison.checks
            ],
            "tables": [
                {"id": "metrics", "title": "What changed", "rows": [_row(one) for one in deltas]},
                {"id": "others", "title": "The rest", "rows": [_row(one) for one in others]},
            ],
            "shares": [
                _shares("parts", "Where the step changed", comparison.parts),
                _shares("causes", "Causes", comparison.causes),
                _shares("roles", "Roles", comparison.roles),
                _shares("ranks", "Ranks", comparison.ranks),
            ],
            "config": [
                {
                    "key": clean(one.key, 120),
                    "base": "not known" if one.base is None else clean(str(one.base), 200),
                    "new": "not known" if one.new is None else clean(str(one.new), 200),
                    "source": one.source,
                }
                for one in comparison.config
            ],
        },
    )


def _row(one: Any) -> dict[str, str]:
    bounds = ""
    if one.low is not None and one.high is not None:
        low, high = (compare_text.signed(value, one.unit) for value in (one.low, one.high))
        bounds = f"{low} to {high}"
    change = one.window_change
    return {
        "name": one.name,
        "title": one.title,
        "base": compare_text.value(one.base, one.unit),
        "new": compare_text.value(one.new, one.unit),
        "change": "" if change is None else compare_text.signed(change, one.unit),
        "relative": compare_text.relative(one),
        "bounds": bounds,
        "verdict": WORDS[one.verdict],
        "tone": TONES.get(one.verdict, "none"),
        "reason": clean(one.reason, 300),
    }


def _shares(name: str, title: str, shares: Sequence[Share]) -> dict[str, Any]:
    """Bars from the middle: left of it shorter, right of it longer; widths in per cent."""
    largest = max((abs(one.change_ms) for one in shares), default=0.0) or 1.0
    rows = []
    for one in shares[:20]:
        width = 50 * abs(one.change_ms) / largest
        rows.append(
            {
                "label": clean(one.label, 120),
                "base": ms(one.base_ms),
                "new": ms(one.new_ms),
                "change": compare_text.signed(one.change_ms, "ms/step"),
                "x": f"{50 - width if one.change_ms < 0 else 50:.2f}%",
                "width": f"{width:.2f}%",
                "kind": "less" if one.change_ms < 0 else "more",
            }
        )
    return {"id": name, "title": title, "rows": rows}
