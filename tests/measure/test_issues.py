"""Every capture issue that the program can raise is explained in the one table."""

import ast
from pathlib import Path

from moe_advisor.issues import ISSUES

PACKAGE = Path(__file__).parents[2] / "moe_advisor"
MAKERS = ("CaptureIssue", "issue")


def raised() -> set[str]:
    """Ids that some module hands to `CaptureIssue` or to the report's `issue`, and tables of them.

    A table is a tuple of tuples that begin with an id and a severity.
    """
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                named = [k.value for k in node.keywords if k.arg == "id"]
                first = [*named, *node.args][:1]
                if name in MAKERS and first and isinstance(first[0], ast.Constant):
                    found.add(first[0].value)
            elif isinstance(node, ast.Tuple) and len(node.elts) == 4:
                identifier, severity = node.elts[:2]
                text = ast.unparse(severity)
                if isinstance(identifier, ast.Constant) and (
                    text in ("warning", "info") or text.startswith("Severity.")
                ):
                    found.add(str(identifier.value))
    return found


def test_the_table_holds_every_issue_and_no_other() -> None:
    assert raised() == set(ISSUES)


def test_every_text_is_a_sentence() -> None:
    for name, text in ISSUES.items():
        for part in (text.meaning, text.effect, text.remedy):
            assert part[0].isupper(), name
            assert part.endswith("."), name
