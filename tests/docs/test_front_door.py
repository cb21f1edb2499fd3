"""README, CONTRIBUTING, changelog and container: what a newcomer follows word by word."""

import os
import re
import shutil
from pathlib import Path

import pytest
import run_blocks

from moe_advisor import __version__

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]


def test_the_first_block_of_the_readme_is_the_two_commands() -> None:
    first = re.search(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None
    assert first[1].splitlines() == [
        "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/moe-advisor demo",
        ".venv/bin/pip install -q '.[test]' && .venv/bin/python -m pytest -q",
    ]


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    targets += re.findall(r'(?:src|srcset)="([^":]+)"', text)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_the_readme_shows_misses_beside_hits() -> None:
    import generate

    validation = (ROOT / "docs" / "validation.md").read_text()
    misses = validation.count("| miss")
    text = generate.readme()
    assert text == README, "run: python docs/generate.py"
    assert text.partition("The misses: ")[2].partition("\n")[0].count("predicted") == misses


def test_both_ten_minute_paths_work_when_followed_literally(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    copy = tmp_path / "clone"
    copy.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "fixtures")
    for name in ("moe_advisor", "rules", "reports", "docs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    for name in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    found = run_blocks.blocks((copy / "CONTRIBUTING.md").read_text())
    assert len([one for one in found if one.skipped is None]) >= 5
    own = {**environment, "PYTHONPATH": str(copy)}
    problems = run_blocks.run(copy / "CONTRIBUTING.md", own, copy)
    assert not problems, "\n".join(problems)
    assert (copy / "docs" / "rules" / "logging-in-step.md").is_file()
    assert "acme-router" in (copy / "docs" / "reference" / "roles.md").read_text()


def test_the_changelog_knows_the_version_or_holds_it_as_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}", head) for head in heads[1:])
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_container_copies_what_exists_and_runs_as_a_user_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and line[0] not in "# "]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        word.removeprefix("./")
        for verb, rest in steps
        if verb == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored, "the build can't see it"
    users = [rest for verb, rest in steps if verb == "USER"]
    assert len(users) == 1
    assert users[0].isdigit()
    assert int(users[0]) > 0
    assert steps[-2] == ["ENTRYPOINT", '["moe-advisor"]']
    assert os.path.isabs(next(rest for verb, rest in steps if verb == "WORKDIR"))
