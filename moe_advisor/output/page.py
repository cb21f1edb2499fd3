"""Small pages in the look of the report: no script, nothing loaded, one style sheet inside."""

import base64
import hashlib
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moe_advisor import __version__
from moe_advisor.resources import templates_dir


def render(template: str, context: dict[str, Any]) -> str:
    """The template of `compare/` with the report's colours; the same context, the same bytes."""
    folder = templates_dir()
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    css = "\n".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("report.css", "compare/compare.css")
    )
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    own = {
        "css": Markup(css),  # noqa: S704 - our own files
        "policy": policy,
        "version": __version__,
    }
    return environment.get_template(template).render(context | own)
