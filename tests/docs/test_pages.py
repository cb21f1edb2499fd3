"""Pages are run, generated pages are fresh, the site builds and needs no network."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import generate
import pytest
import run_blocks

from moe_advisor.measure.registry import Metric

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_command_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path, environment: dict[str, str]
) -> None:
    problems = run_blocks.run(page, environment)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_no_bash_block_escapes_the_runner(page: Path) -> None:
    text = page.read_text()
    found = run_blocks.blocks(text)
    assert len(found) == len(re.findall(r"^ *```bash$", text, re.MULTILINE))
    assert all(one.skipped is None or len(one.skipped) > 10 for one in found)
    assert any(one.skipped is None for one in found)


PRINTS_OTHER_THINGS = "```bash\necho one two\n```\n\n```text\none three\n```\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\necho one   two three\n```\n\n```text\none ... three\n```\n", None),
        (PRINTS_OTHER_THINGS, "does not print 'one three'"),
        ("```bash\necho b\necho a\n```\n\n```text\na\nb\n```\n", "does not print 'b'"),
        ("```bash\nfalse\necho after\n```\n", "failed"),
        ("<!-- exits: 1 -->\n\n```bash\nfalse\n```\n", None),
        ("<!-- exits: 1 -->\n\n```bash\ntrue\n```\n", "exit 0, not 1"),
        ("<!-- not run: because -->\n\n```bash\nfalse\n```\n", None),
        ("```bash\nname=kept\n```\n\n```bash\necho $name\n```\n\n```text\nkept\n```\n", None),
    ],
)
def test_the_runner_tells_right_from_wrong(
    text: str, problem: str | None, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "page.md").write_text(text)
    problems = run_blocks.run(tmp_path / "page.md", environment)
    assert bool(problems) == bool(problem)
    assert problem is None or problem in problems[0]


def test_generated_pages_say_what_the_code_says() -> None:
    assert generate.stale() == [], "run: python docs/generate.py"


def test_a_stale_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(generate.PAGES, "reference/metrics.md", lambda: "something else")
    assert generate.stale() == ["reference/metrics.md"]


@pytest.mark.parametrize(
    ("unit", "definition", "expected"),
    [
        ("share", "ep_a2a_exposed_ms divided by step_ms.", "step_ms"),
        ("ms/step", "Union of all kernels.", "step"),
        ("GB/s", "Bytes divided by their transfer time.", "their transfer time"),
        ("GiB", "Highest level.", "none: a level of one GPU"),
    ],
)
def test_a_metric_has_its_denominator(unit: str, definition: str, expected: str) -> None:
    assert generate.denominator(Metric("x", unit, "X", definition)) == expected


def _mkdocs(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )


def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    if _mkdocs(["--version"]).returncode and not os.environ.get("MOE_ADVISOR_REQUIRE_DOCS"):
        pytest.skip("the extra docs is not installed")
    done = _mkdocs(["build", "--strict", "-q", "-d", str(tmp_path)])
    assert done.returncode == 0, done.stderr[-2000:]
    fetched = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>""")
    links = re.compile(r"""<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>""")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        text = page.read_text()
        assert not fetched.search(text), page.name
        assert not links.search(text), page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name
    # What search needs from a folder, without a server.
    assert (tmp_path / "search" / "search_index.js").is_file()
    assert "iframe-worker.js" in (tmp_path / "index.html").read_text()
