"""The report: one HTML file that works offline, without scripts and without styles."""

import base64
import functools
import hashlib
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moe_advisor.output import plan_view, run_view, svg, tile_view, verdict_view
from moe_advisor.output.formatting import cut, ms, plural, share
from moe_advisor.output.html_evidence import idle_section, roles_section, timeline_section
from moe_advisor.output.html_method import method_section
from moe_advisor.output.html_plan import plan_section, whatif_section
from moe_advisor.output.html_ranks import ranks_section
from moe_advisor.output.html_summary import time_section, walls_section
from moe_advisor.output.html_why import why_section
from moe_advisor.output.markup import level_mark, prose, signed_share, unbroken
from moe_advisor.output.tidy import tidy
from moe_advisor.output.timeline import jumps
from moe_advisor.resources import templates_dir
from moe_advisor.result import Result


def render(result: Result) -> str:
    """The report as one HTML document; the same result gives the same bytes."""
    shown = tidy(result)
    folder = templates_dir()
    texts = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js", "theme.js")
    }
    context = _context(shown)
    context |= {
        "css": Markup(texts["report.css"]),  # noqa: S704 - our own files
        "js": Markup(texts["report.js"]),  # noqa: S704
        "theme_js": Markup(texts["theme.js"]),  # noqa: S704
        "policy": _policy(texts),
        "patterns": svg.patterns(),
    }
    return _environment().get_template("base.html").render(context)


def prepare() -> None:
    """Compiles the templates, two thirds of what a report takes: for a thread beside others."""
    environment = _environment()
    for name in environment.list_templates(
        filter_func=lambda name: name.endswith(".html") and not name.startswith("compare/")
    ):
        environment.get_template(name)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "prose": prose,
        "share": share,
        "unbroken": unbroken,
        "signed_share": signed_share,
    }
    environment.globals |= {"swatch": svg.swatch, "level_mark": level_mark}
    return environment


def _policy(texts: dict[str, str]) -> str:
    """Nothing may load, and only the three texts of this page may run or style."""

    def digest(name: str) -> str:
        value = hashlib.sha256(texts[name].encode()).digest()
        return f"'sha256-{base64.b64encode(value).decode()}'"

    return (
        f"default-src 'none'; script-src {digest('theme.js')} {digest('report.js')}; "
        f"style-src {digest('report.css')}; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _context(result: Result) -> dict[str, Any]:
    step = run_view.step_ms(result)
    plan = plan_view.plan(result)
    first = plan.main[0] if plan.main else None
    tone, words = run_view.capture_state(result)
    whatif = whatif_section(result)
    sections = [("verdict", "Verdict"), ("time", "Time"), ("plan", "Plan")]
    sections += [("whatif", "What-if")] if whatif["waterfall"] else []
    sections += [("evidence", "Evidence"), ("method", "Method")]
    found_jumps = jumps(result)
    notes = [issue for issue in result.capture.issues if issue.severity != "info"]
    return {
        "result": result,
        "definitions": result.definitions,
        "run_name": cut(run_view.run_name(result), 60),
        "identity": run_view.identity(result),
        "sections": sections,
        "step": ms(step) if step else "",
        "verdict": {
            "label": verdict_view.verdict_label(result),
            "tone": verdict_view.verdict_tone(result),
            "detail": verdict_view.verdict_detail(result),
            "prefix": verdict_view.partial_prefix(result),
        },
        "capture": {
            "tone": tone,
            "words": words,
            "rows": run_view.capture_rows(result),
            "notes": plural(len(notes), "note") + " on this capture" if notes else "",
        },
        "first": first,
        "first_gain": plan_view.gain_text(first, step) if first else "",
        "nothing": plan_view.nothing_to_do(result),
        "questions": verdict_view.open_questions(result),
        "tiles": tile_view.tiles(result),
        "ranks_line": tile_view.ranks_line(result),
        **walls_section(result),
        **time_section(result),
        **plan_section(result, plan, step, found_jumps),
        **whatif,
        **timeline_section(result, found_jumps),
        **roles_section(result),
        **ranks_section(result),
        **idle_section(result, step),
        **why_section(result),
        **method_section(result),
    }
