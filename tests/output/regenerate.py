"""Writes the golden Markdown and JUnit files anew: `python -m tests.output.regenerate`.

Look at the difference before committing it.
"""

from pathlib import Path

from moe_advisor.output import junit, markdown
from tests.output.result_builder import ALL

GOLDEN = Path(__file__).parent / "golden"


def documents() -> dict[str, str]:
    """File name -> text of every golden file."""
    made = {}
    for name in ("balanced", "one_rank", "empty"):
        made[f"{name}.md"] = markdown.render(ALL[name]())
        made[f"{name}.xml"] = junit.render(ALL[name]())
    made["balanced.gated.xml"] = junit.render(ALL["balanced"](), findings_fail=True)
    return made


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in documents().items():
        (GOLDEN / name).write_text(text, encoding="utf-8")
